"""Architecture: rows against facts from elsewhere; pictures that fit, say the rows and follow the config."""

import copy
from functools import lru_cache
from itertools import pairwise

import pandas as pd
import pytest
import torch

from hae_lab import VARIANTS, HAEConfig, HAELabError, build, config
from hae_lab.family import hybrid_sites
from hae_lab.masks import TokenGrid
from hae_lab.models import (
    HAEUNet,
    HybridCNNTransformerBlock,
    HybridCNNTransformerBlockLite,
    HybridCNNTransformerBlockV2,
)
from hae_lab.profilers.anatomy import OTHER, hybrid_family, hybrid_rows, unet_rows, unet_table
from hae_lab.profilers.formulas import hybrid_formulas, parameter_formulas

HYBRIDS = [variant for variant in VARIANTS if variant != "unet"]
PLACEMENTS = ("none", "upsample", "attention", "everywhere")
SECTIONS = ("embedding", "encoder", "middle", "decoder", "out")
BODIES = {
    "as in the preset": {},
    "updown": {"resblock_updown": True},
    "free resampling": {"conv_resample": False},
    "three": {"num_res_blocks": 3, "channel_mult": (1, 3, 2, 4), "attention_resolutions": (1, 8)},
    "one level": {"channel_mult": (1,), "attention_resolutions": (1,)},
}
CASES = [
    *[(variant, "brats128", {}) for variant in VARIANTS],
    ("lite", "wide128", {"placement": "everywhere"}),
    *[("hae", "tiny", changes | {"placement": "everywhere"}) for changes in BODIES.values()],
    *[("v2", "tiny", {"placement": placement}) for placement in PLACEMENTS],
]


# models and rows are made once for all tests, which do not change them
@lru_cache
def on_meta(model_config: HAEConfig) -> HAEUNet:
    with torch.device("meta"):
        return build(model_config)


@lru_cache
def rows_for(model_config: HAEConfig) -> pd.DataFrame:
    return unet_rows(on_meta(model_config))


def rows_of(variant: str, preset: str, **changes) -> pd.DataFrame:
    return rows_for(config(variant, preset, **changes))


@lru_cache
def family(preset: str, **changes) -> pd.DataFrame:
    return hybrid_family(preset, **changes)


