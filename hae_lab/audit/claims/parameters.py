"""Claims on parameters: what the table of the document promises, and what the bottleneck saves of what."""

from collections.abc import Iterator

import pandas as pd
from torch import nn

from hae_lab.audit import parameter_tables, verdicts
from hae_lab.audit.claims.base import PARAMETERS, REACH, Evidence, Finding, claim, listed
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.models import BottleneckMLP
from hae_lab.models.slots import token_mlp
from hae_lab.presets import DOCUMENT

PRESET = "brats128"
CHANNELS = 512
PUBLISHED = Evidence(
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
        "the published revision, rebuilt (wide128)",
        listed(f"{published[variant]:.1f} %" for variant in DOCUMENT),
        verdicts.worst(verdicts.judge(published[variant], CLAIM_PERCENT[variant]) for variant in DOCUMENT),
        PARAMETERS,
        evidence=PUBLISHED,
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


def whole_params() -> pd.Series:
    """Parameters of each variant's whole model."""
    table = parameter_tables.parameter_table()
    return table[(table["scope"] == "whole model") & (table["preset"] == PRESET)].set_index("variant")["params"]


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
