"""Open slots: a user's part in each, through everything that knows models; parts that do not fit; parts of today."""

import copy
import inspect
import pickle
import textwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from test_compute import counted_flops
from test_parameters import configs
from torch import nn
from torch.func import functional_call

import hae_lab
from hae_lab import HAEConfig, HAELabError, build, config, load_checkpoint, save_checkpoint, transfer_weights
from hae_lab.masks import TokenGrid
from hae_lab.models import HybridBlock, slots
from hae_lab.models.slots import make_part, part_inputs, part_options
from hae_lab.parts import SLOT_PARTS
from hae_lab.profilers import compute, parameters
from hae_lab.profilers.anatomy import hybrid_rows, unet_rows
from hae_lab.profilers.formulas import layers, parameter_formulas, static_counts
from hae_lab.profilers.macs import uncounted
from hae_lab.profilers.tracing import trace


class MaxRegions(nn.Module):
    """The strongest pixel of a patch, channel by channel: nothing to learn."""

    def __init__(self, channels, patch_sizes):
        super().__init__()

    def forward(self, x, scales):
        return [x.flatten(2).mT, *(F.max_pool2d(x, p).flatten(2).mT for p in scales)]


class StridedRegions(nn.Module):
    """A convolution of its own for each patch size, depthwise."""

    def __init__(self, channels, patch_sizes):
        super().__init__()
        self.convs = nn.ModuleDict({str(p): nn.Conv2d(channels, channels, p, p, groups=channels) for p in patch_sizes})

    def forward(self, x, scales):
        return [x.flatten(2).mT, *(self.convs[str(p)](x).flatten(2).mT for p in scales)]


class GatedMLP(nn.Module):
    """One half of the hidden layer gates the other (GEGLU)."""

    def __init__(self, channels, ratio, dropout):
        super().__init__()
        self.inner = nn.Linear(channels, 2 * int(channels * ratio))
        self.outer = nn.Linear(int(channels * ratio), channels)

    def forward(self, x):
        value, gate = self.inner(x).chunk(2, dim=-1)
        return self.outer(value * F.gelu(gate))


class GateFusion(nn.Module):
    """A learned share of each branch, channel by channel."""

    def __init__(self, channels, cnn_branch=True):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, transformed, convolved=None):
        share = self.share.sigmoid()
        return transformed if convolved is None else share * transformed + (1 - share) * convolved


PARTS = {"max": ("regions", MaxRegions), "strided": ("regions", StridedRegions)}
PARTS |= {"gated": ("mlp", GatedMLP), "gate": ("fusion", GateFusion)}
TITLES = {"regions": "projections", "mlp": "MLP", "fusion": "fusion"}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, (slot, part) in PARTS.items():
        monkeypatch.setitem(SLOT_PARTS[slot], name, part)


@pytest.fixture(params=PARTS)
def case(request) -> tuple[str, HAEConfig]:
    """A slot, and a small config with a user's part in it."""
    slot, _ = PARTS[request.param]
    return slot, config("hae", "tiny", placement="everywhere", **{slot: request.param})


def blocks(model: nn.Module) -> list[HybridBlock]:
    return [module for module in model.modules() if isinstance(module, HybridBlock)]


def part_params(part: str, channels: int, ratio: float = 4) -> int:
    """Parameters of the parts above, by a page of arithmetic; patches are 4 x 4 and 8 x 8."""
    hidden = int(channels * ratio)
    return {
        "max": 0,
        "strided": channels * (16 + 1) + channels * (64 + 1),
        "gated": channels * 2 * hidden + 2 * hidden + hidden * channels + channels,
        "gate": channels,
    }[part]


# A user's part, everywhere


def test_it_trains_and_draws_from_the_seed(case):
    _, model_config = case
    model, twin, other = build(model_config), build(model_config), build(model_config, seed=1)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in twin.state_dict().items())
    assert any(not torch.equal(state[name], value) for name, value in other.state_dict().items())
    nn.init.normal_(model.out[-1].weight)
    out = model(torch.randn(2, 1, 16, 16), torch.tensor([1, 2]), torch.tensor([0, -1]))
    out.square().mean().backward()
    slot, _ = case
    owned = [p for name, p in model.named_parameters() if slots.ATTRIBUTES[slot] in name]
    assert all(p.grad is not None for p in owned)
    assert sum(p.numel() for p in owned) == sum(
        part_params(getattr(model_config, slot), model_config.channels[level]) for level in model_config.hybrid_levels
    )


def test_its_parameters_are_counted_in_their_part(case):
    slot, model_config = case
    expected = sum(
        part_params(getattr(model_config, slot), model_config.channels[level]) for level in model_config.hybrid_levels
    )
    frame = parameters(model_config)
    assert frame.loc[frame["part"] == TITLES[slot], "params"].sum() == expected
    assert frame["params"].sum() == sum(p.numel() for p in build(model_config).parameters())
    formulas = parameter_formulas(model_config)
    assert (formulas[TITLES[slot]], formulas["model"]) == (expected, frame["params"].sum())


