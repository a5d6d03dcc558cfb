"""The ways of reading each claim: what they compute from the models, or take from what was measured before."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from hae_lab.audit import compute_tables, parameter_tables, quality_tables, verdicts
from hae_lab.audit.bench_attention import FLEX, LAYER, NATIVE, SHARED
from hae_lab.audit.benchmarks import DOCUMENTS_WAY
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.audit.verdicts import FAILS, HOLDS, OPEN, judge
from hae_lab.masks import TokenGrid
from hae_lab.models import BottleneckMLP, HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2, build, transfer_weights
from hae_lab.models.slots import token_mlp
from hae_lab.presets import DOCUMENT, config, variant_title
from hae_lab.profilers.counters import flop_counter_macs
from hae_lab.profilers.macs import PROJECTIONS, SCORES, total
from hae_lab.profilers.reach import seen_by_any_group
from hae_lab.rules import RULES, mask_for

PRESET = "brats128"
DENSE = "dense"  # the rule that masks nothing
LARGEST_MAP = TokenGrid(64, 64)  # with hybrid blocks, on that preset
PARAMETERS, MACS, TIME, MASK, QUALITY, INTERFACE = "parameters", "macs", "time", "mask", "quality", "interface"


@dataclass(frozen=True)
class Finding:
    """What one way of reading a claim comes to: of which kind of number, and for a time how and where it was measured.

    One reading of each claim is its `example`, which the README shows.
    """

    scope: str
    computed: str
    verdict: str
    evidence: str
    kind: str
    way: str = ""
    device_name: str = ""
    clock: str = ""
    example: bool = False


# parameters


def parameters(measured: Measured) -> Iterator[Finding]:
    """100 / 70 / 40, in each scope, and in the models that the published code really had."""
    table = parameter_tables.parameter_table()
    for scope in parameter_tables.SCOPES:
        groups = table[table["scope"] == scope].groupby("variant")["percent_of_hae"]
        percent = groups.agg(["min", "max"]).loc[list(DOCUMENT)]
        found = [judge(value, CLAIM_PERCENT[variant]) for variant in DOCUMENT for value in percent.loc[variant]]
        yield Finding(
            f"{scope}, like for like, four presets",
            " / ".join(f"{low:.1f}-{high:.1f} %" for low, high in percent.to_numpy()),
            verdicts.worst(found),
            "data/parameter_table.csv, notebook 06",
            PARAMETERS,
            example=scope == "whole model",
        )
    published = parameter_tables.published_counts().set_index("variant")["our_percent"]
    yield Finding(
        "whole model, blocks for the decoder's attention (HAE) or for all (Lite, V2), V2 without CNN branch (wide128)",
        " / ".join(f"{published[variant]:.1f} %" for variant in DOCUMENT),
        verdicts.worst(judge(published[variant], CLAIM_PERCENT[variant]) for variant in DOCUMENT),
        "data/published_counts.csv, notebook 06",
        PARAMETERS,
    )


def bottleneck(measured: Measured) -> Iterator[Finding]:
    """75 % fewer parameters, against what."""
    channels = 512
    narrow = _count(BottleneckMLP(channels, 0.25))
    wide = {
        "token MLP against one as wide inside as outside (C to C to C)": _count(token_mlp(channels, channels, 0.0)),
        "token MLP against the 4x MLP that it replaces": _count(token_mlp(channels, 4 * channels, 0.0)),
    }
    for place, (scope, count) in enumerate(wide.items()):
        saved = 100 * (1 - narrow / count)
        where, source = f"{scope}, C = {channels}", "counted here, notebook 06"
        yield Finding(where, f"{saved:.1f} %", judge(saved, 75), source, PARAMETERS, example=place == 0)
    whole = _whole_params()
    saved = 100 * (1 - whole["v2"] / whole["lite"])
    where = f"whole model, V2 against Lite, {PRESET}"
    yield Finding(where, f"{saved:.1f} %", judge(saved, 75), "data/parameter_table.csv", PARAMETERS)


def _whole_params() -> pd.Series:
    """Parameters of each variant's whole model."""
    table = parameter_tables.parameter_table()
    return table[(table["scope"] == "whole model") & (table["preset"] == PRESET)].set_index("variant")["params"]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# sparse attention


