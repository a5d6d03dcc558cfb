"""Attention kernel `columns`: the interval of a query as a slice of the keys, its extra columns pair by pair.

One softmax spans both. The slices of 64 neighbouring queries are one, so they are dense products; columns that each
query drew for itself have nothing in common, so they are products over a list of pairs. Blocks of queries run one after
another, and again in the backward pass, which keeps the weights of no more than one block.
"""

import math
import warnings
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hae_lab.masks import PAD, SparseMask
from hae_lab.models.kernels import merge_heads, split_heads

BLOCK = 64  # queries whose intervals are one slice


class Pairs(NamedTuple):
    """A list of (query, key) pairs, r a query, and the same list in the order of the keys.

    Its products take one (m, d) or (n, d) matrix a head; N counts heads and samples.
    """

    pattern: Tensor | None  # (m, n) CSR, a place for each pair; the meta device has none
    columns: Tensor  # (m, r) key of each pair
    order: Tensor  # (m r,) sorts the pairs by key
    rows: Tensor  # (m r,) query of each pair, by key
    offsets: Tensor  # (n,) where the pairs of each key begin

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """x of the query times y of the key, for each pair: (N, m, d), (N, n, d) -> (N, m, r)."""
        if self.pattern is None:  # the same products, counted
            return (x[:, :, None] @ y[:, self.columns.long()].mT).squeeze(2)
        pattern = self.pattern.to(x.dtype)
        products = x.new_empty(len(x), *self.columns.shape)
        for out, query, key in zip(products.flatten(1), x, y, strict=True):
            out.copy_(torch.sparse.sampled_addmm(pattern, query, key.mT, beta=0.0).values())
        return products

    def to_queries(self, weights: Tensor, y: Tensor) -> Tensor:
        """Weighted sum of y over the pairs of each query: (N, m, r), (N, n, d) -> (N, m, d)."""
        if self.pattern is None:
            return (weights[:, :, None] @ y[:, self.columns.long()]).squeeze(2)
        return torch.stack([_bag_sums(self.columns, *head) for head in zip(weights, y, strict=True)])

    def to_keys(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sum of x over the pairs of each key: (N, m, r), (N, m, d) -> (N, n, d)."""
        by_key = (head.index_select(0, self.order) for head in weights.flatten(1))
        return torch.stack([_bag_sums(self.rows, *head, self.offsets) for head in zip(by_key, x, strict=True)])


def _bag_sums(index: Tensor, weights: Tensor, x: Tensor, offsets: Tensor | None = None) -> Tensor:
    return F.embedding_bag(index, x, offsets, mode="sum", per_sample_weights=weights)


class Block(NamedTuple):
    """Neighbouring queries, the slices of the keys in their intervals, and who may not see what."""

    rows: slice
    slabs: tuple[slice, ...]
    blocked: Tensor  # (rows, keys of all slabs + r) bool


class ColumnPlan(NamedTuple):
    blocks: tuple[Block, ...]
    pairs: Pairs
    blind: Tensor | None  # (n_local, 1) bool, the queries that see nothing, if there are any


def columns(q: Tensor, kv: Tensor, mask: SparseMask, heads: int, dropout: float = 0.0) -> Tensor:
    """Slices of the keys and single columns under one softmax; see the head of this file."""
    plans = column_plans(mask, q.device)
    qs = q.chunk(len(plans), dim=-1)  # (B, n_local, C/G)
    kvs = kv.unflatten(-1, (2, len(plans), -1)).unbind(3)  # (B, m, 2, C/G)
    parts = [_run_plan(*group, heads // len(plans), dropout) for group in zip(qs, kvs, plans, strict=True)]
    return torch.cat(parts, dim=-1)


def column_pairs(mask: SparseMask, heads: int) -> int:
    plans = column_plans(mask, torch.device("cpu"))
    return heads // mask.groups * sum(block.blocked.numel() for plan in plans for block in plan.blocks)


def _run_plan(q: Tensor, kv: Tensor, plan: ColumnPlan, heads: int, dropout: float) -> Tensor:
    """(B, n_local, C), (B, m, 2, C) -> (B, n_local, C), half precision computed in single."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    inputs = (q / math.sqrt(q.shape[-1] // heads), *kv.unbind(2))
    inputs = (split_heads(x, heads).flatten(0, 1).to(dtype).contiguous() for x in inputs)  # (B heads, ., C/heads)
    attended = merge_heads(_Columns.apply(*inputs, plan, dropout).unflatten(0, (len(q), heads))).to(q.dtype)
    return attended if plan.blind is None else attended.masked_fill(plan.blind, 0.0)


class _Columns(torch.autograd.Function):
    """Scaled queries (N, m, d), keys and values (N, n, d) -> (N, m, d)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: ColumnPlan, dropout: float) -> Tensor:
        ctx.plan, ctx.dropout = plan, dropout
        ctx.seed = int(torch.randint(2**62, (), device="cpu")) if dropout else 0
        scores = plan.pairs.dot(q, k)  # (N, m, r)
        # without a backward pass the weights may take the place of the scores
        kept = torch.empty_like(scores) if any(ctx.needs_input_grad) else scores
        out = torch.zeros_like(q)
        generator = _generator(q.device, ctx.seed)
        for block in plan.blocks:
            rows = block.rows
            weights = _softmax(q, k, scores, block)
            weights = _drop(weights, _gate(weights, dropout, generator))
            *slabs, kept[:, rows] = _split(weights, block)
            for slab, keys in zip(slabs, block.slabs, strict=True):
                out[:, rows] += slab @ v[:, keys]
        out += plan.pairs.to_queries(kept, v)
        ctx.save_for_backward(q, k, v, scores, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, scores, out = ctx.saved_tensors
        pairs, grad = ctx.plan.pairs, grad.contiguous()
        inner = (grad * out).sum(dim=-1, keepdim=True)  # (N, m, 1) weights times their gradients, summed
        slopes = pairs.dot(grad, v)  # (N, m, r) gradient of each weight, then of its score
        kept = torch.empty_like(scores)
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        generator = _generator(q.device, ctx.seed)
        for block in ctx.plan.blocks:
            rows = block.rows
            weights = _softmax(q, k, scores, block)
            gate = _gate(weights, ctx.dropout, generator)
            slope = torch.cat([*(grad[:, rows] @ v[:, keys].mT for keys in block.slabs), slopes[:, rows]], dim=-1)
            slope = _drop(slope, gate).sub_(inner[:, rows]).mul_(weights)
            *slabs, kept[:, rows] = _split(_drop(weights, gate), block)
            *slab_slopes, slopes[:, rows] = _split(slope, block)
            for slab, slab_slope, keys in zip(slabs, slab_slopes, block.slabs, strict=True):
                grad_q[:, rows] += slab_slope @ k[:, keys]
                grad_k[:, keys] += slab_slope.mT @ q[:, rows]
                grad_v[:, keys] += slab.mT @ grad[:, rows]
        grad_q += pairs.to_queries(slopes, k)
        grad_k += pairs.to_keys(slopes, q)
        grad_v += pairs.to_keys(kept, grad)
        return grad_q, grad_k, grad_v, None, None


def _softmax(q: Tensor, k: Tensor, scores: Tensor, block: Block) -> Tensor:
    """The weights of a block's queries over the keys of its slabs and its own pairs: (N, rows, keys + r)."""
    slabs = [q[:, block.rows] @ k[:, keys].mT for keys in block.slabs]
    lowest = torch.finfo(q.dtype).min
    bias = torch.zeros(block.blocked.shape, dtype=q.dtype, device=q.device).masked_fill_(block.blocked, lowest)
    return torch.cat([*slabs, scores[:, block.rows]], dim=-1).add_(bias).softmax(dim=-1)


def _split(x: Tensor, block: Block) -> tuple[Tensor, ...]:
    """(N, rows, keys + r) -> one tensor a slab, then (N, rows, r)."""
    sizes = [keys.stop - keys.start for keys in block.slabs]
    return x.split([*sizes, x.shape[-1] - sum(sizes)], dim=-1)


def _generator(device: torch.device, seed: int) -> torch.Generator | None:
    """The same gates in the backward pass as in the forward pass."""
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


def _gate(weights: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor | None:
    """What dropout multiplies the weights with."""
    if not dropout:
        return None
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


def _drop(weights: Tensor, gate: Tensor | None) -> Tensor:
    return weights if gate is None else weights * gate


# Plans


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def column_plans(mask: SparseMask, device: torch.device) -> tuple[ColumnPlan, ...]:
    """The plan of each head group."""
    return tuple(_column_plan(mask, group, device) for group in range(mask.groups))


def _column_plan(mask: SparseMask, group: int, device: torch.device) -> ColumnPlan:
    first, stop = mask.span
    pixels = np.arange(mask.grid.n_local)
    extra = mask.new_columns(pixels, group)  # (n_local, r)
    if extra.shape[1] == 0:
        extra = np.full((len(pixels), 1), PAD)  # torch has no bags of no pairs
    pairs = _pairs(np.where(extra == PAD, 0, extra - first), stop - first, device)
    slabs_only = replace(mask, extra=np.empty((1, len(mask.extra[0]), 0), np.int32))
    blocks = []
    for queries in np.split(pixels, range(BLOCK, len(pixels), BLOCK)):
        keys = np.flatnonzero(slabs_only.seen(queries, group))
        blocked = np.concatenate([~slabs_only.allowed(queries, group, keys), extra[queries] == PAD], axis=1)
        rows = slice(int(queries[0]), int(queries[-1]) + 1)
        blocks.append(Block(rows, _slices(keys - first), torch.from_numpy(blocked).to(device)))
    blind = mask.keys_per_query(group)[pixels, None] == 0
    return ColumnPlan(tuple(blocks), pairs, torch.from_numpy(blind).to(device) if blind.any() else None)


def _slices(places: np.ndarray) -> tuple[slice, ...]:
    """The runs of consecutive numbers."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return tuple(slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run))


def _pairs(columns: np.ndarray, n: int, device: torch.device) -> Pairs:
    m, r = columns.shape
    order = columns.ravel().argsort(kind="stable").astype(np.int32)
    counts = np.bincount(columns.ravel(), minlength=n)
    arrays = (np.arange(0, m * r + 1, r), columns, order, order // np.int32(r), counts.cumsum() - counts)
    begins, *rest = (torch.from_numpy(array.astype(np.int32, copy=False)).to(device) for array in arrays)
    pattern = None if device.type == "meta" else _pattern(begins, rest[0].flatten(), (m, n))
    return Pairs(pattern, *rest)


def _pattern(begins: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    values = torch.zeros(len(columns), device=columns.device)
    with warnings.catch_warnings():
        # of all that is in beta one function is used, and a test compares it with the reference
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
        return torch.sparse_csr_tensor(begins, columns, values, shape, check_invariants=False)
