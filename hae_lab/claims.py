"""The document's claims, one by one: what it says, what we compute or measure, and whether it holds, where.

Every verdict follows from numbers by rule: "holds" within one point of the claimed percentage, "nearly holds" within
five, else "does not hold"; a measured order needs times whose quartiles do not overlap, else "cannot tell".
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn

from hae_lab.config import config
from hae_lab.masks import TokenGrid, mask_for
from hae_lab.models import BottleneckMLP
from hae_lab.models.hybrid import token_mlp
from hae_lab.profilers import compute_table, parameter_table
from hae_lab.profilers.compute import PROJECTIONS, SCORES, total
from hae_lab.profilers.counters import flop_counter_macs
from hae_lab.profilers.parameter_table import CLAIM_PERCENT
from hae_lab.profilers.visibility import seen_by_any_group

HOLDS, NEARLY, FAILS, OPEN = "holds", "nearly holds", "does not hold", "cannot tell"
PRESET, ORDER = "brats128", ("hae", "lite", "v2")


@dataclass(frozen=True)
class Claim:
    """One sentence of the document (or of the paper behind it)."""

    id: str
    section: str
    original: str
    english: str
    claimed: str


@dataclass(frozen=True)
class Finding:
    """What one way of reading a claim comes to."""

    scope: str
    computed: str
    verdict: str
    evidence: str


def judge(computed_percent: float, claimed_percent: float) -> str:
    """The verdict on a percentage."""
    off = abs(computed_percent - claimed_percent)
    return HOLDS if off <= 1 else NEARLY if off <= 5 else FAILS


def claims(latency: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim and way of reading it. `latency` holds the committed rows of `hae-lab bench`.

    Columns: id, section, original, english, claimed, scope, computed, verdict, evidence.
    """
    rows = [asdict(claim) | asdict(finding) for claim, check in CHECKS for finding in check(latency)]
    return pd.DataFrame(rows)


def _parameters(latency: pd.DataFrame) -> Iterator[Finding]:
    table = parameter_table.parameter_table()
    for scope in parameter_table.SCOPES:
        groups = table[table["scope"] == scope].groupby("variant")["percent_of_hae"]
        percent = groups.agg(["min", "max"]).loc[list(ORDER)]
        verdicts = [judge(value, CLAIM_PERCENT[variant]) for variant in ORDER for value in percent.loc[variant]]
        spans = " / ".join(f"{low:.1f}-{high:.1f} %" for low, high in percent.to_numpy())
        where = f"{scope}, like for like, four presets"
        yield Finding(where, spans, _worst(verdicts), "data/parameter_table.csv, notebook 04")
    published = parameter_table.published_counts()["our_percent"]
    spans = " / ".join(f"{percent:.1f} %" for percent in published)
    worst = _worst(map(judge, published, CLAIM_PERCENT.values()))
    scope = "whole model, blocks at other places in each version, V2 without CNN branch (wide128)"
    yield Finding(scope, spans, worst, "data/published_counts.csv, notebook 04")


def _worst(verdicts: Iterable[str]) -> str:
    return max(verdicts, key=(HOLDS, NEARLY, FAILS).index)


def _attention(latency: pd.DataFrame) -> Iterator[Finding]:
    grid = TokenGrid(64, 64)
    hidden = 100 * (1 - mask_for("document", grid).density("all"))
    yield Finding(
        f"query-key pairs that the mask hides, 64 x 64 map, n = {grid.n}",
        f"{hidden:.1f} %",
        judge(hidden, 90),
        "data/visibility.csv, notebook 05",
    )
    saved = 100 * (1 - _published_kernel_macs(mask=True) / _published_kernel_macs(mask=False))
    scope = "MACs that nn.MultiheadAttention saves when it is given the mask, as published"
    yield Finding(scope, f"{saved:.1f} %", judge(saved, 90), "FlopCounterMode on the meta device, notebook 06")
    rows = compute_table.step_rows("hae", PRESET, "document_shared")
    layer = total(rows[rows["part"].isin([PROJECTIONS, SCORES])])
    for scope, macs in (("attention layers with their projections", layer), ("whole model", total(rows))):
        saved = 100 * (1 - macs["macs_run"] / macs["macs_document"])
        where = f"{scope}, {PRESET}, MACs that our kernel for document_shared saves"
        yield Finding(where, f"{saved:.1f} %", judge(saved, 90), "data/macs_by_rule.csv, notebook 06")
    yield from _measured_layer(latency)


