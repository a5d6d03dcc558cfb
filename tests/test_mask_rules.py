"""The mask rules beside `document`: each against its definition, pixel by pixel."""

import numpy as np
import pytest

from hae_lab import rules
from hae_lab.masks import TokenGrid
from hae_lab.rules import expected_density, mask_for, window_sides

GRIDS = [TokenGrid(4, 4), TokenGrid(8, 8), TokenGrid(12, 20), TokenGrid(16, 16), TokenGrid(24, 40)]
EVERY_GRID = pytest.mark.parametrize("grid", GRIDS, ids=str)


def allowed(rule: str, grid: TokenGrid, seed: int = 0) -> np.ndarray:
    """(n, n), or (groups, n, n) bool, True = may attend."""
    return ~mask_for(rule, grid, seed=seed).blocked()


def band(grid: TokenGrid) -> np.ndarray:
    keep = max(1, int(grid.n * (1 - 0.9)))
    token = np.arange(grid.n)
    return abs(token[:, None] - token) <= keep // 2


@EVERY_GRID
def test_shared_columns_are_those_of_the_block_of_64(grid):
    kept, inside = allowed("document_shared", grid), band(grid)
    keep = max(1, int(grid.n * (1 - 0.9)))
    count = max(1, keep // 4) if keep > 4 else 0
    assert kept[inside].all()
    for start in range(0, grid.n, 64):
        block = slice(start, start + 64)
        far = kept[block] & ~inside[block]
        # one draw a block: no query sees a far column that another sees not, unless its own band holds it
        columns = far.any(axis=0)
        assert (far == columns & ~inside[block]).all()
        assert columns.sum() <= count


def test_shared_columns_differ_from_block_to_block_and_from_seed_to_seed():
    grid = TokenGrid(32, 32)
    first = mask_for("document_shared", grid).extra[0]
    assert len({tuple(sorted(row)) for row in first}) == len(first)
    assert not np.array_equal(first, mask_for("document_shared", grid, seed=1).extra[0])


@EVERY_GRID
def test_always_regional_is_document_with_every_regional_token(grid):
    expected = allowed("document", grid)
    expected[:, grid.n_local :] = True
    assert np.array_equal(allowed("always_regional", grid), expected)


@EVERY_GRID
def test_spatial_reduction_gives_each_head_group_one_scale(grid):
    kept = np.atleast_3d(allowed("spatial_reduction", grid)).reshape(-1, grid.n, grid.n)
    assert len(kept) == len(grid.scales)
    for group, p in zip(kept, grid.scales, strict=True):
        expected = np.zeros((grid.n, grid.n), bool)
        expected[:, slice(*grid.span(p))] = True
        assert np.array_equal(group, expected)


def test_spatial_reduction_without_a_scale_is_dense():
    assert allowed("spatial_reduction", TokenGrid(5, 7)).all()


@EVERY_GRID
def test_window_is_a_rectangle_on_the_map_around_the_pixel(grid):
    kept = allowed("window2d", grid)
    height, width = window_sides(grid, 0.9)
    assert height % 2 == width % 2 == 1
    assert abs(height - width) <= 2 or height in (grid.height, grid.height - 1)
    for pixel in range(grid.n_local):
        y, x = divmod(pixel, grid.width)
        rows, columns = np.nonzero(kept[pixel, : grid.n_local].reshape(grid.height, grid.width))
        assert len(rows) == height * width
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (height, width)
        assert rows.min() <= y <= rows.max()
        assert columns.min() <= x <= columns.max()
        # shifted only as far as the border demands
        assert rows.min() == np.clip(y - height // 2, 0, grid.height - height)
        assert columns.min() == np.clip(x - width // 2, 0, grid.width - width)
    assert kept[:, grid.n_local :].all()


@pytest.mark.parametrize("side", [16, 32, 64])
def test_window_is_about_as_dense_as_the_document(side):
    grid = TokenGrid(side, side)
    document = expected_density("document", grid)
    assert mask_for("window2d", grid).density() == pytest.approx(document, rel=0.12)


@EVERY_GRID
def test_dense_sees_everything(grid):
    assert allowed("dense", grid).all()
    assert mask_for("dense", grid).is_dense


@pytest.mark.parametrize("rule", rules.RULES)
@EVERY_GRID
def test_counts_are_those_of_the_matrix(rule, grid):
    mask = mask_for(rule, grid)
    matrix = allowed(rule, grid).reshape(-1, grid.n, grid.n)
    for group, kept in enumerate(matrix):
        assert np.array_equal(mask.keys_per_query(group), kept.sum(axis=1))
        assert np.array_equal(mask.keys(grid.n_local // 2, group), np.flatnonzero(kept[grid.n_local // 2]))
    assert mask.density() == pytest.approx(matrix[:, : grid.n_local].mean())
    assert mask.density("all") == pytest.approx(matrix.mean())


@pytest.mark.parametrize("rule", rules.RULES)
def test_measured_density_is_the_expected_one(rule):
    grid, seeds = TokenGrid(16, 16), range(20)
    measured = [mask_for(rule, grid, seed=seed).density() for seed in seeds]
    error = np.std(measured) / np.sqrt(len(seeds))
    assert abs(np.mean(measured) - expected_density(rule, grid)) <= 3 * error + 1e-12
