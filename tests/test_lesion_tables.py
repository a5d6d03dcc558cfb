"""Baselines and tables of lesions: against scipy and scikit-learn, on few heads and a model that knows little."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from parity_data import with_parity_weights
from scipy.ndimage import binary_erosion, uniform_filter
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from hae_lab import HAELabError, build, config
from hae_lab.audit import lesion_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.lesion_tables import (
    BRAIN,
    PHANTOMS,
    TEST,
    VALIDATION,
    best_settings,
    lesion_detection,
    lesion_sweep,
)
from hae_lab.audit.lessons import LESSON_VARIANTS, RECIPE
from hae_lab.diffusion.baselines import BASELINES, brightness, depth, mean_head, similar_heads
from hae_lab.diffusion.brains import KINDS, mri
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.lesions import TASKS, lesion_task
from hae_lab.diffusion.quality import SIGNS, difference_maps, restore

SIZE = 16
HEALTHY = phantoms(40, SIZE).images
IMAGES = phantoms(5, SIZE, split="held-out").images


# what a detector has to beat


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_has_the_shape_of_a_models_differences(baseline):
    found = BASELINES[baseline](IMAGES, HEALTHY)
    assert found.shape == (1, *IMAGES.shape)
    assert found.dtype == IMAGES.dtype
    assert found.isfinite().all()


def test_brightness_is_the_image():
    assert torch.equal(brightness(IMAGES, HEALTHY)[0], IMAGES)


def test_depth_grows_by_erosion_and_says_nothing_of_the_tissue():
    """A disc of radius r fits around a pixel of depth > r: erosion by discs finds the same pixels."""
    found = depth(IMAGES, HEALTHY)[0, :, 0].numpy()
    heads = np.pad((IMAGES > -1)[:, 0].numpy(), ((0, 0), (4, 4), (4, 4)))
    for radius in (1, 2, 3):
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        disc = x**2 + y**2 <= radius**2
        eroded = np.stack([binary_erosion(head, disc) for head in heads])[:, 4:-4, 4:-4]
        assert np.array_equal(found > radius, eroded)
    other = IMAGES.where(IMAGES == -1, 0.3)
    assert torch.equal(depth(other, HEALTHY), depth(IMAGES, HEALTHY))


def test_the_mean_head_is_measured_in_its_standard_deviations():
    heads = HEALTHY.double().numpy()
    spread = np.maximum(heads.std(0, ddof=1), 0.03)
    expected = (IMAGES.double().numpy() - heads.mean(0)) / spread
    np.testing.assert_allclose(mean_head(IMAGES, HEALTHY)[0], expected, rtol=1e-4, atol=1e-4)


def test_similar_heads_are_those_of_scikit_learn():
    flat = [images.flatten(1).numpy() for images in (HEALTHY, IMAGES)]
    nearest = NearestNeighbors(n_neighbors=5).fit(flat[0]).kneighbors(flat[1], return_distance=False)
    expected = IMAGES.numpy() - HEALTHY.numpy()[nearest].mean(1)
    np.testing.assert_allclose(similar_heads(IMAGES, HEALTHY)[0], expected, atol=1e-5)
    with pytest.raises(HAELabError, match="5 healthy images are the least, got 3"):
        similar_heads(IMAGES, HEALTHY[:3])


# the tables


@pytest.fixture(params=["lesions", "mri"])
def few(request, monkeypatch):
    """Small heads, few of them, one start, and a model that has learned nothing."""
    if request.param == "mri":
        pytest.importorskip("nilearn", reason="the slices come with the extra mri")
    size, classes = {"lesions": (SIZE, 2), "mri": (32, None)}[request.param]
    model = with_parity_weights(build(config("hae", "tiny", image_size=size, num_classes=classes))).eval()
    small = {"LEARNED": 40, "IMAGES": {VALIDATION: 8, TEST: 6}, "STARTS": (200,), "DRAWS": 1}
    for name, value in {**small, "lesson_model": lambda variant, data: model}.items():
        monkeypatch.setattr(lesion_tables, name, value)
    heads = {"lesions": PHANTOMS, "mri": BRAIN}[request.param]
    return replace(heads, size=size, guidances=(1.0,)), model


def test_the_sweep_has_every_setting_and_the_best_is_taken(few):
    heads, _ = few
    sweep = lesion_sweep(heads)
    settings = len(SIGNS) * len(lesion_tables.WINDOWS)
    assert len(sweep) == len(heads.tasks) * (len(BASELINES) + 1) * settings
    assert (sweep["n_images"] == 8).all()
    best = best_settings(sweep)
    assert len(best) == len(heads.tasks) * (len(BASELINES) + 1)
    for _, row in best.iterrows():
        same = sweep[(sweep["task"] == row["task"]) & (sweep["detector"] == row["detector"])]
        assert row["auroc"] == same["auroc"].max()


def test_a_detection_by_hand(few):
    """Settings of one detector, scored anew from restored images by scikit-learn."""
    heads, model = few
    chosen = {
        "task": ["dark"],
        "detector": ["hae"],
        "start": [200.0],
        "guidance": [1.0],
        "sign": ["dark"],
        "window": [3],
    }
    rows = lesion_detection(pd.DataFrame(chosen | {"auroc": [0.5]}), heads)
    assert list(rows["detector"]) == list(LESSON_VARIANTS)
    if heads.data == "mri":
        ill = mri(6, 32, 0, lesions=True, kinds=("dark",), split="held-out")
        healthy, labels = mri(6, 32, 0, split="held-out").images, None
    else:
        ill, healthy = lesion_task("dark", 6, SIZE), phantoms(6, SIZE, split="held-out").images
        labels = torch.zeros(6, dtype=torch.int64)
    maps, healthy_maps = (
        difference_maps((x - restore(model, x, RECIPE, start=200, steps=10, labels=labels))[None], "dark", 3).numpy()
        for x in (ill.images, healthy)
    )
    inside, masks = (ill.images > -1).numpy(), ill.masks.numpy()
    scores, truth = maps[inside], masks[inside]
    row = rows.iloc[0]
    assert row["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=2e-5)
    _, _, thresholds = precision_recall_curve(truth, scores)
    assert row["dice"] == pytest.approx(max(f1_score(truth, scores >= each) for each in thresholds), abs=2e-5)
    each = [roc_auc_score(masks[n][inside[n]], maps[n][inside[n]]) for n in range(6)]
    assert row["image_auroc"] == pytest.approx(np.mean(each), abs=2e-5)
    half = 2.570582 * np.std(each, ddof=1) / 6**0.5  # t, 5 degrees of freedom
    assert row["image_auroc_high"] - row["image_auroc_low"] == pytest.approx(2 * half, abs=1e-4)
    place = roc_auc_score(np.repeat([1, 0], masks.sum()), np.concatenate([maps[masks], healthy_maps[masks]]))
    assert row["place_auroc"] == pytest.approx(place, abs=2e-5)


# the committed rows


@pytest.mark.parametrize(("name", "tasks"), [("lesion", TASKS), ("brain_lesion", KINDS)])
def test_committed_rows_are_of_the_settings_that_won_on_other_heads(name, tasks):
    best = best_settings(read_table(f"{name}_sweep")).set_index(["task", "detector"])
    found = read_table(f"{name}_detection")
    assert list(found["task"].unique()) == list(tasks)
    assert len(found) == len(tasks) * (len(BASELINES) + len(LESSON_VARIANTS))
    for row in found.itertuples():
        chosen = best.loc[(row.task, "hae" if row.detector in LESSON_VARIANTS else row.detector)]
        assert (row.sign, row.window) == (chosen["sign"], chosen["window"])
        assert row.image_auroc_low <= row.image_auroc <= row.image_auroc_high


@pytest.mark.parametrize(("name", "least"), [("lesion", 0.7), ("brain_lesion", 0.55)])
def test_depth_cannot_tell_a_lesion_from_its_place(name, least):
    rows = read_table(f"{name}_detection").query("detector == 'depth'")
    assert rows["place_auroc"].tolist() == pytest.approx([0.5] * len(rows))
    assert (rows["auroc"] > least).all()


def test_a_baseline_on_the_slices_by_hand():
    """The five nearest of 4,000 healthy slices by scikit-learn, the map of their mean by scipy."""
    pytest.importorskip("nilearn", reason="the slices come with the extra mri")
    row = read_table("brain_lesion_detection").query("detector == 'similar_heads' and task == 'equal'").iloc[0]
    ill, healthy = mri(48, 64, lesions=True, kinds=("equal",), split="held-out"), mri(4000, 64).images
    flat = [images.flatten(1).numpy() for images in (healthy, ill.images)]
    nearest = NearestNeighbors(n_neighbors=5).fit(flat[0]).kneighbors(flat[1], return_distance=False)
    signed = (ill.images.numpy() - healthy.numpy()[nearest].mean(1))[:, 0]
    gray = {"bright": signed, "dark": -signed, "absolute": np.abs(signed)}[row["sign"]]
    shares = uniform_filter(np.ones_like(gray), (1, row["window"], row["window"]), mode="constant")
    maps = uniform_filter(gray, (1, row["window"], row["window"]), mode="constant") / shares  # of pixels in the picture
    inside, truth = (ill.images > -1)[:, 0].numpy(), ill.masks[:, 0].numpy()
    assert row["auroc"] == pytest.approx(roc_auc_score(truth[inside], maps[inside]), abs=1e-4)
