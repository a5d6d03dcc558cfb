"""Frozen models: the same state dict and outputs; one graph for batches of any size; what exports is the model."""

import itertools
import subprocess
import sys

import pytest
import torch
from parity_data import with_parity_weights
from torch import nn
from torch.export import Dim

import hae_lab
from hae_lab import VARIANTS, HAELabError, build, freeze
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.profilers.macs import compute
from hae_lab.profilers.params import parameters
from hae_lab.rules import RULES

every_rule = pytest.mark.parametrize("rule", RULES)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def model_of(variant: str, rule: str, **changes) -> nn.Module:
    return with_parity_weights(build(variant, "tiny", mask_rule=rule, **changes))


def inputs(model: nn.Module, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Images, timesteps, and labels of which one says "none"."""
    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    x = torch.randn(batch, model.config.in_channels, size, size, generator=generator)
    timesteps = torch.arange(batch) * 100
    return (x, timesteps) if model.config.num_classes is None else (x, timesteps, torch.arange(batch) % 4 - 1)


def gradients(model: nn.Module, *arguments: torch.Tensor, run=None) -> list[torch.Tensor]:
    model.zero_grad()
    (model if run is None else run)(*arguments).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


# the same model


@every_rule
@pytest.mark.parametrize(("variant", "size"), [("unet", 16), ("hae", 48), ("lite", 16), ("v2", 16), ("v2", 48)])
def test_frozen_models_give_the_same_to_the_last_bit(variant, rule, size):
    model = model_of(variant, rule, image_size=size)
    frozen = freeze(model)
    for batch in (1, 3):
        arguments = inputs(model, batch)
        assert torch.equal(frozen(*arguments), model(*arguments))
        for found, right in zip(gradients(frozen, *arguments), gradients(model, *arguments), strict=True):
            assert torch.equal(found, right)


@every_rule
def test_masks_are_buffers_that_no_state_dict_holds(rule):
    model = model_of("v2", rule)
    frozen = freeze(model)
    assert list(frozen.state_dict()) == list(model.state_dict())
    assert not list(model.buffers())
    buffers = [name for name, _ in frozen.named_buffers()]
    assert bool(buffers) == (rule not in ("dense", "spatial_reduction"))  # slices need no tensor
    assert all(".multihead_attn.plan." in name for name in buffers)
    assert parameters(frozen).equals(parameters(model))
    assert compute(frozen).equals(compute(model))


def test_the_copy_shares_its_parameters_and_has_its_own_mode_and_plans():
    model = model_of("v2", "document_shared").train()
    frozen, other = freeze(model).eval(), freeze(model)
    assert [id(parameter) for parameter in frozen.parameters()] == [id(parameter) for parameter in model.parameters()]
    assert model.training
    other.double()
    buffers = dict(frozen.named_buffers())
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in buffers.values())
    other.to("meta")
    assert all(tensor.is_meta for tensor in other.buffers())
    assert not any(tensor.is_meta for tensor in frozen.buffers())


def test_frozen_models_run_no_checks_and_no_look_up(monkeypatch):
    model = model_of("hae", "document")
    frozen, arguments = freeze(freeze(model)), inputs(model)
    right = model(*arguments)
    for name in ("hae_lab.rules.mask_for", "hae_lab.models.attention.kernel_for", "hae_lab.models.unet.require"):
        monkeypatch.setattr(name, None)
    assert torch.equal(frozen(*arguments), right)
    with pytest.raises(TypeError):
        model(*arguments)


def test_a_frozen_layer_still_runs_another_mask():
    layer = SparseMultiheadAttention(16, 4)
    frozen_mask, other = (RULES[rule](hae_lab.masks.TokenGrid(8, 8), 0.9, 0) for rule in ("document", "window2d"))
    tokens = torch.randn(1, frozen_mask.grid.n, 16)
    right = layer(tokens, other)
    layer.freeze(frozen_mask)
    assert torch.equal(layer(tokens, other), right)
    assert "frozen" in repr(layer)


def test_freeze_takes_models_of_this_family():
    with pytest.raises(HAELabError, match=r"freeze takes a model that hae_lab\.build makes, got a Linear"):
        freeze(nn.Linear(2, 2))


def test_a_block_without_its_transformer_has_nothing_to_freeze():
    model = build("hae", "tiny", transformer_branch=False)
    nn.init.normal_(model.out[-1].weight)
    arguments = inputs(model, 2)
    assert torch.equal(freeze(model)(*arguments), model.eval()(*arguments))


def test_models_on_meta_freeze_without_weights():
    with torch.device("meta"):
        frozen = freeze(build("v2", "brats128"))
        assert frozen(torch.empty(2, 4, 128, 128), torch.empty(2)).shape == (2, 4, 128, 128)
    assert all(tensor.is_meta for tensor in frozen.buffers())


# one graph


@pytest.mark.parametrize(("variant", "rule", "size"), [("v2", "document", 48), ("hae", "document_shared", 16)])
def test_one_graph_serves_batches_of_any_size(variant, rule, size):
    torch._dynamo.reset()
    model = model_of(variant, rule, image_size=size)
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    compiled = torch.compile(freeze(model), fullgraph=True, dynamic=True, backend=backend)
    for batch in (2, 3, 5):
        arguments = inputs(model, batch)
        torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=0, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "rule"), [("unet", "document"), *itertools.product(("hae", "lite", "v2"), RULES)]
)  # the control has no mask
def test_compiled_models_give_the_same(variant, rule):
    torch._dynamo.reset()
    model = model_of(variant, rule, image_size=48)  # a map large enough for the kernel `columns`
    compiled, arguments = torch.compile(freeze(model), fullgraph=True, backend="aot_eager"), inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "rule"), [("hae", "document"), ("v2", "document_shared")])
def test_training_compiles_too(variant, rule):
    torch._dynamo.reset()
    model = model_of(variant, rule, image_size=48).train()
    frozen, arguments = freeze(model), inputs(model)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    found, right = gradients(frozen, *arguments, run=compiled), gradients(model, *arguments)
    for some, other in zip(found, right, strict=True):
        torch.testing.assert_close(some, other, rtol=1e-3, atol=1e-5)


# export


EXPORT = """
import sys, warnings
sys.path.insert(0, "tests")
import torch
from test_freeze import exported, inputs, model_of
from hae_lab import freeze

torch.set_num_threads(1)
for rule in ("document", "document_shared"):
    model = model_of(sys.argv[1], rule, image_size=48)
    program = exported(freeze(model), strict=rule == "document")
    for batch in (1, 3):
        arguments = inputs(model, batch)
        right = model(*arguments)
        assert type(right) is torch.Tensor
        torch.testing.assert_close(program.module()(*arguments), right, rtol=0, atol=1e-5)
        (right.square().mean()).backward()
"""


def exported(frozen: nn.Module, strict: bool = False) -> torch.export.ExportedProgram:
    arguments, batch = inputs(frozen), Dim("batch", min=1, max=64)
    return torch.export.export(frozen, arguments, dynamic_shapes=[{0: batch}] * len(arguments), strict=strict)


@pytest.mark.slow
@every_variant
def test_export_in_a_cold_process_serves_any_batch_and_leaves_the_model_alone(variant, request):
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, variant]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=request.config.rootpath)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_exported_program_is_written_and_read(tmp_path):
    model = model_of("v2", "document", image_size=48)
    torch.export.save(exported(freeze(model)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    arguments = inputs(model, 3)
    torch.testing.assert_close(program(*arguments), model(*arguments), rtol=0, atol=1e-5)
