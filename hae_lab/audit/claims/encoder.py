"""Claims on the encoder: what it is made of, what it relates, what it hands on."""

from collections.abc import Iterator

from hae_lab.audit import compute_tables, verdicts
from hae_lab.audit.claims.base import BEYOND, MACS, PUBLISHED, STRUCTURE, Evidence, Finding, claim, listed
from hae_lab.audit.claims.built import (
    ARCHITECTURE,
    COUNTED,
    DESIGN,
    REBUILT,
    REVISION,
    blocks_of,
    narrow,
    published_blocks,
)
from hae_lab.audit.claims.parameters import PRESET, one_count
from hae_lab.audit.measured import Measured
from hae_lab.audit.parameter_tables import parts_of
from hae_lab.family import HAEConfig
from hae_lab.presets import CONTROL, DOCUMENT, config


@claim(
    {10: "编码器：采用传统CNN架构", 25: "编码器：标准CNN架构"},
    "The encoder is a traditional, a standard CNN",
    "a CNN",
    **ARCHITECTURE,
    test=COUNTED,
)
def encoder_cnn(measured: Measured) -> Iterator[Finding]:
    """A CNN as line 25 has it, with blocks of self-attention; one without any; and that of the published revision."""
    found = blocks_of(narrow("hae"), "encoder")
    words = ", ".join(f"{count} {kind}" for kind, count in found.items())
    as_listed = verdicts.as_said(found["ResBlock"] > 0 and found["HybridBlock"] == 0)
    reading = "residual blocks and, as line 25 has it, attention blocks; no hybrid blocks"
    yield Finding(reading, DESIGN, words, as_listed, STRUCTURE)
    attention = found["AttentionBlock"]
    alone = verdicts.as_said(attention == 0)
    computed = f"{attention} blocks of self-attention"
    yield Finding("convolutions alone, stricter than line 25", DESIGN, computed, alone, STRUCTURE, asked_of=BEYOND)
    hybrid = published_blocks("encoder")
    verdict, computed = verdicts.as_said(not any(hybrid.values())), listed(hybrid.values())
    yield Finding(
        "no hybrid blocks in it", REVISION, computed, verdict, STRUCTURE,
        claimed="0", evidence=REBUILT, asked_of=PUBLISHED,
    )  # fmt: skip


@claim(
    {10: "专注于局部特征提取"},
    "The encoder concentrates on local features",
    "local",
    **ARCHITECTURE,
    test="test_models.py::test_attention_block_equals_a_naive_einsum",
)
def encoder_local(measured: Measured) -> Iterator[Finding]:
    """How much of its work relates a pixel to its neighbours alone; and whether any level does more."""
    rows = compute_tables.step_rows("hae", PRESET, "document").query("section == 'encoder'")
    of_attention = rows["block"] == "attention block"
    percent = 100 * (1 - rows.loc[of_attention, "macs_document"].sum() / rows["macs_document"].sum())
    yield Finding(
        "most of its work, half of its MACs or more (our threshold), is that of residual blocks and convolutions",
        PRESET,
        f"{percent:.1f} % of its MACs",
        verdicts.mostly(percent),
        MACS,
        evidence=Evidence(table="macs_by_part", test="test_compute.py::test_each_module_equals_the_oracle"),
    )
    model_config = config("hae", PRESET)
    levels = zip(model_config.sizes, model_config.rates, strict=True)
    local = [side for side, rate in levels if rate not in model_config.attention_resolutions]
    verdict = verdicts.as_said(len(local) == len(model_config.sizes))
    sides = ", ".join(f"{side} x {side}" for side in local)
    computed = f"{len(local)} of {len(model_config.sizes)} levels ({sides}); the others attend to the whole map"
    reading = "nothing but local: no level relates all pixels of its map"
    yield Finding(reading, PRESET, computed, verdict, STRUCTURE, asked_of=BEYOND)


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
    reading = "all that the decoder is given, skip connections included, is less than the image"
    yield Finding(reading, PRESET, computed, verdicts.in_order([image, handed]), STRUCTURE, asked_of=BEYOND)


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
        "an attention block beside each residual block, as drawn", PRESET, f"beside {attention} of {residual}", each,
        STRUCTURE,
    )  # fmt: skip


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
    yield one_count("parameters of the encoder", counts)
    hybrid = published_blocks("encoder")
    verdict = verdicts.as_said(len(set(hybrid.values())) == 1)
    yield Finding(
        "hybrid blocks in the encoder", REVISION, listed(hybrid.values()), verdict, STRUCTURE,
        evidence=REBUILT, asked_of=PUBLISHED,
    )  # fmt: skip