def attention(measured: Measured) -> Iterator[Finding]:
    """90 % less: of the pairs, of the MACs, and of the time."""
    hidden = 100 * (1 - mask_for("document", LARGEST_MAP).density("all"))
    yield Finding(
        f"query-key pairs that the mask hides, 64 x 64 map, n = {LARGEST_MAP.n}",
        f"{hidden:.1f} %",
        judge(hidden, 90),
        "data/visibility.csv, notebook 07",
        MASK,
        way="document",
        example=True,
    )
    saved = 100 * (1 - _published_kernel_macs(mask=True) / _published_kernel_macs(mask=False))
    scope = "MACs that nn.MultiheadAttention saves when it is given the mask, as published"
    source = "FlopCounterMode on the meta device, notebook 08"
    yield Finding(scope, f"{saved:.1f} %", judge(saved, 90), source, MACS, way=DOCUMENTS_WAY)
    rows = compute_tables.step_rows("hae", PRESET, SHARED)
    layer = total(rows[rows["part"].isin([PROJECTIONS, SCORES])])
    for scope, macs in (("attention layers with their projections", layer), ("whole model", total(rows))):
        saved = 100 * (1 - macs["macs_run"] / macs["macs_document"])
        where = f"{scope}, {PRESET}, MACs that our kernel for {SHARED} saves"
        source = "data/macs_by_rule.csv, notebook 08"
        yield Finding(where, f"{saved:.1f} %", judge(saved, 90), source, MACS, way=SHARED)
    yield from _measured_layer(measured.bench_attention)


def _measured_layer(rows: pd.DataFrame) -> Iterator[Finding]:
    """The time that a rule saves against every way of attending that is no sparse rule of ours, same run."""
    rows = rows[(rows["part"] == LAYER) & (rows["pass"] == "forward") & (rows["n"] == LARGEST_MAP.n)]
    for _, run in rows.groupby(["device_name", "device", "clock"], sort=False):
        for way in ("document", SHARED, *NATIVE):
            for ours in run[run["way"] == way].to_dict("records"):
                for other in _denominators(run, NATIVE.get(way, way)).to_dict("records"):
                    yield _saved_time(ours, other)


