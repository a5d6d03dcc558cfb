"""Semi-real slices: the template under them, what is drawn on it, lesions of both signs, and what is held out."""

import builtins
import re

import numpy as np
import pytest
import torch
from parity_data import with_parity_weights
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from hae_lab import HAELabError, build, config
from hae_lab.diffusion import brain_lesions, brains
from hae_lab.diffusion.brains import CLASSES, CREDIT, FIELD_MM, KINDS, LICENCE, mri
from hae_lab.diffusion.data import check_dataset, data_key, phantoms
from hae_lab.diffusion.experiment import Experiment
from hae_lab.diffusion.metrics import measured
from hae_lab.diffusion.quality import anomaly_maps
from hae_lab.diffusion.training import Recipe, Trained
from hae_lab.study.cost import passes

needs_template = pytest.mark.skipif(
    not brains.template_is_here(), reason="the extra `mri` is not installed: python -m pip install -e '.[mri]'"
)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


@pytest.fixture
def still(monkeypatch):
    """Nothing is drawn: each picture is a slice of the template as it is."""
    plain = dict.fromkeys(brains.SLICE, (0.0, 0.0))
    plain |= dict.fromkeys(("width", "length", "grey", "white"), (1.0, 1.0))
    monkeypatch.setattr(brains, "SLICE", plain | {"place": (0.5, 0.5)})
    monkeypatch.setattr(brains, "WARP_MM", 0)


@needs_template
@pytest.mark.parametrize("size", [32, 64, 96])
def test_slices_keep_the_contract(size):
    slices = mri(9, size, lesions=0.5)
    check_dataset(slices)
    assert slices.images.shape == slices.masks.shape == (9, 1, size, size)
    assert slices.images.min() == -1
    assert ((slices.labels > 0) == slices.masks.flatten(1).any(1)).all()
    assert slices.classes == CLASSES
    edge = slices.images[:, 0, [0, -1], :]
    assert (edge == -1).float().mean() > 0.99  # nobody is cut off
    assert 0.15 < (slices.images > -1).float().mean() < 0.5


