"""Who sees whom under a mask rule: densities, keys a query, own patches, neighbourhoods, hops.

Only the pixels ask, so all shares are over the local queries. Where a rule gives head groups masks of their own, a key
counts as seen if any of them sees it; densities are means over the groups. No n x n array is made.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.rules import DENSITIES, expected_density, mask_for

CHUNK = 256  # queries that are looked at together
SAMPLE = 32  # pixels from which hops are counted
NEIGHBOURHOOD = 7  # pixels along one side
BLOCKS = 3  # stacked blocks whose reach is reported
TILES = (16, 64, 128)  # tokens along a side of the squares that a kernel may leave out; multiples of the first


def visibility(grid: TokenGrid, rule: str, sparsity: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """One row: what the pixels of a map see under a rule.

    Columns: rule, sparsity, seed, height, width, n, n_local (tokens), dropped (patch sizes that do not divide the map),
    density_expected (by formula; NaN for a rule without one), density, empty_blocks_B_percent (B x B squares of queries
    and keys without one kept pair, which a kernel that works in squares can leave out; those at the edge may be cut
    off), keys_min, keys_median, keys_max (keys a query),
    sees_P_percent (queries that see a token of scale P), own_P_percent (that see the token of their own patch; NaN if
    the scale does not exist), neighbourhood_percent (of the 7 x 7 pixels around), reach_K_percent (pixels that can
    change a pixel's output after K stacked blocks), hops_mean, hops_max (blocks until one pixel reaches another, over
    pairs that ever meet), unreachable_percent (pairs that never do), empty_rows.
    Raises `HAELabError` for an unknown rule.
    """
    mask = mask_for(rule, grid, sparsity, seed)
    known = rule in DENSITIES
    row = {"rule": rule, "sparsity": sparsity, "seed": seed, "height": grid.height, "width": grid.width}
    row |= {"n": grid.n, "n_local": grid.n_local, "dropped": ", ".join(map(str, grid.dropped))}
    row["density_expected"] = expected_density(rule, grid, sparsity) if known else float("nan")
    row |= {"density": mask.density(), **empty_blocks(mask), **_keys(mask), **_sights(mask), **_hops(mask)}
    return pd.DataFrame([row])


def empty_blocks(mask: SparseMask, tiles: tuple[int, ...] = TILES) -> dict[str, float]:
    """Percent of the squares of pixels and keys in which no pair is kept, by side; a mean over the head groups.

    Each side is a multiple of the first.
    """
    first, n = tiles[0], mask.grid.n
    queries = np.split(np.arange(mask.grid.n_local), range(first, mask.grid.n_local, first))
    keys = np.arange(0, n, first)
    kept = [[np.logical_or.reduceat(mask.seen(some, group), keys) for some in queries] for group in range(mask.groups)]
    squares: np.ndarray = np.array(kept)  # (groups, squares of queries, squares of keys)
    shares = {}
    for side in tiles:
        merged = squares
        for axis in (1, 2):
            merged = np.logical_or.reduceat(merged, np.arange(0, merged.shape[axis], side // first), axis=axis)
        shares[f"empty_blocks_{side}_percent"] = 100 * float((~merged).mean())
    return shares


def seen_by_any_group(mask: SparseMask, queries: np.ndarray) -> np.ndarray:
    """The keys that at least one of the queries sees, in any head group: (n,) bool."""
    return np.any([mask.seen(queries, group) for group in range(mask.groups)], axis=0)


def carried_pixels(grid: TokenGrid, tokens: np.ndarray) -> np.ndarray:
    """The pixels that a set of tokens holds, a regional token those of its patch: (n,) bool -> (n_local,) bool."""
    pixels = tokens[: grid.n_local].reshape(grid.height, grid.width).copy()
    for p in grid.scales:
        patches = tokens[slice(*grid.span(p))].reshape(grid.height // p, grid.width // p)
        pixels |= patches.repeat(p, axis=0).repeat(p, axis=1)
    return pixels.ravel()


def _keys(mask: SparseMask) -> dict[str, Any]:
    rows = mask.grid.n_local
    if mask.intervals is not None:  # every pixel sees the same keys
        keys = np.full(rows, seen_by_any_group(mask, np.arange(1)).sum())
    elif mask.groups == 1:
        keys = mask.keys_per_query()[:rows]
    else:
        keys = np.concatenate([allowed.sum(axis=1) for _, allowed in _chunks(mask)])
    counts = {"keys_min": int(keys.min()), "keys_median": float(np.median(keys)), "keys_max": int(keys.max())}
    return counts | {"empty_rows": int((keys == 0).sum())}


def _chunks(mask: SparseMask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some pixels, and the keys that they see: (q,), (q, n) bool."""
    for start in range(0, mask.grid.n_local, CHUNK):
        queries = np.arange(start, min(start + CHUNK, mask.grid.n_local))
        yield queries, np.any([mask.allowed(queries, group) for group in range(mask.groups)], axis=0)


