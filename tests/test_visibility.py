"""Visibility, against the matrix of each mask on small maps."""

import numpy as np
import pytest

from hae_lab import HAELabError, rules
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.profilers.reach import carried_pixels, visibility
from hae_lab.rules import mask_for

GRIDS = [TokenGrid(4, 4), TokenGrid(8, 8), TokenGrid(12, 20), TokenGrid(16, 16)]
EVERY_RULE = pytest.mark.parametrize("rule", rules.RULES)


def matrix(grid: TokenGrid, rule: str) -> np.ndarray:
    """(n_local, n) bool, True = some head group of the pixel sees the key."""
    blocked = mask_for(rule, grid).blocked()
    allowed = ~blocked if blocked.ndim == 2 else ~blocked.all(axis=0)
    return allowed[: grid.n_local]


def row(grid: TokenGrid, rule: str) -> dict:
    return visibility(grid, rule).iloc[0].to_dict()


def patch_of(grid: TokenGrid, pixel: int, p: int) -> int:
    """Token of the patch that a pixel lies in, by counting patches one by one."""
    token = grid.n_local
    for scale in (4, 8):
        if grid.height % scale or grid.width % scale:
            continue
        for top in range(0, grid.height, scale):
            for left in range(0, grid.width, scale):
                y, x = divmod(pixel, grid.width)
                if scale == p and top <= y < top + scale and left <= x < left + scale:
                    return token
                token += 1
    raise AssertionError


@EVERY_RULE
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_keys_and_empty_rows_are_those_of_the_matrix(grid, rule):
    keys, found = matrix(grid, rule).sum(axis=1), row(grid, rule)
    assert (found["keys_min"], found["keys_max"]) == (keys.min(), keys.max())
    assert found["keys_median"] == np.median(keys)
    assert found["empty_rows"] == (keys == 0).sum() == 0


@EVERY_RULE
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_empty_blocks_are_counted_square_by_square(grid, rule):
    blocked, found = mask_for(rule, grid).blocked(), row(grid, rule)
    groups = blocked[None] if blocked.ndim == 2 else blocked
    for side in (16, 64, 128):
        squares = [
            group[top : min(top + side, grid.n_local), left : left + side].all()
            for group in groups
            for top in range(0, grid.n_local, side)
            for left in range(0, grid.n, side)
        ]
        assert found[f"empty_blocks_{side}_percent"] == pytest.approx(100 * np.mean(squares))


@EVERY_RULE
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_own_patches_and_scales_are_those_of_the_matrix(grid, rule):
    allowed, found = matrix(grid, rule), row(grid, rule)
    for p in (4, 8):
        if p not in grid.scales:
            assert np.isnan(found[f"own_{p}_percent"])
            assert found[f"sees_{p}_percent"] == 0
            continue
        own = [allowed[pixel, patch_of(grid, pixel, p)] for pixel in range(grid.n_local)]
        first, last = patch_of(grid, 0, p), patch_of(grid, grid.n_local - 1, p)
        assert found[f"own_{p}_percent"] == pytest.approx(100 * np.mean(own))
        assert found[f"sees_{p}_percent"] == pytest.approx(100 * allowed[:, first : last + 1].any(axis=1).mean())


@EVERY_RULE
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighbourhood_is_that_of_the_matrix(grid, rule):
    allowed = matrix(grid, rule)
    y, x = np.divmod(np.arange(grid.n_local), grid.width)
    near = (abs(y[:, None] - y) <= 3) & (abs(x[:, None] - x) <= 3)
    expected = 100 * allowed[:, : grid.n_local][near].mean()
    assert row(grid, rule)["neighbourhood_percent"] == pytest.approx(expected)


@EVERY_RULE
@pytest.mark.parametrize("grid", [TokenGrid(4, 4), TokenGrid(4, 8)], ids=str)
def test_hops_are_powers_of_the_pixel_matrix(grid, rule):
    # a pixel reads the pixels it sees, those of the patches it sees, and itself
    allowed, pixels = matrix(grid, rule), grid.n_local
    reads = allowed[:, :pixels] | np.eye(pixels, dtype=bool)
    for p in grid.scales:
        for pixel in range(pixels):
            reads[:, pixel] |= allowed[:, patch_of(grid, pixel, p)]
    reach, distance = np.eye(pixels, dtype=bool), np.full((pixels, pixels), -1)
    for hop in range(pixels + 1):
        distance[reach & (distance < 0)] = hop
        reach = (reach.astype(int) @ reads.astype(int)) > 0
    found, others = row(grid, rule), distance[distance != 0]
    assert found["reach_2_percent"] == pytest.approx(100 * ((distance >= 0) & (distance <= 2)).mean())
    assert found["unreachable_percent"] == pytest.approx(100 * (others < 0).mean())
    if (others > 0).any():
        assert found["hops_mean"] == pytest.approx(others[others > 0].mean())
        assert found["hops_max"] == others.max()


def test_a_regional_key_carries_the_pixels_of_its_patch():
    grid = TokenGrid(8, 8)
    tokens = np.zeros(grid.n, bool)
    tokens[grid.span(4)[0] + 1] = True  # top right 4 x 4 patch
    carried = carried_pixels(grid, tokens).reshape(8, 8)
    assert carried[:4, 4:].all()
    assert carried.sum() == 16


def test_density_is_measured_beside_the_formula():
    found = row(TokenGrid(32, 32), "document")
    assert found["density_expected"] == pytest.approx(0.1212, abs=5e-5)
    assert found["density"] == pytest.approx(found["density_expected"], abs=1e-3)


def test_dropped_scales_are_named():
    assert row(TokenGrid(4, 4), "document")["dropped"] == "8"


def test_a_rule_of_the_user_profiles_without_a_formula(monkeypatch):
    grid = TokenGrid(4, 4)
    own = SparseMask.from_blocked(~np.eye(grid.n, dtype=bool), grid)
    monkeypatch.setitem(rules.RULES, "own", lambda grid, sparsity, seed: own)
    found = row(grid, "own")
    assert np.isnan(found["density_expected"])
    assert (found["keys_min"], found["keys_max"], found["unreachable_percent"]) == (1, 1, 100)


def test_unknown_rule_is_named():
    with pytest.raises(HAELabError, match="unknown mask rule 'documnet': did you mean 'document'"):
        visibility(TokenGrid(4, 4), "documnet")


@pytest.mark.slow
def test_the_largest_map_needs_no_n_x_n_array(monkeypatch):
    rows = []
    allowed = SparseMask.allowed
    monkeypatch.setattr(SparseMask, "allowed", lambda self, q, *rest: rows.append(len(q)) or allowed(self, q, *rest))
    visibility(TokenGrid(128, 128), "document_shared")
    assert max(rows) <= 256
