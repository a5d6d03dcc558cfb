"""Claims on multiply-accumulates and time: what sparse attention saves of what, and which version is the fastest."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import nn

from hae_lab.audit import compute_tables, profile_tables, quality_tables, verdicts
from hae_lab.audit.bench_attention import DENSE, DOCUMENT_LAYER, FLEX, LAYER, NATIVE, SHARED
from hae_lab.audit.benchmarks import DOCUMENTS_WAY
from hae_lab.audit.claims.base import MACS, MASK, MEMORY, PARAMETERS, REACH, TIME, Evidence, Finding, claim, listed
from hae_lab.audit.claims.parameters import PRESET, whole_params
from hae_lab.audit.claims.scales import LARGEST_MAP
from hae_lab.audit.measured import Measured
from hae_lab.presets import DOCUMENT, variant_title
from hae_lab.profilers.counters import flop_counter_macs
from hae_lab.profilers.macs import PROJECTIONS, SCORES, total
from hae_lab.rules import RULES, mask_for

NINETY = "90 % less"
OF_HAE = "of HAE (HAE / Lite / V2)"
MACS_BY_RULE = Evidence(
    figure="macs_by_part", table="macs_by_rule", test="test_compute.py::test_what_runs_equals_the_oracle_for_every_rule"
)
BENCH_MODEL = Evidence(
    figure="variants_together",
    table="bench_model_cpu",
    test="test_benchmarks.py::test_models_are_compared_with_the_same_way_of_v2",
)
BENCH_TRAINING = Evidence(
    figure="quality_pareto",
    table="bench_training_cpu",
    test="test_benchmarks.py::test_a_training_step_is_a_share_of_the_run",
)


# sparse attention


@claim(
    {17: "稀疏注意力机制：减少90%的计算量", 54: "稀疏注意力掩码减少90%计算量"},
    "Sparse attention: 90 % less compute",
    NINETY,
    notebook="08_compute_and_latency",
    figure="attention_speed_up",
    table="bench_attention_cpu",
    test="test_claims.py::test_time_is_saved_against_the_document_and_against_fair_denominators",
)
def attention_90(measured: Measured) -> Iterator[Finding]:
    """90 % less: of the pairs, of the MACs and of the time of an attention layer; and of the whole model's MACs."""
    hidden = 100 * (1 - mask_for("document", LARGEST_MAP).density("all"))
    yield Finding(
        "query-key pairs that the mask hides",
        f"64 x 64 map, n = {LARGEST_MAP.n}",
        f"{hidden:.1f} %",
        verdicts.judge_saving(hidden, 90),
        MASK,
        evidence=Evidence(
            "07_sparse_masks", "density_and_reach", "visibility", "test_claims.py::test_ninety_percent_in_each_scope"
        ),
        way="document",
        example=True,
    )
    saved = 100 * (1 - _published_kernel_macs(mask=True) / _published_kernel_macs(mask=False))
    yield Finding(
        "MACs that nn.MultiheadAttention saves when it is given the mask, as published",
        "n = 276, C = 64, torch's FlopCounterMode",
        f"{saved:.1f} %",
        verdicts.judge_saving(saved, 90),
        MACS,
        evidence=Evidence(
            table="counters", test="test_claims.py::test_ninety_percent_in_each_scope", figure="macs_by_part"
        ),
        way=DOCUMENTS_WAY,
    )
    rows = compute_tables.step_rows("hae", PRESET, SHARED)
    layer = total(rows[rows["part"].isin([PROJECTIONS, SCORES])])
    for reading, macs, kind in (
        ("MACs of the attention layers with their projections", layer, MACS),
        ("MACs of the whole model", total(rows), REACH),
    ):
        saved = 100 * (1 - macs["macs_run"] / macs["macs_document"])
        verdict = verdicts.judge_saving(saved, 90)
        scope = f"{PRESET}, our kernel for {SHARED} against all n queries and keys"
        yield Finding(reading, scope, f"{saved:.1f} %", verdict, kind, evidence=MACS_BY_RULE, way=SHARED)
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
        f"time of an attention layer, rule {ours['way']}, against {against}",
        f"forward, n = {ours['n']}, C = {ours['channels']}, {ours['device_name']}",
        f"{saved:.1f} % ({other['ms_median'] / ours['ms_median']:.1f} times as fast)",
        verdicts.judge_saving(saved, 90),
        TIME,
        evidence=Evidence(table=f"bench_attention_{ours['device']}"),
        way=ours["way"],
        device_name=ours["device_name"],
        clock=ours["clock"],
    )


def _published_kernel_macs(mask: bool) -> int:
    with torch.device("meta"):
        layer, tokens = nn.MultiheadAttention(64, 8, batch_first=True), torch.empty(1, 276, 64)
        blocked = torch.empty(276, 276, dtype=torch.bool) if mask else None
        return flop_counter_macs(layer, (tokens, tokens, tokens, None, True, blocked))


