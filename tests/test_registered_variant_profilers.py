"""A variant of one's own, with a slot of one's own, through every profiler."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hae_lab
from hae_lab import VARIANTS, HAELabError, build, config, register_variant
from hae_lab.parts import SLOT_PARTS
from hae_lab.presets import variant_of, variant_title
from hae_lab.profilers import compute, latency, parameters
from hae_lab.profilers.anatomy import hybrid_family, unet_table
from hae_lab.profilers.attention_maps import attention_maps
from hae_lab.profilers.counters import counter_configs, counters
from hae_lab.profilers.formulas import static_counts
from hae_lab.profilers.macs import total
from hae_lab.profilers.params import parameter_parts
from hae_lab.profilers.tree import module_tree


class MixedRegions(nn.Module):
    """The mean and the maximum of a patch, mixed by one layer that all patch sizes share."""

    def __init__(self, channels, patch_sizes):
        super().__init__()
        self.mix = nn.Linear(2 * channels, channels)

    def forward(self, x, scales):
        pooled = [torch.cat([F.avg_pool2d(x, p), F.max_pool2d(x, p)], dim=1) for p in scales]  # (B, 2C, H/p, W/p)
        return [x.flatten(2).mT, *(self.mix(each.flatten(2).mT) for each in pooled)]


@pytest.fixture(autouse=True)
def v3(monkeypatch):
    monkeypatch.setitem(SLOT_PARTS["regions"], "mixed", MixedRegions)
    before = dict(VARIANTS)
    register_variant("v3", "HAE V3", regions="mixed", mlp_ratio=0.5, fusion="mean", placement="attention")
    yield
    VARIANTS.clear()
    VARIANTS.update(before)


def test_it_is_a_variant_as_the_others_are():
    assert variant_title("v3") == "HAE V3"
    assert config("v3", "tiny").regions == "mixed"
    assert variant_of(config("v3", "tiny")) == "v3"
    assert hae_lab.build("v3", "tiny").config == config("v3", "tiny")


def test_parameters_by_formula_and_by_count():
    frame = parameters(config("v3", "tiny"))
    assert frame["params"].sum() == sum(p.numel() for p in build("v3", "tiny").parameters())
    parts = parameter_parts(config("v3", "tiny")).set_index("part")
    assert parts["params"].tolist() == parts["params_formula"].tolist()
    # two decoder blocks of 32 channels
    assert parts.loc["projections", "params"] == 2 * (64 * 32 + 32)


def test_macs_by_formula_and_by_count():
    model_config = config("v3", "lesson32")
    frame, counts = compute(model_config), static_counts(model_config)
    assert [total(frame)[name] for name in ("macs_run", "macs_dense", "macs_kept")] == [
        counts[name] for name in ("macs", "macs_dense", "macs_kept")
    ]
    # both blocks stand on an 8 x 8 map of 32 channels: 4 + 1 patches
    assert frame.loc[frame["part"] == "projections", "macs_run"].sum() == 2 * 5 * 64 * 32


def test_other_counters_agree():
    configs = counter_configs(presets=("tiny",), rules=("document",))
    assert list(configs) == [f"{variant} tiny document" for variant in VARIANTS]
    rows = counters({"v3": configs["v3 tiny document"]})
    assert (rows["unexplained_macs"] == 0).all()
    assert rows["macs"].min() > 0


def test_it_stands_in_the_tables_of_the_architecture():
    unet = unet_table("tiny")
    assert unet["variant"].unique().tolist() == [*VARIANTS]
    assert (unet.query("variant == 'v3' and kind == 'hybrid'")["section"] == "decoder").all()
    family = hybrid_family("tiny")
    assert family["variant"].unique().tolist() == ["hae", "lite", "v2", "v3"]
    mine = family[family["variant"] == "v3"].set_index("step")
    assert mine.loc["shared projection", ["operation", "params"]].tolist() == ["Linear 64→32", 64 * 32 + 32]
    assert mine.loc["4×4 patches", "operation"] == "MixedRegions"
    assert set(mine[mine["changed"]]["slot"]) == {"regions", "mlp_ratio"}


def test_blocks_are_compared_where_all_variants_have_one():
    # v3 has its blocks at levels 2, 3 and 4 of brats128, the others at 1 to 4
    family = hybrid_family("brats128")
    assert set(family.query("step == 'input'")["shape_in"]) == {"256 × 32 × 32"}


def test_it_is_timed_shown_and_looked_into():
    model = build("v3", "tiny")
    assert latency({"v3": model}, repeats=1)["params"].tolist() == [sum(p.numel() for p in model.parameters())]
    assert "MixedRegions" in module_tree(config("v3", "tiny"))
    inputs = {"x": torch.zeros(1, 1, 16, 16), "timesteps": torch.tensor([5])}
    maps = attention_maps(model, inputs, "output_blocks.0.1.transformer_branch", pixel=9)
    assert maps.weights.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hae", "title": "mine"}, "is a variant of the document"),
        ({"name": "v 3", "title": "mine"}, "letters, digits"),
        ({"name": "v4", "title": " "}, "a variant's title is some words"),
        ({"name": "v4", "title": "V4", "region": "mixed"}, "unknown field 'region': did you mean 'regions'"),
        ({"name": "v4", "title": "V4", "regions": "mixd"}, "unknown regions 'mixd': did you mean 'mixed'"),
    ],
)
def test_what_cannot_be_a_variant_is_refused(arguments, message):
    with pytest.raises(HAELabError, match=message):
        register_variant(**arguments)
    assert "v4" not in VARIANTS
