"""Lesions with known truth: what each task draws, and what a study measures on it, against scikit-learn."""

import re

import numpy as np
import pytest
import torch
from parity_data import with_parity_weights
from sklearn.metrics import roc_auc_score

from hae_lab import HAELabError, build, config
from hae_lab.diffusion import lesions
from hae_lab.diffusion.data import digits, phantoms
from hae_lab.diffusion.lesions import TASKS, foreign, inside_head, lesion_scores, lesion_task
from hae_lab.diffusion.metrics import METRICS, higher_is_better, measured
from hae_lab.diffusion.quality import anomaly_maps
from hae_lab.diffusion.training import Recipe, Trained

SIZE, COUNT = 16, 12
HEALTHY = phantoms(COUNT, SIZE, split="held-out").images
MASKS = phantoms(COUNT, SIZE, split="held-out", lesions=True).masks


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


@pytest.mark.parametrize("task", TASKS)
def test_a_lesion_changes_its_mask_alone(task):
    ill = lesion_task(task, COUNT, SIZE)
    assert torch.equal(ill.masks, MASKS)
    assert torch.equal(ill.images.where(~MASKS, 0), HEALTHY.where(~MASKS, 0))
    changed = (ill.images != HEALTHY) & MASKS
    assert changed.sum() > 0.5 * MASKS.sum()
    assert torch.equal(ill.images, lesion_task(task, COUNT, SIZE).images)
    assert not torch.equal(ill.images, lesion_task(task, COUNT, SIZE, seed=1).images)


def test_bright_and_dark_lesions_are_half_way_to_their_grey():
    before, ill = HEALTHY[MASKS].numpy(), {task: lesion_task(task, COUNT, SIZE).images[MASKS] for task in TASKS}
    np.testing.assert_allclose(ill["dark"], (before - 0.8) / 2, atol=1e-6)
    np.testing.assert_allclose(ill["bright"], np.maximum((before + 0.88) / 2, before), atol=1e-6)


def test_shuffled_lesions_keep_their_greys_and_foreign_ones_are_of_another_head():
    images = {task: lesion_task(task, COUNT, SIZE).images for task in ("shuffled", "foreign")}
    for n, mask in enumerate(MASKS):
        assert images["shuffled"][n][mask].sort().values.tolist() == HEALTHY[n][mask].sort().values.tolist()
        donors = [m for m in range(COUNT) if torch.equal(images["foreign"][n][mask], HEALTHY[m][mask])]
        assert donors
        assert donors != [n]
        assert (images["foreign"][n][mask] > -1).all()


def test_the_tissue_of_a_head_that_is_too_small_is_not_taken():
    images = torch.full((3, 1, 4, 4), -1.0)
    images[0], images[1, :, :2], images[2] = 0.1, 0.2, 0.3
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[:, :, :2] = True
    masks[0] = True
    found = foreign(images, masks, np.random.default_rng())
    assert found[0].unique().tolist() == pytest.approx([0.3])  # image 1 ends half-way
    assert found[1, :, :2].unique().tolist() == pytest.approx([0.3])
    with refused("none of 2 heads reaches as far as a mask"):
        foreign(images[:2], masks[:2], np.random.default_rng())


def test_the_head_is_what_is_no_air():
    found = inside_head(HEALTHY)
    assert found.shape == (COUNT, 1, SIZE, SIZE)
    assert torch.equal(found, HEALTHY > -1)
    assert (found | ~MASKS).all()
    assert 0.4 < found.float().mean() < 0.8


def test_an_unknown_task_is_refused():
    with refused("unknown lesion task 'drak': did you mean 'dark'?"):
        lesion_task("drak", 2, SIZE)


# in a study


def trained(**changes) -> Trained:
    model = with_parity_weights(build(config("lite", "tiny", **{"num_classes": None} | changes)))
    return Trained(model=model, recipe=Recipe(), curve=(), seconds=0.0)


@pytest.mark.parametrize(("task", "sign"), [("dark", "dark"), ("foreign", "absolute"), ("shuffled", "absolute")])
def test_the_metrics_of_a_study_by_hand(task, sign, monkeypatch):
    monkeypatch.setattr(lesions, "COUNT", COUNT)
    model, held_out = trained(), phantoms(20, SIZE, split="held-out")
    ill = lesion_task(task, COUNT, SIZE)
    maps = anomaly_maps(model.model, ill.images, sign=sign, draws=2)
    inside = (ill.images > -1).numpy()
    expected = roc_auc_score(ill.masks.numpy()[inside], maps.numpy()[inside])
    assert measured(f"{task}_auroc", model, held_out) == pytest.approx(expected, abs=1e-9)
    assert 0 < measured(f"{task}_dice", model, held_out) < 1
    assert higher_is_better(f"{task}_auroc")


def test_a_model_with_classes_restores_healthy_heads(monkeypatch):
    monkeypatch.setattr(lesions, "COUNT", COUNT)
    model = trained(num_classes=2)
    ill = lesion_task("dark", COUNT, SIZE)
    maps = anomaly_maps(model.model, ill.images, sign="dark", draws=2, labels=torch.zeros(COUNT, dtype=torch.int64))
    inside = ill.images > -1
    found = lesion_scores(model, phantoms(20, SIZE, split="held-out", lesions=0.5), "dark")
    assert found["auroc"] == pytest.approx(roc_auc_score(ill.masks[inside], maps[inside]), abs=1e-9)


def test_maps_pass_as_many_images_as_the_cost_says():
    model, passed = trained(), []
    model.model.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    measured("dark_auroc", model, phantoms(20, SIZE, split="held-out"))
    assert sum(passed) == lesions.PASSES
    measured("dark_dice", model, phantoms(20, SIZE, split="held-out"))
    assert sum(passed) == 2 * lesions.PASSES  # another data set


def test_lesions_need_phantoms():
    with refused("dark lesions are drawn into phantoms, and the held-out images are none"):
        measured("dark_auroc", trained(), digits(SIZE))


def test_every_metric_of_a_task_is_registered():
    assert {name for name in METRICS if name.partition("_")[0] in TASKS} == {
        f"{task}_{number}" for task in lesions.SIGNS for number in ("auroc", "dice")
    }
