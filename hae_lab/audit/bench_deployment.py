"""What `hae-lab bench deployment` measures: models in torch, in onnxruntime, and there with eight bits a weight."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Subset

from hae_lab.audit.lessons import PRESET, RECIPE, lesson, lesson_model
from hae_lab.checks import require
from hae_lab.deploy.export import export, quantize
from hae_lab.deploy.runtime import OnnxModel
from hae_lab.diffusion.datasets import load_data
from hae_lab.diffusion.quality import denoising_loss
from hae_lab.diffusion.sampling import STEPS, sample
from hae_lab.family import HAEConfig
from hae_lab.models import HAEUNet, build, save_checkpoint
from hae_lab.presets import DOCUMENT, config
from hae_lab.profilers.paired import FEWEST, compare
from hae_lab.profilers.timing import Cases, predict, rounds, speed_ups, step_inputs, summary

EAGER, ONNX, INT8 = "torch eager", "onnxruntime", "onnxruntime int8"
HELD_OUT = 512  # images, on the same draws for all ways


class Deployed(NamedTuple):
    """A model that is measured: the trained lesson models, and the published size with fresh weights."""

    variant: str
    preset: str
    mask_rule: str

    @property
    def is_trained(self) -> bool:
        return self.preset == PRESET

    @property
    def config(self) -> HAEConfig:
        return lesson(self.variant).config if self.is_trained else config(*self[:2], mask_rule=self.mask_rule)


CASES = (
    *(Deployed(variant, PRESET, "document") for variant in DOCUMENT),
    *(Deployed(variant, "brats128", "document") for variant in DOCUMENT),
    Deployed("v2", "brats128", "document_shared"),
)

# a process of its own: what it holds at most, in bytes, after one step of one image; -1 where the system does not tell
PEAK = """
from pathlib import Path
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
print(next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), -1))
"""
EAGER_STEP = """
import sys, torch
from hae_lab.family import HAEConfig
from hae_lab.models import load_checkpoint
torch.set_num_threads(1)
config = HAEConfig.from_json(sys.argv[1])
model = load_checkpoint(sys.argv[2], config)
with torch.no_grad():
    model(torch.zeros(1, config.in_channels, config.image_size, config.image_size), torch.zeros(1))
"""
ONNX_STEP = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
session.run(None, {each.name: numpy.zeros((1, *each.shape[1:]), kinds[each.type]) for each in session.get_inputs()})
"""


def bench_deployment(device: str = "cpu", repeats: int = FEWEST, cases: Sequence[Deployed] = CASES) -> pd.DataFrame:
    """Each model three ways: the time of a denoising step of one image, and of a sample of 25 steps of the small ones.

    Columns beside those of times: file_bytes (weights, or program), process_bytes (a process of its own that takes one
    step), loss on held-out images and by how many percent it is above torch's (trained models), and largest_difference
    of outputs to the model's. `speed_up` is torch's time over this one's, round by round. On the CPU alone.
    """
    require(device == "cpu", f"deployment is measured on the CPU, got the device {device!r}")
    frames = []
    with TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            place = Path(folder, str(number))
            place.mkdir()
            frames.append(_rows(case, place, repeats))
    return pd.concat(frames, ignore_index=True)


def _rows(case: Deployed, folder: Path, repeats: int) -> pd.DataFrame:
    """A row a way and number of steps."""
    model = lesson_model(case.variant) if case.is_trained else _with_outputs(build(case.config))
    files = {way: folder / f"{number}.onnx" for number, way in enumerate((ONNX, INT8))}
    difference = export(model, files[ONNX]).difference
    quantize(files[ONNX], files[INT8])
    files[EAGER] = save_checkpoint(model, folder / "model.safetensors")
    models = {EAGER: model, **{way: OnnxModel(files[way], model.config, threads=1) for way in (ONNX, INT8)}}
    x, timesteps = step_inputs(model.config, 1, "cpu")
    timed = {1: {way: partial(predict, each, x, timesteps) for way, each in models.items()}}
    if case.is_trained:
        timed[STEPS] = {way: partial(sample, each, 1, RECIPE, steps=STEPS) for way, each in models.items()}
    rows = pd.concat([_timed(calls, repeats).assign(steps=steps) for steps, calls in timed.items()])
    of_ways = {
        "file_bytes": {way: file.stat().st_size for way, file in files.items()},
        "process_bytes": {way: process_bytes(way, model.config, file) for way, file in files.items()},
        "largest_difference": {ONNX: difference, INT8: _difference(models[INT8], model)},
    }
    if case.is_trained:
        of_ways |= _losses(models, case)
    rows = rows.assign(**{name: rows["way"].map(values) for name, values in of_ways.items()})
    size = model.config.image_size
    return rows.assign(**case._asdict(), map=f"{size}x{size}", batch=1)


def _with_outputs(model: HAEUNet) -> HAEUNet:
    """A fresh model whose last layer is not zero, so that outputs can differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = model.out[-1].weight
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    return model.eval()


def _timed(calls: Cases, repeats: int) -> pd.DataFrame:
    """A row a way, compared with torch round by round."""
    ms = rounds(calls, repeats=repeats)
    found = compare(ms, {way: EAGER for way in calls if way != EAGER})
    rows = summary(ms).assign(**speed_ups(ms, EAGER, "speed_up"))
    return rows.join(found, on="case").rename(columns={"case": "way"})


def process_bytes(way: str, model_config: HAEConfig, file: Path) -> int:
    """What a process of its own holds at most that opens this file and takes one step; -1 where nobody tells."""
    step = EAGER_STEP if way == EAGER else ONNX_STEP
    command = [sys.executable, "-W", "ignore", "-c", step + PEAK, model_config.to_json(), str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    require(done.returncode == 0, f"the process that measures {way} failed: {done.stderr.strip()[-500:]}")
    return int(done.stdout)


def _difference(run: nn.Module, model: HAEUNet) -> float:
    x, timesteps = step_inputs(model.config, 1, "cpu")
    return (predict(run, x, timesteps) - predict(model, x, timesteps)).abs().max().item()


def _losses(models: Mapping[str, nn.Module], case: Deployed) -> dict[str, dict[str, float]]:
    """The held-out loss of each way, and by how many percent it is above torch's."""
    _, held_out = load_data(lesson(case.variant).data, case.config.image_size)
    some = Subset(held_out, range(HELD_OUT))
    losses = {way: denoising_loss(model, some, RECIPE)["loss"] for way, model in models.items()}
    percent = {way: 100 * (loss / losses[EAGER] - 1) for way, loss in losses.items() if way != EAGER}
    return {"loss": losses, "loss_percent": percent}
