"""Claims on what stands where: encoder, middle, decoder, and how the published revision behind the table differs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import nn

from hae_lab.audit import compute_tables, verdicts
from hae_lab.audit.claims.base import MACS, PARAMETERS, QUALITY, STRUCTURE, Evidence, Finding, claim, listed
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import PUBLISHED_CHANGES, PUBLISHED_PRESET, parts_of
from hae_lab.family import HAEConfig
from hae_lab.models import HAEUNet, HybridBlock, build
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample
from hae_lab.presets import CONTROL, DOCUMENT, config

PRESET = "brats128"
NARROW = 32  # channels: what stands where is the same at any width
DESIGN = f"as the document places them ({PRESET})"
REVISION = f"the published revision, rebuilt ({PUBLISHED_PRESET}; HAE / Lite / V2)"
ARCHITECTURE = {"notebook": "03_hae", "figure": "unet_hae", "table": "architecture"}
PLACES_TEST = "test_architecture.py::test_hybrid_blocks_stand_where_the_placement_says"
SITES_TEST = "test_family.py::test_hybrid_sites_are_the_hybrid_blocks_of_the_built_model"
COUNTED = "test_architecture.py::test_number_of_blocks_of_each_kind"
REBUILT = Evidence("06_parameter_table", "published_counts", "published_counts", SITES_TEST)
SECTIONS = {"encoder": "input_blocks", "middle": "middle_block", "decoder": "output_blocks"}


@lru_cache(maxsize=16)
def narrow(variant: str, published: bool = False) -> HAEUNet:
    """A narrow model of a version on the meta device: the document's, or that of the published revision."""
    preset, changes = (PUBLISHED_PRESET, PUBLISHED_CHANGES[variant]) if published else (PRESET, {})
    with torch.device("meta"):
        return build(config(variant, preset, model_channels=NARROW, **changes))


def blocks_of(model: nn.Module, section: str) -> Mapping[str, int]:
    """How many blocks of each class a section has."""
    kinds = (ResBlock, AttentionBlock, HybridBlock, Downsample, Upsample)
    return Counter(
        type(each).__name__ for each in getattr(model, SECTIONS[section]).modules() if isinstance(each, kinds)
    )


def _published_blocks(section: str, kind: str = "HybridBlock") -> dict[str, int]:
    return {variant: blocks_of(narrow(variant, True), section)[kind] for variant in DOCUMENT}


# what the family is


@claim(
    {5: "基于扩散模型的创新网络架构", 78: "输入 (B, C, H, W)", 120: "输出 (B, C, H, W)"},
    "A network for diffusion models: an image and a timestep in, an image of the same shape out",
    "(B, C, H, W) in and out",
    **ARCHITECTURE | {"notebook": "01_diffusion_from_scratch"},
    test="test_models.py::test_forward_on_meta_gives_the_shape",
)
def diffusion_network(measured: Measured) -> Iterator[Finding]:
    """Each version gives an image of the shape that it takes."""
    with torch.device("meta"):
        x, steps = torch.empty(2, 4, 128, 128), torch.zeros(2)
        shapes = [tuple(narrow(variant)(x, steps).shape) for variant in DOCUMENT]
    same = set(shapes) == {tuple(x.shape)}
    words = "the shape that they take" if same else f"{shapes} for {tuple(x.shape)}"
    yield Finding(
        "forward(x, timesteps) keeps the shape", f"HAE, Lite and V2, {PRESET}", words, verdicts.as_said(same), STRUCTURE
    )


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
    for scope, published, evidence in ((DESIGN, False, Evidence()), (REVISION, True, REBUILT)):
        encoder, decoder = (
            [blocks_of(narrow(variant, published), section)["HybridBlock"] for variant in DOCUMENT]
            for section in ("encoder", "decoder")
        )
        verdict = verdicts.as_said(not any(encoder) and all(decoder))
        computed = f"{listed(encoder)} in the encoder, {listed(decoder)} in the decoder"
        yield Finding("hybrid blocks", scope, computed, verdict, STRUCTURE, evidence=evidence)


# encoder


