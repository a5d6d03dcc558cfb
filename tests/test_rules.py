"""Mask rules against slow and obvious definitions, their densities against the formulas, and what index form saves."""

import tracemalloc
from itertools import product

import numpy as np
import pytest

from hae_lab import HAELabError, rules
from hae_lab.masks import PAD, SparseMask, TokenGrid
from hae_lab.rules import DENSITIES, RULES, expected_density, mask_for

GRIDS = [TokenGrid(*sides) for sides in ((4, 4), (8, 8), (12, 20), (16, 16), (24, 40), (7, 9))]
RANDOM_RULES = ("document", "document_shared", "always_regional")


def label(grid: TokenGrid) -> str:
    return f"{grid.height}x{grid.width}"


def allowed_matrices(mask: SparseMask) -> np.ndarray:
    """(groups, n, n), True = the query sees the key."""
    return ~mask.blocked().reshape(mask.groups, mask.grid.n, mask.grid.n)


def place(grid: TokenGrid, token: int) -> tuple[int, int, int]:
    """Patch size, and row and column among the patches of that size, of a token."""
    for p in (1, *grid.scales):
        tokens = (grid.height // p) * (grid.width // p)
        if token < tokens:
            return p, *divmod(token, grid.width // p)
        token -= tokens
    raise IndexError(token)


# definitions


@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_document_shared_is_the_band_and_columns_that_64_queries_share(grid):
    mask = mask_for("document_shared", grid, seed=3)
    document = mask_for("document", grid, seed=3)
    band = np.abs(np.subtract.outer(range(grid.n), range(grid.n))) <= max(1, int(grid.n * (1 - 0.9))) // 2
    (allowed,) = allowed_matrices(mask)
    for first in range(0, grid.n, 64):
        columns = np.flatnonzero((allowed & ~band)[first : first + 64].any(axis=0))
        shared = mask.extra[0, first // 64]
        assert set(columns) <= set(shared)
        for query in range(first, min(first + 64, grid.n)):
            assert set(np.flatnonzero(allowed[query])) == set(np.flatnonzero(band[query])) | set(shared)
    assert mask.extra.shape == (1, -(-grid.n // 64), document.extra.shape[2])
    assert all(len(set(columns)) == len(columns) for columns in mask.extra[0])


@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_always_regional_is_the_document_and_all_regional_tokens(grid):
    (allowed,), (document,) = (
        allowed_matrices(mask_for(rule, grid, seed=3)) for rule in ("always_regional", "document")
    )
    assert (allowed[:, : grid.n_local] == document[:, : grid.n_local]).all()
    assert allowed[:, grid.n_local :].all()


@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_spatial_reduction_gives_each_head_group_one_scale(grid):
    allowed = allowed_matrices(mask_for("spatial_reduction", grid))
    scale_of_key = np.array([place(grid, token)[0] for token in range(grid.n)])
    assert len(allowed) == max(1, len(grid.scales))
    for group, p in enumerate(grid.scales or (1,)):
        assert (allowed[group] == (scale_of_key == p)).all()


def test_spatial_reduction_without_a_scale_is_dense():
    assert mask_for("spatial_reduction", TokenGrid(7, 9)).is_dense


@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_window2d_is_the_nearest_window_that_fits_and_all_regional_tokens(grid):
    (allowed,) = allowed_matrices(mask_for("window2d", grid))
    height, width = rules.window_sides(grid, 0.9)
    for query in range(grid.n):
        p, row, column = place(grid, query)
        row, column = row * p + p // 2, column * p + p // 2  # the centre of a patch, the pixel itself
        top = min(range(grid.height - height + 1), key=lambda top: abs(top + height // 2 - row))
        left = min(range(grid.width - width + 1), key=lambda left: abs(left + width // 2 - column))
        window = np.zeros((grid.height, grid.width), bool)
        window[top : top + height, left : left + width] = True
        assert window[row, column]
        assert (allowed[query, : grid.n_local] == window.ravel()).all()
    assert allowed[:, grid.n_local :].all()


@pytest.mark.parametrize("grid", [*GRIDS, TokenGrid(64, 64), TokenGrid(3, 40), TokenGrid(1, 200)], ids=label)
def test_window_is_odd_and_near_square_with_the_density_nearest_to_the_document(grid):
    height, width = rules.window_sides(grid, 0.9)
    assert height % 2 == width % 2 == 1
    assert (height <= grid.height) & (width <= grid.width)
    document = grid.n * expected_density("document", grid, queries="all")
    regional = grid.n - grid.n_local
    sides = product(range(1, grid.height + 1, 2), range(1, grid.width + 1, 2))
    candidates = [a * b for a, b in sides if 0 <= b - a <= 2]
    assert abs(height * width + regional - document) <= min(abs(a + regional - document) for a in candidates)


def test_window_is_wide_where_the_map_is_narrow():
    assert rules.window_sides(TokenGrid(1, 200, (1,)), 0.9) == (1, 23)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_every_query_sees_a_key_and_index_form_is_int32(grid, rule):
    mask = mask_for(rule, grid)
    assert allowed_matrices(mask).any(axis=2).all()
    assert {mask.start.dtype, mask.stop.dtype, mask.extra.dtype} == {np.dtype(np.int32)}
    assert mask.start.shape == mask.stop.shape == (mask.groups, grid.n)
    assert mask.extra.shape[:2] == (1, -(-grid.n // mask.share))


@pytest.mark.parametrize("rule", RULES)
def test_only_the_random_rules_depend_on_the_seed(rule):
    grid = TokenGrid(16, 16)
    first, again, other = (RULES[rule](grid, 0.9, seed).blocked() for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first == other).all() == (rule not in RANDOM_RULES)


# views of a mask


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_views_are_those_of_the_matrix(grid, rule):
    mask = mask_for(rule, grid)
    allowed = allowed_matrices(mask)
    pixels = allowed[:, : grid.n_local]
    queries, keys = np.array([0, 3, grid.n_local - 1]), np.array([1, 2, grid.n - 1])
    for group in range(mask.groups):
        assert (mask.seen(queries, group) == allowed[group, queries].any(axis=0)).all()
        assert (mask.allowed(queries, group, keys) == allowed[group][np.ix_(queries, keys)]).all()
        assert mask.keys(3, group).tolist() == np.flatnonzero(allowed[group, 3]).tolist()
        assert (mask.keys_per_query(group) == allowed[group].sum(axis=1)).all()
    seen = np.flatnonzero(pixels.any(axis=(0, 1)))
    assert mask.span == (seen[0], seen[-1] + 1)
    assert mask.density() == pytest.approx(pixels.mean())
    assert mask.density("all") == pytest.approx(allowed.mean())


@pytest.mark.parametrize("rule", RULES)
def test_intervals_are_there_when_all_pixels_see_one(rule):
    grid = TokenGrid(8, 8)
    expected = {"dense": ((0, 69),), "spatial_reduction": ((64, 68), (68, 69))}
    assert mask_for(rule, grid).intervals == expected.get(rule)


@pytest.mark.parametrize("rule", ["document", "document_shared", "always_regional", "window2d"])
def test_new_columns_are_those_that_open_something(rule):
    mask = mask_for(rule, TokenGrid(12, 20))
    (allowed,) = allowed_matrices(mask)
    for query, new in enumerate(mask.new_columns(np.arange(mask.grid.n))):
        open_anyway = set(range(mask.start[0, query], mask.stop[0, query])) | set(range(*mask.always))
        assert set(new) - {PAD} == set(np.flatnonzero(allowed[query])) - open_anyway
        assert len(set(new) - {PAD}) == (new != PAD).sum()


# densities


@pytest.mark.parametrize("rule", DENSITIES)
@pytest.mark.parametrize("queries", ["local", "all"])
@pytest.mark.parametrize("grid", [TokenGrid(12, 20), TokenGrid(32, 32)], ids=label)
def test_measured_density_is_the_expected(grid, queries, rule):
    measured = np.mean([mask_for(rule, grid, seed=seed).density(queries) for seed in range(8)])
    # only random columns that fall on visible keys differ from draw to draw
    tolerance = 2e-3 if rule in RANDOM_RULES else 1e-12
    assert measured == pytest.approx(expected_density(rule, grid, queries=queries), abs=tolerance)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_density_of_the_document_is_the_closed_form(sparsity):
    grid = TokenGrid(32, 32)
    n, keep = grid.n, int(grid.n * (1 - sparsity))
    half, count = keep // 2, keep // 4
    band = (n * (2 * half + 1) - half * (half + 1)) / n**2
    expected = band + count / n * (1 - band)
    assert expected_density("document", grid, sparsity, "all") == pytest.approx(expected, rel=1e-12)
    assert expected_density("document_shared", grid, sparsity, "all") == pytest.approx(expected, rel=1e-12)


def test_unknown_density_is_refused():
    with pytest.raises(HAELabError, match="unknown set of queries 'locals': did you mean 'local'"):
        mask_for("dense", TokenGrid(4, 4)).density("locals")
    with pytest.raises(HAELabError, match="unknown rule with a known density 'documents'"):
        expected_density("documents", TokenGrid(4, 4))


# memory


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_makes_a_matrix_on_the_largest_map(rule):
    grid = TokenGrid(128, 128)
    tracemalloc.start()
    mask = RULES[rule](grid, 0.9, 0)
    mask.keys_per_query()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.75 * grid.n**2  # bytes: less than a matrix of bool


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda grid, sparsity, seed: np.zeros((grid.n, grid.n), bool), "must give a SparseMask of"),
        (lambda grid, sparsity, seed: rules.dense(TokenGrid(2, 2), sparsity, seed), "got TokenGrid.height=2, width=2"),
    ],
)
def test_a_rule_that_gives_no_mask_of_its_grid_is_refused(rule, message, monkeypatch):
    monkeypatch.setitem(RULES, "own", rule)
    with pytest.raises(HAELabError, match=message):
        mask_for("own", TokenGrid(4, 4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, r"sparsity is in \[0, 1\), got -0.1"),
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
        ({"seed": 0.5}, "seed is a whole number from 0, got 0.5"),
    ],
)
def test_values_that_no_mask_has_are_refused(values, message):
    with pytest.raises(HAELabError, match=message):
        mask_for("document", TokenGrid(4, 4), **values)
