"""Where the multiply-accumulates go: closed formulas for every module, from shapes alone.

Conventions: one MAC is one multiplication and one addition, so FLOPs are 2 x MACs. Matrix products and convolutions count;
biases, norms, softmax, activations, pooling and other elementwise work count as nothing. Four numbers stand side by side:

- `dense`: every query-key pair of the local queries, the cost without sparsity;
- `kept`: only the pairs that the mask keeps, what sparsity could save at best;
- `run`: what the kernel of `models.attention` executes, padding included;
- `document`: dense for all n queries, the regional ones included, as published.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.config import HAEConfig
from hae_lab.errors import require
from hae_lab.models import MSTB, HybridBlock, build
from hae_lab.models.attention import SparseMultiheadAttention, pairs_kept, pairs_run
from hae_lab.models.layers import AttentionBlock
from hae_lab.profilers.parameters import BLOCKS, HYBRID_PARTS, MSTB_PARTS, SECTIONS
from hae_lab.profilers.tracing import Call, trace

RULES = ("dense", "kept", "run", "document")
MACS = [f"macs_{rule}" for rule in RULES]
FLOPS = [f"flops_{rule}" for rule in RULES]
SCORES = "attention scores and values"


@dataclass(frozen=True)
class Work:
    """MACs of one part of a call under the four conventions; `part` None means that the place in the model says it."""

    dense: int
    kept: int
    run: int
    document: int
    part: str | None = None
    note: str = ""

    @classmethod
    def always(cls, macs: int, part: str | None = None) -> "Work":
        """Work that no mask changes."""
        return cls(macs, macs, macs, macs, part)


# The formulas. Each takes one call of its module and yields its parts, without those of its children.


def _linear(call: Call) -> Iterator[Work]:
    yield Work.always(call.output.numel() * call.module.in_features)


def _conv(call: Call) -> Iterator[Work]:
    conv = call.module
    yield Work.always(call.output.numel() * conv.in_channels // conv.groups * prod(conv.kernel_size))


def _conv_transpose(call: Call) -> Iterator[Work]:
    conv = call.module
    yield Work.always(_input(call).numel() * conv.out_channels // conv.groups * prod(conv.kernel_size))


def _body_attention(call: Call) -> Iterator[Work]:
    """Scores and values of the body's self-attention, class tokens among the keys: 2 C pixels (pixels + tokens)."""
    batch, channels, *size = _input(call).shape
    class_tokens = _input(call, 1, "class_tokens")
    pixels = prod(size)
    keys = pixels if class_tokens is None else pixels + class_tokens.shape[-1]
    yield Work.always(2 * batch * channels * pixels * keys, SCORES)


def _sparse_attention(call: Call) -> Iterator[Work]:
    """In-projections of q (local tokens) and of k, v (all tokens), then scores and values pair by pair."""
    (batch, n, channels), mask = _input(call).shape, _input(call, 1, "mask")
    n_local, heads = mask.grid.n_local, call.module.heads
    projections = batch * (n_local + 2 * n) * channels**2
    document = batch * 3 * n * channels**2
    yield Work(projections, projections, projections, document, "attention projections")
    pair = 2 * batch * channels // heads
    yield Work(
        dense=pair * heads * n_local * n,
        kept=pair * _pairs_kept(mask, heads),
        run=pair * _pairs_run(mask, heads, getattr(call.module, "kernel", None)),
        document=pair * heads * n * n,
        part=SCORES,
        note=", ".join(f"patch {p} does not divide the map: dropped" for p in mask.grid.dropped),
    )


def _multihead_attention(call: Call) -> Iterator[Work]:
    """torch's own layer, out-projection included. It runs every pair, whatever its mask; its mask is not read."""
    layer = call.module
    query, key, value = (_input(call, index, name) for index, name in enumerate(("query", "key", "value")))
    width = layer.embed_dim
    tokens, sources = query.numel() // width, key.numel() // key.shape[-1]
    length = key.shape[1 if layer.batch_first and key.dim() == 3 else 0]
    keys = length + (layer.bias_k is not None) + layer.add_zero_attn
    projections = width * (2 * tokens * width + sources * (key.shape[-1] + value.shape[-1]))
    yield Work.always(projections, "attention projections")
    yield Work.always(2 * tokens * keys * width, SCORES)


# keyed by the forward function, so that a subclass with a forward pass of its own is not mistaken for its parent
FORMULAS: dict[Callable[..., Any], Callable[[Call], Iterator[Work]]] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _conv,
    nn.Conv2d.forward: _conv,
    nn.Conv3d.forward: _conv,
    nn.ConvTranspose1d.forward: _conv_transpose,
    nn.ConvTranspose2d.forward: _conv_transpose,
    nn.ConvTranspose3d.forward: _conv_transpose,
    nn.MultiheadAttention.forward: _multihead_attention,
    AttentionBlock.forward: _body_attention,
    SparseMultiheadAttention.forward: _sparse_attention,
}

# counting pairs walks over the whole mask, and layers share their masks
_pairs_kept = lru_cache(maxsize=32)(pairs_kept)
_pairs_run = lru_cache(maxsize=32)(pairs_run)


def compute(
    config_or_module: HAEConfig | nn.Module,
    batch: int = 1,
    *,
    inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """A row for each module that multiplies and accumulates, in the order of the forward pass; one pass of the model.

    Columns: path, module (class), section (embedding, encoder, middle, decoder, out), block and part (as in `parameters`, with
    attention split into projections and scores and values), level (0 is the finest), height and width (of the map that
    the module writes to), calls, counted_by, macs_dense, macs_kept, macs_run, macs_document, the same in flops_* (2 x macs), note.

    A module without a formula is counted by its operators, and where nobody knows an operator the row says "nobody", with
    NaN and the operator in `note`; see `uncounted`. A model that has no HAEConfig needs `inputs`: a tensor, a sequence
    or a mapping of arguments. Nothing is computed and no weights are allocated; the model stays as it is.
    Raises `HAELabError` for missing inputs and for a model that cannot run on the meta device.
    """
    model = config_or_module
    if isinstance(model, HAEConfig):
        with torch.device("meta"):
            model = build(model)
    args, kwargs = _arguments(model, batch) if inputs is None else _split_inputs(inputs)
    calls = trace(model, args, kwargs)
    finest = max((max(size) for size in map(_map_size, calls) if size), default=None)
    rows = [_place(call, work, finest) | counts for call in calls for work, counts in _counts(call)]
    return _merge_calls(rows)


def uncounted(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compute` that nobody could count. Empty: the totals are complete."""
    return frame.loc[frame["counted_by"] == "nobody", ["path", "module", "calls", "note"]]


def by_part(frame: pd.DataFrame) -> pd.DataFrame:
    """MACs and FLOPs of each part of the hybrid blocks, then of the body, of a frame of `compute`; NaN if not all are known."""
    in_hybrid = frame["block"] == "hybrid block"
    parts = frame["part"].where(in_hybrid, "body").rename("part")
    sums = _sums(frame.groupby(parts, sort=False))
    order = [part for part in PART_ORDER if part in sums.index]
    return sums.loc[[*order, *sums.index.difference(order)]].reset_index()


def by_level(frame: pd.DataFrame, section: str = "decoder") -> pd.DataFrame:
    """MACs and FLOPs of each level of a section, coarsest first, of a frame of `compute`; NaN if not all are known."""
    rows = frame[frame["section"] == section]
    return _sums(rows.groupby(["level", "height", "width"])).sort_index(ascending=False).reset_index()
