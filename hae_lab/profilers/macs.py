"""Where the multiply-accumulates go: a closed formula for each kind of module, from shapes alone.

One MAC is one multiplication and one addition: FLOPs are 2 x MACs. Matrix products and convolutions count; biases,
norms, softmax, activations, pooling and other elementwise work do not. Four accounts of one model stand side by side:

- `dense`: the local queries see every key, the cost without sparsity;
- `kept`: the pairs that the mask keeps, and projections of keys that somebody sees: the most that sparsity could save;
- `run`: what the kernel of `models.attention` executes, padding included;
- `document`: dense, for all n queries, the regional ones that are thrown away included: as published.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import log2, prod
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.checks import require, require_whole
from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.models.attention import SparseMultiheadAttention, pairs_kept, pairs_run
from hae_lab.models.layers import AttentionBlock
from hae_lab.profilers.inputs import config_of, step_inputs
from hae_lab.profilers.places import BODY_SCORES, PROJECTIONS, SCORES, place
from hae_lab.profilers.tracing import Call, trace

ACCOUNTS = ("dense", "kept", "run", "document")
MACS = [f"macs_{account}" for account in ACCOUNTS]
FLOPS = [f"flops_{account}" for account in ACCOUNTS]
HYBRID_ORDER = ("timestep", "CNN branch", "projections", PROJECTIONS, SCORES, "MLP", "fusion", "hybrid block")
KEYS = ["path", "module", "section", "block", "part", "level", "height", "width", "counted_by", "note"]


@dataclass(frozen=True)
class Work:
    """MACs of one part of a call in the four accounts; without `part` the place in the model names it."""

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
    yield Work.always(2 * batch * channels * pixels * keys, BODY_SCORES)


def _sparse_attention(call: Call) -> Iterator[Work]:
    """In-projections of q (local tokens) and of k and v, then scores and values pair by pair.

    Keys outside the mask's span are not projected: no query sees them.
    """
    (batch, n, channels), mask = _input(call).shape, _input(call, 1, "mask")
    n_local, heads, (first, stop) = mask.grid.n_local, call.module.heads, mask.span
    spanned = batch * (n_local + 2 * (stop - first)) * channels**2
    yield Work(
        dense=batch * (n_local + 2 * n) * channels**2,
        kept=spanned,
        run=spanned,
        document=batch * 3 * n * channels**2,
        part=PROJECTIONS,
    )
    pair = 2 * batch * channels // heads
    yield Work(
        dense=pair * heads * n_local * n,
        kept=pair * _pairs_kept(mask, heads),
        run=pair * _pairs_run(mask, heads, call.module.kernel),
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
    yield Work.always(projections, PROJECTIONS)
    yield Work.always(2 * tokens * keys * width, SCORES)


# By forward function: a subclass that changes it is not mistaken for its parent. Users may add their own.
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
    """A row for each module that multiplies and accumulates, in the order of the forward pass: one denoising step.

    Columns: path, module (class); section, block and part as in `parameters`, attention split into projections and
    scores and values; level (0 is the finest), height and width of the map that the module writes; calls; counted_by;
    macs_dense, macs_kept, macs_run, macs_document and flops_* = 2 x macs_*; note.

    A module without a formula is counted by its operators. Where nobody knows an operator, a row of its own says
    "nobody", with NaN, and names it in `note`; see `uncounted`. A model without an HAEConfig needs `inputs`: a tensor,
    a sequence or a mapping of arguments. Nothing is computed, no weights are allocated, the model stays as it is.
    Raises `HAELabError` for missing inputs and for a model that cannot run on the meta device.
    """
    model = config_or_module
    if isinstance(model, HAEConfig):
        with torch.device("meta"):
            model = build(model)
    require(isinstance(model, nn.Module), f"compute takes an HAEConfig or an nn.Module, got {model!r}")
    args, kwargs = _default_inputs(model, batch) if inputs is None else _split_inputs(inputs)
    calls = trace(model, args, kwargs)
    finest = max((max(size) for size in map(_map_size, calls) if size), default=0)
    rows = [row for call in calls for row in _work_rows(model, call, finest)]
    return _add_up(pd.DataFrame(rows, columns=[*KEYS, *MACS]))


def uncounted(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compute` that nobody could count. Empty: the sums are complete."""
    return frame.loc[frame["counted_by"] == "nobody", ["path", "module", "calls", "note"]]


def total(frame: pd.DataFrame) -> pd.Series:
    """MACs and FLOPs of a frame of `compute`; NaN if nobody could count some of them."""
    return frame[[*MACS, *FLOPS]].sum(skipna=False)


