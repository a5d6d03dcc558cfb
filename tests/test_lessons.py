"""The committed lesson models: small, loadable, and as good as their learning curve says."""

import pytest
import torch

from hae_lab import HAELabError
from hae_lab.audit import lessons
from hae_lab.audit.reproduce import read_table
from hae_lab.diffusion.datasets import load_data
from hae_lab.diffusion.quality import denoising_loss


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
    curve = read_table("lessons").query("variant == 'v2'")
    assert found == pytest.approx(curve["loss"].iloc[-1], rel=0.01)
    assert curve["step"].iloc[-1] == lessons.RECIPE.steps


def test_control_has_no_lesson_model():
    with pytest.raises(HAELabError, match="unknown lesson model 'unet'"):
        lessons.lesson("unet")


def test_missing_file_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "folder", lambda: tmp_path)
    with pytest.raises(HAELabError, match="reproduce --full"):
        lessons.lesson_model("v2")
