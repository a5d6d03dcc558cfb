"""Claims on what the family is, and on what stands where in its middle and its decoder."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import (
    BEYOND,
    INTERFACE,
    PUBLISHED,
    QUALITY,
    SAID,
    STRUCTURE,
    Evidence,
    Finding,
    claim,
    listed,
)
from hae_lab.audit.claims.built import (
    ARCHITECTURE,
    BLOCK,
    COUNTED,
    DESIGN,
    PLACES_TEST,
    REBUILT,
    REVISION,
    blocks_of,
    narrow,
    published_blocks,
)
from hae_lab.audit.claims.parameters import PRESET, one_count
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import parts_of
from hae_lab.models import HybridBlock, HybridCNNTransformerBlock, HybridCNNTransformerBlockLite
from hae_lab.models.layers import TimestepBlock, Upsample
from hae_lab.presets import CONTROL, DOCUMENT, config

# the document's design and the published revision: scope, whether it is the revision, its evidence, who is asked
DESIGN_AND_REVISION = ((DESIGN, False, Evidence(), SAID), (REVISION, True, REBUILT, PUBLISHED))

# what the family is


@claim(
    {5: "基于扩散模型的创新网络架构", 78: "输入 (B, C, H, W)", 120: "输出 (B, C, H, W)"},
    "An innovative network for diffusion models: an image and a timestep in, an image of the same shape out",
    "(B, C, H, W) in and out, in a new way",
    **ARCHITECTURE | {"notebook": "01_diffusion_from_scratch"},
    test="test_models.py::test_forward_on_meta_gives_the_shape",
)
def diffusion_network(measured: Measured) -> Iterator[Finding]:
    """Each version gives an image of the shape that it takes, and has what a plain U-Net has not."""
    with torch.device("meta"):
        x, steps = torch.empty(2, 4, 128, 128), torch.zeros(2)
        shapes = [tuple(narrow(variant)(x, steps).shape) for variant in DOCUMENT]
    same = set(shapes) == {tuple(x.shape)}
    words = "the shape that they take" if same else f"{shapes} for {tuple(x.shape)}"
    yield Finding(
        "forward(x, timesteps) keeps the shape", f"HAE, Lite and V2, {PRESET}", words, verdicts.as_said(same), STRUCTURE
    )
    plain, *others = ({type(each).__name__ for each in narrow(name).modules()} for name in (CONTROL, *DOCUMENT))
    new = set.intersection(*others) - plain
    reading = "innovative: it has kinds of layers that a plain U-Net has not"
    computed = ", ".join(sorted(new)) or "none"
    yield Finding(reading, DESIGN, computed, verdicts.as_said(bool(new)), STRUCTURE)
    computed, verdict = "nothing that was counted or measured here tells", verdicts.unmeasured()
    yield Finding("innovative: nobody had it before", DESIGN, computed, verdict, STRUCTURE, asked_of=BEYOND)


@claim(
    {5: "该家族包含三个主要版本：HAE原版、HAE Lite和HAE V2"},
    "The family has three main versions: HAE, HAE Lite and HAE V2",
    "three versions",
    **ARCHITECTURE | {"notebook": "00_start_here", "table": "parameter_table", "figure": "variants_together"},
    test="test_family.py::test_variants_are_the_documents_slots",
)
def three_versions(measured: Measured) -> Iterator[Finding]:
    """Three configs that differ."""
    distinct = len({config(variant, PRESET) for variant in DOCUMENT})
    yield Finding(
        "versions that differ in some slot", PRESET, f"{distinct}", verdicts.as_said(distinct == 3), STRUCTURE
    )


@claim(
    {5: "在编码器和解码器中使用不同的网络结构"},
    "Encoder and decoder have different structures",
    "hybrid blocks in the decoder alone",
    **ARCHITECTURE,
    test=PLACES_TEST,
)
def different_halves(measured: Measured) -> Iterator[Finding]:
    """Hybrid blocks of the encoder and of the decoder, in the design and in the published revision."""
    for scope, published, evidence, asked_of in DESIGN_AND_REVISION:
        encoder, decoder = (
            [blocks_of(narrow(variant, published), section)["HybridBlock"] for variant in DOCUMENT]
            for section in ("encoder", "decoder")
        )
        verdict = verdicts.as_said(not any(encoder) and all(decoder))
        computed = f"{listed(encoder)} in the encoder, {listed(decoder)} in the decoder"
        yield Finding("hybrid blocks", scope, computed, verdict, STRUCTURE, evidence=evidence, asked_of=asked_of)


# middle


@claim(
    {12: "中间块：保持标准UNet设计", 97: "ResBlock + Attn"},
    "The middle block keeps the standard U-Net's design",
    "a plain U-Net's",
    **ARCHITECTURE | {"table": "parameter_parts"},
    test="test_ledger_numbers.py::test_encoder_and_middle_by_counting_the_published_names",
)
def middle_standard(measured: Measured) -> Iterator[Finding]:
    """Residual block, attention, residual block, as in the control; and in the published revision?"""
    counts = {variant: parts_of(config(variant, PRESET))["middle"] for variant in (CONTROL, *DOCUMENT)}
    yield one_count("parameters of the middle block", counts)
    kinds = {variant: [type(each).__name__ for each in narrow(variant).middle_block] for variant in DOCUMENT}
    standard = ["ResBlock", "AttentionBlock", "ResBlock"]
    same = all(found == standard for found in kinds.values())
    yield Finding("its blocks", f"{PRESET}: HAE, Lite, V2", ", ".join(kinds["hae"]), verdicts.as_said(same), STRUCTURE)
    hybrid = published_blocks("middle")
    verdict = verdicts.as_said(not any(hybrid.values()))
    reading, computed = "no hybrid block in it", listed(hybrid.values())
    yield Finding(reading, REVISION, computed, verdict, STRUCTURE, evidence=REBUILT, asked_of=PUBLISHED)


@claim(
    {12: "确保特征传递的稳定性"},
    "which makes the passing on of features stable",
    "stable",
    notebook="09_ablation_study",
    figure="learning_curves",
    table="study_variants",
    test="test_ledger_numbers.py::test_no_committed_run_diverged",
)
def middle_stable(measured: Measured) -> Iterator[Finding]:
    """No training diverged; whether the middle block is the reason, no study asked."""
    losses = [loss for rows in measured.studies.values() if "loss" in rows for loss in rows["loss"]]
    finite = sum(loss == loss and loss < float("inf") for loss in losses)
    computed = f"{finite} of {len(losses)} runs"
    yield Finding(
        "training ends with a finite loss",
        "every committed study",
        computed,
        verdicts.as_said(finite == len(losses)),
        QUALITY,
    )
    alone = [name for name, rows in measured.studies.items() if _varied_alone(rows)]
    computed = f"{len(alone)} of {len(measured.studies)} studies change the middle block alone"
    yield Finding("because of the middle block", "every committed study", computed, verdicts.unmeasured(), QUALITY)


def _varied_alone(rows: pd.DataFrame) -> bool:
    """Whether a study has the middle with attention and without, and the levels' attention unchanged."""
    fields = ["middle_attention", "attention_resolutions"]
    if not set(fields) <= set(rows.columns):
        return fields[0] in rows.columns and rows[fields[0]].nunique() > 1
    return bool((rows[fields].drop_duplicates().groupby(fields[1]).size() > 1).any())


