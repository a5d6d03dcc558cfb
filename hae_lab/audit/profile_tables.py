"""Tables of the profiler: public architectures against torch's counter, and the memory of training the variants."""

from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hae_lab.audit.public_models import PUBLISHED
from hae_lab.family import HAEConfig
from hae_lab.presets import VARIANTS, config
from hae_lab.profilers.backward import MACS, backward_rows
from hae_lab.profilers.macs import compute, total
from hae_lab.profilers.memory import memory_rows, totals_of
from hae_lab.profilers.meta_kernels import Remembering
from hae_lab.profilers.params import parameter_formulas
from hae_lab.profilers.steps import StepCall, inference_step, mean_square, prepare, training_step


class Setting(NamedTuple):
    """What is trained, as far as its memory goes."""

    preset: str
    images: int
    dropout: float
    mask_rule: str

    def of(self, variant: str) -> "Setting":
        """The setting of a variant: one without blocks has no mask."""
        return self if VARIANTS[variant].has_blocks else self._replace(mask_rule="")

    def config(self, variant: str) -> HAEConfig:
        """The config of a variant in this setting."""
        rule = {"mask_rule": self.mask_rule} if self.mask_rule else {}
        return config(variant, self.preset, dropout=self.dropout, **rule)


MEMORY_PRESET, DROPOUT = "brats128", 0.1
BATCHES = [Setting(MEMORY_PRESET, images, DROPOUT, "document") for images in (1, 16)]
RULES = [
    Setting(MEMORY_PRESET, 1, dropout, rule)
    for dropout in (DROPOUT, 0.0)
    for rule in ("document", "document_shared", "dense")
]


def public_counts() -> pd.DataFrame:
    """Ten public architectures: ours, torch's counter on the meta device, and what is published.

    Columns: name, source, input; params, params_published, params_step (what that is rounded to); macs (forward),
    macs_counter, macs_difference, gmacs_published, gmacs_step; macs_backward, macs_backward_counter,
    backward_difference, and of it groups_macs: the counter takes the gradient of a grouped convolution's weight for
    that of a dense one; saved_bytes; torch_version, diffusers_version.
    """
    versions = {f"{name}_version": version(name) for name in ("torch", "diffusers")}
    return pd.DataFrame([_public_row(name) for name in PUBLISHED]).assign(**versions)


def _public_row(name: str) -> dict[str, Any]:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model = published.build()
        x = torch.empty(published.shape)
    step = training_step(model, (x,), optimizer=None, warm=False)
    backward = int(backward_rows(step)[MACS].sum()["macs_backward"])
    forward = int(total(compute(model, inputs=x))["macs_run"])
    counter, counter_backward = _counter_macs(model, x)
    return {
        "name": name,
        "source": published.source,
        "input": " × ".join(map(str, published.shape)),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "params_published": published.params,
        "params_step": published.params_step,
        "macs": forward,
        "macs_counter": counter,
        "macs_difference": forward - counter,
        "gmacs_published": published.gmacs,
        "gmacs_step": published.gmacs_step if published.gmacs == published.gmacs else float("nan"),
        "macs_backward": backward,
        "macs_backward_counter": counter_backward,
        "backward_difference": backward - counter_backward,
        "groups_macs": sum(map(_groups_macs, step.calls)),
        "saved_bytes": sum(storage.bytes for storage in step.kept()),
    }


def _counter_macs(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Half of the FLOPs that torch counts, forward and backward."""
    with Remembering(), FlopCounterMode(display=False) as counter:
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
    """What training with AdamW needs of memory, a row a variant, for one image and for a batch.

    Columns: variant, preset, images, dropout, mask_rule; params, the totals of `profilers.memory_totals`, and
    attention_saved_bytes, the share of sparse attention in saved_bytes; percents of HAE in the same setting.
    """
    frame = pd.DataFrame([_memory_row(setting.of(variant), variant) for setting in BATCHES for variant in VARIANTS])
    for column in ("params", "saved_bytes", "training_peak_bytes"):
        hae = frame.loc[frame["variant"] == "hae"].set_index("images")[column]
        frame[f"{column.removesuffix('_bytes')}_percent_of_hae"] = 100 * frame[column] / frame["images"].map(hae)
    return frame.assign(torch_version=version("torch"))


def training_memory_by_rule() -> pd.DataFrame:
    """The same of V2 for one image, a row a mask rule, with dropout and without."""
    return pd.DataFrame([_memory_row(setting, "v2") for setting in RULES]).assign(torch_version=version("torch"))


def _memory_row(setting: Setting, variant: str) -> dict[str, Any]:
    model_config = setting.config(variant)
    params = parameter_formulas(model_config)["model"]
    return {"variant": variant, **setting._asdict(), "params": params, **memory_of(model_config, setting.images)}


@lru_cache(maxsize=64)
def memory_of(model_config: HAEConfig, images: int) -> dict[str, int]:
    """The totals of `profilers.memory_totals` for a batch, and what sparse attention saves: do not change it."""
    model, args, kwargs = prepare(model_config, images)
    inference = inference_step(model, args, kwargs)
    step = training_step(model, args, kwargs, warm=False)
    rows = memory_rows(step)
    attention = int(rows.loc[rows["path"].str.contains("multihead_attn"), "saved_bytes"].sum())
    return {"attention_saved_bytes": attention, **totals_of(step, inference).to_dict()}