def _denominators(run: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The document's layer, PyTorch's kernels, our dense layer; of a kernel for one rule's mask, that of this rule."""
    others = run[~run["way"].isin([*RULES, *NATIVE]) | (run["way"] == DENSE)]
    of_rule = others["way"].map(FLEX).fillna(rule) == rule
    return others[of_rule & others["ms_median"].notna()]


def _saved_time(ours: Mapping[str, Any], other: Mapping[str, Any]) -> Finding:
    saved = 100 * (1 - ours["ms_median"] / other["ms_median"])
    against = "dense SDPA, local queries" if other["way"] == DENSE else other["way"]
    return Finding(
        f"time of an attention layer, forward, n = {ours['n']}, C = {ours['channels']}, rule {ours['way']}, "
        f"against {against}",
        f"{saved:.1f} % ({other['ms_median'] / ours['ms_median']:.1f} times as fast)",
        verdicts.judge_saving(saved, 90),
        f"data/bench_attention_{ours['device']}.csv",
        TIME,
        way=ours["way"],
        device_name=ours["device_name"],
        clock=ours["clock"],
    )


def _published_kernel_macs(mask: bool) -> int:
    with torch.device("meta"):
        layer, tokens = nn.MultiheadAttention(64, 8, batch_first=True), torch.empty(1, 276, 64)
        blocked = torch.empty(276, 276, dtype=torch.bool) if mask else None
        return flop_counter_macs(layer, (tokens, tokens, tokens, None, True, blocked))


def paper(measured: Measured) -> Iterator[Finding]:
    """The paper's own formula, on the maps of hybrid blocks."""
    rows = compute_tables.paper_formula()
    rows = rows[rows["preset"] == PRESET]
    for row in rows.to_dict("records"):
        yield Finding(
            f"{row['height']} x {row['width']} map, C = {row['channels']} ({PRESET}); "
            f"90 % needs {row['pixels_for_90_percent']:,} pixels or more",
            f"{row['saved_percent']:.1f} %",
            judge(row["saved_percent"], 90),
            "the formula itself, data/paper_formula.csv",
            MACS,
            example=row["height"] == rows["height"].min(),
        )


def scales(measured: Measured) -> Iterator[Finding]:
    """Three scales at every level: do they exist, and does any pixel see them?"""
    for preset in (*parameter_tables.TABLE_PRESETS, "lesson16"):
        model_config = config("hae", preset)
        sides = [model_config.sizes[level] for level in model_config.hybrid_levels]
        grids = [TokenGrid(side, side) for side in sides]
        exist = sum(not grid.dropped for grid in grids)
        seen = sum(not grid.dropped and _all_scales_seen(grid) for grid in grids)
        yield Finding(
            f"{preset}, maps of side {', '.join(map(str, sides))}",
            f"three scales exist on {exist} and are seen by some pixel on {seen} of {len(grids)} maps",
            HOLDS if seen == len(grids) else FAILS,
            "data/visibility.csv",
            MASK,
            way="document",
            example=preset == PRESET,
        )


def _all_scales_seen(grid: TokenGrid) -> bool:
    seen = seen_by_any_group(mask_for("document", grid), np.arange(grid.n_local))
    return all(seen[slice(*grid.span(p))].any() for p in grid.scales)


# efficiency


def efficiency(measured: Measured) -> Iterator[Finding]:
    """V2 first: in parameters, in MACs, and in time."""
    params = _whole_params().to_dict()
    steps = {variant: total(compute_tables.step_rows(variant, PRESET, "document")) for variant in DOCUMENT}
    macs = {variant: int(step["macs_document"]) for variant, step in steps.items()}
    for what, kind, counts in (
        ("parameters", PARAMETERS, params),
        ("MACs of one denoising step, as published", MACS, macs),
    ):
        share = " / ".join(f"{100 * counts[variant] / counts['hae']:.1f} %" for variant in DOCUMENT)
        yield Finding(
            f"{what}, {PRESET}",
            f"{share} of HAE (HAE / Lite / V2)",
            HOLDS if counts["v2"] < min(counts["lite"], counts["hae"]) else FAILS,
            "data/parameter_table.csv, data/macs_by_part.csv",
            kind,
            example=kind == PARAMETERS,
        )
    for way in (DOCUMENTS_WAY, SHARED):
        rows = measured.bench_model[measured.bench_model["way"] == way]
        scope = f"time of one denoising step, {PRESET} at 64 channels, batch 1, {way}"
        yield from _orders_of_times(scope, "bench_model", rows)
    for preset in measured.bench_training["preset"].unique():
        ours = quality_tables.training_steps(measured.bench_training, preset)
        yield from _orders_of_times(f"time of one training step, {preset}, batch 32", "bench_training", ours)


def _orders_of_times(scope: str, table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    """Whether V2 is the fastest, on each computer. Rows: one a variant and computer."""
    for (device_name, device, clock, way), here in rows.groupby(["device_name", "device", "clock", "way"]):
        computed, verdict = _order_of_times(here.set_index("variant"))
        evidence = f"data/{table}_{device}.csv"
        yield Finding(scope, computed, verdict, evidence, TIME, way=way, device_name=device_name, clock=clock)


def _order_of_times(times: pd.DataFrame) -> tuple[str, str]:
    """The times of the document's three in percent of HAE's, and whether V2's is the lowest.

    Rows of a computer that has not measured in paired rounds have no verdicts.
    """
    missing = [variant_title(variant) for variant in DOCUMENT if variant not in times.index]
    if missing:
        return f"not measured: {', '.join(missing)}", OPEN
    times = times.loc[list(DOCUMENT)]
    share = 100 * times["ms_median"] / times.loc["hae", "ms_median"]
    words = " / ".join(f"{value:.0f} %" for value in share) + " of HAE (HAE / Lite / V2)"
    return words, verdicts.first_place(times.drop("v2").reindex(columns=["verdict"])["verdict"])


# one interface


def interchangeable(measured: Measured) -> Iterator[Finding]:
    """One interface, one training loop, and the weights that two versions share."""
    classes = (HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2)
    same = len({str(inspect.signature(each)) for each in classes}) == len({each.forward for each in classes}) == 1
    yield Finding(
        "constructor keywords and forward of the three classes",
        "one signature" if same else "different signatures",
        HOLDS if same else FAILS,
        "compared here",
        INTERFACE,
        example=True,
    )
    runs = measured.variants.groupby("cell").size()[list(DOCUMENT)]
    yield Finding(
        "one loop trains, samples and measures all of them",
        f"{runs.sum()} finished runs of three variants, equally many of each",
        HOLDS if runs.nunique() == 1 else FAILS,
        "data/study_variants.csv, notebook 09",
        INTERFACE,
    )
    for source, target in (("v2", "lite"), ("v2", "hae")):
        target_model = build(target, "lesson16")
        left = set(transfer_weights(build(source, "lesson16"), target_model))
        counts = {name: tensor.numel() for name, tensor in target_model.state_dict().items()}
        percent = 100 * sum(count for name, count in counts.items() if name not in left) / sum(counts.values())
        yield Finding(
            f"weights of {source} that fit {target}, lesson16",
            f"{percent:.1f} % of {target}'s weights",
            judge(percent, 100),
            "`hae_lab.transfer_weights`, notebook 05",
            INTERFACE,
        )
