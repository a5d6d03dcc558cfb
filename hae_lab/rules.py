"""The mask rules: functions `(grid, sparsity, seed) -> SparseMask`, by name in `RULES`, which takes more.

No rule makes an n x n array. Source of the `document` rule: the HAE design document, section "稀疏注意力机制"
(`create_sparse_mask`).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hae_lab.checks import HAELabError, plain, require, require_name, require_number, require_seed
from hae_lab.masks import SparseMask, TokenGrid, in_own_thread
from hae_lab.parts import Registry

SHARE = 64  # queries that share their random columns in `document_shared`

Rule = Callable[[TokenGrid, float, int], SparseMask]


def document(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """The document's mask: a band along the token index, and random columns drawn for each query by itself."""
    n = grid.n
    start, stop, random_columns = _band(n, sparsity)
    extra = distinct_columns(n, n, random_columns, np.random.default_rng(seed))
    return SparseMask(grid, start, stop, extra[None], kernel="columns")


def document_shared(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """The document's law for each query, its random columns shared by 64 consecutive queries: `document` made fast."""
    n = grid.n
    start, stop, random_columns = _band(n, sparsity)
    extra = distinct_columns(-(-n // SHARE), n, random_columns, np.random.default_rng(seed))
    return SparseMask(grid, start, stop, extra[None], share=SHARE, kernel="blocks")


def always_regional(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """`document`, and every regional token always visible: its repair."""
    return replace(document(grid, sparsity, seed), always=(grid.n_local, grid.n))


def spatial_reduction(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """One head group a regional scale, which sees all tokens of that scale and no others; without a scale, `dense`.

    Sparsity and seed have no say. Source: Lu et al. 2024, IEEE Transactions on Image Processing, where half of the
    heads see the 4 x 4 tokens and half the 8 x 8.
    """
    spans = [grid.span(p) for p in grid.scales] or [(0, grid.n)]
    start, stop = np.repeat(np.array(spans, np.int32).T[:, :, None], grid.n, axis=2)  # (G, n) each
    return SparseMask(grid, start, stop, _no_columns(grid), kernel="slices")


def window2d(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """A 2-D window of pixels around each pixel, and every regional token; about as dense as `document`.

    At the borders the window is shifted inwards, so that every pixel sees equally many keys. The row of a regional
    token, which no block computes, is that of the pixel at the centre of its patch. The seed has no say.
    """
    sides = window_sides(grid, sparsity)
    rows, columns = (
        np.clip(centre - side // 2, 0, length - side)[:, None] + np.arange(side, dtype=np.int32)  # (n, side)
        for centre, side, length in zip(grid.centres, sides, (grid.height, grid.width), strict=True)
    )
    window = (rows[:, :, None] * np.int32(grid.width) + columns[:, None, :]).reshape(1, grid.n, -1)
    nothing = np.zeros((1, grid.n), np.int32)
    return SparseMask(grid, nothing, nothing, window, always=(grid.n_local, grid.n), kernel="blocks")


def dense(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """Every query sees every key."""
    start = np.zeros((1, grid.n), np.int32)
    return SparseMask(grid, start, start + np.int32(grid.n), _no_columns(grid), kernel="slices")


RULES: Registry[Rule] = Registry(
    "mask rule",
    {
        "document": document,
        "document_shared": document_shared,
        "always_regional": always_regional,
        "spatial_reduction": spatial_reduction,
        "window2d": window2d,
        "dense": dense,
    },
)


def mask_for(rule: str, grid: TokenGrid, sparsity: float = 0.9, seed: int = 0) -> SparseMask:
    """The mask of a rule on a grid, from a cache that all layers share.

    Raises `HAELabError` for an unknown rule, one that gives no mask of this grid, and values out of range.
    """
    return made_mask(RULES.find(rule), grid, plain(sparsity), plain(seed))


@lru_cache(maxsize=32)
def made_mask(rule: Rule, grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """What a rule makes of a grid; errors as in `mask_for`."""
    sparsity, seed = require_sparsity(sparsity), require_seed("seed", seed)
    name = getattr(rule, "__name__", repr(rule))
    try:
        mask = in_own_thread(rule, grid, sparsity, seed)
    except MemoryError:
        raise HAELabError(
            f"mask rule {name} needs more memory than there is for the {grid.n:,} tokens of {grid}"
        ) from None
    fits = isinstance(mask, SparseMask) and mask.grid == grid
    require(fits, f"mask rule {name} must give a SparseMask of {grid}, got {getattr(mask, 'grid', mask)!r}")
    return mask


def require_sparsity(sparsity: float) -> float:
    """The sparsity. Raises `HAELabError` unless it is a share: a percentage is none."""
    return require_number("sparsity", sparsity, 0, 1, high_open=True)


def head_groups(rule: str, grid: TokenGrid) -> int:
    """Into how many equal groups a rule of the package splits the heads; those of users say so when a mask is made."""
    return len(grid.scales) or 1 if rule == "spatial_reduction" and RULES.is_own(rule) else 1


def _band(n: int, sparsity: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The document's band, (1, n) start and stop, and its number of random columns a query."""
    sparsity = require_sparsity(sparsity)
    # the document's expression: 1 - 0.9 is 0.09999..., so this is one below n // 10 for every n divisible by 10
    keep = max(1, int(n * (1 - sparsity)))
    row = np.arange(n, dtype=np.int32)[None]
    start = np.maximum(0, row - keep // 2)
    stop = np.minimum(n, row + keep // 2 + 1)
    return start, stop, max(1, keep // 4) if keep > 4 else 0


def _no_columns(grid: TokenGrid) -> np.ndarray:
    return np.empty((1, grid.n, 0), np.int32)


def window_sides(grid: TokenGrid, sparsity: float) -> tuple[int, int]:
    """Height and width of the window of `window2d`: odd, near-square, the density nearest to that of `document`."""
    area = grid.n * expected_density("document", grid, sparsity, "all") - (grid.n - grid.n_local)
    # the largest odd side that fits; on a narrow map the window is narrow too
    tallest, widest = ((side - 1) // 2 * 2 + 1 for side in (grid.height, grid.width))
    sides = [
        (min(height, tallest), min(width, widest))
        for height in range(1, max(tallest, widest) + 1, 2)
        for width in (height, height + 2)
    ]
    return min(sides, key=lambda pair: abs(pair[0] * pair[1] - area))


def distinct_columns(rows: int, n: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` different columns of n for each row, uniform over all subsets: (rows, count) int32.

    Draws with replacement, then redraws each repeated column until none repeats. The result does not depend on which
    columns are favoured, so every subset is equally likely.
    """
    require(count <= n, f"{count} different columns of {n} do not exist")
    columns = np.sort(generator.integers(n, size=(rows, count), dtype=np.int32), axis=1)
    keys = (n * np.arange(rows)[:, None] + columns).ravel()  # ascending, one number a (row, column)
    places = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    redrawn = np.empty(0, np.int64)
    while len(places):
        drawn = places // count * n + generator.integers(n, size=len(places))
        first = np.zeros(len(drawn), bool)
        first[np.unique(drawn, return_index=True)[1]] = True
        nearest = keys[np.minimum(np.searchsorted(keys, drawn), len(keys) - 1)]
        fresh = first & (nearest != drawn) & ~np.isin(drawn, redrawn)
        columns.flat[places[fresh]] = drawn[fresh] % n
        redrawn = np.concatenate([redrawn, drawn[fresh]])
        places = places[~fresh]
    return columns


def expected_density(rule: str, grid: TokenGrid, sparsity: float = 0.9, queries: str = "local") -> float:
    """Share of the keys that a query sees, averaged over queries, head groups and random draws, by formula.

    Shares of "local" queries or of "all". Raises `HAELabError` for a rule without a formula.
    """
    require_name("rule with a known density", rule, DENSITIES)
    require_name("set of queries", queries, ("local", "all"))
    return DENSITIES[rule](grid, require_sparsity(sparsity), grid.n if queries == "all" else grid.n_local)


def _band_density(grid: TokenGrid, sparsity: float, rows: int, always: int = 0) -> float:
    """Band and random columns of the first `rows` queries, the last `always` keys visible anyway."""
    n = grid.n
    start, stop, random_columns = _band(n, sparsity)
    start, stop = np.minimum(start, n - always), np.minimum(stop, n - always)
    certain = float((stop - start)[0, :rows].mean()) + always
    return certain / n + random_columns / n * (1 - certain / n)  # a random column may hit what is visible already


def _always_regional_density(grid: TokenGrid, sparsity: float, rows: int) -> float:
    return _band_density(grid, sparsity, rows, always=grid.n - grid.n_local)


def _reduction_density(grid: TokenGrid, sparsity: float, rows: int) -> float:
    shares = [grid.n_local / p**2 / grid.n for p in grid.scales] or [1.0]
    return sum(shares) / len(shares)


def _window_density(grid: TokenGrid, sparsity: float, rows: int) -> float:
    height, width = window_sides(grid, sparsity)
    return (height * width + grid.n - grid.n_local) / grid.n


def _full_density(grid: TokenGrid, sparsity: float, rows: int) -> float:
    return 1.0


DENSITIES: dict[str, Callable[[TokenGrid, float, int], float]] = {
    "document": _band_density,
    "document_shared": _band_density,
    "always_regional": _always_regional_density,
    "spatial_reduction": _reduction_density,
    "window2d": _window_density,
    "dense": _full_density,
}