def _measured_layer(latency: pd.DataFrame) -> Iterator[Finding]:
    rows = latency[(latency["benchmark"] == "attention") & (latency["n"] == 4416) & (latency["pass"] == "forward")]
    for rule in ("document", "document_shared"):
        for row in rows[rows["case"] == rule].to_dict("records"):
            saved = 100 * (1 - 1 / row["speed_up"])
            yield Finding(
                f"time of an attention layer, forward, n = 4416, C = 256, rule {rule}, against the document's layer",
                f"{saved:.1f} % ({row['speed_up']:.1f} times faster)",
                HOLDS if saved >= 89 else judge(saved, 90),
                f"data/latency_{row['device']}.csv, {row['device_name']}",
            )


def _published_kernel_macs(mask: bool) -> int:
    with torch.device("meta"):
        attention, tokens = nn.MultiheadAttention(64, 8, batch_first=True), torch.empty(1, 276, 64)
        blocked = torch.empty(276, 276, dtype=torch.bool) if mask else None
        return flop_counter_macs(attention, (tokens, tokens, tokens, None, True, blocked))


def _paper(latency: pd.DataFrame) -> Iterator[Finding]:
    rows = compute_table.paper_formula()
    for row in rows[rows["preset"] == PRESET].to_dict("records"):
        yield Finding(
            f"{row['height']} x {row['width']} map, C = {row['channels']} ({PRESET}); "
            f"90 % needs {row['pixels_for_90_percent']:,} pixels or more",
            f"{row['saved_percent']:.1f} %",
            judge(row["saved_percent"], 90),
            "the formula itself, data/paper_formula.csv",
        )


def _bottleneck(latency: pd.DataFrame) -> Iterator[Finding]:
    channels = 512
    bottleneck = _count(BottleneckMLP(channels, 0.25))
    readings = {
        "token MLP against one as wide inside as outside (C to C to C)": _count(token_mlp(channels, channels, 0.0)),
        "token MLP against the 4x MLP that it replaces": _count(token_mlp(channels, 4 * channels, 0.0)),
    }
    for scope, count in readings.items():
        saved = 100 * (1 - bottleneck / count)
        yield Finding(f"{scope}, C = {channels}", f"{saved:.1f} %", judge(saved, 75), "counted here, notebook 04")
    whole = _whole_params()
    saved = 100 * (1 - whole["v2"] / whole["lite"])
    yield Finding(
        f"whole model, V2 against Lite, {PRESET}", f"{saved:.1f} %", judge(saved, 75), "data/parameter_table.csv"
    )


def _whole_params() -> pd.Series:
    """Parameters of each variant's whole model."""
    table = parameter_table.parameter_table()
    return table[(table["scope"] == "whole model") & (table["preset"] == PRESET)].set_index("variant")["params"]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _scales(latency: pd.DataFrame) -> Iterator[Finding]:
    for preset in (*parameter_table.TABLE_PRESETS, "lesson16"):
        sides = [config("hae", preset).sizes[level] for level in config("hae", preset).hybrid_levels]
        grids = [TokenGrid(side, side) for side in sides]
        exist = sum(not grid.dropped for grid in grids)
        seen = sum(not grid.dropped and _all_scales_seen(grid) for grid in grids)
        verdict = HOLDS if seen == len(grids) else FAILS
        computed = f"three scales exist on {exist} and are seen by some pixel on {seen} of {len(grids)} maps"
        yield Finding(f"{preset}, maps of side {', '.join(map(str, sides))}", computed, verdict, "data/visibility.csv")


