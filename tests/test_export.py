"""Exported models: the model's outputs for batches of any size, in processes that never saw it, and in torch after."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from parity_data import with_parity_weights
from torch import nn

from hae_lab import HAELabError, build
from hae_lab.__main__ import EXPORTED, main
from hae_lab.deploy import export as exporting
from hae_lab.deploy import runtime
from hae_lab.deploy.export import FORMATS, example_inputs, export, portable
from hae_lab.deploy.runtime import OnnxModel
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.quality import denoising_loss
from hae_lab.diffusion.sampling import sample
from hae_lab.masks import TokenGrid
from hae_lab.models import load_checkpoint
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.presets import DOCUMENT
from hae_lab.rules import RULES, mask_for

BATCHES = (1, 3, 8)
# a map of 48 pixels is large enough for every kernel
COLD = {"unet": ("document",)} | dict.fromkeys(DOCUMENT, tuple(RULES))  # every variant, every rule


def model_of(variant: str, rule: str = "document", **changes) -> nn.Module:
    return with_parity_weights(build(variant, "tiny", mask_rule=rule, **changes))


# in a process that only exports

EXPORT = """
import sys
sys.path.insert(0, "tests")
import torch
from test_export import model_of
from hae_lab.deploy.export import example_inputs, export

torch.set_num_threads(1)
folder, variant, *rules = sys.argv[1:]
for rule in rules:
    model = model_of(variant, rule, image_size=48)
    export(model, f"{folder}/{rule}.onnx")
    right = model(*example_inputs(model, 3))  # the first eager pass of this process
    assert type(right) is torch.Tensor and right.requires_grad
    right.square().mean().backward()
    assert all(type(each) is torch.Tensor for each in model.state_dict().values())
    torch.save(right.detach(), f"{folder}/{rule}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", COLD)
def test_every_variant_and_rule_exports_in_a_cold_process(variant, tmp_path, request):
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, str(tmp_path), variant, *COLD[variant]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=request.config.rootpath)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout + done.stderr == ""  # exporters talk much
    for rule in COLD[variant]:
        model = model_of(variant, rule, image_size=48)
        run = OnnxModel(tmp_path / f"{rule}.onnx", model.config)
        for batch in BATCHES:
            arguments = example_inputs(model, batch)
            assert -1 in arguments[2]
            with torch.no_grad():
                right = model(*arguments)
            assert right.abs().max() > 1
            torch.testing.assert_close(run(*arguments), right, rtol=0, atol=1e-4)
        afterwards = torch.load(tmp_path / f"{rule}.pt")
        torch.testing.assert_close(afterwards, model(*example_inputs(model, 3)), rtol=0, atol=1e-5)


# one export for many tests


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return model_of("v2", image_size=48)


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "v2.onnx"
    made = export(model, path)
    assert made.path == path
    assert made.file_bytes == path.stat().st_size > sum(p.nbytes for p in model.parameters() if p.dim() > 1) / 2
    assert made.largest_output > 1
    assert 0 < made.difference < 1e-4
    return path


def test_the_file_says_what_it_takes(onnx_file):
    import onnx

    onnx.checker.check_model(onnx_file)
    graph = onnx.load(onnx_file).graph
    dims = {each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in graph.input}
    batch = dims["timesteps"][0]
    assert isinstance(batch, str)
    assert dims == {"x": [batch, 1, 48, 48], "timesteps": [batch], "y": [batch]}
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}  # no operator of ours


