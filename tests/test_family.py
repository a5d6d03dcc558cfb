"""The family as data: what a config guarantees, and what it says when a value cannot be."""

import json
from dataclasses import FrozenInstanceError, asdict, fields

import numpy as np
import pytest
import torch
from parity_data import COUNTS

from hae_lab import PRESETS, VARIANTS, HAEConfig, HAELabError, build, config
from hae_lab.family import hybrid_sites
from hae_lab.models import HybridBlock
from hae_lab.presets import variant_of

PLACEMENTS = ("none", "upsample", "attention", "everywhere")
SECTIONS = {"input_blocks": "encoder", "middle_block": "middle", "output_blocks": "decoder"}


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(HAELabError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def every_config() -> list[HAEConfig]:
    return [config(variant, preset) for variant in VARIANTS for preset in PRESETS]


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        config("hae", "tiny").image_size = 32


def test_equal_configs_have_equal_hashes():
    assert hash(config("hae", "tiny")) == hash(config("hae", "tiny"))


def test_config_made_from_lists_is_hashable_and_equal():
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config("v2", "brats128")).items()}
    assert {HAEConfig(**given)} == {config("v2", "brats128")}


def test_every_variant_on_every_preset_is_another_config():
    assert len(set(every_config())) == len(VARIANTS) * len(PRESETS)


def test_what_is_not_given_is_guided_diffusions_body_with_the_documents_hybrid_blocks():
    given = {"image_size": 32, "in_channels": 1, "out_channels": 1, "model_channels": 32, "num_res_blocks": 1}
    found = asdict(HAEConfig(**given, attention_resolutions=(8,)))
    body = {"channel_mult": (1, 2, 4, 8), "num_heads": 1, "dropout": 0.0, "num_classes": None, "activation": "silu"}
    body |= dict.fromkeys(("use_scale_shift_norm", "resblock_updown", "use_checkpoint"), False)
    body |= {"conv_resample": True, "middle_attention": True}
    slots = {"regions": "linear", "mlp": "gelu", "mlp_ratio": 4, "fusion": "concat", "placement": "upsample"}
    slots |= {"cnn_branch": True, "transformer_branch": True, "patch_sizes": (1, 4, 8), "mstb_heads": 8}
    mask = {"mask_rule": "document", "sparsity": 0.9, "mask_seed": 0}
    assert found == given | {"attention_resolutions": (8,)} | body | slots | mask


def test_json_round_trip_gives_an_equal_config():
    for original in every_config():
        assert HAEConfig.from_json(original.to_json()) == original


def test_json_names_every_field():
    assert set(json.loads(config("hae", "tiny").to_json())) == {field.name for field in fields(HAEConfig)}


def test_replace_changes_one_field_and_keeps_the_original():
    original = config("hae", "tiny")
    changed = original.replace(sparsity=0.5)
    assert (original.sparsity, changed.sparsity) == (0.9, 0.5)
    assert changed.replace(sparsity=0.9) == original


# variants and presets