# decoder


@claim(
    {11: "解码器：采用混合CNN-Transformer架构", 26: "解码器：混合CNN-Transformer架构"},
    "The decoder is a hybrid of CNN and Transformer",
    "both",
    **ARCHITECTURE,
    test=PLACES_TEST,
)
def decoder_hybrid(measured: Measured) -> Iterator[Finding]:
    """Residual and hybrid blocks of each version's decoder."""
    found = [blocks_of(narrow(variant), "decoder") for variant in DOCUMENT]
    both = all(each["ResBlock"] and each["HybridBlock"] for each in found)
    computed = listed(f"{each['ResBlock']} residual, {each['HybridBlock']} hybrid" for each in found)
    yield Finding("blocks of the decoder", DESIGN, computed, verdicts.as_said(both), STRUCTURE)


@claim(
    {26: "在每个上采样前添加异构块", 109: "混合CNN-", 115: "Upsample"},
    "A hybrid block stands before each upsample",
    "before each",
    **ARCHITECTURE,
    test="test_family.py::test_sites_upsample_one_before_each_upsample",
)
def block_before_each_upsample(measured: Measured) -> Iterator[Finding]:
    """Upsamples with a hybrid block right before them."""
    for scope, published, evidence, asked_of in DESIGN_AND_REVISION:
        found = [_before_upsamples(narrow(variant, published)) for variant in DOCUMENT]
        verdict = verdicts.as_said(all(before == "HybridBlock" for each in found for before in each))
        computed = listed(f"{each.count('HybridBlock')} of {len(each)}" for each in found)
        yield Finding(
            "upsamples with a hybrid block right before them", scope, computed, verdict, STRUCTURE,
            evidence=evidence, asked_of=asked_of,
        )  # fmt: skip


def _before_upsamples(model: nn.Module) -> list[str]:
    """Classes of the layers right before each upsample."""
    rows: list[Any] = [list(block) for block in model.output_blocks]
    return [
        type(row[place - 1]).__name__ for row in rows for place, each in enumerate(row) if isinstance(each, Upsample)
    ]


