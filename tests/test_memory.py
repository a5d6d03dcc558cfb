"""Training memory: followed on meta, against a real step whose allocations torch's profiler reports, and by hand."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hae_lab import HAELabError, build, config
from hae_lab.profilers.memory import memory_totals, training_memory
from hae_lab.profilers.steps import inference_step, mean_square, prepare
from hae_lab.profilers.timing import peak_bytes
from hae_lab.rules import RULES


def real_inputs(model_config, batch):
    x = torch.randn(batch, model_config.in_channels, model_config.image_size, model_config.image_size)
    labels = () if model_config.num_classes is None else (torch.zeros(batch, dtype=torch.int64),)
    return x, torch.arange(batch) + 1.0, *labels


def measured_step(model, inputs):
    """Bytes that the allocator handed out: held after the forward pass, and at most; of the second of two steps."""
    optimizer = torch.optim.AdamW(model.parameters())
    markers = []

    def step(watched=None):
        scalar = mean_square(model(*inputs))
        if watched:
            markers.append(torch.zeros(12_345, dtype=torch.uint8))  # a size to find the end of the forward pass by
        scalar.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(watched=True)
    events = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum(events)
    return int(held[events.index(12_345) - 1]), int(held.max())


# Against real steps


@pytest.mark.parametrize(
    ("variant", "preset", "changes"),
    [
        ("unet", "lesson32", {"model_channels": 32}),
        ("hae", "lesson32", {"model_channels": 32}),
        ("v2", "lesson32", {"model_channels": 32}),
        ("v2", "lesson32", {"model_channels": 32, "mask_rule": "document_shared"}),
        ("v2", "lesson32", {"model_channels": 32, "mask_rule": "dense"}),
        ("v2", "lesson32", {"model_channels": 32, "dropout": 0.1}),
        ("lite", "tiny", {"model_channels": 32, "placement": "everywhere", "dropout": 0.1}),
    ],
    ids=str,
)
def test_a_real_step_takes_as_much(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    saved, peak = measured_step(build(model_config), real_inputs(model_config, 4))
    totals = memory_totals(model_config, batch=4)
    assert totals["saved_bytes"] == pytest.approx(saved, rel=0.01)
    assert totals["step_peak_bytes"] == pytest.approx(peak, rel=0.05)


def test_a_step_with_checkpoints_takes_as_much_but_for_workspace():
    """oneDNN copies what a convolution reads into its own layout: little, unless checkpoints make the rest small."""
    model_config = config("lite", "lesson32", model_channels=32, use_checkpoint=True)
    saved, peak = measured_step(build(model_config), real_inputs(model_config, 4))
    totals = memory_totals(model_config, batch=4)
    assert totals["saved_bytes"] == pytest.approx(saved, rel=0.01)
    widest = 4 * (2 * 32 + 32) * 32 * 32 * 4  # 64 + 32 channels enter the first decoder block of the finest level
    assert totals["step_peak_bytes"] <= peak <= 1.05 * totals["step_peak_bytes"] + widest


class Plain(nn.Module):
    """A convolutional classifier with norms, pooling and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.GELU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Plain, (8, 3, 64, 64)),
        (lambda: nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True), (4, 200, 64)),
        (lambda: nn.TransformerEncoderLayer(64, 4, 256, dropout=0.1, batch_first=True), (4, 200, 64)),
    ],
    ids=["convolutions", "fused attention", "attention with dropout"],
)
def test_other_models_take_as_much(make, shape):
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    totals = memory_totals(model, inputs=x)
    saved, peak = measured_step(model, (x,))
    assert totals["saved_bytes"] == pytest.approx(saved, rel=0.01)
    assert totals["step_peak_bytes"] == pytest.approx(peak, rel=0.05)


def a_real_step(model_config, batch):
    """For `peak_bytes`: a step whose optimizer has its state."""
    model, inputs = build(model_config), real_inputs(model_config, batch)
    optimizer = torch.optim.AdamW(model.parameters())

    def steps():
        for _ in range(2):
            mean_square(model(*inputs)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["unet", "v2"])
