"""The state of the mask explorer: a mask, one query token, and what the query sees. No widgets, no drawing."""

import inspect
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from hae_lab import rules
from hae_lab.checks import require, require_name
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.profilers.attention_maps import BlockAttention
from hae_lab.profilers.reach import NEIGHBOURHOOD, carried_pixels

LARGEST_SIDE = 128  # 17,664 tokens: a mask of 30 MB
STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


class Place(NamedTuple):
    """Where a token lies: its patch size (1 is the pixels), and row and column on the grid of that scale, from 0."""

    patch_size: int
    row: int
    column: int


FIRST_QUERY = Place(1, 5, 7)


def scales(grid: TokenGrid) -> tuple[int, ...]:
    """The patch sizes that the map has tokens of, pixels (1) first."""
    return (1, *grid.scales)


def shape(grid: TokenGrid, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the grid of a scale."""
    require_name("patch size of this map", patch_size, scales(grid))
    return grid.height // patch_size, grid.width // patch_size


def place_of(grid: TokenGrid, token: int) -> Place:
    """Where a token lies."""
    patch_size = next(p for p in reversed(scales(grid)) if token >= grid.span(p)[0])
    return Place(patch_size, *divmod(token - grid.span(patch_size)[0], shape(grid, patch_size)[1]))


def token_at(grid: TokenGrid, place: Place) -> int:
    """The token at a place that the map has."""
    return grid.span(place.patch_size)[0] + place.row * shape(grid, place.patch_size)[1] + place.column


def covering(place: Place, patch_size: int) -> Place:
    """The place on another scale's grid that covers the centre of this one."""
    own, row, column = place
    return Place(patch_size, *((part * own + own // 2) // patch_size for part in (row, column)))


def nearest(grid: TokenGrid, place: Place) -> Place:
    """The place itself if the map has it, else the nearest on the same grid, or on the pixels."""
    if place.patch_size not in scales(grid):
        place = covering(place, 1)
    rows, columns = shape(grid, place.patch_size)
    return Place(place.patch_size, min(max(place.row, 0), rows - 1), min(max(place.column, 0), columns - 1))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is chosen of a mask: rule, side of the map (or height and width), sparsity, seed, patch sizes; validated."""

    rule: str = "document"
    side: int | tuple[int, int] = 32
    sparsity: float = 0.9
    seed: int = 0
    patch_sizes: tuple[int, ...] = (1, 4, 8)

    def __post_init__(self) -> None:
        require_name("mask rule", self.rule, rules.RULES)
        for side in self.sides:
            fits = _is_whole(side) and 1 <= side <= LARGEST_SIDE
            require(fits, f"a side of the map is a whole number from 1 to {LARGEST_SIDE}, got {self.side!r}")
        is_number = isinstance(self.sparsity, int | float) and not isinstance(self.sparsity, bool)
        require(is_number and 0 <= self.sparsity < 1, f"sparsity is in [0, 1), got {self.sparsity!r}")
        require(_is_whole(self.seed) and self.seed >= 0, f"seed is a whole number from 0, got {self.seed!r}")
        patches = self.patch_sizes
        require(
            isinstance(patches, tuple) and all(_is_whole(p) and p > 0 for p in patches) and patches[:1] == (1,),
            f"patch_sizes is a tuple that starts with 1, the pixels, for example (1, 4, 8); got {patches!r}",
        )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.side if isinstance(self.side, tuple) and len(self.side) == 2 else (self.side, self.side)

    def mask(self) -> SparseMask:
        return rules.mask_for(self.rule, TokenGrid(*self.sides, self.patch_sizes), float(self.sparsity), self.seed)


CHOICES = tuple(field.name for field in fields(Choice))


class MaskExplorerModel:
    """A mask and one query token on its map: the reader changes both, the class tells which keys the query sees.

    `query` is a token's number: pixels first, then each regional scale in raster order; pixel (5, 7), or the nearest
    that exists, unless it is named. Where a rule gives head groups masks of their own, all groups are shown together
    (a key is seen if any of them sees it) until `show_group` chooses one.

    `attention`, of `profilers.attention_maps.block_attention`, brings the weights of a trained block: `show_head`
    chooses one of its heads. They exist for pixels on the block's own map, which is the map at the start.

    Raises `HAELabError` for a value that no mask could have.
    """

    def __init__(self, *, query: int | None = None, attention: BlockAttention | None = None, **choice: Any) -> None:
        self.group: int | None = None
        self.attention, self.head = attention, None
        self._use(_changed(Choice() if attention is None else _choice_of(attention), choice))
        self.query = token_at(self.grid, nearest(self.grid, FIRST_QUERY))
        if query is not None:
            self.pick(query)

    @property
    def grid(self) -> TokenGrid:
        return self.mask.grid

    @property
    def place(self) -> Place:
        """Where the query lies."""
        return place_of(self.grid, self.query)

    def set(self, **changes: Any) -> None:
        """Choose another rule, side, sparsity, seed or patch_sizes: all of the changes or, if one is wrong, none.

        The query stays where it is, or moves to the nearest place that the new map has.
        """
        place = self.place
        self._use(_changed(self.choice, changes))
        self.query = token_at(self.grid, nearest(self.grid, place))

    def _use(self, choice: Choice) -> None:
        mask = choice.mask()
        self.choice, self.mask = choice, mask
        rows = [mask.keys_per_query(group)[: mask.grid.n_local] for group in range(mask.groups)]
        self._densities = [float(keys.mean()) / mask.grid.n for keys in rows]
        if self.group is not None and self.group >= mask.groups:
            self.group = None

    def pick(self, query: int) -> None:
        """Choose the query by its number."""
        last = self.grid.n - 1
        fits = _is_whole(query) and 0 <= query <= last
        require(fits, f"the query is a token from 0 to {last} on this map, got {query!r}")
        self.query = int(query)

    def move(self, direction: str) -> None:
        """One step up, down, left or right on the query's grid; at the border it stays."""
        require_name("direction", direction, STEPS)
        (patch_size, row, column), (down, right) = self.place, STEPS[direction]
        self.query = token_at(self.grid, nearest(self.grid, Place(patch_size, row + down, column + right)))

    def switch_grid(self, step: int = 1) -> None:
        """To the token at the same spot on the next scale, and from the last scale back to the pixels."""
        known = scales(self.grid)
        patch_size = known[(known.index(self.place.patch_size) + step) % len(known)]
        self.query = token_at(self.grid, covering(self.place, patch_size))

    def show_group(self, group: int | None) -> None:
        """Look at one head group alone, or at all together (None)."""
        fits = group is None or (_is_whole(group) and 0 <= group < self.mask.groups)
        require(fits, f"the head group is None (all) or a number from 0 to {self.mask.groups - 1}, got {group!r}")
        self.group = group

    def show_head(self, head: int | None) -> None:
        """Look at the attention weights of one head of the trained block, or at the mask (None)."""
        heads = 0 if self.attention is None else self.attention.heads
        fits = head is None or (_is_whole(head) and 0 <= head < heads)
        known = f"a number from 0 to {heads - 1}" if heads else "nothing else without attention="
        require(fits, f"the head is None (the mask) or {known}, got {head!r}")
        self.head = head

    @property
    def has_weights(self) -> bool:
        """Whether the trained block has weights on this map."""
        return self.attention is not None and self.attention.grid == self.grid

    def weights(self) -> dict[int, np.ndarray] | None:
        """How much the chosen head of the query attends to each token under this mask: patch size -> (rows, columns).

        They sum to 1. None where no head is chosen, on another map than the block's, and for a regional query, which
        no block computes.
        """
        if self.attention is None or self.head is None or not self.has_weights or self.place.patch_size > 1:
            return None
        return maps(self.grid, self.attention.maps(self.query, self.mask).weights[self.head])

    @property
    def groups(self) -> list[int]:
        """The head groups that are shown."""
        return list(range(self.mask.groups)) if self.group is None else [self.group]

    def seen(self, queries: list[int] | np.ndarray | None = None) -> np.ndarray:
        """The keys that the query, or at least one of several queries, sees: (n,) bool."""
        queries = np.array([self.query] if queries is None else queries)
        return np.any([self.mask.seen(queries, group) for group in self.groups], axis=0)

    def visible(self) -> dict[int, np.ndarray]:
        """The keys that the query sees, a map a scale: patch size -> (rows, columns) bool."""
        return maps(self.grid, self.seen())

    def reached(self, blocks: int = 1) -> np.ndarray:
        """Pixels that can change the query's output after some stacked blocks: (height, width) bool.

        A regional key carries the pixels of its patch, the residual path those of the query itself. Regional outputs
        are thrown away, so only pixels carry from block to block. Attention alone: convolutions reach further.
        """
        itself = np.arange(self.grid.n) == self.query
        reached = carried_pixels(self.grid, self.seen() | itself)  # (n_local,)
        for _ in range(blocks - 1):
            reached |= carried_pixels(self.grid, self.seen(np.flatnonzero(reached)))
        return reached.reshape(self.grid.height, self.grid.width)

    def numbers(self) -> dict[str, Any]:
        """What the query sees, in numbers: see the keys. Shares are in percent."""
        visible = self.visible()
        own = {p: covering(self.place, p) for p in self.grid.scales}
        return {
            "density_percent": 100 * float(np.mean([self._densities[group] for group in self.groups])),
            "keys": self.grid.n,
            "keys_seen": sum(int(tokens.sum()) for tokens in visible.values()),
            "keys_of_scale": {p: tokens.size for p, tokens in visible.items()},
            "keys_seen_of_scale": {p: int(tokens.sum()) for p, tokens in visible.items()},
            "own_seen": {p: bool(visible[p][place.row, place.column]) for p, place in own.items()},
            "neighbourhood_percent": 100 * float(neighbourhood(visible[1], covering(self.place, 1)).mean()),
            "reach_1_percent": 100 * float(self.reached(1).mean()),
            "reach_2_percent": 100 * float(self.reached(2).mean()),
        }

    def view(self) -> dict[str, Any]:
        """Everything that a picture of this state needs: choice, place, maps and numbers, in plain values."""
        return {
            "rule": self.choice.rule,
            "meaning": meaning(self.choice.rule),
            "sparsity": self.choice.sparsity,
            "seed": self.choice.seed,
            "group": self.group,
            "groups": self.mask.groups,
            "place": tuple(self.place),
            "own": {p: tuple(covering(self.place, p)) for p in scales(self.grid)},
            "visible": self.visible(),
            "reached": self.reached(),
            "head": self.head,
            "weights": self.weights(),
            **self.numbers(),
        }

    def matrix(self, size: int = 128) -> np.ndarray:
        """The mask as a picture: share of the (query, key) pairs that are seen in each of size x size cells, in [0, 1].

        Averaged over the shown head groups. Cells are as equal as whole tokens allow, no larger array is made.
        """
        n = self.grid.n
        edges = np.linspace(0, n, min(size, n) + 1).astype(int)
        return np.stack([self._row_of_cells(np.arange(*span), edges) for span in pairwise(edges)])

    def _row_of_cells(self, queries: np.ndarray, edges: np.ndarray) -> np.ndarray:
        shares = np.mean([self.mask.allowed(queries, group).mean(axis=0) for group in self.groups], axis=0)  # (n,)
        return np.add.reduceat(shares, edges[:-1]) / np.diff(edges)


def maps(grid: TokenGrid, tokens: np.ndarray) -> dict[int, np.ndarray]:
    """Values of all tokens as one map a scale: (n,) -> patch size -> (rows, columns)."""
    return {p: tokens[slice(*grid.span(p))].reshape(shape(grid, p)) for p in scales(grid)}


def neighbourhood(pixels: np.ndarray, place: Place, side: int = NEIGHBOURHOOD) -> np.ndarray:
    """The part of a map within a square window around a pixel; cut off at the borders."""
    _, row, column = place
    half = side // 2
    return pixels[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]


def meaning(rule: str) -> str:
    """The first line of what a rule says of itself."""
    return (inspect.getdoc(rules.RULES[rule]) or "").split("\n")[0].replace("`", "")


def _choice_of(attention: BlockAttention) -> Choice:
    """The mask that a trained block has."""
    grid, block = attention.grid, attention.block
    side = grid.height if grid.height == grid.width else (grid.height, grid.width)
    return Choice(
        rule=block.mask_rule, side=side, sparsity=block.sparsity, seed=block.mask_seed, patch_sizes=grid.patch_sizes
    )


def _changed(choice: Choice, changes: dict[str, Any]) -> Choice:
    for name in changes:
        require_name("option of the explorer", name, CHOICES)
    return replace(choice, **changes)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