@claim(
    {104: "ResBlock +", 105: "AttentionBlock", 109: "混合CNN-", 115: "Upsample"},
    "In the decoder come ResBlock + AttentionBlock, then the hybrid block, then the upsample",
    "in this order",
    **ARCHITECTURE,
    test="test_ledger_numbers.py::test_order_of_the_decoder_by_hand",
)
def decoder_order(measured: Measured) -> Iterator[Finding]:
    """The layers before each upsample in their order; and is there an attention block beside each residual block?"""
    for scope, published, evidence, asked_of in DESIGN_AND_REVISION:
        rows = [row for variant in DOCUMENT for row in _rows_of(narrow(variant, published)) if "Upsample" in row]
        drawn = [row for row in rows if _in_drawn_order(row)]
        reading, verdict = "the order in which they stand before an upsample", verdicts.as_said(drawn == rows)
        computed = f"{len(drawn)} of {len(rows)} as drawn, with attention or without"
        yield Finding(reading, scope, computed, verdict, STRUCTURE, evidence=evidence, asked_of=asked_of)
    found = blocks_of(narrow("hae"), "decoder")
    residual, attention = found["ResBlock"], found["AttentionBlock"]
    reading, evidence = "an attention block beside each residual block, as drawn", Evidence(test=COUNTED)
    verdict = verdicts.as_said(residual == attention)
    yield Finding(reading, PRESET, f"beside {attention} of {residual}", verdict, STRUCTURE, evidence=evidence)


def _rows_of(model: nn.Module) -> list[list[str]]:
    """The kinds of layers of each place of the decoder, in their order."""
    blocks: list[Any] = list(model.output_blocks)
    return [[type(layer).__name__ for layer in block] for block in blocks]


def _in_drawn_order(row: list[str]) -> bool:
    """A place that the document draws: residual block, attention or none, hybrid block, upsample."""
    return [kind for kind in row if kind != "AttentionBlock"] == ["ResBlock", "HybridBlock", "Upsample"] and (
        "AttentionBlock" not in row or row.index("AttentionBlock") == 1
    )


# the hybrid block


@claim(
    {
        58: "class HybridCNNTransformerBlock(TimestepBlock)",
        61: "self.conv_branch = nn.Sequential(...)",
        64: "self.transformer_branch = MultiScaleSparseTransformerBlock(...)",
        152: "class HybridCNNTransformerBlockLite(TimestepBlock)",
    },
    "The hybrid block is a TimestepBlock: a sequence of layers beside a multi-scale sparse Transformer",
    "the printed classes",
    **BLOCK,
    test="test_models.py::test_hybrid_block_has_the_documents_attributes",
)
def hybrid_block_classes(measured: Measured) -> Iterator[Finding]:
    """The classes of the block and of its branches; a TimestepBlock is given the embedding beside the map."""
    for kind in (HybridCNNTransformerBlock, HybridCNNTransformerBlockLite):
        computed = " < ".join(each.__name__ for each in kind.__mro__ if issubclass(each, TimestepBlock))
        verdict = verdicts.as_said(issubclass(kind, TimestepBlock))
        yield Finding("it is a TimestepBlock", kind.__name__, computed, verdict, INTERFACE)
    blocks = [each for variant in DOCUMENT for each in narrow(variant).modules() if isinstance(each, HybridBlock)]
    found = {(type(each.conv_branch).__name__, type(each.transformer_branch).__name__) for each in blocks}
    computed = "; ".join(" beside ".join(pair) for pair in sorted(found))
    verdict = verdicts.as_said(found == {("Sequential", "MSTB")})
    yield Finding("the classes of its branches", DESIGN, computed, verdict, STRUCTURE)


@claim(
    {71: "双分支并行处理：CNN分支 + Transformer分支"},
    "Two branches side by side: CNN and Transformer",
    "two branches",
    **BLOCK,
    test="test_models.py::test_hybrid_block_has_the_documents_attributes",
)
def two_branches(measured: Measured) -> Iterator[Finding]:
    """Both branches in each block of each version, and in the published revision."""
    for scope, published, evidence, asked_of in DESIGN_AND_REVISION:
        found = [_branches(narrow(variant, published)) for variant in DOCUMENT]
        verdict = verdicts.as_said(all(count == 2 for counts in found for count in counts))
        computed = listed(f"{min(counts)} in each of {len(counts)} blocks" for counts in found)
        reading = "branches of a hybrid block"
        yield Finding(reading, scope, computed, verdict, STRUCTURE, evidence=evidence, asked_of=asked_of)


def _branches(model: nn.Module) -> list[int]:
    return [len(each.branches) for each in model.modules() if isinstance(each, HybridBlock)]