@claim(
    {17: "提高效率"},
    "Sparse attention is more efficient",
    "less than dense attention",
    notebook="08_compute_and_latency",
    figure="attention_speed_up",
    table="bench_attention_cpu",
    test="test_benchmarks.py::test_speed_ups_are_paired_round_by_round",
)
def attention_efficiency(measured: Measured) -> Iterator[Finding]:
    """Time of a layer against dense attention of the pixels, as published and by our kernels; memory of training."""
    rows = measured.bench_attention
    rows = rows[(rows["part"] == LAYER) & (rows["pass"] == "forward") & (rows["against"] == DENSE)]
    for row in rows[rows["way"].isin([DOCUMENT_LAYER, "document", SHARED])].to_dict("records"):
        percent = row["faster_percent"]
        yield Finding(
            f"time of an attention layer, {row['way']}, against dense SDPA, local queries",
            f"forward, {row['map']} map, n = {row['n']}, {row['device_name']}",
            f"{percent:.0f} % less" if percent > 0 else f"{-percent:.0f} % more",
            verdicts.faster(row["verdict"]),
            TIME,
            evidence=Evidence(table=f"bench_attention_{row['device']}"),
            way=row["way"],
            device_name=row["device_name"],
            clock=row["clock"],
        )
    yield from (_training_memory(setting) for setting in profile_tables.RULES if setting.mask_rule != DENSE)


def _training_memory(setting: profile_tables.Setting) -> Finding:
    """What autograd keeps of V2's sparse attention, against dense attention."""
    kept, dense = (
        profile_tables.memory_of(each.config("v2"), each.images)["attention_saved_bytes"]
        for each in (setting, setting._replace(mask_rule=DENSE))
    )
    test = "test_memory.py::test_sparse_rules_keep_more_than_dense_attention"
    return Finding(
        f"bytes that the attention layers keep for the backward pass, rule {setting.mask_rule}, against dense",
        f"V2, {setting.preset}, one image, dropout {setting.dropout:g}",
        f"{kept / 2**20:.0f} of {dense / 2**20:.0f} MiB",
        verdicts.in_order([dense, kept]),
        MEMORY,
        evidence=Evidence(table="training_memory_by_rule", test=test),
        way=setting.mask_rule,
    )


# efficiency


@claim(
    {179: "参数量：最小，效率最高", 293: "最小的参数量，最高的推理效率"},
    "HAE V2: fewest parameters, highest inference efficiency",
    "V2 first",
    notebook="08_compute_and_latency",
    figure="variants_together",
    table="variants_together",
    test="test_claims.py::test_the_fastest_is_found_on_each_computer",
)
def v2_efficiency(measured: Measured) -> Iterator[Finding]:
    """V2 first: in parameters, in MACs, and in time."""
    for reading, kind, counts, table in (
        ("parameters", PARAMETERS, whole_params().to_dict(), "parameter_table"),
        ("MACs of one denoising step, as published", MACS, step_macs(), "macs_by_part"),
    ):
        first = all(counts["v2"] < counts[other] for other in ("hae", "lite"))
        evidence = Evidence(table=table, figure="parameter_table" if kind == PARAMETERS else "macs_by_part")
        shares = listed(f"{100 * counts[variant] / counts['hae']:.1f} %" for variant in DOCUMENT)
        yield Finding(reading, PRESET, f"{shares} {OF_HAE}", verdicts.as_said(first), kind, evidence=evidence)
    for way in (DOCUMENTS_WAY, SHARED):
        rows = measured.bench_model[measured.bench_model["way"] == way]
        where = f"{PRESET} at 64 channels, batch 1, {way}"
        yield from _orders_of_times("time of one denoising step", where, rows, BENCH_MODEL)
    for preset in measured.bench_training["preset"].unique():
        ours = quality_tables.training_steps(measured.bench_training, preset)
        yield from _orders_of_times("time of one training step", f"{preset}, batch 32", ours, BENCH_TRAINING)


@claim(
    {18: "从原版到Lite再到V2，逐步优化参数量和计算效率"},
    "From HAE to Lite to V2, parameters and compute get better step by step",
    "HAE > Lite > V2",
    notebook="08_compute_and_latency",
    figure="variants_together",
    table="variants_together",
    test="test_compute.py::test_formulas_equal_the_oracle_on_every_preset_and_variant",
)
def stepwise(measured: Measured) -> Iterator[Finding]:
    """Parameters and MACs, version by version; and is each step a noticeable one?"""
    macs = step_macs()
    for reading, counts, kind in (
        ("parameters", {variant: int(params) for variant, params in whole_params().items()}, PARAMETERS),
        ("MACs of one denoising step, as published", macs, MACS),
    ):
        values = [counts[variant] for variant in DOCUMENT]
        shares = listed(f"{100 * value / values[0]:.1f} %" for value in values)
        yield Finding(reading, PRESET, f"{shares} {OF_HAE}", verdicts.in_order(values), kind)
    steps = [100 * (1 - macs[new] / macs[old]) for old, new in pairwise(DOCUMENT)]
    computed = f"{listed(f'{step:.1f} %' for step in steps)} saved"
    verdict = verdicts.worst(verdicts.noticeably_more(step) for step in steps)
    reading = "each step saves a noticeable share of the MACs"
    yield Finding(reading, PRESET, computed, verdict, MACS, claimed=f"more than {verdicts.NEAR} %")


