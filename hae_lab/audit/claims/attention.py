"""Claims on what sparse attention saves: pairs, multiply-accumulates, time, memory; of the layer and of the model."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from hae_lab.audit import compute_tables, verdicts
from hae_lab.audit.bench_attention import DENSE, DOCUMENT_LAYER, FLEX, LAYER, NATIVE, SHARED
from hae_lab.audit.benchmarks import DOCUMENTS_WAY
from hae_lab.audit.claims.base import MACS, MASK, MEMORY, REACH, TIME, Evidence, Finding, claim
from hae_lab.audit.claims.parameters import PRESET
from hae_lab.audit.claims.scales import LARGEST_MAP
from hae_lab.audit.measured import Measured
from hae_lab.profilers.counters import flop_counter_macs
from hae_lab.profilers.macs import PROJECTIONS, SCORES, total
from hae_lab.rules import RULES, mask_for

MACS_BY_RULE = Evidence(
    figure="macs_by_part", table="macs_by_rule", test="test_compute.py::test_what_runs_equals_the_oracle_for_every_rule"
)


@claim(
    {17: "稀疏注意力机制：减少90%的计算量", 54: "稀疏注意力掩码减少90%计算量"},
    "Sparse attention: 90 % less compute",
    "90 % less",
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
    saved = 100 * (1 - _printed_layer_macs(mask=True) / _printed_layer_macs(mask=False))
    yield Finding(
        "MACs that nn.MultiheadAttention saves when it is given the mask, as printed",
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


def _printed_layer_macs(mask: bool) -> int:
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
    for _, settings in measured.read("training_memory_by_rule").groupby("dropout", sort=False):
        dense = settings.loc[settings["mask_rule"] == DENSE, "attention_saved_bytes"].item()
        for row in settings[settings["mask_rule"] != DENSE].to_dict("records"):
            yield _training_memory(row, dense)


def _training_memory(row: Mapping[str, Any], dense: int) -> Finding:
    """What autograd keeps of V2's sparse attention, against dense attention."""
    kept, test = row["attention_saved_bytes"], "test_memory.py::test_sparse_rules_keep_more_than_dense_attention"
    return Finding(
        f"bytes that the attention layers keep for the backward pass, rule {row['mask_rule']}, against dense",
        f"V2, {row['preset']}, one image, dropout {row['dropout']:g}",
        f"{kept / 2**20:.0f} of {dense / 2**20:.0f} MiB",
        verdicts.in_order([dense, kept]),
        MEMORY,
        evidence=Evidence(table="training_memory_by_rule", test=test),
        way=row["mask_rule"],
    )


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