def by_part(frame: pd.DataFrame) -> pd.DataFrame:
    """MACs and FLOPs of each part of the hybrid blocks and of the body; NaN if nobody could count some of them."""
    parts = frame["part"].where(frame["part"].isin(HYBRID_ORDER), "body")
    order = pd.CategoricalDtype([*HYBRID_ORDER, "body"], ordered=True)
    return _sums(frame, [parts.astype(order)]).astype({"part": str})


def by_level(frame: pd.DataFrame, section: str = "decoder") -> pd.DataFrame:
    """MACs and FLOPs of each level of a section, finest first; NaN if nobody could count some of them.

    A resampling convolution belongs to the level of the map that it writes.
    """
    return _sums(frame[frame["section"] == section], ["level", "height", "width"])


def per_sample(per_step: Any, steps: int, guidance: bool = False) -> Any:
    """The work of a whole sampling run: `steps` passes, twice as many with classifier-free guidance.

    `per_step` is a number, a Series, or a frame of this module, whose macs_* and flops_* columns grow.
    """
    passes = require_whole("steps", steps, 1) * (2 if guidance else 1)
    if not isinstance(per_step, pd.DataFrame):
        return per_step * passes
    return per_step.assign(**{name: per_step[name] * passes for name in [*MACS, *FLOPS] if name in per_step})


def _default_inputs(model: nn.Module, batch: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Arguments on the meta device as a denoising step has them, with labels if the model takes some."""
    config = config_of(model, "say what it takes, inputs=(x, ...)")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return step_inputs(config, batch, labels=True, dtype=dtype), {}


def _split_inputs(inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _input(call: Call, index: int = 0, name: str = "") -> Any:
    """One argument of a call, by position or by name, or None."""
    return call.args[index] if index < len(call.args) else call.kwargs.get(name)


def _work_rows(model: nn.Module, call: Call, finest: int) -> Iterator[dict[str, Any]]:
    """The rows of one call: by formula if it agrees with the operators that ran, else by these; then the unknown."""
    formula = FORMULAS.get(type(call.module).forward)
    parts, counted_by = list(formula(call)) if formula else [], "formula"
    if sum(part.run for part in parts) != call.macs:
        parts, counted_by = [Work.always(call.macs)], "operators"
    where = _where(model, call, finest)
    for part in parts:
        counts = dict(zip(MACS, (part.dense, part.kept, part.run, _as_published(call, part.document)), strict=True))
        if any(counts.values()):
            named = {"part": part.part} if part.part else {}
            yield where | named | {"counted_by": counted_by, "note": part.note} | counts
    if call.unknown:
        names = ", ".join(f"{name} x {count}" for name, count in call.unknown.items())
        yield where | {"counted_by": "nobody", "note": f"no formula for {names}"} | dict.fromkeys(MACS, float("nan"))


def _where(model: nn.Module, call: Call, finest: int) -> dict[str, Any]:
    """Where in the model a call happens, and on which map."""
    where: dict[str, Any] = place(model, call.path)
    part = PROJECTIONS if where["part"] == "attention" else where["part"]
    height, width = _map_size(call) or (None, None)
    level = round(log2(finest / max(height, width))) if height and width else None
    return where | {"part": part, "level": level, "height": height, "width": width}


def _map_size(call: Call) -> tuple[int, int] | None:
    """Height and width of the map that the call, or else the innermost call around it, puts out."""
    outputs = (around.output for around in call.chain())
    return next(((out.shape[2], out.shape[3]) for out in outputs if isinstance(out, Tensor) and out.dim() == 4), None)


def _as_published(call: Call, macs: int) -> int:
    """Work inside the sparse attention, which sees the local queries alone, for all n queries."""
    for around in islice(call.chain(), 1, None):
        if isinstance(around.module, SparseMultiheadAttention):
            grid = _input(around, 1, "mask").grid
            return macs * grid.n // grid.n_local
    return macs


def _add_up(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all calls of a module in one place."""
    rows = rows.astype({"level": "Int64", "height": "Int64", "width": "Int64"})
    groups = rows.groupby(KEYS, sort=False, dropna=False)
    frame = groups[MACS].sum(min_count=1).reset_index()
    frame.insert(len(KEYS) - 2, "calls", groups.size().to_numpy())
    frame[FLOPS] = 2 * frame[MACS]
    frame["note"] = frame.pop("note")
    return frame


def _sums(frame: pd.DataFrame, keys: list[Any]) -> pd.DataFrame:
    groups = frame.groupby(keys, observed=True)
    return groups[[*MACS, *FLOPS]].agg(_sum_of_all).reset_index()


def _sum_of_all(column: "pd.Series[float]") -> float:
    return column.sum(skipna=False)
