"""MACs: closed formulas against FlopCounterMode, numbers by hand and masks written out; and nothing left behind."""

import resource
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_parameters import configs
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode

from hae_lab import PRESETS, VARIANTS, HAELabError, build, config
from hae_lab.models import MSTB, HybridBlock
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.models.layers import AttentionBlock
from hae_lab.profilers.macs import FLOPS, MACS, by_level, by_part, compute, per_sample, total, uncounted
from hae_lab.profilers.tracing import to_meta
from hae_lab.rules import RULES, mask_for

SPARSE_RULES = sorted(set(RULES) - {"dense"})


def inputs_of(model_config, batch=1):
    side = model_config.image_size
    x = torch.zeros(batch, model_config.in_channels, side, side, device="meta")
    y = None if model_config.num_classes is None else torch.zeros(batch, dtype=torch.int64, device="meta")
    return x, torch.zeros(batch, device="meta"), y


def on_meta(model_config):
    with torch.device("meta"):
        return build(model_config)


def oracle(model, args):
    """torch's own counter, after one forward pass of a model on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args)
    return counter


def counted_flops(model_config, batch=1):
    return oracle(on_meta(model_config), inputs_of(model_config, batch)).get_total_flops()


def part_macs(frame, column="macs_dense"):
    return dict(zip(frame["part"], frame[column], strict=True))


# The oracle


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_formulas_equal_the_oracle_on_every_preset_and_variant(variant, preset):
    model_config = config(variant, preset, mask_rule="dense")
    frame = compute(model_config)
    assert set(frame["counted_by"]) == {"formula"}
    assert frame["flops_dense"].sum() == frame["flops_run"].sum() == counted_flops(model_config)


@pytest.mark.parametrize("rule", SPARSE_RULES)
@pytest.mark.parametrize("preset", ["lesson16", "lesson32"])
def test_what_runs_equals_the_oracle_for_every_rule(preset, rule):
    model_config = config("v2", preset, mask_rule=rule)
    frame = compute(model_config)
    assert set(frame["counted_by"]) == {"formula"}
    assert frame["flops_run"].sum() == counted_flops(model_config)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"native"}))  # which has counts of its own
def test_what_runs_equals_the_oracle_for_every_kernel(kernel, rule):
    model = on_meta(config("lite", "lesson32", mask_rule=rule))
    for module in model.modules():
        if isinstance(module, SparseMultiheadAttention):
            module.kernel = kernel
    if kernel == "slices" and rule not in ("dense", "spatial_reduction"):
        with pytest.raises(HAELabError, match="slices"):
            compute(model)
        return
    frame = compute(model)
    assert set(frame["counted_by"]) == {"formula"}
    assert frame["flops_run"].sum() == oracle(model, inputs_of(model.config)).get_total_flops()


@pytest.mark.parametrize(
    "changes",
    [
        {"placement": "attention"},
        {"placement": "everywhere", "fusion": "mean"},
        {"cnn_branch": False},
        {"transformer_branch": False},
        {"middle_attention": False, "attention_resolutions": ()},
        {"resblock_updown": True},
        {"conv_resample": False},
        {"use_checkpoint": True, "dropout": 0.1},
        {"patch_sizes": (1, 2, 3, 8), "mstb_heads": 4},
        {"num_classes": None, "use_scale_shift_norm": False},
    ],
    ids=str,
)
def test_formulas_equal_the_oracle_for_other_settings(changes):
    model_config = config("hae", "tiny", mask_rule="dense", **changes)
    frame = compute(model_config)
    assert set(frame["counted_by"]) == {"formula"}
    assert frame["flops_dense"].sum() == counted_flops(model_config)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), st.sampled_from(sorted(RULES)))
def test_formulas_equal_the_oracle_for_any_configuration(model_config, rule):
    model_config = model_config.replace(mask_rule=rule)
    frame = compute(model_config, batch=2)
    assert set(frame["counted_by"]) == {"formula"}
    assert frame["flops_run"].sum() == counted_flops(model_config, batch=2)
    assert (frame["macs_kept"] <= frame["macs_run"]).all()


def test_each_module_equals_the_oracle():
    model_config = config("hae", "tiny", mask_rule="dense")
    model, frame = on_meta(model_config), compute(model_config)
    counts = oracle(model, inputs_of(model_config)).get_flop_counts()
    assert len(counts) > 60
    for name, counted in counts.items():
        path = name.removeprefix("Global").removeprefix("HAEUNet").removeprefix(".")
        below = frame["path"].eq(path) | frame["path"].str.startswith(f"{path}." if path else "")
        assert frame.loc[below, "flops_run"].sum() == sum(counted.values()), name


def test_all_columns_grow_with_the_batch():
    model_config = config("hae", "lesson32")
    one, five = compute(model_config), compute(model_config, batch=5)
    assert (five[MACS] == 5 * one[MACS]).all(axis=None)
    assert five["flops_run"].sum() == counted_flops(model_config, batch=5)


# By hand


def test_one_hybrid_block_by_hand():
    """16 channels on a 16 x 16 map: 256 pixels, 16 + 4 patches, 276 tokens; the timestep embedding is 64 wide."""
    block = HybridBlock(16, 64, **VARIANTS["hae"])
    frame = compute(block, inputs=(torch.zeros(1, 16, 16, 16), torch.zeros(1, 64)))
    sums = by_part(frame)
    assert part_macs(sums) == {
        "timestep": 64 * 16,
        "CNN branch": 2 * 256 * (16 * 16 * 9),
        "projections": 16 * (16 * 16 * 16) + 4 * (16 * 64 * 16),
        "attention projections": (256 + 276 + 276 + 256) * 16 * 16,
        "attention scores and values": 2 * 256 * 276 * 16,
        "MLP": 2 * 256 * (16 * 64),
        "fusion": 256 * (32 * 16),
    }
    document = part_macs(sums, "macs_document")
    assert document["attention projections"] == 4 * 276 * 16 * 16
    assert document["attention scores and values"] == 2 * 276 * 276 * 16
    assert document["MLP"] == 2 * 256 * (16 * 64)


def test_the_slots_of_the_other_variants_by_hand():
    inputs = (torch.zeros(1, 16, 16, 16), torch.zeros(1, 64))
    lite, v2 = (part_macs(by_part(compute(HybridBlock(16, 64, **VARIANTS[v]), inputs=inputs))) for v in ("lite", "v2"))
    assert lite["projections"] == v2["projections"] == 256 * 16 * 16
    assert lite["fusion"] == v2["fusion"] == 256 * 16 * 16
    assert (lite["MLP"], v2["MLP"]) == (2 * 256 * 16 * 64, 2 * 256 * 16 * 4)


def test_body_attention_by_hand_with_class_tokens():
    block = AttentionBlock(32, 4, encoder_channels=64)
    frame = compute(block, inputs=(torch.zeros(2, 32, 8, 8), torch.zeros(2, 64, 10)))
    counts = dict(zip(frame["path"], frame["macs_run"], strict=True))
    pixels, tokens = 64, 10
    assert counts == {
        "": 2 * 2 * 32 * pixels * (pixels + tokens),
        "qkv": 2 * pixels * 32 * 96,
        "encoder_kv": 2 * tokens * 64 * 64,
        "proj_out": 2 * pixels * 32 * 32,
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 20)], ids=str)
def test_attention_equals_the_mask_written_out(size, rule):
    """Kept pairs are counted on the mask as a matrix, one head after the other."""
    height, width = size
    block = MSTB(16, num_heads=8, mask_rule=rule, regions="pooled")
    frame = compute(block, inputs=torch.zeros(3, 16, height, width)).set_index("part")
    blocked = mask_for(rule, block.grid(height, width)).blocked().reshape(-1, block.grid(height, width).n)
    groups = len(blocked) // block.grid(height, width).n
    kept = sum((~matrix[: height * width]).sum() for matrix in blocked.reshape(groups, -1, blocked.shape[1]))
    scores = frame.loc["attention scores and values"]
    assert scores["macs_kept"] == 3 * 2 * (16 // 8) * (8 // groups) * kept
    assert scores["macs_kept"] <= scores["macs_run"]
    assert scores["macs_kept"] <= scores["macs_dense"] < scores["macs_document"]


def test_accounts_are_ordered_in_every_row_and_the_rule_changes_two_of_them():
    whole = ["macs_dense", "macs_document"]
    dense = compute(config("hae", "lesson32", mask_rule="dense"))
    assert dense["macs_kept"].equals(dense["macs_dense"])
    for rule in RULES:
        frame = compute(config("hae", "lesson32", mask_rule=rule))
        assert frame[whole].equals(dense[whole])
        assert (frame["macs_kept"] <= frame["macs_run"]).all()
        assert (frame["macs_kept"] <= frame["macs_dense"]).all()
        assert (frame["macs_dense"] <= frame["macs_document"]).all()


def test_a_patch_that_does_not_divide_the_map_is_said_to_be_dropped():
    frame = compute(MSTB(16, regions="pooled"), inputs=torch.zeros(1, 16, 12, 20))
    notes = frame.loc[frame["part"] == "attention scores and values", "note"]
    assert notes.tolist() == ["patch 8 does not divide the map: dropped"]


# Places and sums


def test_rows_say_where_they_are():
    frame = compute(config("hae", "lesson32")).set_index("path")
    columns = ["section", "block", "part", "level", "height"]
    assert frame.loc["input_blocks.0.0", columns].tolist() == ["encoder", "convolution", "convolution", 0, 32]
    assert frame.loc["time_embed.0", columns[:2]].tolist() == ["embedding", "embedding"]
    fusion = frame.loc["output_blocks.1.2.fusion_conv", columns]
    assert fusion.tolist() == ["decoder", "hybrid block", "fusion", 2, 8]
    upsample = frame.loc["output_blocks.1.3.conv", columns]
    assert upsample.tolist() == ["decoder", "resampling", "resampling", 1, 16]
    assert (frame["calls"] == 1).all()


def test_parts_levels_and_rows_have_one_sum():
    frame = compute(config("hae", "lesson32"))
    whole = total(frame)
    assert (by_part(frame)[[*MACS, *FLOPS]].sum() == whole).all()
    decoder = frame[frame["section"] == "decoder"]
    levels = by_level(frame)
    assert (levels[[*MACS, *FLOPS]].sum() == total(decoder)).all()
    assert levels[["level", "height"]].to_numpy().tolist() == [[0, 32], [1, 16], [2, 8]]
    assert by_part(frame)["part"].iloc[-1] == "body"
    assert [whole[flops] for flops in FLOPS] == [2 * whole[macs] for macs in MACS]


def test_per_sample_multiplies_steps_and_guidance():
    frame = compute(config("v2", "tiny"))
    sampled = per_sample(frame, steps=50, guidance=True)
    assert (sampled[[*MACS, *FLOPS]] == 100 * frame[[*MACS, *FLOPS]]).all(axis=None)
    assert (sampled["level"].dropna() == frame["level"].dropna()).all()
    assert per_sample(7, steps=10) == 70
    assert per_sample(total(frame), steps=3)["macs_run"] == 3 * frame["macs_run"].sum()
    with pytest.raises(HAELabError, match="steps is a whole number from 1, got 0"):
        per_sample(7, steps=0)


# Models that a researcher has modified


class LowRank(nn.Module):
    """Parameters of its own, no formula: counted by its operators."""

    def __init__(self, channels, rank):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(channels, rank)), nn.Parameter(torch.zeros(rank, channels))

    def forward(self, x):
        return x @ self.down @ self.up


class HandMadeAttention(AttentionBlock):
    """The same forward function as its parent, other work below it."""

    def _forward(self, x, class_tokens):
        q, k, v = self.qkv(self.norm(x.flatten(2))).chunk(3, dim=1)
        return x + self.proj_out(torch.einsum("bci,bdi,bdj->bcj", q, k, v).contiguous()).view_as(x)


def modified_model():
    model = build("hae", "lesson32", mask_rule="dense")
    block = next(module for module in model.modules() if isinstance(module, HybridBlock))
    channels = block.fusion_conv.out_channels
    block.conv_branch = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.PReLU(),
        nn.ConvTranspose2d(channels, channels, 1),
    )  # fmt: skip
    block.transformer_branch.multihead_attn.out_proj = LowRank(channels, 3)
    model.middle_block[1] = HandMadeAttention(channels, 4, model.config.time_embed_dim)
    return model, channels


def test_a_modified_model_equals_the_oracle():
    model, channels = modified_model()
    frame = compute(model).set_index("path")
    assert frame["flops_run"].sum() == oracle(model.to("meta"), inputs_of(model.config)).get_total_flops()
    changed = frame[frame["counted_by"] == "operators"]
    assert changed.index.tolist() == ["middle_block.1", "output_blocks.1.2.transformer_branch.multihead_attn.out_proj"]
    low_rank = changed.iloc[1]
    assert low_rank["macs_run"] == 2 * 64 * channels * 3
    assert low_rank["macs_document"] == 2 * (64 + 4 + 1) * channels * 3
    assert low_rank["part"] == "attention projections"
    assert uncounted(frame.reset_index()).empty


def test_our_parts_inside_another_model():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build("lite", "tiny")

        def forward(self, batch, scale=1.0):
            return self.net(batch["x"] * scale, batch["t"]).mean()

    x, t, _ = inputs_of(config("lite", "tiny"))
    with pytest.raises(HAELabError, match=r"Wrapper has no HAEConfig in \.config: say what it takes, inputs="):
        compute(Wrapper())
    frame = compute(Wrapper(), inputs={"batch": {"x": x, "t": t}, "scale": 2.0})
    alone = compute(build("lite", "tiny"), inputs=[x, t])
    assert frame[MACS].equals(alone[MACS])
    assert frame["section"].equals(alone["section"])
    assert frame["part"].equals(alone["part"])


class Distance(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x)


def test_operators_that_nobody_counts_are_listed_and_make_sums_unknown():
    model = nn.Sequential(nn.Linear(4, 4), Distance(), nn.Linear(6, 2))
    frame = compute(model, inputs=torch.zeros(2, 6, 4))
    listed = uncounted(frame)
    assert listed["path"].tolist() == ["1"]
    assert listed["note"].item() == "no formula for aten._cdist_forward x 1"
    assert frame["macs_run"].isna().tolist() == [False, True, False]
    assert total(frame).isna().all()
    assert by_part(frame)[MACS].isna().all(axis=None)


class Careless(nn.Module):
    """Catches what its part raises."""

    def __init__(self):
        super().__init__()
        self.broken, self.layer = nn.Linear(5, 5), nn.Linear(4, 4)

    def forward(self, x):
        try:
            return self.broken(x)
        except RuntimeError:
            return self.layer(x) @ x.mT


def test_a_part_that_fails_and_is_caught_does_not_shift_the_rows():
    frame = compute(nn.Sequential(Careless(), nn.Linear(3, 3)), inputs=torch.zeros(3, 4))
    counts = dict(zip(frame["path"], frame["macs_run"], strict=True))
    assert counts == {"0": 3 * 4 * 3, "0.layer": 3 * 4 * 4, "1": 3 * 3 * 3}


def test_unknown_modules_with_parameters_are_listed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Bilinear(4, 4, 8)

        def forward(self, x):
            return self.mix(x, x) @ x.new_ones(8, 2)

    frame = compute(Two(), inputs=torch.zeros(3, 4)).set_index("path")
    assert frame.loc["", "macs_run"] == 3 * 8 * 2
    assert frame.loc["mix", "counted_by"] == "nobody"
    assert "aten._trilinear" in frame.loc["mix", "note"]


def test_a_model_without_any_mac_gives_an_empty_frame():
    frame = compute(nn.Sequential(nn.SiLU(), nn.GroupNorm(2, 4), nn.AvgPool2d(2)), inputs=torch.zeros(1, 4, 8, 8))
    assert frame.empty
    assert {*MACS, *FLOPS} <= set(frame.columns)
    assert total(frame)["macs_run"] == 0


def test_a_module_called_twice_is_one_row():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.alias = self.layer

        def forward(self, x):
            return self.alias(self.layer(x))

    frame = compute(Twice(), inputs=torch.zeros(3, 4))
    assert frame[["path", "calls", "macs_run"]].to_numpy().tolist() == [["layer", 2, 2 * 3 * 4 * 4]]


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(64, 128, 3, padding=1), (1, 64, 46, 24), 81_395_712),
        (nn.Conv2d(64, 128, 3, stride=2, padding=1, groups=4), (1, 64, 46, 24), 5_087_232),
        (nn.ConvTranspose2d(64, 128, 2, stride=2), (1, 64, 46, 24), 36_175_872),
        (nn.Linear(256, 256), (1, 1104, 256), 72_351_744),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 6 * 4 * 3),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 10), 2 * 10 * 4 * 3 * 3),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 5), 24 * 3 * 2 * 8),
        (nn.LSTM(4, 6), (5, 1, 4), 5 * 4 * 6 * (4 + 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_other_layers(layer, shape, macs):
    """The first four numbers were computed by hand; S = 46 x 24."""
    frame = compute(layer, inputs=torch.zeros(shape))
    assert frame["macs_run"].sum() == macs
    assert 2 * macs == oracle(layer.to("meta"), (torch.zeros(shape, device="meta"),)).get_total_flops()


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"kdim": 24, "vdim": 40}, {"add_bias_kv": True, "add_zero_attn": True}],
    ids=str,
)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_attention(options, need_weights, training):
    """5 queries and 7 keys, batch 3, 32 wide; by formula, in every mode."""
    layer = nn.MultiheadAttention(32, 4, **options).train(training)
    q, k, v = torch.zeros(5, 3, 32), torch.zeros(7, 3, options.get("kdim", 32)), torch.zeros(7, 3, layer.vdim)
    if layer.batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    inputs = {"query": q, "key": k, "value": v, "need_weights": need_weights}
    frame = compute(layer, inputs=inputs)
    assert set(frame["counted_by"]) == {"formula"}
    assert (
        frame["flops_run"].sum() == oracle(layer.to("meta"), to_meta([q, k, v, None, need_weights])).get_total_flops()
    )


# Nothing left behind


def picture(model):
    """Everything that profiling might change, in a form that `==` compares."""
    return {
        path: (
            {name: (id(value), len(value) if isinstance(value, dict) else 0) for name, value in vars(module).items()},
            {name: (id(p), p.data_ptr(), p.device, p.grad) for name, p in module._parameters.items() if p is not None},
            {name: (id(b), b.sum().item()) for name, b in module._buffers.items() if b is not None},
            module.training,
        )
        for path, module in model.named_modules()
    }


def global_hooks():
    return [len(hooks) for name, hooks in vars(torch_module).items() if name.startswith("_global_") and "hooks" in name]


class Leaves(nn.Module):
    """A forward pass that leaves things behind, and fails if told to."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.fail = False

    def forward(self, x):
        self.cache = torch.ones(4)
        self.register_buffer("late", x.new_zeros(1))
        self.eval()
        x = self.norm(self.layer(F.dropout(x)) * self.cache)
        if self.fail:
            raise RuntimeError("broken on purpose")
        return x


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_behind(fail, random_states):
    model = Leaves()
    model.fail = fail
    before, hooks, states = picture(model), global_hooks(), random_states()
    if fail:
        with pytest.raises(HAELabError, match=r"Leaves cannot be traced on the meta device \(broken on purpose\)"):
            compute(model, inputs=torch.zeros(3, 4))
    else:
        assert compute(model, inputs=torch.zeros(3, 4))["macs_run"].sum() == 3 * 4 * 4
    assert picture(model) == before
    assert global_hooks() == hooks
    assert random_states() == states
    assert torch.is_grad_enabled()
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("rule", RULES)
def test_the_model_computes_the_same_afterwards(rule, random_states):
    """Profiled before its first pass too, so that nothing made on the meta device stays in a cache."""
    model = build("lite", "tiny", mask_rule=rule, mask_seed=77, dropout=0.1)
    x, t = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 5.0])
    states = random_states()
    assert compute(model.train()).equals(compute(model.eval()))
    assert random_states() == states
    before = picture(model)
    out = model(x, t)
    compute(model)
    assert picture(model) == before
    assert torch.equal(model(x, t), out)


def test_a_large_model_takes_little_memory():
    """684 million parameters would take 2,700 MB."""
    compute(config("hae", "tiny"))  # torch imports much when it first meets a meta tensor
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compute(config("hae", "wide128", placement="attention"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


# Messages


def test_messages():
    with pytest.raises(HAELabError, match="batch is a whole number from 1, got 0"):
        compute(config("hae", "tiny"), batch=0)
    with pytest.raises(HAELabError, match="Linear cannot be traced on the meta device"):
        compute(nn.Linear(4, 4), inputs=torch.zeros(3, 5))
    with pytest.raises(HAELabError, match=r"must not read values \(\.item"):
        compute(Reads(), inputs=torch.zeros(3))
    with pytest.raises(HAELabError, match=r"takes an HAEConfig or an nn\.Module, got namespace\(\)"):
        compute(SimpleNamespace())


class Reads(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
