"""MACs of the backward pass: closed formulas against torch's own counter on real backward passes, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hae_lab import HAELabError, build, config
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.profilers.backward import MACS, backward_macs
from hae_lab.profilers.macs import compute
from hae_lab.profilers.steps import mean_square
from hae_lab.rules import RULES

aten = torch.ops.aten


# Flops of the operators that torch's counter does not know, from shapes alone


def fused_forward(q, k, v, *args, out_shape=None, **kwargs):
    batch, heads, rows, width = q
    return 2 * 2 * batch * heads * rows * k[2] * width


def fused_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
    batch, heads, rows, width = q
    return 5 * 2 * batch * heads * rows * k[2] * width  # five products: the scores are made again


def bag(weight, indices, *args, out_shape=None, **kwargs):
    return 2 * indices[0] * weight[1]


def sampled(pattern, left, right, *args, out_val=None, **kwargs):
    return 2 * pattern._nnz() * left.shape[1]


sampled._get_raw = True  # the number of pairs is no shape
MAPPING = {
    aten._scaled_dot_product_flash_attention_for_cpu: fused_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: fused_backward,
    aten._embedding_bag: bag,
    aten._embedding_bag_forward_only: bag,
    aten.sparse_sampled_addmm: sampled,
}


def real_step_macs(model, *inputs):
    """Half of the FLOPs of a forward and a backward pass that really run, on the CPU."""
    with FlopCounterMode(display=False, custom_mapping=MAPPING) as counter:
        mean_square(model(*inputs)).backward()
    return counter.get_total_flops() // 2


def real_inputs(model_config, batch=2):
    x = torch.randn(batch, model_config.in_channels, model_config.image_size, model_config.image_size)
    labels = () if model_config.num_classes is None else (torch.zeros(batch, dtype=torch.int64),)
    return x, torch.arange(batch) + 1.0, *labels


def check(model_config, kernel=None, frozen=False):
    model = build(model_config)
    for module in model.modules():
        if isinstance(module, SparseMultiheadAttention):
            module.kernel = kernel
            module.in_proj_weight.requires_grad_(not frozen)
    frame = backward_macs(model, batch=2)
    assert frame["macs_step"].sum() == real_step_macs(model, *real_inputs(model_config))
    assert frame["macs_forward"].sum() == compute(model, batch=2)["macs_run"].sum()
    return frame


# Our models


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", ["hae", "v2"])
def test_a_real_backward_pass_agrees_for_every_rule(variant, rule):
    assert set(check(config(variant, "lesson16", mask_rule=rule))["counted_by"]) == {"formula"}


@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"native"}))  # which has counts of its own
def test_a_real_backward_pass_agrees_for_every_kernel(kernel):
    frame = check(config("lite", "lesson16", mask_rule="spatial_reduction"), kernel=kernel)
    assert set(frame["counted_by"]) == {"formula"}


@pytest.mark.parametrize(
    "changes",
    [
        {"placement": "none"},
        {"placement": "everywhere", "fusion": "mean"},
        {"cnn_branch": False, "resblock_updown": True},
        {"transformer_branch": False, "middle_attention": False},
        {"conv_resample": False, "use_scale_shift_norm": False},
        {"patch_sizes": (1, 2, 3, 8), "mstb_heads": 4},
        {"num_classes": None},
    ],
    ids=str,
)
def test_a_real_backward_pass_agrees_for_other_settings(changes):
    assert set(check(config("hae", "tiny", **changes))["counted_by"]) == {"formula"}


def test_a_real_backward_pass_agrees_for_frozen_projections():
    trained, frozen = (check(config("v2", "lesson16"), frozen=each).set_index("path") for each in (False, True))
    assert set(frozen["counted_by"]) == {"formula"}
    less = trained["macs_backward"] - frozen["macs_backward"]
    assert less[less > 0].index.str.endswith("multihead_attn").all()
    assert less.sum() > 0


def test_a_checkpoint_runs_its_functions_again():
    plain = check(config("v2", "lesson16", dropout=0.1)).set_index("path")
    again = check(config("v2", "lesson16", dropout=0.1, use_checkpoint=True)).set_index("path")
    assert (again[["macs_forward", "macs_backward"]] == plain[["macs_forward", "macs_backward"]]).all(axis=None)
    extra = again["macs_recomputed"] - plain["macs_recomputed"]
    inside = extra.index.str.contains(r"in_layers\.2|conv_branch\.2")
    assert inside.sum() > 5
    # the forward pass again, but for what comes after the last tensor that is needed
    assert (extra[inside] == plain.loc[inside, "macs_forward"]).all()
    last = extra.index.str.contains("skip_connection|fusion_conv")
    assert (extra[last] == 0).all()
    assert extra["input_blocks.1.0.out_layers.3"] == 0
    assert extra["middle_block.1"] == plain.loc["middle_block.1", "macs_forward"]


# Any module


class Spread(nn.Module):
    """Layers of all kinds on one image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, groups=4)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 6, 4, stride=2, groups=2)
        self.line = nn.Linear(6, 5)
        self.unused = nn.Linear(6, 5)

    def forward(self, x):
        h = self.up(F.relu(self.norm(self.down(self.first(x)))))
        tokens = h.flatten(2).mT
        self.unused(tokens)  # runs, and nothing comes of it
        return self.line(tokens)