def _all_scales_seen(grid: TokenGrid) -> bool:
    seen = seen_by_any_group(mask_for("document", grid), np.arange(grid.n_local))
    return all(seen[slice(*grid.span(p))].any() for p in grid.scales)


def _efficiency(latency: pd.DataFrame) -> Iterator[Finding]:
    params = _whole_params()[list(ORDER)].to_dict()
    steps = {variant: total(compute_table.step_rows(variant, PRESET, "document")) for variant in ORDER}
    macs = {variant: int(step["macs_document"]) for variant, step in steps.items()}
    for what, counts in (("parameters", params), ("MACs of one denoising step, as published", macs)):
        share = {variant: 100 * count / counts["hae"] for variant, count in counts.items()}
        verdict = HOLDS if counts["v2"] < min(counts["lite"], counts["hae"]) else FAILS
        computed = " / ".join(f"{share[variant]:.1f} %" for variant in ORDER) + " of HAE (HAE / Lite / V2)"
        yield Finding(f"{what}, {PRESET}", computed, verdict, "data/parameter_table.csv, data/macs_by_part.csv")
    yield from _measured_order(latency)


def _measured_order(latency: pd.DataFrame) -> Iterator[Finding]:
    rows = latency[latency["benchmark"] == "model"]
    for device_name, here in rows.groupby("device_name"):
        for way in ("document's way", "document_shared"):
            times = here[here["case"].str.endswith(f", {way}")].set_index("variant").loc[list(ORDER)]
            share = 100 * times["ms_median"] / times["ms_median"].iloc[0]
            yield Finding(
                f"time of one denoising step, {PRESET} at 64 channels, batch 1, {way}",
                " / ".join(f"{value:.0f} %" for value in share) + " of HAE (HAE / Lite / V2)",
                first_place(times.loc["v2"], times.drop("v2")),
                f"data/latency_{times['device'].iloc[0]}.csv, {device_name}, {times['clock'].iloc[0]}",
            )


def first_place(mine: pd.Series, others: pd.DataFrame) -> str:
    """Whether one median time is below all others, by quartiles that do not overlap."""
    if mine["ms_q3"] < others["ms_q1"].min():
        return HOLDS
    return FAILS if mine["ms_q1"] > others["ms_q3"].min() else OPEN


CHECKS: tuple[tuple[Claim, Callable[[pd.DataFrame], Iterator[Finding]]], ...] = (
    (
        Claim(
            "parameters", "参数量对比分析", "HAE原版 … 100% | HAE Lite … ~70% | HAE V2 … ~40%",
            "Relative parameter counts: HAE 100 %, HAE Lite about 70 %, HAE V2 about 40 %", "100 / 70 / 40 %",
        ),
        _parameters,
    ),
    (
        Claim(
            "attention_90", "关键创新点 3", "稀疏注意力机制：减少90%的计算量，提高效率",
            "Sparse attention: 90 % less compute, higher efficiency", "90 % less",
        ),
        _attention,
    ),
    (
        Claim(
            "paper_90", "Lu et al. 2024, the paper's own figure", "2(HW)²C + 4HWC² → 0.15(HW)²C + 3.75HWC²",
            "Multi-scale sparse attention reduces the cost by nearly 90 %", "nearly 90 % less",
        ),
        _paper,
    ),
    (
        Claim(
            "bottleneck_75", "3.1 BottleneckMLP", "默认瓶颈比例0.25，参数量减少约75%",
            "Bottleneck ratio 0.25 by default: about 75 % fewer parameters", "75 % fewer",
        ),
        _bottleneck,
    ),
    (
        Claim(
            "three_scales", "1.1 特点", "支持多尺度patch处理 (1x1, 4x4, 8x8)",
            "Multi-scale patches (1 x 1, 4 x 4, 8 x 8) in every block", "three scales at every level",
        ),
        _scales,
    ),
    (
        Claim(
            "v2_efficiency", "性能特点总结", "优势：最小的参数量，最高的推理效率",
            "HAE V2: fewest parameters, highest inference efficiency", "V2 first",
        ),
        _efficiency,
    ),
)  # fmt: skip
