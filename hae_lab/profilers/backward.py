"""MACs of a training step: forward, backward and what runs twice, module by module.

A layer's backward pass does its forward work once for the gradient of its input and once for that of its weight, each
only where something needs it. Attention does twice its forward work. What was not saved runs again: functions under a
checkpoint, the scores in fused attention, those of the slices in the kernel `columns`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.family import HAEConfig
from hae_lab.models.attention import SparseMultiheadAttention, kernel_name
from hae_lab.models.columns import ColumnPlan, column_plans
from hae_lab.models.layers import AttentionBlock
from hae_lab.models.plans import plan_of
from hae_lab.profilers.steps import BACKWARD, FORWARD, RECOMPUTED, Loss, Step, StepCall, prepare, training_step

MACS = ["macs_forward", "macs_backward", "macs_recomputed"]
FLOPS = ["flops_forward", "flops_backward", "flops_recomputed"]


class Gradients(NamedTuple):
    """MACs of the backward pass of one call: of gradients, and of forward work done again that no operator tells."""

    macs: int
    hidden: int = 0


def _weighted(call: StepCall) -> Gradients:
    """Linear layers and convolutions: forward work for the input's gradient, and for the weight's."""
    return Gradients(call.macs * (call.input_needs_grad + call.module.weight.requires_grad))


def _attention(call: StepCall) -> Gradients:
    """Scores and values: two products backward for one forward; so have torch's projections, all of them trained."""
    return Gradients(2 * call.macs)


def _sparse_attention(call: StepCall) -> Gradients:
    """In-projections like linear layers; scores and values of the pairs that the kernel runs like all attention."""
    attention, mask = call.module, _argument(call, 1, "mask")
    (batch, _, channels), (first, stop) = _argument(call, 0, "tokens").shape, mask.span
    projections = batch * (mask.grid.n_local + 2 * (stop - first)) * channels**2
    attended = call.macs - projections
    hidden = 0
    if kernel_name(mask, attention.heads, attention.kernel) == "columns":
        heads = attention.heads // mask.groups
        plans = cast(Iterable[ColumnPlan], plan_of(column_plans, mask, attention.heads, torch.device("cpu")))
        slices = heads * sum(map(_slice_pairs, plans))
        hidden = batch * slices * channels // attention.heads
    gradients = projections * (call.input_needs_grad + attention.in_proj_weight.requires_grad) + 2 * attended
    return Gradients(gradients, hidden)


def _slice_pairs(plan: ColumnPlan) -> int:
    """Pairs of a plan of the kernel `columns` whose keys are slices."""
    return plan.blocked.numel() - plan.columns.numel()


def _argument(call: StepCall, index: int, name: str) -> Any:
    return call.args[index] if index < len(call.args) else call.kwargs.get(name)


_WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
# by the forward function, so that a subclass with another one is not mistaken for its parent
GRADIENTS: dict[Any, Callable[[StepCall], Gradients]] = {
    **{kind.forward: _weighted for kind in _WEIGHTED},
    nn.MultiheadAttention.forward: _attention,
    AttentionBlock.forward: _attention,
    SparseMultiheadAttention.forward: _sparse_attention,
}


def backward_macs(
    config_or_module: HAEConfig | nn.Module, *, batch: int = 1, inputs: Any = None, loss: Loss | None = None
) -> pd.DataFrame:
    """A row for each module that works in a training step, frozen ones and dead ends with what they do, if anything.

    Columns: path, module, calls; macs_forward (of the forward pass), macs_backward (of gradients), macs_recomputed
    (forward work done again), macs_step (all three); flops_* = 2 x macs_*; gradients (of "input and weight", "input",
    "weight", or "none"); counted_by: "formula" where a closed formula agrees with the operators that ran, "operators"
    where there is none, "nobody" with NaN for operators that nobody counts, which `note` names.
    Arguments and errors are those of `steps.prepare` and `steps.training_step`.
    """
    model, args, kwargs = prepare(config_or_module, batch, inputs)
    return backward_rows(training_step(model, args, kwargs, loss=loss, optimizer=None))


def backward_rows(step: Step) -> pd.DataFrame:
    """`backward_macs` of a step that was followed."""
    calls_of: dict[str, list[StepCall]] = defaultdict(list)
    for call in step.calls:
        calls_of[call.path].append(call)
    rows = [row for calls in calls_of.values() for row in _rows(calls)]
    frame = pd.DataFrame(rows, columns=["path", "module", "calls", *MACS, "gradients", "counted_by", "note"])
    frame.insert(6, "macs_step", frame[MACS].sum(axis=1, skipna=False))
    for place, (flops, macs) in enumerate(zip([*FLOPS, "flops_step"], [*MACS, "macs_step"], strict=True)):
        frame.insert(7 + place, flops, 2 * frame[macs])
    return frame


def _rows(calls: list[StepCall]) -> list[dict[str, Any]]:
    """The rows of a module: what could be counted, then what nobody counts."""
    first = calls[0]
    place = {"path": first.path, "module": type(first.module).__name__, "calls": len(calls), "gradients": _needs(calls)}
    forward, backward, again = (sum(call.macs_by[phase] for call in calls) for phase in (FORWARD, BACKWARD, RECOMPUTED))
    rows, counted_by = [], "operators"
    formula = GRADIENTS.get(type(first.module).forward)
    if formula is not None:
        parts = [formula(call) if call.reached else Gradients(0) for call in calls]
        gradients, hidden = sum(part.macs for part in parts), sum(part.hidden for part in parts)
        if gradients + hidden == backward:
            backward, again, counted_by = gradients, again + hidden, "formula"
    if forward or backward or again:
        counts = dict(zip(MACS, (forward, backward, again), strict=True))
        rows.append(place | counts | {"counted_by": counted_by, "note": ""})
    unknown = sum((call.unknown for call in calls), first.unknown.__class__())
    if unknown:
        names = ", ".join(f"{name} x {count}" for name, count in unknown.items())
        rows.append(
            place | dict.fromkeys(MACS, float("nan")) | {"counted_by": "nobody", "note": f"no formula for {names}"}
        )
    return rows


def _needs(calls: list[StepCall]) -> str:
    """What gets a gradient in any of the calls that one comes back to."""
    reached = [call for call in calls if call.reached]
    weights = [p.requires_grad for p in calls[0].module.parameters(recurse=False) if isinstance(p, Tensor)]
    wanted = {"input": any(call.input_needs_grad for call in reached), "weight": bool(reached) and any(weights)}
    return " and ".join(name for name, needed in wanted.items() if needed) or "none"
