"""Attention kernels that run a `SparseMask` exactly through `scaled_dot_product_attention`, and their reference.

A kernel takes queries (B, n_local, C), the keys and values (B, m, 2C) of the m tokens in `mask.span`, and the plan that
its `*_plan` made of the mask, and returns (B, n_local, C). Each computes one softmax over the keys that a query sees; a
query that sees none gets zeros. `*_pairs` count the scores that it computes for one sample, padding included.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab.checks import require
from hae_lab.masks import CHUNK, SparseMask
from hae_lab.models.plans import Plan, plan_of

MASK_BYTES = 128 * 2**20  # of mask that `masked` hands to one call, which turns it into numbers
TILE = 8  # `blocks` takes TILE² queries together: consecutive ones, or a tile of the map
GATHER_BYTES = 16 * 2**20  # of keys and values that `blocks` gathers for one call


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., m, C) -> (..., heads, m, C/heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, m, C/heads) -> (..., m, C)."""
    return x.transpose(-2, -3).flatten(-2)


# The mask as a matrix: kernels `reference` and `masked`


def attention_weights(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    """The softmax over the allowed keys, written out.

    Shapes: q (B, heads, rows, d), k (B, heads, m, d), allowed (1 or heads, rows, m) bool -> (B, heads, rows, m).
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    # a finite minimum, then zero: no NaN where nothing is allowed
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(dim=-1) * allowed


def reference(q: Tensor, kv: Tensor, plan: Plan, heads: int, dropout: float = 0.0) -> Tensor:
    """Every score, the softmax, the sum: obvious and slow, for tests."""
    k, v = (split_heads(x, heads) for x in kv.chunk(2, dim=-1))  # (B, heads, m, C/heads)
    weights = attention_weights(split_heads(q, heads), k, plan.allowed)
    return merge_heads(F.dropout(weights, dropout) @ v)


def masked(q: Tensor, kv: Tensor, plan: Plan, heads: int, dropout: float = 0.0) -> Tensor:
    """Every score, fused, with a boolean matrix; some rows of it a call."""
    k, v = (split_heads(x, heads) for x in kv.chunk(2, dim=-1))  # (B, heads, m, C/heads)
    allowed = plan.allowed
    rows = max(1, MASK_BYTES // (len(allowed) * allowed.shape[-1] * q.element_size()))
    portions = zip(split_heads(q, heads).split(rows, dim=2), allowed.split(rows, dim=1), strict=True)
    attended = [
        # only masks of two or four dimensions reach the fused kernel
        F.scaled_dot_product_attention(some, k, v, attn_mask=matrix[None], dropout_p=dropout)
        for some, matrix in portions
    ]
    return torch.cat([merge_heads(part) for part in attended], dim=1)


def matrix_plan(mask: SparseMask, heads: int, device: torch.device) -> Plan:
    """`allowed`, the keys in `mask.span` that each pixel sees, True = may attend: (1 or heads, n_local, m) bool."""
    first, stop = mask.span
    rows, n_local = 1 if mask.groups == 1 else heads, mask.grid.n_local
    if device.type == "meta":
        return Plan(allowed=torch.empty(rows, n_local, stop - first, dtype=torch.bool, device=device))
    keys = np.arange(first, stop)
    allowed = np.empty((mask.groups, n_local, len(keys)), bool)
    for group in range(mask.groups):
        for queries in np.split(np.arange(n_local), range(CHUNK, n_local, CHUNK)):
            allowed[group, queries] = mask.allowed(queries, group, keys)
    return Plan(allowed=torch.from_numpy(allowed).repeat_interleave(rows // mask.groups, dim=0).to(device))


def allowed_matrix(mask: SparseMask, heads: int, device: torch.device) -> Tensor:
    """The matrix of `matrix_plan`, made once."""
    return plan_of(matrix_plan, mask, heads, device).allowed


def matrix_pairs(mask: SparseMask, heads: int) -> int:
    first, stop = mask.span
    return heads * mask.grid.n_local * (stop - first)


# Lists of keys: kernel `blocks`


class BlockPlan(Plan):
    """Which queries and keys meet in which block. Padding repeats a query, or is a key that nobody may see."""

    queries: Tensor  # (blocks, b) pixels
    keys: Tensor  # (blocks, K) places in `mask.span`
    allowed: Tensor  # (blocks, b, K) bool
    places: Tensor  # (n_local,) where each pixel stands in the flattened `queries`


def blocks(q: Tensor, kv: Tensor, plans: nn.ModuleList, heads: int, dropout: float = 0.0) -> Tensor:
    """Blocks of queries, each against the keys that any of its queries sees, gathered once a block."""
    qs = q.chunk(len(plans), dim=-1)  # (B, n_local, C/G)
    kvs = kv.unflatten(-1, (2, len(plans), -1)).unbind(3)  # (B, m, 2, C/G)
    parts = [_run_plan(*group, heads // len(plans), dropout) for group in zip(qs, kvs, plans, strict=True)]
    return torch.cat(parts, dim=-1)


def _run_plan(q: Tensor, kv: Tensor, plan: BlockPlan, heads: int, dropout: float) -> Tensor:
    """(B, n_local, C), (B, m, 2, C) -> (B, n_local, C)."""
    q = q.index_select(1, plan.queries.flatten()).unflatten(1, plan.queries.shape)  # (B, blocks, b, C)
    key_bytes = 2 * q.shape[-1] * q.element_size()
    samples = 1 if torch.compiler.is_compiling() else q.shape[0]  # a compiled program serves batches of any size
    some = max(1, GATHER_BYTES // max(1, samples * plan.keys.shape[1] * key_bytes))  # no images, or blind queries
    portions = zip(q.split(some, dim=1), plan.keys.split(some), plan.allowed.split(some), strict=True)
    attended = [_attend_blocks(part, kv, keys, allowed, heads, dropout) for part, keys, allowed in portions]
    return torch.cat(attended, dim=1).flatten(1, 2).index_select(1, plan.places)


def _attend_blocks(q: Tensor, kv: Tensor, keys: Tensor, allowed: Tensor, heads: int, dropout: float) -> Tensor:
    """Some blocks in one call: (B, blocks, b, C), (B, m, 2, C), (blocks, K), (blocks, b, K) -> (B, blocks, b, C)."""
    gathered = kv.index_select(1, keys.flatten()).unflatten(1, keys.shape)  # (B, blocks, K, 2, C)
    k, v = (split_heads(x, heads) for x in gathered.flatten(0, 1).unbind(2))  # (B blocks, heads, K, C/heads)
    allowed = allowed.repeat(q.shape[0], 1, 1)[:, None]  # (B blocks, 1, b, K)
    queries = split_heads(q.flatten(0, 1), heads)  # (B blocks, heads, b, C/heads)
    attended = F.scaled_dot_product_attention(queries, k, v, attn_mask=allowed, dropout_p=dropout)
    return merge_heads(attended).unflatten(0, q.shape[:2])


def block_plans(mask: SparseMask, heads: int, device: torch.device) -> nn.ModuleList:
    """The plan of each head group."""
    return nn.ModuleList(_block_plan(mask, group) for group in range(mask.groups)).to(device)


def _block_plan(mask: SparseMask, group: int) -> BlockPlan:
    """Blocks of consecutive queries or tiles of the map, whichever computes fewer pairs."""
    grid = mask.grid
    orders = (_tiles(1, grid.n_local, 1, TILE**2), _tiles(grid.height, grid.width, TILE, TILE))
    lists = [[np.flatnonzero(mask.seen(queries, group)) for queries in order] for order in orders]
    longest = [max(map(len, keys)) for keys in lists]
    best = min(range(len(orders)), key=lambda index: orders[index].size * longest[index])
    order = orders[best]
    keys = np.full((len(order), longest[best]), mask.span[0])
    allowed = np.zeros((*order.shape, longest[best]), bool)
    for block, (queries, seen) in enumerate(zip(order, lists[best], strict=True)):
        keys[block, : len(seen)] = seen
        allowed[block, :, : len(seen)] = mask.allowed(queries, group, seen)
    places = np.empty(grid.n_local, np.int64)
    places[order.ravel()] = np.arange(order.size)
    arrays = {"queries": order, "keys": keys - mask.span[0], "allowed": allowed, "places": places}
    return BlockPlan(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _tiles(height: int, width: int, tile_height: int, tile_width: int) -> np.ndarray:
    """The pixels of each tile of a map, edges repeated to fill up the last tiles: (tiles, tile_height tile_width)."""
    tile_height, tile_width = min(tile_height, height), min(tile_width, width)
    rows = np.arange(-(-height // tile_height) * tile_height).clip(max=height - 1)
    columns = np.arange(-(-width // tile_width) * tile_width).clip(max=width - 1)
    rows, columns = rows.reshape(-1, 1, tile_height, 1), columns.reshape(1, -1, 1, tile_width)
    return (rows * width + columns).reshape(-1, tile_height * tile_width)


def block_pairs(mask: SparseMask, heads: int) -> int:
    plans = plan_of(block_plans, mask, heads, torch.device("cpu"))
    return heads // mask.groups * sum(plan.allowed.numel() for plan in plans)


# The same interval for all: kernel `slices`


class SlicePlan(Plan):
    """The slice of the keys in `mask.span` that each head group sees."""

    def __init__(self, keys: tuple[slice, ...]) -> None:
        super().__init__()
        self.keys = keys


def slices(q: Tensor, kv: Tensor, plan: SlicePlan, heads: int, dropout: float = 0.0) -> Tensor:
    """All queries of a head group against one slice of the keys, no mask. For rules that allow it."""
    k, v = kv.chunk(2, dim=-1)
    groups = [x.chunk(len(plan.keys), dim=-1) for x in (q, k, v)]
    attended = []
    for q, k, v, keys in zip(*groups, plan.keys, strict=True):
        q, k, v = (split_heads(x, heads // len(plan.keys)) for x in (q, k[:, keys], v[:, keys]))
        attended.append(merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)))
    return torch.cat(attended, dim=-1)


def slice_plan(mask: SparseMask, heads: int, device: torch.device) -> SlicePlan:
    first = mask.span[0]
    return SlicePlan(tuple(slice(start - first, stop - first) for start, stop in _intervals(mask)))


def _intervals(mask: SparseMask) -> tuple[tuple[int, int], ...]:
    require(mask.intervals is not None, "kernel 'slices' runs masks whose queries all see one interval: take 'blocks'")
    return mask.intervals


def slice_pairs(mask: SparseMask, heads: int) -> int:
    return heads // mask.groups * mask.grid.n_local * sum(stop - start for start, stop in _intervals(mask))