def test_the_system_sees_no_less(variant):
    """Resident memory of a process holds more than its tensors: freed blocks, workspace, code that torch loads late.

    By how much was measured, not derived (1.31 to 1.34 times); what is held to 5 % is the allocator's account above.
    """
    model_config = config(variant, "imagenet64", model_channels=64)
    measured = peak_bytes(a_real_step, model_config, 4)
    if measured < 0:
        pytest.skip("this system does not tell the peak of a process")
    ours = memory_totals(model_config, batch=4)["training_peak_bytes"]
    assert ours <= measured <= 1.5 * ours


# By hand


def test_a_small_network_by_hand():
    """Linear, ReLU, Linear on 10 rows: each layer keeps its input, ReLU its output, which the last layer shares."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    frame = training_memory(model, inputs=torch.zeros(10, 6)).set_index("path")
    assert frame["saved_bytes"].to_dict() == {"0": 0, "1": 10 * 8 * 4, "2": 0, "(loss)": 10 * 5 * 4 + 4}
    assert frame["params_bytes"].to_dict() == {"0": 4 * 56, "1": 0, "2": 4 * 45, "(loss)": 0}
    assert frame["gradients_bytes"].equals(frame["params_bytes"].rename("gradients_bytes"))
    assert frame["optimizer_bytes"].to_dict() == {
        "0": 8 * 56 + 8,
        "1": 0,
        "2": 8 * 45 + 8,
        "(loss)": 0,
    }  # two steps' 4 B
    totals = memory_totals(model, inputs=torch.zeros(10, 6))
    assert totals["inputs_bytes"] == 10 * 6 * 4
    # both hidden maps, until ReLU has run
    assert totals["forward_peak_bytes"] == 2 * 10 * 8 * 4


def test_shared_memory_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(6, 6)

        def forward(self, x):
            h = self.line(x)
            return (h * h.mT.mT).flatten() + (h.view(-1) * h.reshape(-1)).sum()

    frame = training_memory(Twice(), inputs=torch.zeros(10, 6), loss=torch.Tensor.sum).set_index("path")
    assert frame.loc["", "saved_bytes"] == 10 * 6 * 4  # four products of one tensor


def test_rows_sum_to_the_totals():
    model_config = config("v2", "lesson16")
    frame, totals = training_memory(model_config, batch=3), memory_totals(model_config, batch=3)
    for name in ("params_bytes", "buffers_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes"):
        assert frame[name].sum() == totals[name], name
    assert frame["peak_bytes"].sum() == totals["step_peak_bytes"]
    assert frame["share_percent"].sum() == pytest.approx(100)
    there = totals[["params_bytes", "buffers_bytes", "inputs_bytes", "optimizer_bytes", "step_peak_bytes"]].sum()
    assert totals["training_peak_bytes"] == there


def test_saved_bytes_grow_with_the_batch_and_parameters_do_not():
    one, four = (memory_totals(config("hae", "lesson16"), batch=batch) for batch in (1, 4))
    assert four["params_bytes"] == one["params_bytes"]
    assert four["saved_bytes"] == pytest.approx(4 * one["saved_bytes"], rel=0.01)
    assert training_memory(config("hae", "lesson16"))["saved_bytes"].sum() == one["saved_bytes"]  # batch=1


def test_what_a_model_makes_once_is_no_memory_of_a_pass():
    masks_of_its_own = config("v2", "lesson16", mask_seed=20_501)  # whose plans nothing has made
    first, second = (inference_step(*prepare(masks_of_its_own, 1, None)) for _ in range(2))
    assert [each.bytes for each in first.storages] == [each.bytes for each in second.storages]


@lru_cache
def table() -> torch.Tensor:
    return torch.ones(1000, device="meta")


class ReadsATable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + table().sum()


def test_what_a_function_keeps_from_its_first_call_is_no_memory_of_a_pass():
    step = inference_step(*prepare(ReadsATable(), 1, torch.zeros(4)))
    assert [each.bytes for each in step.storages] == [4, 16]  # the sum, and what is returned


@pytest.mark.parametrize("rule", RULES)
def test_what_autograd_says_it_saves(rule):
    """A count of the hooks of a real forward pass, storage by storage."""
    model_config = config("v2", "lesson32", mask_rule=rule)
    model, inputs = build(model_config), real_inputs(model_config, 2)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *inputs)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # alive, so that no other takes its place
        return tensor

    mean_square(model(*inputs)).detach()  # plans of masks
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed):
        mean_square(model(*inputs))
    saved = sum(storage.nbytes() for place, storage in storages.items() if place not in known)
    ours = training_memory(model_config, batch=2)["saved_bytes"].sum()
    assert ours == pytest.approx(saved, rel=0.01)


# The findings


def test_v2_saves_parameters_and_little_training_memory():
    """The pilot's numbers, found by saved-tensor hooks on a real model: MB a sample, at 64 channels."""
    pilot = {"unet": 101.5, "hae": 123.5, "lite": 121.9, "v2": 116.0}
    saved = {name: memory_totals(config(name, "imagenet64", model_channels=64))["saved_bytes"] / 1e6 for name in pilot}
    assert saved == pytest.approx(pilot, abs=0.3)  # with the kernels of then
    assert 100 * (1 - saved["v2"] / saved["hae"]) == pytest.approx(6, abs=0.5)


