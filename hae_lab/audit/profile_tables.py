"""Tables of the profiler: public architectures against torch's counter, and the memory of training the variants."""

from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hae_lab.audit.public_models import PUBLISHED
from hae_lab.presets import VARIANTS, config
from hae_lab.profilers.backward import MACS, backward_rows
from hae_lab.profilers.macs import compute, total
from hae_lab.profilers.memory import memory_rows, totals_of
from hae_lab.profilers.params import parameter_formulas
from hae_lab.profilers.steps import StepCall, inference_step, mean_square, prepare, training_step

# preset, width, dropout: models that one computer trains; on a CPU the fused kernel of dense attention takes no dropout
MEMORY_SETTINGS = (("imagenet64", 64, 0.0), ("brats128", 32, 0.0), ("brats128", 32, 0.1))


def public_counts() -> pd.DataFrame:
    """Ten public architectures: ours, torch's counter on the meta device, and what is published.

    Columns: name, source, input; params, params_published; macs (forward), macs_counter, macs_difference,
    gmacs_published; macs_backward, macs_backward_counter (without what fused attention does again),
    backward_difference, and of it groups_macs: the counter takes the gradient of a grouped convolution's weight for
    that of a dense one; saved_bytes, training_peak_bytes.
    """
    return pd.DataFrame([_public_row(name) for name in PUBLISHED])


def _public_row(name: str) -> dict[str, Any]:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = published.build()
        x = torch.empty(published.shape)
    inference = inference_step(model, (x,))
    step = training_step(model, (x,), warm=False)
    ours, memory = backward_rows(step)[MACS].sum(), totals_of(step, inference)
    forward = int(total(compute(model, inputs=x))["macs_run"])
    counter, counter_backward = _counter_macs(model, x)
    return {
        "name": name,
        "source": published.source,
        "input": " × ".join(map(str, published.shape)),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "params_published": published.params,
        "macs": forward,
        "macs_counter": counter,
        "macs_difference": forward - counter,
        "gmacs_published": published.gmacs if published.gmacs is not None else float("nan"),
        "macs_backward": int(ours["macs_backward"]),
        "macs_backward_counter": counter_backward,
        "backward_difference": int(ours["macs_backward"]) - counter_backward,
        "groups_macs": sum(map(_groups_macs, step.calls)),
        "saved_bytes": memory["saved_bytes"],
        "training_peak_bytes": memory["training_peak_bytes"],
    }


def _counter_macs(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Half of the FLOPs that torch counts, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        scalar = mean_square(model(x))
        forward = counter.get_total_flops() // 2
        scalar.backward()
    return forward, counter.get_total_flops() // 2 - forward


def _groups_macs(call: StepCall) -> int:
    """What torch's counter adds to the gradient of a grouped convolution's weight: as if it had one group."""
    conv = call.module
    grouped = isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) and conv.groups > 1
    return call.macs * (conv.groups - 1) if grouped and call.reached and conv.weight.requires_grad else 0


def training_memory_rows() -> pd.DataFrame:
    """What training needs of memory, a row a variant and setting, one image: parameters, what autograd saves, peaks.

    Two rules besides the document's show what sparsity costs: `document_shared` and `dense`. Percents are of HAE under
    the same rule and setting; `attention_saved_bytes` is the share of the sparse attention layers.
    """
    rows = []
    for setting, variant in product(MEMORY_SETTINGS, VARIANTS):
        rules = ("document", "document_shared", "dense") if VARIANTS[variant].has_blocks else ("document",)
        rows += [_memory_row(*setting, variant, rule) for rule in rules]
    frame = pd.DataFrame(rows)
    for column in ("params", "saved_bytes", "step_peak_bytes", "training_peak_bytes"):
        frame[f"{column.removesuffix('_bytes')}_percent_of_hae"] = _percent_of_hae(frame, column)
    return frame


def _memory_row(preset: str, width: int, dropout: float, variant: str, rule: str) -> dict[str, Any]:
    model_config = config(variant, preset, model_channels=width, dropout=dropout, mask_rule=rule)
    model, args, kwargs = prepare(model_config)
    inference = inference_step(model, args, kwargs)
    step = training_step(model, args, kwargs, warm=False)
    rows = memory_rows(step)
    attention = rows["path"].str.contains("multihead_attn")
    return {
        "preset": preset,
        "model_channels": width,
        "dropout": dropout,
        "variant": variant,
        "mask_rule": rule if VARIANTS[variant].has_blocks else "",
        "params": parameter_formulas(model_config)["model"],
        "attention_saved_bytes": int(rows.loc[attention, "saved_bytes"].sum()),
        **totals_of(step, inference).to_dict(),
    }


def _percent_of_hae(frame: pd.DataFrame, column: str) -> pd.Series:
    """Against HAE in the same setting, under the same rule; the control against HAE under the document's."""
    rules = frame["mask_rule"].replace("", "document")
    hae = frame[frame["variant"] == "hae"].set_index(["preset", "dropout", "mask_rule"])[column]
    keys = pd.MultiIndex.from_arrays([frame["preset"], frame["dropout"], rules])
    return 100 * frame[column] / hae.reindex(keys).to_numpy()