def test_layers_of_another_model_by_hand():
    frame = backward_macs(Spread(), inputs=torch.zeros(2, 3, 9, 9)).set_index("path")
    first = 2 * 81 * 8 * 3 * 9
    down = 2 * 16 * 16 * 2 * 9  # 4 x 4 places, 16 filters over 2 channels
    up = 2 * 16 * 16 * 3 * 16  # 4 x 4 places of the input, 16 channels, 3 filters a group
    line = 2 * 100 * 6 * 5
    assert frame["macs_forward"].to_dict() == {"first": first, "down": down, "up": up, "line": line, "unused": line}
    assert frame["macs_backward"].to_dict() == {
        "first": first,  # nobody needs the gradient of the image
        "down": 2 * down,
        "up": 2 * up,
        "line": 2 * line,
        "unused": 0,
    }
    assert frame["gradients"].to_dict() == {
        "first": "weight",
        "down": "input and weight",
        "up": "input and weight",
        "line": "input and weight",
        "unused": "none",
    }
    assert (frame["counted_by"] == "formula").all()
    assert (frame["flops_step"] == 2 * frame["macs_step"]).all()


def test_the_counter_of_torch_takes_groups_for_one_in_the_gradient_of_a_weight():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False))
    ours = backward_macs(model, inputs=torch.zeros(1, 8, 6, 6))["macs_step"].sum()
    forward = 16 * 8 * 9
    assert ours == 2 * forward
    assert real_step_macs(model, torch.zeros(1, 8, 6, 6)) == forward + 8 * forward


def test_frozen_layers_do_less():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    frame = backward_macs(model, inputs=torch.zeros(3, 4)).set_index("path")
    assert frame["macs_backward"].to_dict() == {"0": 0, "2": 0, "4": 3 * 6 * 2 * 2}
    model[0].requires_grad_(True)
    frame = backward_macs(model, inputs=torch.zeros(3, 4)).set_index("path")
    assert frame["macs_backward"].to_dict() == {"0": 3 * 4 * 6, "2": 3 * 6 * 6, "4": 3 * 6 * 2 * 2}
    assert frame["gradients"].to_dict() == {"0": "weight", "2": "input and weight", "4": "input and weight"}


def test_a_module_called_twice_adds_up():
    layer = nn.Linear(5, 5)
    frame = backward_macs(nn.Sequential(layer, nn.ReLU(), layer), inputs=torch.zeros(2, 5))
    assert frame[["calls", *MACS]].to_numpy().tolist() == [[2, 2 * 50, 3 * 50, 0]]
    phases = ("forward", "backward", "recomputed", "step")
    counts = [f"{unit}_{phase}" for unit in ("macs", "flops") for phase in phases]
    assert list(frame) == ["path", "module", "calls", *counts, "gradients", "counted_by", "note"]


def test_attention_of_torch_agrees_with_a_real_pass():
    block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 10, 16)
    frame = backward_macs(block, inputs=x)
    assert frame["macs_step"].sum() == real_step_macs(block, x)
    scores = 2 * 4 * 10 * 10 * 4  # one product of queries and keys
    assert frame["macs_recomputed"].sum() == scores


class Distance(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x)


def test_what_nobody_counts_is_said():
    frame = backward_macs(nn.Sequential(nn.Linear(4, 4), Distance()), inputs=torch.zeros(2, 6, 4)).set_index("path")
    assert frame.loc["1", "counted_by"] == "nobody"
    assert "cdist" in frame.loc["1", "note"]
    assert frame["macs_step"].isna().tolist() == [False, True]


def test_a_model_without_anything_to_train_is_refused():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(HAELabError, match="Linear has no parameter that needs a gradient: nothing is trained"):
        backward_macs(model, inputs=torch.zeros(1, 2))


def test_the_model_is_as_it_was():
    model = build("hae", "tiny")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backward_macs(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