def test_variants_are_the_documents_slots():
    assert {name: dict(variant) for name, variant in VARIANTS.items()} == {
        "unet": {"placement": "none"},
        "hae": {"regions": "linear", "mlp_ratio": 4, "fusion": "concat"},
        "lite": {"regions": "pooled", "mlp_ratio": 4, "fusion": "mean"},
        "v2": {"regions": "pooled", "mlp_ratio": 0.25, "fusion": "mean"},
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_variant_is_hae_with_its_delta(preset, variant):
    assert config(variant, preset) == config("hae", preset).replace(**VARIANTS[variant])


@pytest.mark.parametrize("preset", COUNTS["as_described"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_presets_are_the_published_bodies(preset, variant):
    published = COUNTS["as_described"][preset]["config"]
    ours = json.loads(config(variant, preset).to_json())
    assert {name: ours[name] for name in published} == published


def test_published_revision_has_the_body_of_wide128():
    assert COUNTS["as_published_2025_08_07"]["wide128"]["config"] == COUNTS["as_described"]["wide128"]["config"]


def test_brats128_is_the_default_preset():
    assert config("lite") == config("lite", "brats128")


def test_hybrid_maps_of_lesson32_are_8x8_and_16x16():
    lesson = config("hae", "lesson32")
    assert [lesson.sizes[level] for level in lesson.hybrid_levels] == [8, 16]


@pytest.mark.parametrize("preset", ["lesson16", "lesson32"])
def test_lessons_are_grey_images_on_a_small_body(preset):
    body = config("unet", preset)
    assert (body.image_size, body.in_channels, body.out_channels) == (int(preset.removeprefix("lesson")), 1, 1)
    assert (body.model_channels, body.channels, body.num_res_blocks) == (16, (16, 32, 32), 1)
    assert (body.attention_resolutions, body.num_heads, body.num_classes) == ((4,), 4, None)
    assert body.use_scale_shift_norm  # the reason stands in presets.py
    assert body.dropout == 0


def test_levels_of_brats128():
    body = config("hae", "brats128")
    assert body.rates == (1, 2, 4, 8, 16)
    assert body.channels == (128, 128, 256, 384, 512)
    assert body.sizes == (128, 64, 32, 16, 8)
    assert body.time_embed_dim == 512


# where hybrid blocks stand


def built_sites(model_config: HAEConfig) -> list[tuple[str, int]]:
    """(section, level) of each hybrid block in the order of a forward pass, the level by the size of its map."""
    sites = []
    with torch.device("meta"):
        model = build(model_config)
        for name, module in model.named_modules():
            if isinstance(module, HybridBlock):
                section = SECTIONS[name.split(".")[0]]
                module.register_forward_hook(lambda _, __, out, section=section: sites.append((section, out.shape[2])))
        size = model_config.image_size
        model(torch.empty(1, model_config.in_channels, size, size), torch.empty(1))
    return [(section, model_config.sizes.index(size)) for section, size in sites]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    "body",
    [
        {"preset": "lesson32"},
        {"preset": "lesson32", "num_res_blocks": 3, "attention_resolutions": (2, 4), "resblock_updown": True},
        {"preset": "brats128"},
        {"preset": "lesson32", "attention_resolutions": (4, 1)},
        {"preset": "tiny", "attention_resolutions": ()},
        {"preset": "tiny", "middle_attention": False},
    ],
)
def test_hybrid_sites_are_the_hybrid_blocks_of_the_built_model(body, placement):
    model_config = config("v2", **body, placement=placement)
    assert hybrid_sites(model_config) == built_sites(model_config)


def test_sites_upsample_one_before_each_upsample():
    assert hybrid_sites(config("hae", "brats128")) == [("decoder", level) for level in (4, 3, 2, 1)]


def test_sites_attention_number_six_in_wide128():
    sites = hybrid_sites(config("hae", "wide128", placement="attention"))
    assert sites == [("decoder", 3)] * 3 + [("decoder", 2)] * 3


def test_sites_everywhere_number_eleven_in_wide128():
    sites = hybrid_sites(config("hae", "wide128", placement="everywhere"))
    encoder = [("encoder", 2)] * 2 + [("encoder", 3)] * 2
    assert sites == [*encoder, ("middle", 3), *[("decoder", 3)] * 3, *[("decoder", 2)] * 3]


def test_unet_has_no_hybrid_block():
    assert hybrid_sites(config("unet", "brats128")) == []


# clear errors


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest", "known"),
    [
        ("variant", "light", "lite", VARIANTS),
        ("preset", "brats256", "brats128", PRESETS),
        ("field", "model_chanels", "model_channels", [field.name for field in fields(HAEConfig)]),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_and_all_known(kind, wrong, nearest, known):
    changes = {wrong: 64} if kind == "field" else {}
    names = {"variant": "hae", "preset": "tiny"} | ({kind: wrong} if kind != "field" else {})
    message = refusal(config, **names, **changes)
    assert f"unknown {kind} {wrong!r}" in message
    assert f"did you mean {nearest!r}?" in message
    assert all(name in message for name in known)


def test_unknown_name_far_from_all_is_refused_without_a_guess():
    message = refusal(config, "transformer")
    assert "unet, hae, lite, v2" in message
    assert "did you mean" not in message


def test_unknown_field_is_refused_by_replace_and_build_and_json():
    message = "unknown field 'sparcity': did you mean 'sparsity'?"
    assert message in refusal(config("hae", "tiny").replace, sparcity=0.5)
    assert message in refusal(build, config("hae", "tiny"), sparcity=0.5)
    assert message in refusal(HAEConfig.from_json, json.dumps({"sparcity": 0.5}))


@pytest.mark.parametrize(
    ("preset", "changes", "parts"),
    [
        ("tiny", {"num_heads": 3}, ["num_heads=3", "[32]", "(16, 32)"]),
        (
            "tiny",  # the middle block always attends
            {"channel_mult": (2, 3), "attention_resolutions": (1,), "num_heads": 32},
            ["num_heads=32", "[48]", "(32, 48)"],
        ),
        ("tiny", {"mstb_heads": 5}, ["mstb_heads=5", "[32]", "(16, 32)"]),
        ("wide128", {"attention_resolutions": (32, 16, 8)}, ["rates, not sizes", "[32, 16]", "(1, 2, 4, 8)"]),
        ("brats128", {"image_size": 72}, ["image_size 72", "4 times", "multiple of 16", "5 levels"]),
        ("tiny", {"image_size": 0}, ["image_size", "whole number from 1, got 0"]),
        ("tiny", {"model_channels": 16.0}, ["model_channels", "whole number from 1, got 16.0"]),
        ("tiny", {"model_channels": 15, "num_heads": 1, "mstb_heads": 1}, ["model_channels", "even", "got 15"]),
        ("tiny", {"in_channels": True}, ["in_channels", "whole number from 1, got True"]),
        ("tiny", {"num_classes": 0}, ["num_classes", "whole number from 1, got 0"]),
        ("tiny", {"channel_mult": ()}, ["channel_mult is empty", "(1, 2, 2)"]),
        ("tiny", {"channel_mult": (1, 0.5)}, ["channel_mult", "positive whole numbers, got (1, 0.5)"]),
        ("tiny", {"channel_mult": "1,2"}, ["channel_mult", "positive whole numbers, got '1,2'"]),
        ("tiny", {"patch_sizes": (4, 8)}, ["patch_sizes", "start with 1", "got (4, 8)", "(1, 4, 8)"]),
        ("tiny", {"patch_sizes": (1, 4, 4)}, ["patch_sizes", "once", "got (1, 4, 4)"]),
        ("tiny", {"dropout": 1.0}, ["dropout is in [0, 1), got 1.0"]),
        ("tiny", {"sparsity": 1}, ["sparsity is in [0, 1), got 1"]),
        ("tiny", {"sparsity": float("nan")}, ["sparsity is in [0, 1), got nan"]),
        ("tiny", {"mlp_ratio": 0}, ["mlp_ratio is a number above 0, got 0"]),
        ("tiny", {"mask_seed": -1}, ["mask_seed is a whole number from 0, got -1"]),
        ("tiny", {"cnn_branch": 1}, ["cnn_branch is True or False, got 1"]),
        ("tiny", {"cnn_branch": False, "transformer_branch": False}, ["leave a hybrid block empty", "keep one"]),
        ("tiny", {"middle_attention": None}, ["middle_attention is True or False, got None"]),
        ("tiny", {"placement": "upsamples"}, ["unknown placement 'upsamples'", "did you mean 'upsample'?"]),
        ("tiny", {"regions": "pool"}, ["unknown regions 'pool'", "did you mean 'pooled'?", "linear"]),
        ("tiny", {"fusion": "sum"}, ["unknown fusion 'sum'", "concat, mean"]),
        ("tiny", {"activation": "relu"}, ["unknown activation 'relu'", "silu, identity"]),
        ("tiny", {"mask_rule": "documents"}, ["unknown mask rule 'documents'", "did you mean 'document'?"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_impossible_value_is_refused_with_the_value_and_what_would_be_right(preset, changes, parts):
    message = refusal(config, "hae", preset, **changes)
    assert [part for part in parts if part not in message] == []


def test_heads_are_checked_only_where_attention_stands():
    # 16 channels at level 0 carry no attention; level 1 has 32
    assert config("hae", "tiny", mstb_heads=32, num_heads=32).mstb_heads == 32


def test_heads_of_plain_attention_are_free_where_none_is_left():
    assert config("hae", "tiny", placement="everywhere", num_heads=7).num_heads == 7
    assert config("hae", "tiny", middle_attention=False, attention_resolutions=(), num_heads=7).num_heads == 7
    assert "num_heads=7" in refusal(config, "hae", "tiny", attention_resolutions=(), num_heads=7)
    assert "num_heads=7" in refusal(config, "hae", "tiny", middle_attention=False, num_heads=7)


def test_heads_of_the_transformer_are_free_without_it():
    assert config("hae", "tiny", transformer_branch=False, mstb_heads=7).mstb_heads == 7


def test_mstb_heads_are_free_without_hybrid_blocks():
    assert config("unet", "tiny", mstb_heads=7).mstb_heads == 7


@pytest.mark.parametrize(("field", "value"), [("num_classes", True), ("mask_seed", True), ("mlp_ratio", float("inf"))])
def test_value_that_looks_like_a_number_is_refused(field, value):
    assert f"got {value!r}" in refusal(config, "hae", "tiny", **{field: value})


@pytest.mark.parametrize(("written", "meant"), [("HAE", "hae"), ("V2", "v2")])
def test_variant_in_the_documents_capitals_is_refused_with_the_nearest(written, meant):
    assert f"did you mean {meant!r}?" in refusal(config, written)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "null", "hae"])
def test_text_that_is_no_config_is_refused_with_the_text(text):
    assert repr(text) in refusal(HAEConfig.from_json, text)


def test_invalid_value_in_json_is_refused():
    text = config("hae", "tiny").to_json().replace('"image_size": 16', '"image_size": 15')
    assert "image_size 15" in refusal(HAEConfig.from_json, text)


def test_json_that_lacks_fields_is_refused_with_their_names():
    values = json.loads(config("hae", "tiny").to_json())
    del values["image_size"]
    assert "image_size" in refusal(HAEConfig.from_json, json.dumps(values))


# numpy's numbers


def test_numpys_numbers_are_pythons_afterwards():
    numpys = {
        "image_size": np.int64(16),
        "model_channels": np.array(16),
        "channel_mult": np.array([1, 2]),
        "attention_resolutions": [np.int32(2)],
        "num_classes": np.uint8(3),
        "sparsity": np.float32(0.5),
        "mlp_ratio": np.array(4.0),
        "mask_seed": np.int16(7),
        "use_checkpoint": np.bool_(True),
    }
    given = config("hae", "tiny", **numpys)
    plain = config("hae", "tiny", sparsity=0.5, mask_seed=7, use_checkpoint=True)
    assert (given, hash(given)) == (plain, hash(plain))
    values = [getattr(given, name) for name in numpys]
    kinds = {type(item) for value in values for item in (value if isinstance(value, tuple) else (value,))}
    assert kinds == {int, float, bool}
    assert HAEConfig.from_json(given.to_json()) == given


@pytest.mark.parametrize("value", [np.array([16]), np.float64(16), np.array([8, 8]), np.bool_(True), "16", None])
def test_what_is_no_whole_number_is_refused(value):
    assert f"image_size is a whole number from 1, got {value!r}" in refusal(config, "hae", "tiny", image_size=value)


# variants as data


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_knows_its_variant(preset):
    assert [variant_of(config(variant, preset)) for variant in VARIANTS] == list(VARIANTS)


def test_other_slots_are_no_variant():
    assert variant_of(config("lite", "tiny", fusion="concat")) is None
    assert variant_of(config("lite", "tiny", mlp_ratio=0.25)) == "v2"
    assert variant_of(config("v2", "tiny", placement="everywhere")) == "v2"
    assert variant_of(config("v2", "tiny", placement="none")) == "unet"