@claim(
    {10: "编码器：采用传统CNN架构", 25: "编码器：标准CNN架构"},
    "The encoder is a traditional, a standard CNN",
    "a CNN",
    **ARCHITECTURE,
    test=COUNTED,
)
def encoder_cnn(measured: Measured) -> Iterator[Finding]:
    """Whether it attends, how much of its work that is, and whether it has hybrid blocks."""
    attention = blocks_of(narrow("hae"), "encoder")["AttentionBlock"]
    words = f"{attention} blocks of self-attention"
    yield Finding("convolutions alone", DESIGN, words, verdicts.as_said(attention == 0), STRUCTURE)
    rows = compute_tables.step_rows("hae", PRESET, "document")
    encoder = rows[rows["section"] == "encoder"]
    of_attention = encoder["block"] == "attention block"
    percent = 100 * (1 - encoder.loc[of_attention, "macs_document"].sum() / encoder["macs_document"].sum())
    yield Finding(
        "nearly all of its work is that of residual blocks and convolutions",
        PRESET,
        f"{percent:.1f} % of its MACs",
        verdicts.judge(percent, 100),
        MACS,
        claimed="100 %",
        evidence=Evidence(table="macs_by_part", test="test_compute.py::test_each_module_equals_the_oracle"),
    )
    hybrid = _published_blocks("encoder")
    verdict = verdicts.as_said(not any(hybrid.values()))
    computed = listed(hybrid.values())
    yield Finding("no hybrid blocks in it", REVISION, computed, verdict, STRUCTURE, claimed="0", evidence=REBUILT)


@claim(
    {10: "专注于局部特征提取"},
    "The encoder concentrates on local features",
    "local",
    **ARCHITECTURE,
    test="test_models.py::test_attention_block_equals_a_naive_einsum",
)
def encoder_local(measured: Measured) -> Iterator[Finding]:
    """Which levels relate a pixel to its neighbours alone."""
    model_config = config("hae", PRESET)
    local = [
        side
        for side, rate in zip(model_config.sizes, model_config.rates, strict=True)
        if rate not in model_config.attention_resolutions
    ]
    verdict = verdicts.as_said(len(local) == len(model_config.sizes))
    sides = ", ".join(f"{side} x {side}" for side in local)
    computed = f"{len(local)} of {len(model_config.sizes)} levels ({sides}); the others attend to the whole map"
    yield Finding("no level relates all pixels of its map", PRESET, computed, verdict, STRUCTURE)


@claim(
    {10: "空间信息压缩"},
    "The encoder compresses the spatial information",
    "smaller",
    **ARCHITECTURE,
    test="test_architecture.py::test_each_output_of_the_encoder_joins_one_decoder_block_last_first",
)
def encoder_compresses(measured: Measured) -> Iterator[Finding]:
    """The coarsest map beside the image, and all that the decoder is given."""
    model_config = config("hae", PRESET)
    image = model_config.in_channels * model_config.image_size**2
    deepest = model_config.channels[-1] * model_config.sizes[-1] ** 2
    yield Finding(
        "values of its coarsest map",
        PRESET,
        f"{deepest:,} of the image's {image:,}",
        verdicts.in_order([image, deepest]),
        STRUCTURE,
    )
    handed = deepest + sum(_skip_values(model_config))
    computed = f"{handed:,}, {handed / image:.0f} times the image's {image:,}"
    reading = "values that the decoder is given, skip connections included"
    yield Finding(reading, PRESET, computed, verdicts.in_order([image, handed]), STRUCTURE)


