"""Same weights, same input, same mask -> the output of the published code; same names, shapes and counts."""

import pytest
import torch
from parity_data import ARRAYS, COUNTS, PARITY, parity_mask, parity_weights

from hae_lab import VARIANTS, HAEConfig, build, rules
from hae_lab.models import MSTB, HAEUNet, HybridBlock

TOLERANCE = 2e-5  # rounding alone gives about 5e-6

CONDITIONAL, UNCONDITIONAL = "tiny_cond", "tiny_uncond"
KINDS = [*((variant, "silu") for variant in VARIANTS), ("unet", "identity"), ("hae", "identity")]
PUBLISHED = [
    *((name, *kind, "out") for name in (CONDITIONAL, UNCONDITIONAL) for kind in KINDS),
    *((CONDITIONAL, *kind, "out_null") for kind in KINDS),
]


def parity_config(name: str, variant: str, **changes) -> HAEConfig:
    return HAEConfig(**PARITY[name]["config"]).replace(**VARIANTS[variant], **changes)


@pytest.mark.parametrize(("name", "variant", "activation", "output"), PUBLISHED)
def test_output_equals_the_published_one(name, variant, activation, output, monkeypatch):
    monkeypatch.setitem(rules.RULES, "published", lambda grid, sparsity, seed: parity_mask(name, grid))
    model = build(parity_config(name, variant, activation=activation, mask_rule="published"))
    model.load_state_dict(parity_weights(PARITY[name]["variants"][variant]["state_dict"]), strict=True)
    model.eval()
    inputs = {key: torch.from_numpy(ARRAYS[f"{name}/{key}"]) for key in ("x", "t")}
    y = torch.from_numpy(ARRAYS[f"{name}/y"]) if (name, output) == (CONDITIONAL, "out") else None
    with torch.no_grad():
        given = model(inputs["x"], inputs["t"], y)
    expected = torch.from_numpy(ARRAYS[f"{name}/{variant}/{activation}/{output}"])
    assert (given - expected).abs().max() < TOLERANCE


def test_every_published_output_is_compared():
    stored = {key for key in ARRAYS.files if "/out" in key}
    assert stored == {"/".join(case) for case in PUBLISHED}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PARITY)
def test_names_and_shapes_equal_the_published_ones(name, variant):
    with torch.device("meta"):
        state = build(parity_config(name, variant)).state_dict()
    assert {key: list(weight.shape) for key, weight in state.items()} == PARITY[name]["variants"][variant]["state_dict"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PARITY)
def test_number_of_parameters_equals_the_published_one(name, variant):
    with torch.device("meta"):
        model = build(parity_config(name, variant))
    assert parameters(model) == PARITY[name]["variants"][variant]["parameters"]


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def splits(model: HAEUNet) -> dict[str, int]:
    """The parameters of a model as `param_counts.json` splits them."""
    hybrids = [module for module in model.modules() if isinstance(module, HybridBlock)]
    return {
        "total": parameters(model),
        "encoder": parameters(model.input_blocks),
        "middle": parameters(model.middle_block),
        "decoder": parameters(model.output_blocks),
        "hybrid_blocks": parameters(*hybrids),
        "mstb": parameters(*(module for module in model.modules() if isinstance(module, MSTB))),
        "hybrid_channels": [block.fusion_conv.out_channels for block in hybrids],
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", COUNTS["as_described"])
def test_counts_equal_the_described_ones(preset, variant):
    with torch.device("meta"):
        model = build(variant, preset)
    assert splits(model) == COUNTS["as_described"][preset][variant]


@pytest.mark.parametrize(
    ("variant", "placement"), {"unet": "none", "hae": "attention", "lite": "everywhere", "v2": "everywhere"}.items()
)
def test_counts_equal_those_of_the_published_revision(variant, placement):
    (preset,) = COUNTS["as_published_2025_08_07"]
    with torch.device("meta"):
        model = build(variant, preset, placement=placement)
    assert splits(model) == COUNTS["as_published_2025_08_07"][preset][variant]


def test_v2_without_cnn_branch_is_the_nearest_reading_of_the_275_million():
    with torch.device("meta"):
        model = build("v2", "wide128", placement="everywhere", cnn_branch=False)
    assert parameters(model) == 275_996_292