@pytest.mark.slow
def test_sparse_rules_keep_more_than_dense_attention():
    """Fused dense attention saves no scores; with dropout a CPU does not take the fused kernel, and all are saved."""
    settings = {"preset": "brats128", "model_channels": 32}
    saved = {
        (rule, dropout): memory_totals(config("v2", mask_rule=rule, dropout=dropout, **settings))["saved_bytes"]
        for rule in ("document", "document_shared", "dense")
        for dropout in (0.0, 0.1)
    }
    assert saved["dense", 0.0] < saved["document", 0.0] < saved["document_shared", 0.0]
    assert saved["document", 0.1] < saved["document_shared", 0.1] < saved["dense", 0.1]


def test_a_checkpoint_keeps_less_and_the_optimizer_decides_the_state():
    plain, less = (memory_totals(config("hae", "lesson16", use_checkpoint=on), batch=8) for on in (False, True))
    assert less["saved_bytes"] < 0.5 * plain["saved_bytes"]
    sgd = memory_totals(config("hae", "lesson16"), optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1))
    none = memory_totals(config("hae", "lesson16"), optimizer=None)
    assert sgd["optimizer_bytes"] == none["optimizer_bytes"] == 0
    params = sum(p.nbytes for p in build("hae", "lesson16").parameters())
    assert plain["optimizer_bytes"] == pytest.approx(2 * params, rel=0.01)


# Bad input, and nothing left behind


class Reads(nn.Linear):
    def forward(self, x):
        return super().forward(x) * x.sum().item()


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Linear(2, 2), None, r"Linear has no HAEConfig in \.config: say what it takes, inputs="),
        ("v2", None, "an HAEConfig or an nn.Module is profiled, got 'v2'"),
        (Reads(2, 2), torch.zeros(1, 2), "a step of Reads cannot be followed on the meta device"),
        (nn.Linear(2, 2), torch.zeros(1, 3), "a step of Linear cannot be followed on the meta device"),
        (nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2), "no parameter that needs a gradient"),
        (nn.Embedding(2, 2), torch.zeros(1, 2, dtype=torch.int64), None),
    ],
    ids=["no inputs", "no model", "reads values", "wrong shape", "frozen", "embedding"],
)
def test_bad_input_is_one_clear_line(model, inputs, message):
    if message is None:
        assert training_memory(model, inputs=inputs)["saved_bytes"].sum() > 0
        return
    with pytest.raises(HAELabError, match=message) as error:
        memory_totals(model, inputs=inputs)
    assert "\n" not in str(error.value)


def test_nothing_is_left_behind(random_states):
    model = Plain()
    model.body[0].weight.grad = torch.ones(32, 3, 3, 3)
    before, state = random_states(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sdpa = nn.functional.scaled_dot_product_attention
    training_memory(model, inputs=torch.zeros(2, 3, 16, 16))
    assert random_states() == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.body[0].weight.grad, torch.ones(32, 3, 3, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert nn.functional.scaled_dot_product_attention is sdpa
