"""Claims on parameters: what the table of the document promises, and what the bottleneck saves of what."""

from collections.abc import Iterator, Mapping

import pandas as pd
from torch import nn

from hae_lab.audit import parameter_tables, verdicts
from hae_lab.audit.claims.base import BEYOND, PARAMETERS, PUBLISHED, REACH, SAID, Evidence, Finding, claim, listed
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.models import BottleneckMLP
from hae_lab.models.slots import token_mlp
from hae_lab.presets import DOCUMENT

PRESET = "brats128"
CHANNELS = 512
REVISION = "the published revision, rebuilt (wide128)"
PUBLISHED_COUNTS = Evidence(
    figure="published_counts",
    table="published_counts",
    test="test_parameter_table.py::test_published_counts_are_reproduced_to_the_last_parameter_but_v2s",
)


@claim(
    {226: "100%", 227: "~70%", 228: "~40%"},
    "Relative parameter counts: HAE 100 %, HAE Lite about 70 %, HAE V2 about 40 %",
    "100 / 70 / 40 %",
    notebook="06_parameter_table",
    figure="parameter_table",
    table="parameter_table",
    test="test_parameter_table.py::test_table_equals_the_measured_percentages",
)
def parameters(measured: Measured) -> Iterator[Finding]:
    """100 / 70 / 40, in each scope, and in the models that the published code really had."""
    table = parameter_tables.parameter_table()
    for scope in parameter_tables.SCOPES:
        groups = table[table["scope"] == scope].groupby("variant")["percent_of_hae"]
        percent = groups.agg(["min", "max"]).loc[list(DOCUMENT)]
        found = [verdicts.judge(value, CLAIM_PERCENT[name]) for name in DOCUMENT for value in percent.loc[name]]
        computed = listed(f"{low:.1f}-{high:.1f} %" for low, high in percent.to_numpy())
        yield Finding(f"{scope}, like for like", "four presets", computed, verdicts.worst(found), PARAMETERS)
    published = parameter_tables.published_counts().set_index("variant")["our_percent"]
    yield Finding(
        "whole model, blocks for the decoder's attention (HAE) or for all (Lite, V2), V2 without CNN branch",
        REVISION,
        listed(f"{published[variant]:.1f} %" for variant in DOCUMENT),
        verdicts.worst(verdicts.judge(published[variant], CLAIM_PERCENT[variant]) for variant in DOCUMENT),
        PARAMETERS,
        evidence=PUBLISHED_COUNTS,
        asked_of=PUBLISHED,
    )


@claim(
    {201: "默认瓶颈比例0.25，参数量减少约75%"},
    "Bottleneck ratio 0.25 by default: about 75 % fewer parameters",
    "75 % fewer",
    notebook="05_hae_v2",
    figure="slot_waterfall",
    table="block_coefficients",
    test="test_claims.py::test_seventy_five_percent_of_what",
)
def bottleneck_75(measured: Measured) -> Iterator[Finding]:
    """75 % fewer parameters, against what."""
    narrow = count(BottleneckMLP(CHANNELS, 0.25))
    wide = {
        "token MLP against one as wide inside as outside (C to C to C)": CHANNELS,
        "token MLP against the 4x MLP that it replaces": 4 * CHANNELS,
    }
    for reading, hidden in wide.items():
        saved = 100 * (1 - narrow / count(token_mlp(CHANNELS, hidden, 0.0)))
        verdict = verdicts.judge_saving(saved, 75)
        yield Finding(reading, f"one MLP, C = {CHANNELS}", f"{saved:.1f} %", verdict, PARAMETERS)
    params = whole_params()
    saved = 100 * (1 - params["v2"] / params["lite"])
    evidence = Evidence(table="parameter_table")
    verdict = verdicts.judge_saving(saved, 75)
    yield Finding("whole model, V2 against Lite", PRESET, f"{saved:.1f} %", verdict, REACH, evidence=evidence)


