"""Second opinions: what the counters that users know make of our models, and why they disagree.

Every number is in MACs; FlopCounterMode's FLOPs are halved. fvcore calls a MAC a flop. Reasons are computed, call by
call, from each tool's counting rule: `unexplained_macs` is what is left of a disagreement, and should be nothing.
Attention runs by the kernel `masked`, the one that all of them can follow.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.models.layers import Upsample
from hae_lab.presets import VARIANTS, config
from hae_lab.profilers.inputs import step_inputs
from hae_lab.profilers.macs import compute, total
from hae_lab.profilers.places import BODY_SCORES, SCORES
from hae_lab.profilers.tracing import Call, to_meta, trace

Reasons = dict[str, int]  # why a counter disagrees -> MACs that it has more (or less, below 0) than the formulas


def counter_configs(
    presets: tuple[str, ...] = ("tiny", "lesson32"), rules: tuple[str, ...] = ("dense", "document")
) -> dict[str, HAEConfig]:
    """The variants on small presets, which other counters must build and run on the CPU."""
    keys = product(presets, VARIANTS, rules)
    return {f"{variant} {preset} {rule}": config(variant, preset, mask_rule=rule) for preset, variant, rule in keys}


def counters(configs: Mapping[str, HAEConfig]) -> pd.DataFrame:
    """A row for each model and counter: one pass of batch 1.

    Columns: name, mask_rule, counter, mode, macs, ratio (to our formulas for what runs), unexplained_macs, reason, and
    the versions of the counters, on which they depend.
    """
    rows = pd.DataFrame([row for name, model_config in configs.items() for row in _opinion_rows(name, model_config)])
    versions = {f"{package}_version": version(package) for package in ("torch", "fvcore", "torchinfo")}
    return rows.assign(**versions)


def flop_counter_macs(
    model: nn.Module, args: tuple[Any, ...], formulas: Mapping[Any, Callable[..., Any]] | None = None
) -> int:
    """MACs of one forward pass by torch's FlopCounterMode, half of its FLOPs."""
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=dict(formulas or {})) as counter:
        model(*args)
    return counter.get_total_flops() // 2


def _opinion_rows(name: str, model_config: HAEConfig) -> Iterator[dict[str, Any]]:
    with torch.random.fork_rng(devices=[]):
        opinions = list(_opinions(model_config))
    _, _, ours, _ = opinions[0]
    for counter, mode, macs, reasons in opinions:
        yield {
            "name": name,
            "mask_rule": model_config.mask_rule,
            "counter": counter,
            "mode": mode,
            "macs": macs,
            "ratio": macs / ours,
            "unexplained_macs": macs - ours - sum(reasons.values()),
            "reason": "; ".join(f"{reason}: {more:+,}" for reason, more in reasons.items() if more),
        }


def _opinions(model_config: HAEConfig) -> Iterator[tuple[str, str, int, Reasons]]:
    """(counter, mode, MACs, reasons) of every counter, our formulas first."""
    model, args = _masked_model(model_config), step_inputs(model_config, device="cpu", labels=True)
    with torch.device("meta"):
        on_meta = _masked_model(model_config)
    frame, calls = compute(model), trace(model, args)
    sums = total(frame)
    kept, run = int(sums["macs_kept"]), int(sums["macs_run"])
    yield "hae_lab formulas", "run", run, {}
    yield "hae_lab formulas", "kept", kept, {"no other counter knows what the mask hides": kept - run}
    yield "FlopCounterMode", "meta", flop_counter_macs(on_meta, to_meta(args)), {}
    # whether attention runs fused depends on the memory layout and the mask, so it is asked, not assumed
    plain, taught = (flop_counter_macs(model.eval(), args, formulas) for formulas in (None, CPU_FORMULAS))
    yield "FlopCounterMode", "CPU", plain, {"no formula for torch's fused CPU attention": plain - taught}
    yield "FlopCounterMode, taught", "CPU", taught, {}
    yield "fvcore", "CPU, eval", _fvcore_macs(model.eval(), args), _fvcore_reasons(frame, calls)
    yield "fvcore", "CPU, train", _fvcore_macs(model.train(), args), _fvcore_reasons(frame, calls)
    yield "torchinfo", "CPU, eval", _torchinfo_macs(model, args), _torchinfo_reasons(frame, calls)


def _masked_model(model_config: HAEConfig) -> nn.Module:
    model = build(model_config)
    for module in model.modules():
        if isinstance(module, SparseMultiheadAttention):
            module.kernel = "masked"
    return model


def _fused_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of attention from the shapes (..., queries, width) and (..., keys, width): scores, then values."""
    return 2 * query.numel() * key[-2] + 2 * query[:-1].numel() * key[-2] * value[-1]


# torch 2.13 has no formula for it and counts it as nothing, without a word
CPU_FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_flops}


def _fvcore_macs(model: nn.Module, args: tuple[Tensor, ...]) -> int:
    with _quiet():
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, args)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())


def _fvcore_reasons(frame: pd.DataFrame, calls: list[Call]) -> Reasons:
    norms = sum(call.output.numel() for call in calls if isinstance(call.module, nn.GroupNorm | nn.LayerNorm))
    doubled = sum(4 * call.args[0].numel() for call in calls if isinstance(call.module, Upsample))
    return {
        "no formula for scaled_dot_product_attention": -_attention(frame),
        "counts norms, 5 an element": 5 * norms,
        "counts nearest upsampling, 1 an element": doubled,
    }


def _torchinfo_macs(model: nn.Module, args: tuple[Tensor, ...]) -> int:
    with _quiet():
        from torchinfo import summary

        return int(summary(model, input_data=args, mode="eval", verbose=0).total_mult_adds)


def _torchinfo_reasons(frame: pd.DataFrame, calls: list[Call]) -> Reasons:
    """torchinfo multiplies the parameters of leaf modules: by the positions of convolutions, by the batch otherwise."""
    leaves = [call for call in calls if not any(call.module.children())]
    linear = [call for call in leaves if isinstance(call.module, nn.Linear)]
    conv = [call for call in leaves if isinstance(call.module, nn.Conv1d | nn.Conv2d)]
    other = [call for call in leaves if isinstance(call.module, nn.GroupNorm | nn.LayerNorm | nn.Embedding)]
    in_projections = frame["module"].eq("SparseMultiheadAttention") & frame["part"].ne(SCORES)
    return {
        "sees modules, not scaled_dot_product_attention": -_attention(frame),
        "sees modules, not the functional in-projection": -int(frame.loc[in_projections, "macs_run"].sum()),
        "counts linear layers once, not for each token": -sum(
            (call.output[0, ..., 0].numel() - 1) * len(call.output) * call.module.weight.numel() for call in linear
        ),
        "counts biases": sum(call.output.numel() for call in conv)
        + sum(len(call.output) * call.module.out_features for call in linear),
        "counts parameters of norms and embeddings": sum(
            len(call.output) * sum(p.numel() for p in call.module.parameters()) for call in other
        ),
    }


def _attention(frame: pd.DataFrame) -> int:
    """MACs of scores and values."""
    return int(frame.loc[frame["part"].isin([SCORES, BODY_SCORES]), "macs_run"].sum())


@contextmanager
def _quiet() -> Iterator[None]:
    """Old tools warn about what they import from torch and about what tracing freezes; neither concerns the count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
