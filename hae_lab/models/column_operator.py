"""The operator behind kernel `columns`, one for torch: what traces, exports or compiles does not look into it."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


class Pairs(NamedTuple):
    """A list of (query, key) pairs and its products, a matrix (m, d) or (n, d) a head; N counts heads and samples."""

    columns: Tensor
    begins: Tensor
    order: Tensor
    rows: Tensor
    offsets: Tensor

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """x of the query times y of the key, for each pair: (N, m, d), (N, n, d) -> (N, m, r)."""
        pattern = self._pattern(x.dtype, y.shape[1])
        products = x.new_empty(len(x), *self.columns.shape)
        for out, query, key in zip(products.flatten(1), x, y, strict=True):
            out.copy_(torch.sparse.sampled_addmm(pattern, query, key.mT, beta=0.0).values())
        return products

    def to_queries(self, weights: Tensor, y: Tensor) -> Tensor:
        """Weighted sum of y over the pairs of each query: (N, m, r), (N, n, d) -> (N, m, d)."""
        return torch.stack([_bag_sums(self.columns, *head) for head in zip(weights, y, strict=True)])

    def to_keys(self, weights: Tensor, x: Tensor) -> Tensor:
        """Weighted sum of x over the pairs of each key: (N, m, r), (N, m, d) -> (N, n, d)."""
        by_key = (head.index_select(0, self.order) for head in weights.flatten(1))
        return torch.stack([_bag_sums(self.rows, *head, self.offsets) for head in zip(by_key, x, strict=True)])

    def _pattern(self, dtype: torch.dtype, n: int) -> Tensor:
        """(m, n) CSR, a place for each pair."""
        values = torch.zeros(self.columns.numel(), dtype=dtype, device=self.columns.device)
        shape = (len(self.columns), n)
        with warnings.catch_warnings():
            # of all that is in beta one function is used, and a test compares it with the reference
            warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)
            return torch.sparse_csr_tensor(self.begins, self.columns.flatten(), values, shape, check_invariants=False)


def _bag_sums(index: Tensor, weights: Tensor, x: Tensor, offsets: Tensor | None = None) -> Tensor:
    return F.embedding_bag(index, x, offsets, mode="sum", per_sample_weights=weights)


class Block(NamedTuple):
    """Neighbouring queries, the slices of the keys in their intervals, and who may not see what."""

    rows: slice
    slabs: tuple[slice, ...]
    blocked: Tensor  # (rows, keys of all slabs + r) bool


def _blocks(blocked: Tensor, layout: list[int], r: int) -> Iterator[Block]:
    """The blocks of a `ColumnPlan`, whose pairs are r a query."""
    numbers, begin = iter(layout), 0
    for start, stop, count in zip(numbers, numbers, numbers, strict=False):
        slabs = tuple(slice(next(numbers), next(numbers)) for _ in range(count))
        width = sum(slab.stop - slab.start for slab in slabs) + r
        end = begin + (stop - start) * width
        yield Block(slice(start, stop), slabs, blocked[begin:end].view(stop - start, width))
        begin = end


# The operator, forward and backward

PLAN = "Tensor columns, Tensor begins, Tensor order, Tensor rows, Tensor offsets, Tensor blocked, int[] layout"
SCHEMA = f"(Tensor q, Tensor k, Tensor v, {PLAN}, float dropout, Tensor? seed, bool trains) -> (Tensor, Tensor)"
BACKWARD = (
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor scores, Tensor out, {PLAN}, float dropout, Tensor? seed) "
    "-> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("hae_lab::columns", mutates_args=(), schema=SCHEMA)
def attend(q, k, v, columns, begins, order, rows, offsets, blocked, layout, dropout, seed, trains):
    """Scaled queries (N, m, d), keys and values (N, n, d) -> (N, m, d), and the scores (N, m, r) if it trains."""
    pairs = Pairs(columns, begins, order, rows, offsets)
    scores = pairs.dot(q, k)  # (N, m, r)
    # without a backward pass the weights may take the place of the scores
    kept = torch.empty_like(scores) if trains else scores
    out = torch.zeros_like(q)
    generator = _generator(q.device, seed)
    for block in _blocks(blocked, layout, columns.shape[1]):
        weights = _softmax(q, k, scores, block)
        weights = _drop(weights, _gate(weights, dropout, generator))
        *slabs, kept[:, block.rows] = _split(weights, block)
        for slab, keys in zip(slabs, block.slabs, strict=True):
            out[:, block.rows] += slab @ v[:, keys]
    out += pairs.to_queries(kept, v)
    return out, scores if trains else q.new_empty(0)


@torch.library.custom_op("hae_lab::columns_backward", mutates_args=(), schema=BACKWARD)
def attend_backward(grad, q, k, v, scores, out, columns, begins, order, rows, offsets, blocked, layout, dropout, seed):
    """The gradients of queries, keys and values."""
    pairs, grad = Pairs(columns, begins, order, rows, offsets), grad.contiguous()
    inner = (grad * out).sum(dim=-1, keepdim=True)  # (N, m, 1) weights times their gradients, summed
    slopes = pairs.dot(grad, v)  # (N, m, r) gradient of each weight, then of its score
    kept = torch.empty_like(scores)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    generator = _generator(q.device, seed)
    for block in _blocks(blocked, layout, columns.shape[1]):
        rows = block.rows
        weights = _softmax(q, k, scores, block)
        gate = _gate(weights, dropout, generator)
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
    return grad_q, grad_k, grad_v


@attend.register_fake
def _(q, k, v, columns, *rest):
    return torch.empty_like(q), q.new_empty((q.shape[0], *columns.shape) if rest[-1] else 0)


@attend_backward.register_fake
def _(grad, q, k, v, *rest):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    out, scores = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], scores, out)
    ctx.plan = inputs[3:-1]  # lives as long as the mask: no memory of this step


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    none = (None,) * (len(ctx.plan) + 1)
    return (None, None, None, *none) if grad is None else (*attend_backward(grad, *ctx.saved_tensors, *ctx.plan), *none)


attend.register_autograd(_backward, setup_context=_keep)


def _one_by_one(operator: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule for vmap: each sample by itself."""

    def run(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        pairs = list(zip(inputs, dims, strict=True))
        samples = [
            operator(*(x.select(dim, index) if isinstance(dim, int) else x for x, dim in pairs))
            for index in range(info.batch_size)
        ]
        outputs = tuple(map(torch.stack, zip(*samples, strict=True)))
        return outputs, (0,) * len(outputs)

    return run


if hasattr(attend, "register_vmap"):  # torch 2.4 has none
    attend.register_vmap(_one_by_one(attend))
    attend_backward.register_vmap(_one_by_one(attend_backward))


@register_flop_formula(torch.ops.hae_lab.columns)
def _flops(q: torch.Size, k: Any, v: Any, columns: Any, *rest: Any, **_: Any) -> int:
    """Two products over all pairs, scores and values, 2 FLOPs each."""
    blocked = rest[4]
    return 4 * q[0] * q[2] * blocked[0]


@register_flop_formula(torch.ops.hae_lab.columns_backward)
def _backward_flops(grad: Any, q: torch.Size, k: Any, v: Any, scores: Any, out: Any, *rest: Any, **_: Any) -> int:
    """Five products over the pairs of the slabs, whose scores are made anew, and four over the others."""
    single, blocked = rest[0][0] * rest[0][1], rest[5][0]
    return 2 * q[0] * q[2] * (5 * (blocked - single) + 4 * single)


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


def _generator(device: torch.device, seed: Tensor | None) -> torch.Generator | None:
    """The same gates in the backward pass as in the forward pass."""
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


def _gate(weights: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor | None:
    """What dropout multiplies the weights with."""
    if not dropout:
        return None
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


def _drop(weights: Tensor, gate: Tensor | None) -> Tensor:
    return weights if gate is None else weights * gate
