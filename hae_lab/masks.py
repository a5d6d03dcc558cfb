"""Who may see whom: the tokens of a multi-scale block, and the sparse masks over them in index form."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from hae_lab.checks import HAELabError, is_whole, require, require_name

PAD = -1  # fills up `extra` where queries keep unequally many columns
CHUNK = 1024  # queries that are counted at once

Made = TypeVar("Made")


@dataclass(frozen=True)
class TokenGrid:
    """Which token is which on a map: every pixel, then one token a patch of each regional scale, in raster order.

    A patch size that does not divide the map is dropped, as in the published code; `dropped` names it.
    Raises `HAELabError` for sizes that are no positive whole numbers.
    """

    height: int
    width: int
    patch_sizes: tuple[int, ...] = (1, 4, 8)

    def __post_init__(self) -> None:
        try:
            sizes = int(self.height), int(self.width)  # sizes are tensors while torch.jit traces
            patches: tuple[int, ...] = tuple(map(int, self.patch_sizes))
        except (TypeError, ValueError):
            sizes, patches = (0, 0), (0,)
        if min(*sizes, *patches, 1) < 1:
            sides = f"{self.height!r} x {self.width!r} with patches of {self.patch_sizes!r}"
            raise HAELabError(f"the sizes of a grid of tokens are whole numbers from 1 on, got {sides}")
        for name, value in zip(("height", "width", "patch_sizes"), (*sizes, patches), strict=True):
            object.__setattr__(self, name, value)

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
        scales = (1, *self.scales)
        raise HAELabError(
            f"a map of {self.height} x {self.width} has tokens of the scales {scales}, not {patch_size!r}"
        )

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel row and column at the centre of each token's patch: (n,) and (n,)."""
        rows, columns = [], []
        for p in (1, *self.scales):
            row, column = np.divmod(np.arange(self.n_local // p**2, dtype=np.int32), self.width // p)
            rows.append(row * p + p // 2)
            columns.append(column * p + p // 2)
        return np.concatenate(rows), np.concatenate(columns)

    def parent(self, patch_size: int) -> np.ndarray:
        """Token of the patch that each pixel lies in: (n_local,)."""
        row, column = np.divmod(np.arange(self.n_local), self.width)
        return self.span(patch_size)[0] + row // patch_size * (self.width // patch_size) + column // patch_size


@dataclass(frozen=True, eq=False)
class SparseMask:
    """Kept keys per query: an interval, `extra` columns, and the interval `always` that every query sees.

    Shapes, for G head groups (heads are split evenly over them): `start`, `stop` (G, n) int32; `extra`
    (G or 1, ceil(n / share), r) int32, where `share` consecutive queries read the same row and PAD means none. A key
    named twice counts once; an interval whose `stop` is not after its `start` is empty. `kernel` is the kernel of
    `models.attention` that suits the rule on a large map. Masks are shared, so their arrays are read-only here.
    Raises `HAELabError` for arrays of another shape and for places outside of the tokens.
    """

    grid: TokenGrid
    start: np.ndarray
    stop: np.ndarray
    extra: np.ndarray
    share: int = 1
    always: tuple[int, int] = (0, 0)
    kernel: str = "masked"

    def __post_init__(self) -> None:
        require(isinstance(self.grid, TokenGrid), f"a mask is over a TokenGrid, got {self.grid!r}")
        n, share = self.grid.n, self.share
        require(
            is_whole(share) and share > 0, f"share is how many queries read a row of columns, from 1 on, got {share!r}"
        )
        groups = self.start.shape[0] if np.ndim(self.start) == 2 else 0
        _check_places(self.grid, "start", self.start, (groups, n), 0, n)
        _check_places(self.grid, "stop", self.stop, (groups, n), 0, n)
        some = groups if np.ndim(self.extra) == 3 and len(self.extra) != 1 else 1
        _check_places(self.grid, "extra", self.extra, (some, -(-n // share), -1), PAD, n - 1)
        ends = self.always
        right = isinstance(ends, tuple) and len(ends) == 2 and all(is_whole(end) and 0 <= end <= n for end in ends)
        require(right, f"always is first key and one past the last, from 0 to {n}, got {ends!r}")
        if ends[0] >= ends[1]:
            object.__setattr__(self, "always", (0, 0))
        for name in ("start", "stop", "extra"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def groups(self) -> int:
        return self.start.shape[0]

    @cached_property
    def is_dense(self) -> bool:
        return bool((self.start == 0).all() and (self.stop == self.grid.n).all())

    @cached_property
    def intervals(self) -> tuple[tuple[int, int], ...] | None:
        """One interval a head group if all its pixels see exactly that, else None."""
        start, stop = self.start[:, : self.grid.n_local], self.stop[:, : self.grid.n_local]
        alike = (start == start[:, :1]).all() and (stop == stop[:, :1]).all()
        if not alike or self.extra.shape[2] or self.always[0] < self.always[1]:
            return None
        return tuple(zip(start[:, 0].tolist(), np.maximum(start, stop)[:, 0].tolist(), strict=True))

    @cached_property
    def span(self) -> tuple[int, int]:
        """First key that a pixel sees and one past the last: only these tokens need keys and values."""
        pixels = np.arange(self.grid.n_local)
        seen = np.any([self.seen(pixels, group) for group in range(self.groups)], axis=0)
        return int(seen.argmax()), self.grid.n - int(seen[::-1].argmax())

    def columns(self, queries: np.ndarray, group: int = 0) -> np.ndarray:
        """The extra columns of each query, PAD where there is none: (len(queries), r)."""
        return self.extra[min(group, len(self.extra) - 1), queries // self.share]

    def allowed(self, queries: np.ndarray, group: int = 0, keys: np.ndarray | None = None) -> np.ndarray:
        """(len(queries), len(keys)) bool, True = the query sees the key; all n keys unless some are named."""
        n = self.grid.n
        keys = np.arange(n, dtype=np.int32) if keys is None else keys
        # one spare column takes PAD, which is -1 and so reads the last slot, and the keys that were not named
        slot = np.full(n + 1, len(keys))
        slot[keys] = np.arange(len(keys))
        allowed = np.zeros((len(queries), len(keys) + 1), bool)
        allowed[:, :-1] = (keys >= self.start[group, queries, None]) & (keys < self.stop[group, queries, None])
        allowed[:, :-1] |= (keys >= self.always[0]) & (keys < self.always[1])
        np.put_along_axis(allowed, slot[self.columns(queries, group)], True, axis=1)
        return allowed[:, :-1]

    def seen(self, queries: np.ndarray, group: int = 0) -> np.ndarray:
        """The keys that at least one of the queries sees: (n,) bool."""
        n = self.grid.n
        start, stop = self.start[group, queries], self.stop[group, queries]
        opened = np.bincount(start, minlength=n + 1) - np.bincount(np.maximum(start, stop), minlength=n + 1)
        seen = np.append(opened.cumsum()[:n] > 0, False)  # PAD falls on the last place
        seen[self.always[0] : self.always[1]] = True
        # queries that share their columns read them once
        seen[self.columns(np.unique(queries // self.share) * self.share, group)] = True
        return seen[:n]

    def keys(self, query: int, group: int = 0) -> np.ndarray:
        """The keys that one query sees, in order: (count,)."""
        return np.flatnonzero(self.seen(np.array([query]), group))

    def new_columns(self, queries: np.ndarray, group: int = 0) -> np.ndarray:
        """The extra columns in order, PAD for each that is named twice or visible anyway: (len(queries), r)."""
        start, stop = self.start[group, queries, None], self.stop[group, queries, None]  # (q, 1)
        columns = np.sort(self.columns(queries, group), axis=1)
        visible = (columns >= start) & (columns < stop) | (columns >= self.always[0]) & (columns < self.always[1])
        visible[:, 1:] |= columns[:, 1:] == columns[:, :-1]
        return np.where(visible, PAD, columns)

    def keys_per_query(self, group: int = 0) -> np.ndarray:
        """How many keys each query of a head group sees, a key named twice counted once: (n,) int64."""
        chunks = np.split(np.arange(self.grid.n), range(CHUNK, self.grid.n, CHUNK))
        new = np.concatenate([(self.new_columns(queries, group) != PAD).sum(axis=1) for queries in chunks])
        start, stop = self.start[group], np.maximum(self.start[group], self.stop[group])
        overlap = np.minimum(stop, self.always[1]) - np.maximum(start, self.always[0])
        return new + (stop - start) + (self.always[1] - self.always[0]) - np.maximum(overlap, 0)

    def density(self, queries: str = "local") -> float:
        """Share of the keys that a query sees, averaged over the "local" queries or over "all", and the head groups."""
        require_name("set of queries", queries, ("local", "all"))
        rows = self.grid.n if queries == "all" else self.grid.n_local
        return float(np.mean([self.keys_per_query(group)[:rows].mean() for group in range(self.groups)]) / self.grid.n)

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


def _check_places(grid: TokenGrid, name: str, array: Any, shape: tuple[int, ...], low: int, high: int) -> None:
    """Raise `HAELabError` unless an array of a mask has that shape, -1 for any length, and whole numbers in range."""
    shown = f"({', '.join('any' if length < 0 else f'{length:,}' for length in shape)})"
    whole = isinstance(array, np.ndarray) and array.dtype.kind in "iu"
    require(whole, f"{name} of a mask is an array of whole numbers {shown}, got {getattr(array, 'dtype', array)!r}")
    fits = (
        shape[0] > 0 and array.ndim == len(shape) and all(b in (-1, a) for a, b in zip(array.shape, shape, strict=True))
    )
    require(fits, f"{name} of a mask of {grid} has shape {shown}, got {array.shape}")
    inside = not array.size or (array.min() >= low and array.max() <= high)
    require(
        inside,
        f"{name} of a mask of {grid} goes from {low} to {high}, got {array.min(initial=0)} to {array.max(initial=0)}",
    )


def in_own_thread(make: Callable[..., Made], *arguments: object) -> Made:
    """What `make(*arguments)` returns, for a cache that outlives whatever traces just now.

    torch's tracers and modes (export, fake tensors, default device, inference, vmap) hold in the thread that entered
    them; in a new one nothing is traced.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make, *arguments).result()