@needs_template
def test_a_picture_of_nothing_drawn_is_the_template(still):
    """The same slice by another interpolation, of the template as nilearn hands it out."""
    from nilearn.datasets import load_mni152_template

    volume = np.asarray(load_mni152_template(resolution=1).dataobj)
    area = (volume > 0).sum((0, 1))
    large = np.flatnonzero(area > area.max() / 2)
    assert len(large) == 93
    trained = [z for place, z in enumerate(large) if place % 5 != 2]
    picture = volume[:, ::-1, trained[len(trained) // 2]].T.astype(float)  # front up
    blurred = ndimage.gaussian_filter(picture, 0.4 * FIELD_MM / 64)
    mm = ((np.arange(64) + 0.5) / 64 - 0.5) * FIELD_MM
    rows, columns = mm + (picture.shape[0] - 1) / 2, mm + (picture.shape[1] - 1) / 2
    expected = ndimage.map_coordinates(blurred, np.meshgrid(rows, columns, indexing="ij"), order=1)
    found = mri(1, noise=0, bias=0).images[0, 0].numpy()
    inside = expected > 0.2
    assert found[inside] == pytest.approx(2 * 0.9 * (expected[inside] - 0.17) - 1, abs=0.01)
    assert (found[expected < 0.05] == -1).all()


@needs_template
def test_held_out_slices_are_never_trained_on():
    train, held_out = (brains._slices(64, split) for split in ("train", "held-out"))
    assert (len(train), len(held_out)) == (74, 19)
    gaps = [min(np.abs(one - other).max() for other in train) for one in held_out]
    assert min(gaps) > 0.1
    first, second = (mri(64, split=split).images.flatten(1) for split in ("train", "held-out"))
    assert torch.cdist(first, second).min() > 3


@needs_template
def test_same_seed_same_bytes_and_more_begin_with_the_same(random_states):
    before = random_states()
    many = mri(70, 32, lesions=0.5)
    assert random_states() == before
    assert torch.equal(many.images[:5], mri(5, 32, lesions=0.5).images)
    assert torch.equal(many.masks[:66], mri(66, 32, lesions=0.5).masks)
    assert not torch.equal(many.images[:5], mri(5, 32, seed=1, lesions=0.5).images)
    recipes = [
        {},
        {"seed": 1},
        {"lesions": 0.5},
        {"kinds": ("dark",)},
        {"noise": 0},
        {"bias": 0},
        {"split": "held-out"},
    ]
    assert len({data_key(mri(2, 32, **recipe)) for recipe in recipes}) == len(recipes)


@needs_template
@pytest.mark.parametrize("kind", KINDS)
def test_a_lesion_has_its_sign_its_mask_and_its_size(kind):
    options = {"noise": 0, "bias": 0, "seed": 3}
    healthy, ill = mri(200, **options), mri(200, lesions=True, kinds=(kind,), **options)
    assert (ill.labels == CLASSES.index(kind)).all()
    assert torch.equal(healthy.images[~ill.masks], ill.images[~ill.masks])
    change = (ill.images - healthy.images)[ill.masks]
    sign = {"dark": change < 0, "equal": change < 0, "bright": change > 0}[kind]
    assert sign.float().mean() > 0.8
    area_mm2 = ill.masks.flatten(1).sum(1) * (FIELD_MM / 64) ** 2
    assert area_mm2.min() > np.pi * 3**2
    assert area_mm2.max() < np.pi * 16**2
    assert (ill.images[ill.masks] > -1).all()


@needs_template
def test_equal_lesions_are_as_grey_as_grey_matter(still):
    heads = mri(60, lesions=True, kinds=("equal",), noise=0, bias=0)
    _, grey, white = brains._slices(64, "train")[37]
    plain = mri(1, noise=0, bias=0).images[0, 0]
    mm = ((np.arange(64) + 0.5) / 64 - 0.5) * FIELD_MM
    places = np.meshgrid(mm + (233 - 1) / 2, mm + (197 - 1) / 2, indexing="ij")
    grey, white = (torch.from_numpy(ndimage.map_coordinates(part, places, order=1)) for part in (grey, white))
    cores = torch.tensor([image[mask].median() for image, mask in zip(heads.images, heads.masks, strict=True)])
    assert cores.median().item() == pytest.approx(plain[grey > 0.9].median().item(), abs=0.08)
    assert cores.median() < plain[white > 0.9].median() - 0.2


@needs_template
def test_signs_make_brightness_worthless():
    heads = mri(300, lesions=True, split="held-out")
    inside = heads.images > -1
    aurocs = {}
    for name in (*KINDS, "all"):
        chosen = heads.labels == CLASSES.index(name) if name != "all" else heads.labels > 0
        image, mask, where = (part[chosen] for part in (heads.images, heads.masks, inside))
        aurocs[name] = roc_auc_score(mask[where].numpy(), image[where].numpy())
    assert aurocs["dark"] < 0.2
    assert aurocs["bright"] > 0.8
    assert aurocs["all"] == pytest.approx(0.5, abs=0.1)
    assert heads.labels.bincount(minlength=4)[1:].min() > 70


@needs_template
def test_numbers_of_numpy_are_numbers():
    plain, of_numpy = mri(3, 32, noise=0.25), mri(np.int64(3), np.int32(32), np.int8(0), noise=np.float64(0.25))
    assert data_key(plain) == data_key(of_numpy)
    assert torch.equal(plain.images, of_numpy.images)


@needs_template
def test_the_data_version_follows_the_drawing():
    """If the pictures were meant to change, raise MRI_VERSION and put the new numbers here."""
    heads = mri(64, lesions=0.5)
    numbers = [heads.images.mean().item(), heads.images.std().item(), heads.masks.float().mean().item()]
    assert (brains.MRI_VERSION, numbers) == (1, pytest.approx([-0.66260, 0.49039, 0.00318], abs=2e-4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is a whole number from 1, got 0"),
        ({"size": 16}, "size is a whole number from 32 to 128, got 16"),
        ({"lesions": 2}, "lesions is in [0, 1], got 2"),
        ({"noise": float("nan")}, "noise is in [0, 1], got nan"),
        ({"bias": "some"}, "bias is in [0, 1], got 'some'"),
        ({"kinds": ()}, "kinds is one or more kinds of lesion, got none"),
        ({"kinds": ("dim",)}, "unknown kind of lesion 'dim'"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_slices_refuse_with_the_value(options, message):
    with refused(message):
        mri(**{"count": 1, **options})


def test_the_missing_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without_nilearn(name, *args, **options):
        if name.startswith("nilearn"):
            raise ImportError(name)
        return real(name, *args, **options)

    brains._template.cache_clear()
    brains._slices.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_nilearn)
    with refused("mri comes with nilearn, which is not installed: python -m pip install -e '.[mri]'"):
        mri(1)


def test_whose_brain_it_is():
    assert "one average brain" in CREDIT.lower()
    assert "Louis Collins" in LICENCE
    assert "above copyright notice appear in all copies" in LICENCE


# a model on its lesions


@needs_template
def test_what_a_model_finds_by_hand(monkeypatch):
    """Of anomaly maps asked for and scored here, by scikit-learn; and with as many passes as the cost of a run says."""
    monkeypatch.setattr(brain_lesions, "COUNT", 12)
    model, passed = with_parity_weights(build(config("v2", "tiny", image_size=32, num_classes=None))), []
    trained, held_out = Trained(model=model, recipe=Recipe(), curve=(), seconds=0.0), mri(8, 32, split="held-out")
    ill = mri(12, 32, lesions=True, split="held-out")
    maps, inside = anomaly_maps(model, ill.images, draws=2), ill.images > -1
    expected = roc_auc_score(ill.masks[inside], maps[inside])
    model.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    assert measured("mri_auroc", trained, held_out) == pytest.approx(expected, abs=1e-9)
    assert 0 < measured("mri_dice", trained, held_out) < 1
    assert sum(passed) == brain_lesions.PASSES * 12 // 96
    experiment = Experiment(config=model.config, data="mri", metrics=("mri_auroc", "mri_dice"), evaluate_every=300)
    assert passes(experiment, 50) == 4 * 50 + brain_lesions.PASSES
    scores = brain_lesions.mri_scores(trained, held_out)
    dark = ill.labels == CLASSES.index("dark")
    expected = roc_auc_score(ill.masks[dark][inside[dark]], maps[dark][inside[dark]])
    assert scores["dark"]["auroc"] == pytest.approx(expected, abs=1e-9)
    with refused("mri lesions are drawn into slices of `mri`, but the held-out images are none: leave this metric out"):
        measured("mri_auroc", trained, phantoms(20, 32))
