"""The committed lesson models: small, loadable, and as good as their learning curve says."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hae_lab import HAELabError, build, save_checkpoint
from hae_lab.audit import lessons
from hae_lab.audit.clone import read_table
from hae_lab.diffusion.datasets import load_data
from hae_lab.diffusion.experiment import Experiment
from hae_lab.diffusion.quality import denoising_loss
from hae_lab.diffusion.training import WEIGHTS


def test_all_together_are_small():
    sizes = [lessons.checkpoint(lessons.folder(), variant).stat().st_size for variant in lessons.LESSON_VARIANTS]
    assert sum(sizes) < 3_000_000


@pytest.mark.parametrize("variant", lessons.LESSON_VARIANTS)
def test_model_is_the_variant_in_single_precision(variant):
    model = lessons.lesson_model(variant)
    assert model.config == lessons.lesson(variant).config
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_half_precision_keeps_the_loss_of_the_training():
    _, held_out = load_data("lesions", 32)
    found = denoising_loss(lessons.lesson_model("v2"), held_out, lessons.RECIPE)["loss"]
    curve = read_table("lessons").query("variant == 'v2'").set_index("step")["loss"]
    assert curve.index.max() == lessons.RECIPE.steps
    assert found == pytest.approx(curve[lessons.RECIPE.steps], rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "workers", "minutes"),
    [
        ([600, 60, 120], 2, 10),  # no sooner than the longest run
        ([600, 600, 600], 2, 15),  # no sooner than the workers can share the work
        ([600, 600, 600], 1, 30),
    ],
)
def test_minutes_are_those_of_the_work_or_of_the_longest_run(monkeypatch, seconds, workers, minutes):
    monkeypatch.setattr(lessons, "estimated_seconds", lambda runs: seconds[: len(runs)])
    assert lessons.lessons_minutes(workers) == minutes


def test_training_keeps_weights_in_half_precision_and_learning_curves(monkeypatch, tmp_path):
    def run(experiment: Experiment, folder: Path) -> dict:
        save_checkpoint(build(experiment.config), folder / WEIGHTS)
        return {"curve": [[300, 0.5], [600, 0.25]]}

    monkeypatch.setattr(lessons, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(lessons, "run", run)
    rows = lessons.train_lessons(tmp_path / "runs", tmp_path / "out", workers=1)
    assert rows.groupby("variant")[["step", "loss"]].agg(list).to_dict("index") == {
        variant: {"step": [300, 600], "loss": [0.5, 0.25]} for variant in ("hae", "lite", "v2")
    }
    for variant in ("hae", "lite", "v2"):
        weights = load_file(lessons.checkpoint(tmp_path / "out", variant))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_control_has_no_lesson_model():
    with pytest.raises(HAELabError, match="unknown lesson model 'unet'"):
        lessons.lesson("unet")


def test_missing_file_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "folder", lambda: tmp_path)
    with pytest.raises(HAELabError, match="reproduce --full"):
        lessons.lesson_model("v2")