@claim(
    {220: "进一步减少计算复杂度"},
    "V2 reduces the computational complexity further",
    "V2 < Lite",
    notebook="05_hae_v2",
    figure="macs_by_part",
    table="macs_by_part",
    test="test_compute.py::test_the_slots_of_the_other_variants_by_hand",
)
def v2_less_compute(measured: Measured) -> Iterator[Finding]:
    """MACs of the token MLPs, and of the whole model."""
    rows = [compute_tables.step_rows(variant, PRESET, "document") for variant in ("lite", "v2")]
    mlps = [each.loc[each["part"] == "MLP", "macs_document"].sum() for each in rows]
    whole = [step_macs()[variant] for variant in ("lite", "v2")]
    for reading, (lite, v2), kind in (
        ("MACs of the token MLPs", mlps, MACS),
        ("MACs of the whole model", whole, REACH),
    ):
        yield Finding(reading, PRESET, f"{100 * (1 - v2 / lite):.1f} % fewer", verdicts.in_order([lite, v2]), kind)


@claim(
    {284: "计算开销高"},
    "HAE's compute is high",
    f"more than V2's, beyond {verdicts.NEAR} %",
    notebook="08_compute_and_latency",
    figure="variants_together",
    table="variants_together",
    test="test_benchmarks.py::test_models_are_compared_with_the_same_way_of_v2",
)
def hae_costs(measured: Measured) -> Iterator[Finding]:
    """How much more HAE takes than V2."""
    macs = step_macs()
    more = 100 * (macs["hae"] / macs["v2"] - 1)
    reading, verdict = "MACs of one denoising step, as published", verdicts.noticeably_more(more)
    yield Finding(reading, PRESET, f"{more:.1f} % more", verdict, MACS)
    rows = measured.bench_model
    for row in rows[(rows["variant"] == "hae") & (rows["against"] == "v2 " + rows["way"])].to_dict("records"):
        more = -row["faster_percent"]
        yield Finding(
            "time of one denoising step",
            f"{PRESET} at 64 channels, batch 1, {row['way']}, {row['device_name']}",
            f"{more:.1f} % more",
            verdicts.noticeably_more(more),
            TIME,
            evidence=Evidence(table=f"bench_model_{row['device']}"),
            way=row["way"],
            device_name=row["device_name"],
            clock=row["clock"],
        )


def step_macs() -> dict[str, int]:
    """MACs of one denoising step of each version, as published."""
    steps = {variant: total(compute_tables.step_rows(variant, PRESET, "document")) for variant in DOCUMENT}
    return {variant: int(step["macs_document"]) for variant, step in steps.items()}


def _orders_of_times(reading: str, scope: str, rows: pd.DataFrame, evidence: Evidence) -> Iterator[Finding]:
    """Whether V2 is the fastest, on each computer. Rows: one a variant and computer."""
    for (device_name, device, clock, way), here in rows.groupby(["device_name", "device", "clock", "way"]):
        computed, verdict = _order_of_times(here.set_index("variant"))
        yield Finding(
            reading,
            f"{scope}, {device_name}",
            computed,
            verdict,
            TIME,
            evidence=Evidence(table=evidence.table.replace("cpu", device)).over(evidence),
            way=way,
            device_name=device_name,
            clock=clock,
        )


def _order_of_times(times: pd.DataFrame) -> tuple[str, str]:
    """The times of the document's three in percent of HAE's, and whether V2's is the lowest.

    Rows of a computer that has not measured in paired rounds have no verdicts.
    """
    missing = [variant_title(variant) for variant in DOCUMENT if variant not in times.index]
    if missing:
        return f"not measured: {', '.join(missing)}", verdicts.OPEN
    times = times.loc[list(DOCUMENT)]
    share = 100 * times["ms_median"] / times.loc["hae", "ms_median"]
    words = f"{listed(f'{value:.0f} %' for value in share)} {OF_HAE}"
    return words, verdicts.first_place(times.drop("v2").reindex(columns=["verdict"])["verdict"])


# what the paper says


@claim(
    {1: "2(HW)²C + 4HWC² → 0.15(HW)²C + 3.75HWC²"},
    "Multi-scale sparse attention reduces the cost by nearly 90 %",
    "nearly 90 % less",
    source="Lu et al. 2024",
    notebook="08_compute_and_latency",
    table="paper_formula",
    test="test_compute_table.py::test_the_papers_formula_reaches_ninety_percent_where_the_table_says",
)
def paper_90(measured: Measured) -> Iterator[Finding]:
    """The paper's own formula, on the maps of hybrid blocks."""
    rows = compute_tables.paper_formula()
    for row in rows[rows["preset"] == PRESET].to_dict("records"):
        yield Finding(
            f"the formula itself, which reaches 90 % from {row['pixels_for_90_percent']:,} pixels on",
            f"{row['height']} x {row['width']} map, C = {row['channels']} ({PRESET})",
            f"{row['saved_percent']:.1f} %",
            verdicts.judge_saving(row["saved_percent"], 90),
            MACS,
        )