@pytest.mark.parametrize("rule", ["document", "dense"])
def test_its_macs_are_those_of_torchs_counter(case, rule):
    model_config = case[1].replace(mask_rule=rule)
    frame = compute(model_config)
    assert uncounted(frame).empty
    assert frame["flops_run"].sum() == counted_flops(model_config)
    assert static_counts(model_config) == {
        "params": sum(p.numel() for p in build(model_config).parameters()),
        **{name: frame[column].sum() for name, column in zip(*ACCOUNTS, strict=True)},
    }


ACCOUNTS = (("macs", "macs_dense", "macs_kept"), ("macs_run", "macs_dense", "macs_kept"))


def test_macs_of_a_gated_mlp_by_hand():
    frame = compute(config("hae", "lesson16", mlp="gated", mlp_ratio=2, mask_rule="dense"))
    pixels = {2: 4 * 4, 1: 8 * 8}  # both levels are 32 wide
    expected = sum(count * (32 * 2 * 64 + 64 * 32) for count in pixels.values())
    assert frame.loc[frame["part"] == "MLP", "macs_run"].sum() == expected


def test_a_formula_is_used_and_believed(monkeypatch):
    class Counted(GatedMLP):
        @staticmethod
        def formula(channels, grid, config):
            return slots.Cost(1_000_000, 7)

    monkeypatch.setitem(SLOT_PARTS["mlp"], "counted", Counted)
    wrong = config("hae", "tiny", mlp="counted")
    assert sum(layer.params for layer in layers(wrong) if layer.part == "MLP") == 1_000_000
    assert sum(layer.macs_run for layer in layers(wrong) if layer.part == "MLP") == 7


def test_a_name_given_to_another_part_is_counted_anew(monkeypatch):
    model_config = config("hae", "tiny", regions="max")
    before = static_counts(model_config)["params"]
    monkeypatch.setitem(SLOT_PARTS["regions"], "max", StridedRegions)
    assert static_counts(model_config)["params"] == before + part_params("strided", 32)


def test_its_step_stands_in_the_anatomy(case):
    slot, model_config = case
    rows = hybrid_rows(model_config, level=1)
    with torch.device("meta"):
        block = blocks(build(model_config))[0]
    assert rows["params"].sum() == sum(p.numel() for p in block.parameters())
    name = getattr(model_config, slot)
    column = "mlp_ratio" if slot == "mlp" else slot
    mine = rows[rows["slot"] == column]
    assert mine["params"].sum() == part_params(name, 32)
    assert all(name in choice for choice in mine["choice"])
    assert unet_rows(model_config)["params"].sum() == static_counts(model_config)["params"]


def test_its_weights_are_saved_loaded_and_left_by_a_transfer(case, tmp_path):
    slot, model_config = case
    model = build(model_config, seed=3)
    loaded = load_checkpoint(save_checkpoint(model, tmp_path / "model.safetensors"), model_config)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in loaded.state_dict().items())
    plain = build(config("hae", "tiny", placement="everywhere"))
    left = transfer_weights(plain, model)
    assert left == [name for name in model.state_dict() if f".{slots.ATTRIBUTES[slot]}." in name]


def test_it_is_named_by_its_module_too():
    by_name = config("v2", "tiny", regions=f"{__name__}:MaxRegions")
    assert HAEConfig.from_json(by_name.to_json()) == by_name
    assert static_counts(by_name) == static_counts(config("v2", "tiny", regions="max"))
    assert "MaxRegions" in repr(build(by_name))


def test_the_example_of_the_module_works(monkeypatch):
    monkeypatch.setitem(SLOT_PARTS["regions"], "max", None)  # put back afterwards
    example = slots.__doc__.partition("learn:\n")[2].partition("\nIts parameters")[0]
    names = {"nn": nn, "F": F, "SLOT_PARTS": SLOT_PARTS, "hae_lab": hae_lab, "__name__": __name__}
    exec(textwrap.dedent(example), names)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    model = names["model"]
    assert SLOT_PARTS["regions"]["max"] is names["MaxRegions"]
    assert model.config.regions == "max"
    # what a mean over the patch would give differs, what the maximum gives does not
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    pixels, patches = names["MaxRegions"](1, (4,))(x, (4,))
    assert pixels.shape == (1, 64, 1)
    assert patches.flatten().tolist() == [27, 31, 59, 63]


# Parts that do not fit


class NoScales(MaxRegions):
    def forward(self, x):
        return [x.flatten(2).mT]


class AllScales(MaxRegions):
    def forward(self, x, scales):
        return [x.flatten(2).mT] * 3


class WrongWidth(MaxRegions):
    def forward(self, x, scales):
        return [x.flatten(2), *(F.max_pool2d(x, p).flatten(2).mT for p in scales)]


class NotAList(MaxRegions):
    def forward(self, x, scales):
        return "tokens"


class TakesNothing(nn.Module):
    def __init__(self):
        super().__init__()


class Narrow(GatedMLP):
    def forward(self, x):
        return x[..., :1]