def _sights(mask: SparseMask) -> dict[str, float]:
    """Shares of the regional scales, the own patches and the neighbourhood that are seen, in percent."""
    grid = mask.grid
    patches = [p for p in grid.patch_sizes if p > 1]
    sums = dict.fromkeys([f"{what}_{p}" for what in ("sees", "own") for p in patches], 0)
    around, neighbours = 0, 0
    for queries, allowed in _chunks(mask):
        for p in grid.scales:
            sums[f"sees_{p}"] += allowed[:, slice(*grid.span(p))].any(axis=1).sum()
            sums[f"own_{p}"] += allowed[np.arange(len(queries)), grid.parent(p)[queries]].sum()
        keys, inside = _neighbours(grid, queries)
        around += (np.take_along_axis(allowed, keys, axis=1) & inside).sum()
        neighbours += inside.sum()
    shares = {f"{name}_percent": 100 * count / grid.n_local for name, count in sums.items()}
    shares |= {f"own_{p}_percent": float("nan") for p in grid.dropped}
    return shares | {"neighbourhood_percent": 100 * around / neighbours}


def _neighbours(grid: TokenGrid, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels around each query, itself included, and whether they lie on the map: (q, 49) and (q, 49) bool."""
    steps = np.arange(NEIGHBOURHOOD) - NEIGHBOURHOOD // 2
    row, column = np.divmod(queries, grid.width)
    rows, columns = row[:, None, None] + steps[:, None], column[:, None, None] + steps  # (q, 7, 1), (q, 1, 7)
    inside = (rows >= 0) & (rows < grid.height) & (columns >= 0) & (columns < grid.width)
    keys = np.clip(rows, 0, grid.height - 1) * grid.width + np.clip(columns, 0, grid.width - 1)
    return keys.reshape(len(queries), -1), inside.reshape(len(queries), -1)


def _hops(mask: SparseMask) -> dict[str, float]:
    """Blocks that it takes from one pixel to another, over all pairs that start at a sample of pixels."""
    grid = mask.grid
    starts = np.unique(np.linspace(0, grid.n_local - 1, min(SAMPLE, grid.n_local)).round().astype(int))
    hops = np.stack([_hops_from(mask, start) for start in starts])  # (sample, n_local), -1 = never
    others = hops[hops != 0]
    met = others[others > 0]
    reach = {f"reach_{k}_percent": 100 * float(((hops >= 0) & (hops <= k)).mean()) for k in range(1, BLOCKS + 1)}
    return reach | {
        "hops_mean": float(met.mean()) if len(met) else float("nan"),
        "hops_max": float(met.max()) if len(met) else float("nan"),
        "unreachable_percent": 100 * float((others < 0).mean()) if len(others) else 0.0,
    }


def _hops_from(mask: SparseMask, start: int) -> np.ndarray:
    """Blocks until each pixel can change the output of one pixel: 0 itself, -1 never; (n_local,)."""
    hops = np.full(mask.grid.n_local, -1)
    hops[start], front, block = 0, np.array([start]), 0
    while len(front) and (hops < 0).any():
        block += 1
        reached = carried_pixels(mask.grid, seen_by_any_group(mask, front))
        front = np.flatnonzero(reached & (hops < 0))
        hops[front] = block
    return hops