# Rows of the U-Net


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_rows_hold_every_parameter_in_its_section(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    rows = rows_for(model_config)
    assert rows["params"].sum() == sum(p.numel() for p in on_meta(model_config).parameters())
    assert rows["share_percent"].sum() == pytest.approx(100)
    formulas = parameter_formulas(model_config)
    assert rows.groupby("section")["params"].sum().to_dict() == {section: formulas[section] for section in SECTIONS}


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_blocks_follow_each_other_on_maps_of_the_config(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    body = rows_for(model_config).query("section != 'embedding'").set_index("path")
    assert body["size_out"].tolist() == [model_config.sizes[level] for level in body["level"]]
    inside = body[~body["kind"].isin(["downsample", "upsample", "out"])]
    assert inside["channels_out"].tolist() == [model_config.channels[level] for level in inside["level"]]
    assert (body["channels_in"].iloc[0], body["channels_out"].iloc[-1]) == (
        model_config.in_channels,
        model_config.out_channels,
    )
    for before, after in pairwise(body.itertuples()):
        joined = body.loc[after.skip_from, "channels_out"] if after.skip_from else 0
        assert after.channels_in == before.channels_out + joined
        assert after.size_in == before.size_out


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_each_output_of_the_encoder_joins_one_decoder_block_last_first(variant, preset, changes):
    rows = rows_of(variant, preset, **changes)
    encoder = rows[rows["section"] == "encoder"]
    outputs = encoder.groupby(encoder["path"].str.rpartition(".")[0], sort=False)["path"].last()
    joins = rows[rows["skip_from"] != ""]
    assert joins["skip_from"].tolist() == outputs.tolist()[::-1]
    assert set(joins["kind"]) == {"residual"}
    assert joins["path"].tolist() == [f"output_blocks.{index}.0" for index in range(len(outputs))]
    sizes = rows.set_index("path")["size_out"]
    assert joins["size_in"].tolist() == sizes[joins["skip_from"]].tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("preset", ["cifar32", "lesson16"])
def test_hybrid_blocks_stand_where_the_placement_says(preset, placement):
    model_config = config("lite", preset, placement=placement)
    rows = rows_for(model_config)
    hybrid = rows[rows["kind"] == "hybrid"]
    assert list(zip(hybrid["section"], hybrid["level"], strict=True)) == hybrid_sites(model_config)
    if placement == "upsample":
        following = rows["kind"].shift(-1)[hybrid.index]
        assert set(following) == {"upsample"}


def test_hybrid_blocks_by_hand():
    hybrid = rows_of("hae", "brats128").query("kind == 'hybrid'")
    assert hybrid["path"].tolist() == [f"output_blocks.{index}" for index in ("2.2", "5.2", "8.2", "11.1")]
    assert hybrid["channels_out"].tolist() == [512, 384, 256, 128]
    assert hybrid["size_out"].tolist() == [8, 16, 32, 64]


@pytest.mark.parametrize("body", BODIES)
def test_number_of_blocks_of_each_kind(body):
    model_config = config("unet", "tiny", **BODIES[body])
    kinds = unet_rows(model_config)["kind"].value_counts()
    levels, blocks = len(model_config.channel_mult), model_config.num_res_blocks
    attended = len(model_config.attention_resolutions)
    assert kinds["residual"] == levels * (2 * blocks + 1) + 2
    assert kinds["attention"] == attended * (2 * blocks + 1) + 1
    assert kinds.get("downsample", 0) == kinds.get("upsample", 0) == levels - 1
    assert (kinds["stem"], kinds["out"], kinds["embedding"]) == (1, 1, 3)


def test_a_model_can_be_given_and_stays_as_it_was():
    model = build("v2", "tiny")
    before = copy.deepcopy(model.state_dict())
    assert unet_rows(model).equals(unet_rows(model.config))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_name_the_variant_by_its_slots():
    assert unet_table("tiny").drop_duplicates("variant")["variant"].tolist() == list(VARIANTS)
    assert set(unet_rows(config("lite", "tiny", fusion="concat"))["variant"]) == {OTHER}
    assert set(unet_rows(config("lite", "tiny", mlp_ratio=0.25))["variant"]) == {"v2"}


# Rows of the hybrid block


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("brats128", {}),
        ("lesson16", {}),
        ("lesson16", {"cnn_branch": False}),
        ("lesson16", {"transformer_branch": False}),
        ("lesson16", {"patch_sizes": (1, 2)}),
        ("lesson16", {"patch_sizes": (1,)}),
    ],
)
@pytest.mark.parametrize("variant", HYBRIDS)
def test_steps_hold_the_parameters_of_their_parts(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    for level in set(model_config.hybrid_levels) & {2, 4}:
        parts = hybrid_rows(model_config, level).query("part != ''").groupby("part")["params"].sum()
        formulas = hybrid_formulas(model_config, model_config.channels[level])
        assert parts.to_dict() == {part: params for part, params in formulas.items() if part in parts}
        assert sum(formulas[part] for part in formulas if part not in parts) == 0


@pytest.mark.parametrize(
    ("variant", "block"),
    [
        ("hae", HybridCNNTransformerBlock),
        ("lite", HybridCNNTransformerBlockLite),
        ("v2", HybridCNNTransformerBlockV2),
    ],
)
def test_steps_sum_to_the_block_under_the_documents_name(variant, block):
    with torch.device("meta"):
        expected = sum(p.numel() for p in block(256, 512).parameters())
    assert hybrid_rows(config(variant, "brats128"), level=2)["params"].sum() == expected


@pytest.mark.parametrize("variant", HYBRIDS)
def test_tokens_are_those_of_the_grid(variant):
    steps = hybrid_rows(config(variant, "brats128"), level=2).set_index("step")
    grid = TokenGrid(32, 32)
    for step, size in (("pixels", 1), ("4×4 patches", 4), ("8×8 patches", 8)):
        start, stop = grid.span(size)
        assert steps.loc[step, "shape_out"] == f"{stop - start} × 256"
    assert steps.loc["attention", ["shape_in", "shape_out"]].tolist() == [f"{grid.n} × 256", "1024 × 256"]
    assert steps.loc["fusion", "shape_in"] == ("512 × 32 × 32" if variant == "hae" else "256 × 32 × 32")
    assert steps.loc["residual", "shape_out"] == "256 × 32 × 32"


def test_a_scale_that_does_not_fit_is_said_not_dropped():
    steps = hybrid_rows(config("hae", "lesson16"), level=2).set_index("step")
    assert steps.loc["8×8 patches", "operation"] == "left out, 8 does not divide 4"
    assert steps.loc["8×8 patches", "params"] == 32 * (64 * 32) + 32
    assert steps.loc["8×8 patches", "shape_out"] == ""
    assert steps.loc["norms", "operation"] == "2 × LayerNorm, 1 never called"


def test_slots_say_what_they_hold():
    rows = hybrid_family("tiny").query("slot != ''")
    choices = {(row.variant, row.slot): row.choice for row in rows.itertuples()}
    assert choices == {
        (variant, slot): f"{VARIANTS[variant][slot]}"
        for variant in HYBRIDS
        for slot in ("regions", "mlp_ratio", "fusion")
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"lite": {"regions", "fusion"}, "v2": {"mlp_ratio"}}),
        ({"cnn_branch": False}, {"lite": {"regions"}, "v2": {"mlp_ratio"}}),
        ({"fusion": "mean"}, {"lite": {"regions"}, "v2": {"mlp_ratio"}}),
        ({"mlp_ratio": 2}, {"lite": {"regions", "fusion"}}),
        (VARIANTS["v2"], {}),
    ],
)
def test_changed_slots_are_those_that_differ_from_the_block_before(changes, expected):
    rows = hybrid_family("tiny", **changes)
    changed = rows[rows["changed"]].groupby("variant")["slot"].agg(set).to_dict()
    assert changed == expected


def test_levels_without_a_hybrid_block_are_refused():
    with pytest.raises(HAELabError, match=r"no hybrid block at level 0: levels with one are \[1, 2\]"):
        hybrid_rows(config("hae", "lesson16"), level=0)
    with pytest.raises(HAELabError, match="the model has none"):
        hybrid_rows(config("unet", "lesson16"))
