"""Who may see whom: the tokens of a multi-scale block, and the sparse masks over them in index form.

A rule is a function `(grid, sparsity, seed) -> SparseMask`; `RULES` holds them by name and takes more. No rule makes an
n x n array. Source of the `document` rule: the HAE design document, section "稀疏注意力机制" (`create_sparse_mask`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from hae_lab.errors import require, require_name

PAD = -1  # fills up `extra` where queries keep unequally many columns


@dataclass(frozen=True)
class TokenGrid:
    """Which token is which on a map: every pixel, then one token a patch of each regional scale, in raster order.

    A patch size that does not divide the map is dropped, as in the published code; `dropped` names it.
    """

    height: int
    width: int
    patch_sizes: tuple[int, ...] = (1, 4, 8)

    @cached_property
    def scales(self) -> tuple[int, ...]:
        """The regional patch sizes that divide the map."""
        return tuple(p for p in self.patch_sizes if p > 1 and self.height % p == 0 and self.width % p == 0)

    @cached_property
    def dropped(self) -> tuple[int, ...]:
        return tuple(p for p in self.patch_sizes if p > 1 and p not in self.scales)

    @property
    def n_local(self) -> int:
        return self.height * self.width

    @cached_property
    def n(self) -> int:
        """Number of tokens of all scales."""
        return self.n_local + sum(self.n_local // p**2 for p in self.scales)

    def span(self, patch_size: int) -> tuple[int, int]:
        """First token of a scale and one past its last; patch size 1 is the pixels."""
        start = 0
        for p in (1, *self.scales):
            stop = start + self.n_local // p**2
            if p == patch_size:
                return start, stop
            start = stop
        raise KeyError(patch_size)

    def parent(self, patch_size: int) -> np.ndarray:
        """Token of the patch that each pixel lies in: (n_local,)."""
        row, column = np.divmod(np.arange(self.n_local), self.width)
        return self.span(patch_size)[0] + row // patch_size * (self.width // patch_size) + column // patch_size


@dataclass(frozen=True, eq=False)
class SparseMask:
    """Kept keys per query: an interval, `extra` columns, and the interval `always` that every query sees.

    Shapes, for G head groups (heads are split evenly over them): `start`, `stop` (G, n) int32; `extra`
    (G or 1, ceil(n / share), r) int32, where `share` consecutive queries read the same row and PAD means none. A key
    named twice counts once. `kernel` is the kernel of `models.attention` that suits the rule.
    """

    grid: TokenGrid
    start: np.ndarray
    stop: np.ndarray
    extra: np.ndarray
    share: int = 1
    always: tuple[int, int] = (0, 0)
    kernel: str = "masked"

    @property
    def groups(self) -> int:
        return self.start.shape[0]

    @cached_property
    def is_dense(self) -> bool:
        return bool((self.start == 0).all() and (self.stop == self.grid.n).all())

    def allowed(self, queries: np.ndarray, group: int = 0) -> np.ndarray:
        """(len(queries), n) bool, True = the query sees the key."""
        n = self.grid.n
        keys = np.arange(n, dtype=np.int32)
        allowed = (keys >= self.start[group, queries, None]) & (keys < self.stop[group, queries, None])
        allowed[:, self.always[0] : self.always[1]] = True
        columns = self.extra[min(group, len(self.extra) - 1), queries // self.share]
        # one spare column takes the padding
        padded = np.concatenate([allowed, np.zeros((len(queries), 1), bool)], axis=1)
        np.put_along_axis(padded, np.where(columns == PAD, n, columns).astype(np.intp), True, axis=1)
        return padded[:, :n]

    def keys(self, query: int, group: int = 0) -> np.ndarray:
        """The keys that one query sees, in order: (count,)."""
        return np.flatnonzero(self.allowed(np.array([query]), group)[0])

    def keys_per_query(self, group: int = 0) -> np.ndarray:
        """How many keys each query of a head group sees, a key named twice counted once: (n,) int64."""
        n, chunk = self.grid.n, 512
        queries = np.arange(n)
        chunks = [self.allowed(queries[first : first + chunk], group).sum(1) for first in range(0, n, chunk)]
        return np.concatenate(chunks)

    def blocked(self) -> np.ndarray:
        """The mask as a matrix: (n, n), or (G, n, n) for several head groups; True = blocked, as in the document."""
        queries = np.arange(self.grid.n)
        matrices = np.stack([~self.allowed(queries, group) for group in range(self.groups)])
        return matrices[0] if self.groups == 1 else matrices

    @classmethod
    def from_blocked(cls, matrix: np.ndarray, grid: TokenGrid) -> "SparseMask":
        """The index form of a matrix (n, n) or (groups, n, n), True = blocked."""
        matrix = np.asarray(matrix, bool)
        allowed = ~(matrix[None] if matrix.ndim == 2 else matrix)
        require(
            allowed.ndim == 3 and allowed.shape[1:] == (grid.n, grid.n),
            f"a mask of shape {matrix.shape} does not fit {grid}: it needs ({grid.n}, {grid.n}) or (groups, n, n)",
        )
        counts = allowed.sum(2)
        # stable sort: kept columns first, in order
        columns = np.argsort(~allowed, axis=2, kind="stable")[:, :, : int(counts.max())].astype(np.int32)
        columns[np.arange(columns.shape[2]) >= counts[:, :, None]] = PAD
        nothing = np.zeros(allowed.shape[:2], np.int32)
        return cls(grid, nothing, nothing, columns)


Rule = Callable[[TokenGrid, float, int], SparseMask]


def document(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """The document's mask: a band along the token index, and random columns drawn for each query by itself."""
    n = grid.n
    start, stop, random_columns = _band(n, sparsity)
    extra = distinct_columns(n, n, random_columns, np.random.default_rng(seed))
    return SparseMask(grid, start, stop, extra[None])


def dense(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """Every query sees every key."""
    n = grid.n
    start = np.zeros((1, n), np.int32)
    return SparseMask(grid, start, start + np.int32(n), np.empty((1, n, 0), np.int32))


RULES: dict[str, Rule] = {"document": document, "dense": dense}


def mask_for(rule: str, grid: TokenGrid, sparsity: float = 0.9, seed: int = 0) -> SparseMask:
    """The mask of a rule on a grid, from a cache that all layers share. Raises `HAELabError` for an unknown rule."""
    require_name("mask rule", rule, RULES)
    return _cached(RULES[rule], grid, sparsity, seed)


@lru_cache(maxsize=32)
def _cached(rule: Rule, grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    return rule(grid, sparsity, seed)


def _band(n: int, sparsity: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The document's band, (1, n) start and stop, and its number of random columns a query."""
    # the document's expression: 1 - 0.9 is 0.09999..., so this is one below n // 10 for every n divisible by 10
    keep = max(1, int(n * (1 - sparsity)))
    row = np.arange(n, dtype=np.int32)[None]
    start = np.maximum(0, row - keep // 2)
    stop = np.minimum(n, row + keep // 2 + 1)
    return start, stop, max(1, keep // 4) if keep > 4 else 0


def distinct_columns(rows: int, n: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` different columns of n for each row, uniform over all subsets: (rows, count) int32.

    Draws with replacement, then redraws each repeated column until none repeats. The result does not depend on which
    columns are favoured, so every subset is equally likely.
    """
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
