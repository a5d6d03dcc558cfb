"""Claims on the compute and time of whole versions: which is the fastest, which costs the most."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from hae_lab.audit import compute_tables, quality_tables, verdicts
from hae_lab.audit.bench_attention import SHARED
from hae_lab.audit.benchmarks import DOCUMENTS_WAY
from hae_lab.audit.claims.base import BEYOND, MACS, PARAMETERS, REACH, SAID, TIME, Evidence, Finding, claim, listed
from hae_lab.audit.claims.parameters import PRESET, whole_params
from hae_lab.audit.measured import Measured
from hae_lab.presets import DOCUMENT, variant_title
from hae_lab.profilers.macs import total

OF_HAE = "of HAE (HAE / Lite / V2)"
BEYOND_NEAR = f"more than {verdicts.NEAR} % above V2's (our threshold for what is worth a word)"
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
        ("MACs of one denoising step, as printed", MACS, step_macs(), "macs_by_part"),
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
        ("MACs of one denoising step, as printed", macs, MACS),
    ):
        values = [counts[variant] for variant in DOCUMENT]
        shares = listed(f"{100 * value / values[0]:.1f} %" for value in values)
        yield Finding(reading, PRESET, f"{shares} {OF_HAE}", verdicts.in_order(values), kind)
    steps = [100 * (1 - macs[new] / macs[old]) for old, new in pairwise(DOCUMENT)]
    computed = f"{listed(f'{step:.1f} %' for step in steps)} saved"
    verdict = verdicts.worst(verdicts.noticeably_more(step) for step in steps)
    reading = f"each step saves more than {verdicts.NEAR} % of the MACs (our threshold for what is worth a word)"
    claimed = f"more than {verdicts.NEAR} % a step"
    yield Finding(reading, PRESET, computed, verdict, MACS, claimed=claimed, asked_of=BEYOND)


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
    "more than Lite's and V2's",
    notebook="08_compute_and_latency",
    figure="variants_together",
    table="variants_together",
    test="test_benchmarks.py::test_models_are_compared_with_the_same_way_of_v2",
)
def hae_costs(measured: Measured) -> Iterator[Finding]:
    """Whether HAE takes more than the others; and is it so much more that one would notice?"""
    macs = step_macs()
    most = verdicts.in_order([macs["hae"], max(macs["lite"], macs["v2"])])
    more = 100 * (macs["hae"] / macs["v2"] - 1)
    reading, computed = "MACs of one denoising step, as printed: ", f"{more:.1f} % more than V2's"
    yield Finding(f"{reading}the most of the three", PRESET, computed, most, MACS)
    yield Finding(f"{reading}{BEYOND_NEAR}", PRESET, computed, verdicts.noticeably_more(more), MACS, asked_of=BEYOND)
    rows = measured.bench_model
    for row in rows[(rows["variant"] == "hae") & (rows["against"] == "v2 " + rows["way"])].to_dict("records"):
        yield from _costs_time(row)


def _costs_time(row: Mapping[str, Any]) -> Iterator[Finding]:
    """HAE's time against V2's of the same way: longer in paired rounds; and by how much."""
    more, reading = -row["faster_percent"], "time of one denoising step: "
    for words, verdict, asked_of in (
        ("longer than V2's", verdicts.first_place([row["verdict"]]), SAID),
        (BEYOND_NEAR, verdicts.noticeably_more(more), BEYOND),
    ):
        yield Finding(
            f"{reading}{words}",
            f"{PRESET} at 64 channels, batch 1, {row['way']}, {row['device_name']}",
            f"{more:.1f} % more than V2's",
            verdict,
            TIME,
            evidence=Evidence(table=f"bench_model_{row['device']}"),
            way=row["way"],
            device_name=row["device_name"],
            clock=row["clock"],
            asked_of=asked_of,
        )


def step_macs() -> dict[str, int]:
    """MACs of one denoising step of each version, as printed."""
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
