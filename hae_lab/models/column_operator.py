"""The operator behind kernel `columns`, one for torch: what traces, exports or compiles does not look into it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hae_lab.models.pairs import Pairs

PORTION_BYTES = 2**20  # of scores that are at work at once: a core's own memory


class Chunk(NamedTuple):
    """Neighbouring queries in c blocks of b, the slices of the keys that each block reads, and who may not see what.

    The slices of all blocks are equally wide: s keys a block.
    """

    rows: slice  # c b queries
    slabs: tuple[tuple[slice, ...], ...]  # of each block
    blocked: Tensor  # (c, b, s + r) bool

    def queries(self, x: Tensor) -> Tensor:
        """(N, m, ...) -> (N c, b, ...)."""
        count, length = self.blocked.shape[:2]
        return x[:, self.rows].reshape(len(x) * count, length, x.shape[-1])

    def set(self, total: Tensor, x: Tensor) -> None:
        """Write (N c, b, ...) over the queries of (N, m, ...)."""
        total[:, self.rows] = x.reshape(total[:, self.rows].shape)

    def keys(self, x: Tensor) -> Tensor:
        """(N, n, d) -> (N c, s, d)."""
        if len(self.slabs) == len(self.slabs[0]) == 1:
            return x[:, self.slabs[0][0]]
        slabs = torch.cat([x[:, :0], *(x[:, slab] for block in self.slabs for slab in block)], dim=1)
        return slabs.view(len(x) * len(self.slabs), slabs.shape[1] // len(self.slabs), x.shape[-1])

    def add_to_keys(self, total: Tensor, x: Tensor) -> None:
        """Add (N c, s, d) to the keys of (N, n, d)."""
        parts = x.unflatten(0, (len(total), -1)).unbind(1)
        for block, part in zip(self.slabs, parts, strict=True):
            for slab, its in zip(block, part.split([slab.stop - slab.start for slab in block], dim=1), strict=True):
                total[:, slab] += its

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What to add to the scores: 0, or a finite minimum, which makes no NaN where nothing is seen."""
        zeros = torch.zeros(self.blocked.shape, dtype=dtype, device=self.blocked.device)
        return zeros.masked_fill_(self.blocked, torch.finfo(dtype).min)


