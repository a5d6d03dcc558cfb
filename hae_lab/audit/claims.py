"""The document's claims, one by one: what it says, what we compute or measure, and whether it holds, where.

Every verdict follows from numbers by rule: "holds" within one point of the claimed percentage, "nearly holds" within
five, else "does not hold"; a measured order needs times whose quartiles do not overlap, and an order of quality needs
differences over training seeds that are decided after Holm, else "cannot tell"; a reversed pair or trend refutes it.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import torch
from torch import nn

from hae_lab.audit import compute_tables, parameter_tables, quality_tables
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.masks import TokenGrid
from hae_lab.models import BottleneckMLP, HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2, build, transfer_weights
from hae_lab.models.slots import token_mlp
from hae_lab.presets import config
from hae_lab.profilers.counters import flop_counter_macs
from hae_lab.profilers.macs import PROJECTIONS, SCORES, total
from hae_lab.profilers.reach import seen_by_any_group
from hae_lab.rules import mask_for

HOLDS, NEARLY, FAILS, OPEN = "holds", "nearly holds", "does not hold", "cannot tell"
Measured = Mapping[str, pd.DataFrame]
PRESET, ORDER = "brats128", quality_tables.PROMISED


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


def claims(measured: Measured) -> pd.DataFrame:
    """A row for each claim and way of reading it, from what was measured before: "latency_cpu" and the studies.

    Columns: id, section, original, english, claimed, scope, computed, verdict, evidence.
    """
    rows = [asdict(claim) | asdict(finding) for claim, check in CHECKS for finding in check(measured)]
    return pd.DataFrame(rows)


def _parameters(measured: Measured) -> Iterator[Finding]:
    table = parameter_tables.parameter_table()
    for scope in parameter_tables.SCOPES:
        groups = table[table["scope"] == scope].groupby("variant")["percent_of_hae"]
        percent = groups.agg(["min", "max"]).loc[list(ORDER)]
        verdicts = [judge(value, CLAIM_PERCENT[variant]) for variant in ORDER for value in percent.loc[variant]]
        spans = " / ".join(f"{low:.1f}-{high:.1f} %" for low, high in percent.to_numpy())
        where = f"{scope}, like for like, four presets"
        yield Finding(where, spans, _worst(verdicts), "data/parameter_table.csv, notebook 04")
    published = parameter_tables.published_counts()["our_percent"]
    spans = " / ".join(f"{percent:.1f} %" for percent in published)
    worst = _worst(map(judge, published, CLAIM_PERCENT.values()))
    scope = "whole model, blocks at other places in each version, V2 without CNN branch (wide128)"
    yield Finding(scope, spans, worst, "data/published_counts.csv, notebook 04")


def _worst(verdicts: Iterable[str]) -> str:
    return max(verdicts, key=(HOLDS, NEARLY, FAILS).index)


def _attention(measured: Measured) -> Iterator[Finding]:
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
    rows = compute_tables.step_rows("hae", PRESET, "document_shared")
    layer = total(rows[rows["part"].isin([PROJECTIONS, SCORES])])
    for scope, macs in (("attention layers with their projections", layer), ("whole model", total(rows))):
        saved = 100 * (1 - macs["macs_run"] / macs["macs_document"])
        where = f"{scope}, {PRESET}, MACs that our kernel for document_shared saves"
        yield Finding(where, f"{saved:.1f} %", judge(saved, 90), "data/macs_by_rule.csv, notebook 06")
    yield from _measured_layer(measured)


def _measured_layer(measured: Measured) -> Iterator[Finding]:
    latency = measured["latency_cpu"]
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


def _paper(measured: Measured) -> Iterator[Finding]:
    rows = compute_tables.paper_formula()
    for row in rows[rows["preset"] == PRESET].to_dict("records"):
        yield Finding(
            f"{row['height']} x {row['width']} map, C = {row['channels']} ({PRESET}); "
            f"90 % needs {row['pixels_for_90_percent']:,} pixels or more",
            f"{row['saved_percent']:.1f} %",
            judge(row["saved_percent"], 90),
            "the formula itself, data/paper_formula.csv",
        )


def _bottleneck(measured: Measured) -> Iterator[Finding]:
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
    table = parameter_tables.parameter_table()
    return table[(table["scope"] == "whole model") & (table["preset"] == PRESET)].set_index("variant")["params"]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _scales(measured: Measured) -> Iterator[Finding]:
    for preset in (*parameter_tables.TABLE_PRESETS, "lesson16"):
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


def _efficiency(measured: Measured) -> Iterator[Finding]:
    params = _whole_params()[list(ORDER)].to_dict()
    steps = {variant: total(compute_tables.step_rows(variant, PRESET, "document")) for variant in ORDER}
    macs = {variant: int(step["macs_document"]) for variant, step in steps.items()}
    for what, counts in (("parameters", params), ("MACs of one denoising step, as published", macs)):
        share = {variant: 100 * count / counts["hae"] for variant, count in counts.items()}
        verdict = HOLDS if counts["v2"] < min(counts["lite"], counts["hae"]) else FAILS
        computed = " / ".join(f"{share[variant]:.1f} %" for variant in ORDER) + " of HAE (HAE / Lite / V2)"
        yield Finding(f"{what}, {PRESET}", computed, verdict, "data/parameter_table.csv, data/macs_by_part.csv")
    yield from _measured_order(measured)
    yield from _training_order(measured)


def _measured_order(measured: Measured) -> Iterator[Finding]:
    latency = measured["latency_cpu"]
    for device_name, here in latency[latency["benchmark"] == "model"].groupby("device_name"):
        for way in ("document's way", "document_shared"):
            rows = here[here["case"].str.endswith(f", {way}")]
            scope = f"time of one denoising step, {PRESET} at 64 channels, batch 1, {way}"
            yield _order_of_times(scope, rows, device_name)


def _training_order(measured: Measured) -> Iterator[Finding]:
    rows = quality_tables.training_steps(measured["latency_cpu"])
    for device_name, here in rows.groupby("device_name"):
        yield _order_of_times("time of one training step, lesson16, batch 32", here, device_name)


def _order_of_times(scope: str, rows: pd.DataFrame, device_name: str) -> Finding:
    """Whether V2 is the fastest of the rows, one a variant."""
    times = rows.set_index("variant").loc[list(ORDER)]
    share = 100 * times["ms_median"] / times["ms_median"].iloc[0]
    return Finding(
        scope,
        " / ".join(f"{value:.0f} %" for value in share) + " of HAE (HAE / Lite / V2)",
        first_place(times.loc["v2"], times.drop("v2")),
        f"data/latency_{times['device'].iloc[0]}.csv, {device_name}, {times['clock'].iloc[0]}",
    )


def first_place(mine: pd.Series, others: pd.DataFrame) -> str:
    """Whether one median time is below all others, by quartiles that do not overlap."""
    if mine["ms_q3"] < others["ms_q1"].min():
        return HOLDS
    return FAILS if mine["ms_q1"] > others["ms_q3"].min() else OPEN


def _quality(measured: Measured) -> Iterator[Finding]:
    differences, orders = quality_tables.quality_differences(measured), quality_tables.quality_order(measured)
    for data, equal in orders[["data", "equal"]].itertuples(index=False):
        pairs = _promised_pairs(differences, data, equal, "loss")
        order = orders[(orders["data"] == data) & (orders["equal"] == equal)].iloc[0]
        open_times = equal == "compute time" and not _step_times_differ(measured)
        note = "; but the times of a step, on which this rests, cannot be told apart" if open_times else ""
        yield Finding(
            f"held-out loss after equal {equal}, {data}, lesson16, {order['n_seeds']} seeds",
            f"{_in_words(pairs)}; Page's trend test p = {order['p_value']:.2g}{note}",
            OPEN if open_times else quality_verdict(pairs, order["verdict"]),
            "data/quality_differences.csv, data/quality_order.csv, notebook 08",
        )
    wide = differences[differences["equal"] == "parameters"]
    size = measured["equal_parameters"].groupby("cell")[["params", "macs"]].first()
    percent = 100 * size.loc[quality_tables.WIDE_V2] / size.loc["hae"]
    yield Finding(
        "held-out loss at about equal parameters, phantoms, lesson16: V2 widened to "
        f"{percent['params']:.0f} % of HAE's parameters and {percent['macs']:.0f} % of its MACs",
        _in_words(wide),
        {"hae": HOLDS, "v2": FAILS}.get(_better(wide.iloc[0]).split(",")[0], OPEN),
        "data/quality_differences.csv, notebook 08",
    )
    for metric, name in METRICS.items():
        pairs = _promised_pairs(differences, "phantoms", "steps", metric)
        yield Finding(
            f"{name}, phantoms, lesson16, {pairs['n_seeds'].iloc[0]} seeds",
            _in_words(pairs),
            quality_verdict(pairs),
            "data/quality_differences.csv, notebook 08",
        )


def _step_times_differ(measured: Measured) -> bool:
    """Whether the quartiles of no two neighbours' training steps overlap."""
    times = quality_tables.step_times(measured["latency_cpu"])
    return all(
        times.loc[a, "ms_q3"] < times.loc[b, "ms_q1"] or times.loc[b, "ms_q3"] < times.loc[a, "ms_q1"]
        for a, b in pairwise(ORDER)
    )


