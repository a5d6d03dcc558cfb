"""The committed lesson models: small, loadable, and as good as their learning curve says."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
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


@pytest.mark.parametrize("data", lessons.LESSONS)
def test_all_together_are_small(data):
    paths = [lessons.checkpoint(lessons.folder(), variant, data) for variant in lessons.LESSON_VARIANTS]
    assert sum(path.stat().st_size for path in paths) < 3_000_000


@pytest.mark.parametrize("data", lessons.LESSONS)
@pytest.mark.parametrize("variant", lessons.LESSON_VARIANTS)
def test_model_is_the_variant_in_single_precision(variant, data):
    model = lessons.lesson_model(variant, data)
    assert model.config == lessons.lesson(variant, data).config
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_models_of_the_brain_know_no_labels_and_those_of_heads_two():
    models = {data: lessons.lesson("hae", data).config for data in lessons.LESSONS}
    assert {data: (each.image_size, each.num_classes) for data, each in models.items()} == {
        "lesions": (32, 2),
        "mri": (64, None),
    }


@pytest.mark.parametrize("data", lessons.LESSONS)
def test_half_precision_keeps_the_loss_of_the_training(data):
    if data == "mri":
        pytest.importorskip("nilearn", reason="the slices come with the extra mri")
    model = lessons.lesson_model("v2", data)
    _, held_out = load_data(data, model.config.image_size)
    found = denoising_loss(model, held_out, lessons.RECIPE)["loss"]
    curve = read_table("lessons").query("variant == 'v2' and data == @data").set_index("step")["loss"]
    assert curve.index.max() == lessons.RECIPE.steps
    assert found == pytest.approx(curve[lessons.RECIPE.steps], rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "workers", "minutes"),
    [
        ([600, 60, 120, 60, 60, 60], 2, 10),  # no sooner than the longest run
        ([600] * 6, 2, 30),  # no sooner than the workers can share the work
        ([600] * 6, 1, 60),
    ],
)
def test_minutes_are_those_of_the_work_or_of_the_longest_run(monkeypatch, seconds, workers, minutes):
    monkeypatch.setattr(
        lessons, "estimated_seconds", lambda runs: [each for _, each in zip(runs, seconds, strict=True)]
    )
    assert lessons.lessons_minutes(workers) == minutes


def test_training_keeps_weights_in_half_precision_and_learning_curves(monkeypatch, tmp_path):
    def run(experiment: Experiment, folder: Path) -> dict:
        save_checkpoint(build(experiment.config), folder / WEIGHTS)
        return {"curve": [[300, 0.5], [600, 0.25]]}

    monkeypatch.setattr(lessons, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(lessons, "run", run)
    rows = lessons.train_lessons(tmp_path / "runs", tmp_path / "out", workers=1)
    models = list(product(("lesions", "mri"), ("hae", "lite", "v2")))
    assert rows.groupby(["data", "variant"])[["step", "loss"]].agg(list).to_dict("index") == {
        model: {"step": [300, 600], "loss": [0.5, 0.25]} for model in models
    }
    for data, variant in models:
        weights = load_file(lessons.checkpoint(tmp_path / "out", variant, data))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_control_has_no_lesson_model():
    with pytest.raises(HAELabError, match="unknown lesson model 'unet'"):
        lessons.lesson("unet")
    with pytest.raises(HAELabError, match="unknown data of a lesson model 'twins'"):
        lessons.lesson_model("hae", "twins")


def test_missing_file_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "folder", lambda: tmp_path)
    with pytest.raises(HAELabError, match="reproduce --full"):
        lessons.lesson_model("v2")