def _chunks(blocked: Tensor, layout: list[int], r: int) -> Iterator[Chunk]:
    """The chunks of a `ColumnPlan`, whose pairs are r a query."""
    numbers, begin = iter(layout), 0
    for start, stop, blocks, slabs in zip(*[numbers] * 4, strict=False):
        read = tuple(tuple(slice(next(numbers), next(numbers)) for _ in range(slabs)) for _ in range(blocks))
        width = sum(slab.stop - slab.start for slab in read[0]) + r
        end = begin + (stop - start) * width
        yield Chunk(slice(start, stop), read, blocked[begin:end].view(blocks, (stop - start) // blocks, width))
        begin = end


def _portions(heads: int, chunks: list[Chunk], dtype: torch.dtype) -> list[slice]:
    """Heads whose scores of one chunk are few enough to be at work together."""
    most = max(chunk.blocked.numel() for chunk in chunks)
    some = max(1, PORTION_BYTES // (dtype.itemsize * most))
    return [slice(start, min(start + some, heads)) for start in range(0, heads, some)]


# The operator, forward and backward

PLAN = "Tensor columns, Tensor order, Tensor rows, Tensor offsets, Tensor blocked, int[] layout"
SCHEMA = f"(Tensor q, Tensor k, Tensor v, {PLAN}, float dropout, Tensor? seed, bool trains) -> (Tensor, Tensor)"
BACKWARD = (
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor scores, Tensor out, {PLAN}, float dropout, Tensor? seed) "
    "-> (Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("hae_lab::columns", mutates_args=(), schema=SCHEMA)
def attend(q, k, v, columns, order, rows, offsets, blocked, layout, dropout, seed, trains):
    """Scaled queries (N, m, d), keys and values (N, n, d) -> (N, m, d), and the scores (N, m, r) if it trains."""
    if not len(q):  # no images
        return torch.empty_like(q), q.new_empty((0, *columns.shape) if trains else 0)
    pairs, chunks = Pairs(columns, order, rows, offsets), list(_chunks(blocked, layout, columns.shape[1]))
    scores = pairs.dot(q, k)  # (N, m, r)
    # without a backward pass the weights may take the place of the scores
    kept = torch.empty_like(scores) if trains else scores
    out, biases = torch.empty_like(q), [chunk.bias(q.dtype) for chunk in chunks]
    generator = _generator(q.device, seed)
    for some in _portions(len(q), chunks, q.dtype):
        for chunk, bias in zip(chunks, biases, strict=True):
            weights = _softmax(q[some], k[some], scores[some], chunk, bias)
            slabs, singles = _split(_drop(weights, _gate(weights, dropout, generator)), columns.shape[1])
            chunk.set(kept[some], singles)
            chunk.set(out[some], slabs @ chunk.keys(v[some]))
    out += pairs.to_queries(kept, v)
    return out, scores if trains else q.new_empty(0)


@torch.library.custom_op("hae_lab::columns_backward", mutates_args=(), schema=BACKWARD)
def attend_backward(grad, q, k, v, scores, out, columns, order, rows, offsets, blocked, layout, dropout, seed):
    """The gradients of queries, keys and values."""
    if not len(q):
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    pairs, chunks = Pairs(columns, order, rows, offsets), list(_chunks(blocked, layout, columns.shape[1]))
    grad = grad.contiguous()
    inner = (grad * out).sum(dim=-1, keepdim=True)  # (N, m, 1) weights times their gradients, summed
    slopes = pairs.dot(grad, v)  # (N, m, r) gradient of each weight, then of its score
    kept, biases = torch.empty_like(scores), [chunk.bias(q.dtype) for chunk in chunks]
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    generator = _generator(q.device, seed)
    for some in _portions(len(q), chunks, q.dtype):
        for chunk, bias in zip(chunks, biases, strict=True):
            weights = _softmax(q[some], k[some], scores[some], chunk, bias)
            gate, towards = _gate(weights, dropout, generator), chunk.queries(grad[some])
            slope = torch.cat([towards @ chunk.keys(v[some]).mT, chunk.queries(slopes[some])], dim=-1)
            slope = _drop(slope, gate).sub_(chunk.queries(inner[some])).mul_(weights)
            slabs, singles = _split(_drop(weights, gate), columns.shape[1])
            chunk.set(kept[some], singles)
            slab_slopes, singles = _split(slope, columns.shape[1])
            chunk.set(slopes[some], singles)
            chunk.set(grad_q[some], slab_slopes @ chunk.keys(k[some]))
            chunk.add_to_keys(grad_k[some], slab_slopes.mT @ chunk.queries(q[some]))
            chunk.add_to_keys(grad_v[some], slabs.mT @ towards)
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


def one_by_one(operator: Callable[..., Tensor | tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The rule for vmap: each sample by itself."""

    def run(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        pairs = list(zip(inputs, dims, strict=True))
        samples = [
            operator(*(x.select(dim, index) if isinstance(dim, int) else x for x, dim in pairs))
            for index in range(info.batch_size)
        ]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples), 0
        outputs = tuple(map(torch.stack, zip(*samples, strict=True)))
        return outputs, (0,) * len(outputs)

    return run


if hasattr(attend, "register_vmap"):  # torch 2.4 has none
    attend.register_vmap(one_by_one(attend))
    attend_backward.register_vmap(one_by_one(attend_backward))


@register_flop_formula(torch.ops.hae_lab.columns)
def _flops(q: torch.Size, k: Any, v: Any, columns: Any, *rest: Any, **_: Any) -> int:
    """Two products over all pairs, scores and values, 2 FLOPs each."""
    blocked = rest[3]
    return 4 * q[0] * q[2] * blocked[0]


@register_flop_formula(torch.ops.hae_lab.columns_backward)
def _backward_flops(grad: Any, q: torch.Size, k: Any, v: Any, scores: Any, out: Any, *rest: Any, **_: Any) -> int:
    """Five products over the pairs of the slabs, whose scores are made anew, and four over the others."""
    single, blocked = rest[0][0] * rest[0][1], rest[4][0]
    return 2 * q[0] * q[2] * (5 * (blocked - single) + 4 * single)


def _softmax(q: Tensor, k: Tensor, scores: Tensor, chunk: Chunk, bias: Tensor) -> Tensor:
    """The weights of a chunk's queries over the keys of their slabs and their own pairs: (N c, b, s + r)."""
    joint = torch.cat([chunk.queries(q) @ chunk.keys(k).mT, chunk.queries(scores)], dim=-1)
    joint.view(len(q), *bias.shape).add_(bias)
    return joint.softmax(dim=-1)


def _split(x: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """(N c, b, s + r) -> (N c, b, s), (N c, b, r)."""
    slabs, singles = x.split([x.shape[-1] - r, r], dim=-1)
    return slabs, singles


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