def test_an_onnx_model_is_sampled_and_measured_as_the_model(onnx_file, model):
    run = OnnxModel(onnx_file, model.config, threads=1)
    torch.testing.assert_close(sample(run, 2, steps=5), sample(model, 2, steps=5), rtol=0, atol=1e-3)
    images = phantoms(6, 48, lesions=0.5)
    found, right = denoising_loss(run, images, batch_size=4), denoising_loss(model, images, batch_size=4)
    assert found["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_eight_bits_are_smaller_and_another_model(onnx_file, model, tmp_path):
    exporting.quantize(onnx_file, tmp_path / "int8.onnx")
    whole, small = (path.stat().st_size for path in (onnx_file, tmp_path / "int8.onnx"))
    assert small < 0.75 * whole
    arguments = example_inputs(model, 3)
    with torch.no_grad():
        right = model(*arguments)
    gap = (OnnxModel(tmp_path / "int8.onnx", model.config)(*arguments) - right).abs()
    assert gap.max() > 1e-3
    assert gap.mean() < 0.1 * right.abs().mean()


def test_only_eight_bits_may_differ_from_the_model(tmp_path, model, monkeypatch):
    monkeypatch.setattr(exporting, "program_of", lambda model: None)
    monkeypatch.setattr(exporting, "_write_onnx", lambda program, path: path.write_bytes(b"whole"))
    monkeypatch.setattr(exporting, "quantize", lambda source, target: target.write_bytes(b"small"))
    gaps = {"near": (3e-4, 4.0), "far": (5e-4, 4.0), "near of small outputs": (0.9e-4, 0.1)}
    for name, gap in gaps.items():
        monkeypatch.setattr(exporting, "_compare", lambda model, path, format, gap=gap: gap)
        path = tmp_path / f"{name}.onnx"
        assert exporting.export(model, path, "int8")[2:] == gap
        assert path.read_bytes() == b"small"
        if name == "far":  # a ten thousandth of the largest output
            with pytest.raises(HAELabError, match=r"program differs from the model by 0.0005, in outputs to 4"):
                exporting.export(model, path, "onnx")
        else:
            assert exporting.export(model, path, "onnx") == (path, 5, *gap)


PT2 = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
arguments = torch.load(sys.argv[2])
torch.save(program(*arguments), sys.argv[3])
assert "hae_lab" not in sys.modules
"""


def test_pt2_runs_without_this_package_and_for_any_batch(tmp_path):
    model = model_of("hae", image_size=48)
    made = export(model, tmp_path / "hae.pt2", "pt2")
    assert made.difference <= 1e-5
    arguments = example_inputs(model, 8)
    torch.save(arguments, tmp_path / "in.pt")
    files = [str(tmp_path / name) for name in ("hae.pt2", "in.pt", "out.pt")]
    command = [sys.executable, "-W", "ignore", "-c", PT2, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(*arguments), rtol=0, atol=1e-5)


# the model stays as it is


def test_a_portable_copy_has_no_operator_of_ours_and_trains_nothing():
    model = model_of("hae", image_size=48).train()
    copy = portable(model)
    layers = [layer for layer in copy.modules() if isinstance(layer, SparseMultiheadAttention)]
    kernels = {layer.frozen.kernel.attend.__name__ for layer in layers}
    assert kernels == {"masked_by_rows"}
    assert model.training
    assert not copy.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert {p.data_ptr() for p in copy.parameters()} == {p.data_ptr() for p in model.parameters()}  # no second weights
    assert all(each.kernel is None for each in model.modules() if isinstance(each, SparseMultiheadAttention))


def test_a_model_without_classes_takes_no_labels(tmp_path):
    model = build("unet", "tiny", num_classes=None)
    assert len(example_inputs(model, 2)) == 2
    made = export(model, tmp_path / "unet.pt2", "pt2")
    assert made.largest_output == 0  # fresh


@pytest.mark.parametrize("rows", [1, 100, 512])
def test_rows_by_rows_is_the_whole(rows, monkeypatch):
    monkeypatch.setattr(exporting, "ROWS", rows)
    mask = mask_for("document", TokenGrid(16, 16))
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(2, n, c, generator=generator) for n, c in ((256, 16), (mask.grid.n, 32)))
    plan = KERNELS["masked"].plan(mask, 4, torch.device("cpu"))
    right = KERNELS["reference"].attend(q, kv, plan, 4)
    torch.testing.assert_close(exporting.masked_by_rows(q, kv, plan, 4), right, rtol=0, atol=1e-5)


# what is refused


def test_wrong_wishes_are_refused(tmp_path, model):
    with pytest.raises(HAELabError, match="unknown format 'onx': did you mean 'onnx'"):
        export(model, tmp_path / "x.onnx", "onx")
    with pytest.raises(HAELabError, match=r"pt2 files end in '\.pt2', got .*x\.onnx"):
        export(model, tmp_path / "x.onnx", "pt2")
    with pytest.raises(HAELabError, match=r"export takes a model that hae_lab\.build makes, got a Linear"):
        export(nn.Linear(2, 2), tmp_path / "x.pt2", "pt2")
    with torch.device("meta"):
        empty = build("v2", "tiny")
    with pytest.raises(HAELabError, match="lives on the meta device"):
        export(empty, tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    model, other = model_of("unet"), model_of("unet")
    nn.init.constant_(other.out[-1].bias, 0.5)
    program = exporting.program_of(other)
    monkeypatch.setattr(exporting, "program_of", lambda model: program)
    with pytest.raises(HAELabError, match=r"the pt2 program differs from the model by [\d.]+, in outputs to"):
        export(model, tmp_path / "x.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path, model, monkeypatch):
    monkeypatch.setattr(runtime, "EXTRA", ("onnx", "no_such_runtime"))
    with pytest.raises(HAELabError, match=r"the format onnx needs no_such_runtime: .*pip install 'hae-lab\[deploy\]'"):
        export(model, tmp_path / "x.onnx")


def test_files_of_other_models_are_refused(onnx_file, model, tmp_path):
    with pytest.raises(HAELabError, match="takes x, timesteps, y; a model of this config x, timesteps"):
        OnnxModel(onnx_file, model.config.replace(num_classes=None))
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(HAELabError, match="is no ONNX program that onnxruntime can run"):
        OnnxModel(tmp_path / "x.onnx", model.config)
    with pytest.raises(HAELabError, match="no file"):
        OnnxModel(tmp_path / "none.onnx", model.config)


# the command


def test_the_command_knows_every_format():
    assert {name: ending.removeprefix("-int8") for name, ending in EXPORTED.items()} == FORMATS | {"page": ".html"}


def test_the_command_writes_and_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "lite", "--preset", "tiny", "--rule", "window2d", "--classes", "2", "--format", "pt2"]) == 0
    printed = capsys.readouterr().out
    assert f"MB in {tmp_path / 'runs' / 'lite-tiny.pt2'}" in printed
    assert "all outputs are 0" in printed
    program = torch.export.load(tmp_path / "runs" / "lite-tiny.pt2").module()
    assert not program(torch.randn(1, 1, 16, 16), torch.ones(1), torch.ones(1, dtype=torch.int64)).any()


def test_the_command_takes_weights(tmp_path, capsys):
    model = model_of("unet")
    torch.save(model.state_dict(), tmp_path / "unet.pt")
    command = ["export", "unet", "--preset", "tiny", "--format", "pt2", "--out", str(tmp_path / "x.pt2")]
    assert main([*command, "--checkpoint", str(tmp_path / "unet.pt")]) == 0
    assert "of outputs up to" in capsys.readouterr().out
    arguments = example_inputs(model, 3)
    found = torch.export.load(tmp_path / "x.pt2").module()(*arguments).detach()
    assert np.abs(found.numpy()).max() > 1
    torch.testing.assert_close(found, model(*arguments).detach(), rtol=0, atol=1e-5)


def test_the_command_takes_what_train_keeps(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = ("in_channels=3", "out_channels=3", "num_classes=none", "fusion=concat")
    train = ["train", "v2", "--preset", "tiny", "--data", f"{__name__}:colours", "--steps", "1", "--batch-size", "2"]
    assert main([*train, *(f"--set={change}" for change in changed), "--out", "mine"]) == 0
    for _ in range(2):  # a file of before is replaced
        assert main(["export", "mine", "--format", "pt2", "--out", "mine.pt2"]) == 0
    assert f"MB in {tmp_path / 'mine.pt2'}" in capsys.readouterr().out
    model = load_checkpoint("mine/model.safetensors")
    arguments = example_inputs(model, 2)
    assert arguments[0].shape[1] == 3
    found = torch.export.load("mine.pt2").module()(*arguments)
    torch.testing.assert_close(found, model(*arguments), rtol=0, atol=1e-5)
    assert main(["export", "mine", "--preset", "tiny"]) == 2
    assert "--preset is of a variant; 'mine/model.safetensors' carries" in capsys.readouterr().err


def colours(size: int) -> tuple[ImageSet, ImageSet]:
    """Three channels, to train and held out."""
    grey = [phantoms(4, size, seed=1), phantoms(2, size, seed=1, split="held-out")]
    return tuple(ImageSet(images=part.images.expand(-1, 3, -1, -1).contiguous()) for part in grey)