METRICS = {
    "swd": "sliced Wasserstein distance of samples",
    "mmd": "maximum mean discrepancy of samples",
    "auroc": "AUROC of anomaly maps",
    "dice": "Dice of anomaly maps",
}


def _promised_pairs(differences: pd.DataFrame, data: str, equal: str, metric: str) -> pd.DataFrame:
    rows = differences[
        (differences["data"] == data) & (differences["equal"] == equal) & (differences["metric"] == metric)
    ]
    return rows[rows["first"].isin(ORDER) & rows["second"].isin(ORDER)]


def _in_words(pairs: pd.DataFrame) -> str:
    return "; ".join(
        f"{row['first']} - {row['second']} {row['mean_difference']:+.2g} [{row['ci_low']:+.2g}, {row['ci_high']:+.2g}]"
        for row in pairs.to_dict("records")
    )


def _better(row: pd.Series) -> str:
    """The better cell of a pair, or "" where the interval cannot tell."""
    return {"first better": row["first"], "second better": row["second"]}.get(row["verdict"], "")


def quality_verdict(pairs: pd.DataFrame, trend: str = OPEN) -> str:
    """Whether HAE > Lite > V2 is supported: both neighbours decided as promised after Holm.

    One pair decided against it refutes it, and so does a trend in the opposite direction.
    """
    decided = {frozenset((row["first"], row["second"])): _better(row) for _, row in pairs.iterrows()}
    promised = {frozenset(pair): pair[0] for pair in combinations(ORDER, 2)}
    against = any(found and found != promised[pair] for pair, found in decided.items())
    if against or trend == FAILS:
        return FAILS
    return HOLDS if all(decided[frozenset(pair)] for pair in pairwise(ORDER)) else OPEN


