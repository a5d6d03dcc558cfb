"""Parameter counts: published numbers, closed formulas, nesting of parts, dead parameters."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from parity_data import COUNTS
from torch import nn

from hae_lab import VARIANTS, HAEConfig, HAELabError, build, config
from hae_lab.profilers.formulas import hybrid_formulas, parameter_formulas
from hae_lab.profilers.params import parameter_parts, parameters

SPLITS = {
    "total": "model", "encoder": "encoder", "middle": "middle", "decoder": "decoder",
    "hybrid_blocks": "hybrid blocks", "mstb": "MSTB",
}  # fmt: skip
PUBLISHED_PLACEMENT = {"unet": "none", "hae": "attention", "lite": "everywhere", "v2": "everywhere"}
CASES = [
    (revision, preset, variant) for revision, presets in COUNTS.items() for preset in presets for variant in VARIANTS
]


def counted(model_config: HAEConfig) -> dict[str, int]:
    frame = parameter_parts(model_config)
    return dict(zip(frame["part"], frame["params"], strict=True))


@pytest.mark.parametrize(("revision", "preset", "variant"), CASES)
def test_every_published_count_and_split_is_reproduced(revision, preset, variant):
    expected = COUNTS[revision][preset][variant]
    placement = "upsample" if revision == "as_described" else PUBLISHED_PLACEMENT[variant]
    changes = {} if variant == "unet" else {"placement": placement}
    model_config = config(variant, preset, **changes)
    parts = counted(model_config)
    assert {split: parts[part] for split, part in SPLITS.items()} == {split: expected[split] for split in SPLITS}
    assert [model_config.channels[level] for level in model_config.hybrid_levels] == expected["hybrid_channels"]


BRANCHES = [{}, {"cnn_branch": False}, {"transformer_branch": False}]


@st.composite
def configs(draw) -> HAEConfig:
    """Any valid configuration, small enough to build quickly on the meta device."""
    depth = draw(st.integers(1, 4))
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    mstb_heads = draw(st.sampled_from([1, 2, 4, 8]))
    patches = draw(st.lists(st.sampled_from([2, 3, 4, 8, 16]), max_size=3, unique=True))
    return HAEConfig(
        image_size=draw(st.integers(1, 3)) * 2 ** (depth - 1) * draw(st.sampled_from([1, 4])),
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 4)),
        model_channels=8 * draw(st.integers(1, 5)),
        channel_mult=draw(st.lists(st.integers(1, 4), min_size=depth, max_size=depth)),
        num_res_blocks=draw(st.integers(1, 3)),
        attention_resolutions=draw(st.lists(st.sampled_from([2**level for level in range(depth)]), unique=True)),
        num_heads=heads,
        num_classes=draw(st.sampled_from([None, 1, 5])),
        use_scale_shift_norm=draw(st.booleans()),
        resblock_updown=draw(st.booleans()),
        conv_resample=draw(st.booleans()),
        regions=draw(st.sampled_from(["linear", "pooled"])),
        mlp_ratio=draw(st.sampled_from([0.01, 0.25, 0.9, 1, 2.5, 4])),
        fusion=draw(st.sampled_from(["concat", "mean"])),
        placement=draw(st.sampled_from(["none", "upsample", "attention", "everywhere"])),
        **draw(st.sampled_from(BRANCHES)),
        middle_attention=draw(st.booleans()),
        patch_sizes=(1, *patches),
        mstb_heads=mstb_heads,
    )


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_formula_equals_count_for_any_configuration(model_config):
    frame = parameter_parts(model_config)
    assert frame["params"].tolist() == frame["params_formula"].tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(configs(), st.sampled_from(["none", "upsample", "attention", "everywhere"]))
def test_bounds_of_the_impossibility_proof_hold(model_config, placement):
    assume(all(width >= 8 for width in model_config.channels))
    lite, v2 = (model_config.replace(**{**VARIANTS[name], "placement": placement}) for name in ("lite", "v2"))
    s = sum(lite.channels[level] ** 2 for level in lite.hybrid_levels)
    lite_params, v2_params = (parameter_formulas(each)["model"] for each in (lite, v2))
    assert lite_params - v2_params <= 8.5 * s
    assert lite_params >= 23 * s
    if placement == "upsample":
        assert lite_params >= 50 * s


def test_rows_sum_to_the_total_of_the_real_model():
    model = build("hae", "tiny")
    frame = parameters(model)
    assert frame["params"].sum() == sum(p.numel() for p in model.parameters())
    assert frame["share_percent"].sum() == pytest.approx(100)
    assert frame.equals(parameters(model.config))


def test_rows_name_every_parameter_owner_once():
    model = build("v2", "tiny")
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    frame = parameters(model)
    assert set(frame["path"]) == owners
    assert frame["path"].is_unique


def test_parts_nest():
    parts = counted(config("hae", "brats128"))
    assert parts["model"] == sum(parts[name] for name in ("embedding", "encoder", "middle", "decoder", "out"))
    assert parts["hybrid blocks"] == sum(parts[name] for name in ("timestep", "CNN branch", "MSTB", "fusion"))
    assert parts["MSTB"] == sum(parts[name] for name in ("norms", "projections", "attention", "MLP"))


def test_shared_parameters_count_once():
    model = build("lite", "tiny")
    total = parameters(model)["params"].sum()
    model.extra = model.out  # a second name for the same module
    assert parameters(model)["params"].sum() == total


def test_a_modified_model_is_counted_too():
    model = build("hae", "tiny")
    model.head = nn.Linear(3, 5)
    frame = parameters(model)
    assert frame.set_index("path").loc["head", ["section", "params"]].tolist() == ["other", 20]


def test_hybrid_formulas_by_hand():
    # 32 channels, timestep 4 * 16 wide: the numbers of a page of arithmetic
    parts = hybrid_formulas(config("hae", "lesson16"), 32)
    assert parts == {
        "timestep": 64 * 32 + 32,
        "CNN branch": 2 * (64 + 9 * 32 * 32 + 32),
        "norms": 4 * 64,
        "projections": (32 * 16 * 32 + 32) + (32 * 64 * 32 + 32),
        "attention": 3 * 32 * 32 + 3 * 32 + 32 * 32 + 32,
        "MLP": 32 * 128 + 128 + 128 * 32 + 32,
        "fusion": 64 * 32 + 32,
    }


def dead_reasons(frame) -> dict[str, str]:
    dead = frame[frame["dead"] != ""]
    return dict(zip(dead["path"], dead["dead"], strict=True))


def test_patch_that_never_divides_its_map_is_dead():
    dead = dead_reasons(parameters(config("hae", "lesson16", num_classes=2)))
    branch = "output_blocks.1.2.transformer_branch"
    assert dead[f"{branch}.patch_projections.1"] == "patch 8 does not divide the 4 x 4 map"
    assert dead[f"{branch}.regional_norms.1"] == "patch 8 does not divide the 4 x 4 map"


def test_scale_that_no_pixel_may_see_is_dead_under_document_and_alive_under_dense():
    name = "output_blocks.1.2.transformer_branch.patch_projections.0"
    assert "hides the 4 x 4 patches" in dead_reasons(parameters(config("hae", "lesson16")))[name]
    assert name not in dead_reasons(parameters(config("hae", "lesson16", mask_rule="dense")))


def test_class_projections_are_dead_without_classes_only():
    unconditional = dead_reasons(parameters(config("unet", "lesson16")))
    assert all(path.endswith("encoder_kv") for path in unconditional)
    assert len(unconditional) == 4
    assert dead_reasons(parameters(config("unet", "lesson16", num_classes=2))) == {}


def test_counting_leaves_the_model_as_it_was():
    model = build("hae", "tiny").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters(model)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_unknown_variant_is_named():
    with pytest.raises(HAELabError, match="unknown variant 'lit': did you mean 'lite'"):
        parameters(config("lit"))


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("unet", {}),
        ("hae", {}),
        ("lite", {}),
        ("hae", {"num_classes": 2}),
        ("hae", {"mask_rule": "always_regional"}),
        ("hae", {"placement": "everywhere", "patch_sizes": (1, 2, 3)}),
    ],
    ids=str,
)
def test_dead_are_those_that_no_gradient_reaches(variant, changes):
    model = build(variant, "lesson16", dropout=0.0, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # some begin at zero, and would stop the gradients of others
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    x = torch.randn(2, 1, 16, 16, generator=generator)
    labels = (torch.tensor([0, 1]),) if model.config.num_classes else ()
    model(x, torch.tensor([10, 700]), *labels).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    frame = parameters(model)
    assert set(frame.loc[frame["dead"] != "", "path"]) == {name.rpartition(".")[0] for name in still}