class ReadsValues(GatedMLP):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("slot", "part", "parts"),
    [
        ("regions", NoScales, ["fails: TypeError", "takes 2 positional arguments"]),
        ("regions", AllScales, ["gives [(1, 1, 32), (1, 1, 32), (1, 1, 32)]", "needs [(1, 1, 32)]"]),
        ("regions", WrongWidth, ["gives [(1, 32, 1)]", "needs [(1, 1, 32)]"]),
        ("regions", NotAList, ["gives ['str']"]),
        ("regions", TakesNothing, ["cannot be made as Part(32, (4, 8))", "too many positional arguments"]),
        ("mlp", Narrow, ["gives [(1, 1, 1)]", "needs [(1, 1, 32)]"]),
        ("mlp", ReadsValues, ["fails", "meta"]),
        ("fusion", lambda channels, cnn_branch: "conv", ["gives a str", "must be an nn.Module"]),
        ("fusion", GatedMLP, ["cannot be made as Part(32, True)", "missing a required argument"]),
    ],
)
def test_a_part_that_does_not_fit_is_refused_with_what_its_slot_needs(slot, part, parts, monkeypatch):
    monkeypatch.setitem(SLOT_PARTS[slot], "mine", part)
    with pytest.raises(HAELabError) as caught:
        build("hae", "tiny", **{slot: "mine"})
    message = str(caught.value)
    assert f"{slot} 'mine'" in message
    assert [each for each in parts if each not in message] == []


def test_an_unknown_part_is_refused_with_the_nearest():
    with pytest.raises(HAELabError, match="unknown mlp 'gatd': did you mean 'gated'"):
        config("hae", "tiny", mlp="gatd")


def test_an_operator_that_nobody_counts_is_named(monkeypatch):
    class Inverse(GatedMLP):
        def forward(self, x):
            return x + torch.linalg.inv(self.outer.weight[:, : len(self.outer.weight)]).sum()

    monkeypatch.setitem(SLOT_PARTS["mlp"], "inverse", Inverse)
    with pytest.raises(HAELabError, match=r"nobody counts .*inv.* of mlp 'inverse': give it a formula"):
        static_counts(config("hae", "tiny", mlp="inverse"))


def test_published_names_are_for_layers_only(monkeypatch):
    monkeypatch.setattr(GateFusion, "published_names", True, raising=False)
    with pytest.raises(HAELabError, match="only its layers may hold parameters"):
        build("hae", "tiny", fusion="gate")


# Layers in the place of their part


@pytest.fixture
def published() -> HybridBlock:
    torch.manual_seed(0)
    return HybridBlock(16, 64, **hae_lab.VARIANTS["hae"]).eval()


INPUTS = (torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 8, 8), torch.ones(1, 64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_a_copy_has_layers_of_its_own(published, copied):
    before = published(*INPUTS)
    twin = copied(published)
    assert torch.equal(twin(*INPUTS), before)
    nn.init.zeros_(twin.fusion_conv.weight)
    nn.init.zeros_(twin.transformer_branch.mlp[0].weight)
    assert torch.equal(published(*INPUTS), before)
    assert torch.equal(twin(*INPUTS), INPUTS[0] + twin.fusion_conv.bias[:, None, None])


def test_another_layer_in_its_place_is_used(published):
    published.fusion_conv = nn.Conv2d(32, 16, 1)
    nn.init.zeros_(published.fusion_conv.weight)
    nn.init.ones_(published.fusion_conv.bias)
    assert torch.equal(published(*INPUTS), INPUTS[0] + 1)


def test_functional_call_and_to_empty_reach_the_layers(published):
    before = published(*INPUTS)
    state = {name: value.clone() for name, value in published.state_dict().items()}
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    assert torch.equal(functional_call(published, zeros, INPUTS), INPUTS[0])
    empty = copy.deepcopy(published).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(*INPUTS), before)


def test_slots_are_named_in_the_repr(published):
    text = repr(published)
    assert "fusion=concat" in text
    assert "regions=linear, mlp=gelu" in text


# Formulas of today's parts


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_formula_of_each_part_equals_what_is_built_and_traced(model_config):
    c, size = model_config.channels[-1], model_config.sizes[0]
    grid = TokenGrid(size, size, model_config.patch_sizes)
    for slot, parts in SLOT_PARTS.items():
        for name in parts:
            part, options = parts.find(name), part_options(slot, model_config)
            if not hasattr(part, "formula"):
                continue
            with torch.device("meta"):
                module = make_part(slot, name, c, *options)
            macs = sum(call.macs for call in trace(module, part_inputs(slot, grid, c, *options)))
            assert part.formula(c, grid, model_config) == (sum(p.numel() for p in module.parameters()), macs), name


def test_every_part_of_today_has_a_formula():
    ours = [parts.find(name) for parts in SLOT_PARTS.values() for name in parts if name not in PARTS]
    assert {part.__name__ for part in ours} == {
        "LinearRegions", "PooledRegions", "GeluMLP", "ConcatFusion", "MeanFusion",
    }  # fmt: skip
    assert all(inspect.isfunction(part.formula) for part in ours)