def _interchangeable(measured: Measured) -> Iterator[Finding]:
    classes = (HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2)
    same = len({str(inspect.signature(each)) for each in classes}) == len({each.forward for each in classes}) == 1
    yield Finding(
        "constructor keywords and forward of the three classes",
        "one signature" if same else "different signatures",
        HOLDS if same else FAILS,
        "compared here",
    )
    runs = measured["variants"].groupby("cell").size()[list(ORDER)]
    yield Finding(
        "one loop trains, samples and measures all of them",
        f"{runs.sum()} finished runs of three variants, equally many of each",
        HOLDS if runs.nunique() == 1 else FAILS,
        "data/study_variants.csv, notebook 08",
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
            "`hae_lab.transfer_weights`, notebook 03",
        )


CHECKS: tuple[tuple[Claim, Callable[[Measured], Iterator[Finding]]], ...] = (
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
    (
        Claim(
            "quality_order", "性能特点总结", "最高的生成质量，完整的特征表达能力",
            "Quality in the order HAE, HAE Lite, HAE V2", "HAE > Lite > V2",
        ),
        _quality,
    ),
    (
        Claim(
            "interchangeable", "使用建议", "所有版本都保持相同的API接口，可以无缝切换",
            "All versions share one interface and can be switched seamlessly", "switch seamlessly",
        ),
        _interchangeable,
    ),
)  # fmt: skip
