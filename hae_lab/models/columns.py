"""Attention kernel `columns`: the interval of a query as a slice of the keys, its extra columns pair by pair.

One softmax spans both. The slices of a block of neighbouring queries are one, so they are dense products; columns that
each query drew for itself have nothing in common, so they are products over a list of pairs. Blocks of queries run a
few at a time, and again in the backward pass, which keeps the weights of no more than these.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hae_lab.masks import PAD, SparseMask
from hae_lab.models.column_operator import attend
from hae_lab.models.kernels import merge_heads, split_heads
from hae_lab.models.plans import Plan, plan_of

BLOCKS = (16, 32, 64)  # sizes of blocks: the first that is half as wide as an interval
CHUNK_SCORES = 2**14  # of one head that blocks of queries compute together: calls cost more than small products


class ColumnPlan(Plan):
    """The pairs of the extra columns, r a query, by query and by key; the blocks of queries with their slabs."""

    columns: Tensor  # (m, r) key of each pair
    order: Tensor  # (m r,) sorts the pairs by key
    rows: Tensor  # (m r,) query of each pair, by key
    offsets: Tensor  # (n,) where the pairs of each key begin
    blocked: Tensor  # bool, who may not see what: (b, keys of all slabs + r) a block, one block after another
    blind: Tensor | None  # (m, 1) bool, the queries that see nothing, if there are any

    def __init__(self, layout: tuple[int, ...], **tensors: Tensor | None) -> None:
        super().__init__(**tensors)
        self.layout = (
            layout  # a chunk: first row and one past the last, how many blocks, slabs a block, ends of each slab
        )


def columns(q: Tensor, kv: Tensor, plans: nn.ModuleList, heads: int, dropout: float = 0.0) -> Tensor:
    """Slices of the keys and single columns under one softmax; see the head of this file."""
    qs = q.chunk(len(plans), dim=-1)  # (B, n_local, C/G)
    kvs = kv.unflatten(-1, (2, len(plans), -1)).unbind(3)  # (B, m, 2, C/G)
    parts = [_run_plan(*group, heads // len(plans), dropout) for group in zip(qs, kvs, plans, strict=True)]
    return torch.cat(parts, dim=-1)


def column_pairs(mask: SparseMask, heads: int) -> int:
    plans = plan_of(column_plans, mask, heads, torch.device("cpu"))
    return heads // mask.groups * sum(plan.blocked.numel() for plan in plans)


def _run_plan(q: Tensor, kv: Tensor, plan: ColumnPlan, heads: int, dropout: float) -> Tensor:
    """(B, n_local, C), (B, m, 2, C) -> (B, n_local, C), half precision computed in single."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    inputs = (q / math.sqrt(q.shape[-1] // heads), *kv.unbind(2))
    inputs = [split_heads(x, heads).flatten(0, 1).to(dtype).contiguous() for x in inputs]  # (B heads, ., C/heads)
    pairs = (plan.columns, plan.order, plan.rows, plan.offsets)
    seed = torch.randint(2**62, (), device="cpu") if dropout else None
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    attended, _ = attend(*inputs, *pairs, plan.blocked, plan.layout, dropout, seed, trains)
    attended = merge_heads(attended.unflatten(0, (q.shape[0], heads))).to(q.dtype)
    return attended if plan.blind is None else attended.masked_fill(plan.blind, 0.0)


def column_plans(mask: SparseMask, heads: int, device: torch.device) -> nn.ModuleList:
    """The plan of each head group."""
    return nn.ModuleList(_column_plan(mask, group) for group in range(mask.groups)).to(device)


def _column_plan(mask: SparseMask, group: int) -> ColumnPlan:
    first, stop = mask.span
    pixels = np.arange(mask.grid.n_local)
    extra = mask.new_columns(pixels, group)  # (n_local, r)
    if extra.shape[1] == 0:
        extra = np.full((len(pixels), 1), PAD)  # torch has no bags of no pairs
    slabs_only = replace(mask, extra=np.empty((1, len(mask.extra[0]), 0), np.int32))
    hidden, blocked, layout = extra == PAD, [], []
    for queries, slabs in _chunks(slabs_only, group):
        layout += [int(queries[0, 0]), int(queries[-1, -1]) + 1, len(queries), slabs.shape[1]]
        layout += (slabs - first).ravel().tolist()
        for block, its_slabs in zip(queries, slabs, strict=True):
            keys = np.concatenate([np.arange(0), *(np.arange(*slab) for slab in its_slabs)])
            again = ~np.isin(np.arange(len(keys)), np.unique(keys, return_index=True)[1])  # widened slabs may overlap
            blocked.append(np.concatenate([~slabs_only.allowed(block, group, keys) | again, hidden[block]], 1).ravel())
    blind = mask.keys_per_query(group)[pixels, None] == 0
    arrays = _pairs(np.where(extra == PAD, 0, extra - first), stop - first)
    arrays |= {"blocked": np.concatenate(blocked), "blind": blind if blind.any() else None}
    tensors = {name: None if array is None else torch.from_numpy(array) for name, array in arrays.items()}
    return ColumnPlan(tuple(layout), **tensors)


def _chunks(mask: SparseMask, group: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The queries of some blocks (c, b), and first and one past last key of their slabs (c, slabs, 2), equally wide.

    Blocks of one chunk read as many slabs; the narrower are widened inside the mask's span.
    """
    pixels = np.arange(mask.grid.n_local)
    widest = int((mask.stop[group, pixels] - mask.start[group, pixels]).max(initial=0))
    length = next((size for size in BLOCKS if 2 * size >= widest), BLOCKS[-1])
    blocks = np.split(pixels, range(length, len(pixels), length))
    read = [_runs(np.flatnonzero(mask.seen(queries, group))) for queries in blocks]
    begin = 0
    for end in range(1, len(blocks) + 1):
        alike = end < len(blocks) and len(blocks[end]) == length and len(read[end]) == len(read[begin])
        scores = (end + 1 - begin) * length * max(map(_width, read[begin : end + 1]))
        if not alike or scores > CHUNK_SCORES:
            yield (
                np.stack(blocks[begin:end]),
                _widened(np.array(read[begin:end], int).reshape(end - begin, -1, 2), *mask.span),
            )
            begin = end


def _width(slabs: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in slabs)


def _widened(slabs: np.ndarray, first: int, stop: int) -> np.ndarray:
    """Slabs (c, slabs, 2), each as wide as the widest at its place, within first and stop."""
    widths = (slabs[..., 1] - slabs[..., 0]).max(axis=0, initial=0)
    starts = np.clip(slabs[..., 0], first, stop - widths)
    return np.stack([starts, starts + widths], axis=-1)


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """First number of each run of consecutive numbers, and one past its last."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]


def _pairs(columns: np.ndarray, n: int) -> dict[str, np.ndarray | None]:
    """The int32 arrays of `Pairs`, from the key of each: (m, r)."""
    r = columns.shape[1]
    order = columns.ravel().argsort(kind="stable").astype(np.int32)
    counts = np.bincount(columns.ravel(), minlength=n)
    arrays = {
        "columns": columns, "order": order, "rows": order // np.int32(r), "offsets": counts.cumsum() - counts,
    }  # fmt: skip
    return {name: array.astype(np.int32, copy=False) for name, array in arrays.items()}