TABLE = {"notebook": "06_parameter_table", "figure": "parameter_table", "table": "parameter_table"}
TABLE_TEST = "test_parameter_table.py::test_table_equals_the_measured_percentages"


@claim(
    {27: "参数量：最大", 284: "参数量大"},
    "HAE has the most parameters",
    "the most",
    **TABLE,
    test=TABLE_TEST,
)
def hae_largest(measured: Measured) -> Iterator[Finding]:
    """More than Lite and V2, on each preset and in the published revision."""
    for scope, of_hae, asked_of in _percents():
        verdict = verdicts.as_said(max(of_hae["lite"], of_hae["v2"]) < 100)
        yield Finding("whole model, percent of HAE", scope, _of_hae(of_hae), verdict, PARAMETERS, asked_of=asked_of)


@claim(
    {130: "参数量：中等", 288: "适中的参数量"},
    "Lite has a medium number of parameters",
    "between",
    **TABLE,
    test=TABLE_TEST,
)
def lite_medium(measured: Measured) -> Iterator[Finding]:
    """Between V2 and HAE; and half way?"""
    for scope, of_hae, asked_of in _percents():
        verdict = verdicts.in_order([100, of_hae["lite"], of_hae["v2"]])
        yield Finding("between V2 and HAE", scope, _of_hae(of_hae), verdict, PARAMETERS, asked_of=asked_of)
    params = whole_params()
    way = 100 * (params["lite"] - params["v2"]) / (params["hae"] - params["v2"])
    verdict = verdicts.judge(way, 50)
    computed = f"{way:.1f} % of the way"
    yield Finding(
        "half way from V2 to HAE, a middle of ours", PRESET, computed, verdict, PARAMETERS,
        claimed="50 % of the way", asked_of=BEYOND,
    )  # fmt: skip


@claim(
    {129: "优化的混合CNN-Transformer架构", 178: "进一步优化的混合CNN-Transformer架构"},
    "The decoder is optimised in Lite, and further in V2",
    "HAE > Lite > V2",
    **TABLE,
    test=TABLE_TEST,
)
def decoder_stepwise(measured: Measured) -> Iterator[Finding]:
    """Parameters of the decoder, version by version."""
    table = parameter_tables.parameter_table().query("scope == 'decoder'")
    for preset, rows in table.groupby("preset", sort=False):
        percent = rows.set_index("variant")["percent_of_hae"]
        verdict = verdicts.in_order(percent[variant] for variant in DOCUMENT)
        yield Finding("parameters of the decoder", str(preset), _of_hae(percent), verdict, PARAMETERS)


def _percents() -> Iterator[tuple[str, pd.Series, str]]:
    """Scope, parameters of the whole model in percent of HAE's, who is asked: each preset, the published revision."""
    table = parameter_tables.parameter_table().query("scope == 'whole model'")
    for preset, rows in table.groupby("preset", sort=False):
        yield str(preset), rows.set_index("variant")["percent_of_hae"], SAID
    yield REVISION, parameter_tables.published_counts().set_index("variant")["our_percent"], PUBLISHED


def _of_hae(percent: pd.Series) -> str:
    return listed(f"{percent[variant]:.1f} %" for variant in DOCUMENT)


def whole_params() -> pd.Series:
    """Parameters of each variant's whole model, on one preset."""
    table = parameter_tables.parameter_table()
    return table[(table["scope"] == "whole model") & (table["preset"] == PRESET)].set_index("variant")["params"]


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def one_count(reading: str, counts: Mapping[str, int]) -> Finding:
    """A reading that a part has equally many parameters in all of these models."""
    same = len(set(counts.values())) == 1
    words = f"{next(iter(counts.values())):,} in each" if same else listed(counts.values())
    return Finding(reading, f"{PRESET}: the control, HAE, Lite, V2", words, verdicts.as_said(same), PARAMETERS)