def _skip_values(model_config: HAEConfig) -> Iterator[int]:
    """Values of each map that the encoder hands to the decoder: stem, residual blocks, downsamples."""
    yield model_config.channels[0] * model_config.sizes[0] ** 2
    for level, (channels, side) in enumerate(zip(model_config.channels, model_config.sizes, strict=True)):
        yield from [channels * side**2] * model_config.num_res_blocks
        if level < len(model_config.channels) - 1:
            yield channels * (side // 2) ** 2


@claim(
    {25: "使用ResBlock和AttentionBlock", 84: "ResBlock", 86: "AttentionBlock", 90: "Downsample"},
    "The encoder is made of ResBlock + AttentionBlock, then Downsample",
    "ResBlock and AttentionBlock",
    **ARCHITECTURE,
    test=COUNTED,
)
def encoder_blocks(measured: Measured) -> Iterator[Finding]:
    """Both kinds are there; and is there an attention block beside each residual block, as drawn?"""
    found = blocks_of(narrow("hae"), "encoder")
    residual, attention = found["ResBlock"], found["AttentionBlock"]
    both = verdicts.as_said(residual > 0 and attention > 0)
    yield Finding("both are there", PRESET, f"{residual} residual, {attention} attention blocks", both, STRUCTURE)
    each = verdicts.as_said(residual == attention)
    yield Finding(
        "an attention block beside each, as drawn", PRESET, f"beside {attention} of {residual}", each, STRUCTURE
    )


@claim(
    {128: "编码器：与原版相同的CNN架构", 177: "编码器：与前两版相同的CNN架构"},
    "Lite and V2 have HAE's encoder",
    "one encoder",
    **ARCHITECTURE | {"table": "parameter_parts", "figure": "where_parameters_sit", "notebook": "06_parameter_table"},
    test="test_ledger_numbers.py::test_encoder_and_middle_by_counting_the_published_names",
)
def one_encoder(measured: Measured) -> Iterator[Finding]:
    """Its parameters in the design, and its hybrid blocks in the published revision."""
    counts = {variant: parts_of(config(variant, PRESET))["encoder"] for variant in (CONTROL, *DOCUMENT)}
    yield _one_count("parameters of the encoder", counts)
    hybrid = _published_blocks("encoder")
    verdict = verdicts.as_said(len(set(hybrid.values())) == 1)
    yield Finding(
        "hybrid blocks in the encoder", REVISION, listed(hybrid.values()), verdict, STRUCTURE, evidence=REBUILT
    )


def _one_count(reading: str, counts: Mapping[str, int]) -> Finding:
    words = f"{next(iter(counts.values())):,} in each" if len(set(counts.values())) == 1 else listed(counts.values())
    scope = f"{PRESET}: the control, HAE, Lite, V2"
    return Finding(reading, scope, words, verdicts.as_said(len(set(counts.values())) == 1), PARAMETERS)


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
    yield _one_count("parameters of the middle block", counts)
    kinds = {variant: [type(each).__name__ for each in narrow(variant).middle_block] for variant in DOCUMENT}
    standard = ["ResBlock", "AttentionBlock", "ResBlock"]
    same = all(found == standard for found in kinds.values())
    yield Finding("its blocks", f"{PRESET}: HAE, Lite, V2", ", ".join(kinds["hae"]), verdicts.as_said(same), STRUCTURE)
    hybrid = _published_blocks("middle")
    verdict = verdicts.as_said(not any(hybrid.values()))
    yield Finding("no hybrid block in it", REVISION, listed(hybrid.values()), verdict, STRUCTURE, evidence=REBUILT)


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
    for scope, published, evidence in ((DESIGN, False, Evidence()), (REVISION, True, REBUILT)):
        found = [_before_upsamples(narrow(variant, published)) for variant in DOCUMENT]
        verdict = verdicts.as_said(all(before == "HybridBlock" for each in found for before in each))
        computed = listed(f"{each.count('HybridBlock')} of {len(each)}" for each in found)
        yield Finding(
            "upsamples with a hybrid block right before them", scope, computed, verdict, STRUCTURE, evidence=evidence
        )


def _before_upsamples(model: nn.Module) -> list[str]:
    """Classes of the layers right before each upsample."""
    rows: list[Any] = [list(block) for block in model.output_blocks]
    return [
        type(row[place - 1]).__name__ for row in rows for place, each in enumerate(row) if isinstance(each, Upsample)
    ]


@claim(
    {71: "双分支并行处理：CNN分支 + Transformer分支"},
    "Two branches side by side: CNN and Transformer",
    "two branches",
    notebook="02_build_the_block",
    figure="hybrid_blocks",
    table="hybrid_blocks",
    test="test_models.py::test_hybrid_block_has_the_documents_attributes",
)
def two_branches(measured: Measured) -> Iterator[Finding]:
    """Both branches in each block of each version, and in the published revision."""
    for scope, published, evidence in ((DESIGN, False, Evidence()), (REVISION, True, REBUILT)):
        found = [_branches(narrow(variant, published)) for variant in DOCUMENT]
        verdict = verdicts.as_said(all(count == 2 for counts in found for count in counts))
        computed = listed(f"{min(counts)} in each of {len(counts)} blocks" for counts in found)
        yield Finding("branches of a hybrid block", scope, computed, verdict, STRUCTURE, evidence=evidence)


def _branches(model: nn.Module) -> list[int]:
    return [len(each.branches) for each in model.modules() if isinstance(each, HybridBlock)]
