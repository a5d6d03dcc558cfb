"""Images of repeated bits: what they show, the least losses by formula, and the denoiser that reaches them."""

import itertools
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from hae_lab import HAELabError
from hae_lab.diffusion.bounds import BayesDenoiser, binary_error, gain_share, loss_bounds
from hae_lab.diffusion.data import check_dataset, data_key
from hae_lab.diffusion.datasets import DATA, HELD_OUT, PATTERNS_TRAIN, load_data
from hae_lab.diffusion.patterns import BACKGROUND, PATTERNS, VALUE, scales, twins
from hae_lab.diffusion.quality import denoising_loss
from hae_lab.diffusion.training import Recipe, noise_scheduler

SIZES = (16, 32, 64)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


# what the images show


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATTERNS)
def test_images_keep_the_contract_and_their_pattern(name, size):
    pattern = PATTERNS[name](size)
    images = pattern.draw(50, seed=3)
    check_dataset(images)
    assert images.images.shape == (50, 1, size, size)
    flat = images.images.flatten(1).numpy()
    assert set(np.unique(flat)) <= {np.float32(-VALUE), np.float32(0), np.float32(VALUE)}
    assert ((flat == 0) == (pattern.bits.flatten() == BACKGROUND)).all()
    for bit in range(pattern.n_bits):
        shown = flat[:, pattern.bits.flatten() == bit]
        assert (shown == shown[:, :1]).all()
    rows = np.array([flat[:, pattern.bits.flatten() == bit][:, 0] for bit in range(pattern.n_bits)])
    assert len(np.unique(rows, axis=0)) == pattern.n_bits  # no two bits go together


@pytest.mark.parametrize("size", SIZES)
def test_the_right_half_repeats_the_left(size):
    plain, mirrored, below = (
        PATTERNS[name](size).draw(9).images for name in ("twins", "twins_mirrored", "twins_below")
    )
    half = size // 2
    assert torch.equal(plain[..., :half], plain[..., half:])
    assert torch.equal(mirrored, mirrored.flip(-1))
    assert torch.equal(below[..., :half, :], below[..., half:, :])
    for images, axis in ((plain, -1), (below, -2)):
        smaller = images.narrow(axis, 0, half)  # has no twins of its own
        near, far = smaller.chunk(2, axis)
        assert (near == far).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("distance", [2, 4, 8, 16])
def test_twins_lie_their_distance_apart(distance):
    images = twins(32, distance=distance).draw(20).images
    column = torch.arange(32)
    left = column[column % (2 * distance) < distance]
    assert torch.equal(images[..., left], images[..., left + distance])
    assert (images[..., left] == images[..., left].roll(2, -1)).float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("size", "fine"), [(16, 2), (32, 2), (32, 4), (64, 4)])
def test_scales_shows_one_object_at_two_grains(size, fine):
    images = scales(size, fine=fine).draw(20).images[:, 0]
    large, small = images[:, :, : size // 2], images[:, size // 2 :, -size // 4 :]
    assert torch.equal(large[:, ::2, ::2], small)
    assert torch.equal(small[:, ::fine, ::fine].repeat_interleave(fine, 1).repeat_interleave(fine, 2), small)
    grey = images.clone()
    grey[:, :, : size // 2] = 0
    grey[:, size // 2 :, -size // 4 :] = 0
    assert not grey.any()
    assert small.std() == pytest.approx(VALUE, rel=0.02)


@pytest.mark.parametrize("name", PATTERNS)
def test_pixels_of_a_cell_and_of_a_bit(name):
    pattern = PATTERNS[name](32)
    own, shared = pattern.pixels(False), pattern.pixels(True)
    side = 4 if name == "scales_coarse" else 2
    kinds = set(zip(own.flatten().tolist(), shared.flatten().tolist(), strict=True))
    twin = {(4, 8)}
    assert kinds == ({(0, 0), (side**2, 5 * side**2), (4 * side**2, 5 * side**2)} if "scales" in name else twin)
    cells = {(cell, bit) for cell, bit in zip(pattern.cells.flatten(), pattern.bits.flatten(), strict=True)}
    assert len(cells) == len({cell for cell, _ in cells})  # a cell shows one bit


def test_bits_are_fair_and_independent():
    bits = twins(16).draw(4000).images[:, 0, ::2, :8:2].flatten(1)
    together = np.corrcoef(bits.numpy(), rowvar=False)
    assert abs(bits.mean()) < 5 * VALUE / np.sqrt(bits.numel())
    assert abs(together[~np.eye(32, dtype=bool)]).max() < 5 / np.sqrt(4000)


def test_splits_and_seeds_share_no_image_and_more_begin_with_the_same():
    pattern = twins(16)
    train, held_out, other = pattern.draw(2000), pattern.draw(2000, split="held-out"), pattern.draw(2000, seed=1)
    sets = [{image.numpy().tobytes() for image in part.images} for part in (train, held_out, other)]
    assert [len(part) for part in sets] == [2000] * 3
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert torch.equal(pattern.draw(70).images, train.images[:70])
    assert data_key(train) == "twins distance=8 mirrored=False below=False v1: count=2000 size=16 seed=0 split=train"
    assert len({data_key(PATTERNS[name](32).draw(2)) for name in PATTERNS}) == len(PATTERNS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: twins(18, distance=4), "twins of 2 pixels, 4 apart, need a size that is a multiple of 8: 18"),
        (lambda: twins(16, distance=3), "twins of 2 pixels, 3 apart, need a size that is a multiple of 6: 16"),
        (lambda: twins(16, distance=0), "distance is a whole number from 2, got 0"),
        (lambda: twins(2), "size is a whole number from 4 to 256, got 2"),
        (lambda: twins(16.5), "size is a whole number from 4 to 256, got 16.5"),
        (lambda: twins(mirrored=1), "mirrored is True or False, got 1"),
        (lambda: scales(20), "cells of 2 pixels need a size that is a multiple of 8, got 20"),
        (lambda: scales(16, fine=0), "fine is a whole number from 1, got 0"),
        (lambda: twins().draw(0), "count is a whole number from 1, got 0"),
        (lambda: twins().draw(1, split="test"), "unknown split 'test'"),
        (lambda: loss_bounds("phantoms"), "unknown data set with known bounds 'phantoms'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with refused(message):
        make()


def test_by_name_with_enough_images():
    train, held_out = load_data("twins_near", 16)
    assert (len(train), len(held_out)) == (PATTERNS_TRAIN, HELD_OUT) == (16384, 2048)
    assert torch.equal(train.images[:5], twins(16, distance=2).draw(5).images)
    assert torch.equal(held_out.images[:5], twins(16, distance=2).draw(5, split="held-out").images)
    assert set(PATTERNS) < set(DATA)


# the bounds


@pytest.mark.parametrize("ratio", [1e-6, 0.03, 0.5, 2, 9, 40])
def test_the_error_of_a_bit_is_that_of_its_posterior_mean(ratio):
    """By the definition: the bit is 1, its channel gives y = bit + noise, and Bayes' rule gives the mean."""
    noise = 1 / ratio**0.5

    def squared_error(y: float) -> float:
        return stats.norm.pdf(y, 1, noise) * (np.tanh(y / noise**2) - 1) ** 2

    expected, _ = integrate.quad(squared_error, 1 - 12 * noise, 1 + 12 * noise, points=[0, 1], limit=500)
    assert binary_error(ratio) == pytest.approx(expected, rel=1e-7)
    assert binary_error(np.array([[ratio, 1]])).shape == (1, 2)
    assert binary_error(0) == pytest.approx(1)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(beta_schedule="linear", timesteps=200), Recipe(timesteps=3)])
@pytest.mark.parametrize("name", ["twins", "scales"])
def test_bounds_are_means_over_the_chain_and_the_image(name, recipe):
    pattern = PATTERNS[name](8)
    bounds = loss_bounds(pattern, recipe)
    signal = noise_scheduler(recipe).alphas_cumprod.double().numpy()
    chain = recipe.timesteps
    for shared, found in ((False, bounds.own), (True, bounds.shared)):
        means = []
        for low, high in ((chain * part // 4, chain * (part + 1) // 4) for part in range(4)):
            steps = range(low, max(high, low + 1))
            pixels = pattern.pixels(shared)[pattern.pixels(shared) > 0]
            errors = [VALUE**2 * binary_error(VALUE**2 * pixels * s / (1 - s)) * s / (1 - s) for s in signal[steps]]
            means.append(np.sum(errors) / len(steps) / pattern.size**2)
        assert list(found) == ["loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4"]
        assert list(found.values()) == pytest.approx([np.mean(means), *means], rel=1e-9)


@pytest.mark.parametrize("name", PATTERNS)
def test_bounds_are_those_of_every_size(name):
    found = [loss_bounds(PATTERNS[name](size)) for size in SIZES]
    for part in ("own", "shared"):
        first, *others = ([*getattr(bounds, part).values()] for bounds in found)
        assert all(other == pytest.approx(first, rel=1e-12) for other in others)
    assert loss_bounds(name).own["loss"] > 2 * loss_bounds(name).shared["loss"]


def test_the_share_of_the_gain():
    bounds = loss_bounds("twins")
    own, shared = bounds.own["loss"], bounds.shared["loss"]
    assert (own, shared) == (pytest.approx(0.0447, abs=5e-5), pytest.approx(0.0195, abs=5e-5))
    assert [bounds.gain_share(loss) for loss in (own, (own + shared) / 2, shared)] == pytest.approx([0, 0.5, 1])
    assert gain_share(0.03, "twins") == bounds.gain_share(0.03)
    assert gain_share(own, "twins", Recipe(timesteps=100)) == pytest.approx(0, abs=1e-5)  # as much noise, in few steps
    assert gain_share(own, "twins", Recipe(beta_schedule="linear")) < -0.1


# the denoiser


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "pattern", [twins(8), twins(8, mirrored=True), twins(8, below=True), scales(16)], ids=lambda pattern: pattern.name
)
def test_it_is_the_mean_over_all_images_there_are(pattern, prediction):
    """Bayes' rule by brute force: each possible image weighs as likely as it makes the noisy one."""
    recipe = Recipe(prediction=prediction)
    signs = np.array(list(itertools.product([-VALUE, VALUE], repeat=pattern.n_bits)))
    every = np.append(signs, np.zeros((len(signs), 1)), 1)[:, pattern.bits].reshape(len(signs), -1)
    clean = pattern.draw(6, seed=8).images
    timesteps = torch.tensor([0, 150, 400, 600, 800, 999])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    scheduler = noise_scheduler(recipe)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    signal = scheduler.alphas_cumprod[timesteps].double().numpy()[:, None]
    far = noisy.double().flatten(1).numpy()[:, None] - np.sqrt(signal)[:, None] * every
    logs = -(far**2).sum(2) / (2 * (1 - signal))
    weights = np.exp(logs - logs.max(1, keepdims=True))
    image = weights / weights.sum(1, keepdims=True) @ every
    found_noise = (noisy.flatten(1).double().numpy() - np.sqrt(signal) * image) / np.sqrt(1 - signal)
    expected = {
        "epsilon": found_noise,
        "v_prediction": np.sqrt(signal) * found_noise - np.sqrt(1 - signal) * image,
        "sample": image,
    }[prediction]
    output = BayesDenoiser(pattern, recipe)(noisy, timesteps)
    assert output.shape == noisy.shape
    assert output.dtype == torch.float32
    assert output.flatten(1).numpy() == pytest.approx(expected, abs=2e-5)


def test_without_the_other_cells_it_is_blind_to_all_but_its_cell():
    pattern = twins(16)
    noisy = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    timesteps = torch.tensor([500])
    for shared, seen in ((False, [(4, 6)]), (True, [(4, 6), (4, 14)])):
        output = BayesDenoiser(pattern, Recipe(prediction="sample"), shared=shared)(noisy, timesteps)
        (slope,) = torch.autograd.grad(output[0, 0, 5, 7], noisy)
        expected = torch.zeros(16, 16, dtype=torch.bool)
        for row, column in seen:
            expected[row : row + 2, column : column + 2] = True
        assert torch.equal(slope[0, 0] != 0, expected)


def losses(pattern, shared: bool, recipe: Recipe, parts: int = 16) -> np.ndarray:
    """Held-out losses of the denoiser on disjoint parts of the held-out set, each with noise of its own: (parts,)."""
    held_out, model = pattern.draw(HELD_OUT, split="held-out"), BayesDenoiser(pattern, recipe, shared=shared)
    places = np.arange(HELD_OUT).reshape(parts, -1)
    return np.array([denoising_loss(model, held_out.select(p), recipe, seed=s)["loss"] for s, p in enumerate(places)])


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize(("name", "size"), [("twins", 16), ("twins_mirrored", 16), ("scales", 32)])
def test_what_it_loses_is_the_bound(name, size, shared):
    bounds, found = loss_bounds(name), losses(PATTERNS[name](size), shared, Recipe())
    expected = (bounds.shared if shared else bounds.own)["loss"]
    error = found.std(ddof=1) / len(found) ** 0.5
    assert error < 0.02 * expected  # so that a wrong formula would be seen
    assert abs(found.mean() - expected) < 2 * error


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_it_loses_the_same_whatever_it_predicts(prediction):
    pattern = twins(16)
    images = pattern.draw(64)
    found = denoising_loss(BayesDenoiser(pattern, Recipe(prediction=prediction)), images, Recipe(prediction=prediction))
    expected = denoising_loss(BayesDenoiser(pattern), images)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_who_cannot_see_the_twin_gains_nothing():
    shares = [loss_bounds("twins").gain_share(loss) for loss in losses(twins(16), False, Recipe())]
    interval = stats.t.interval(0.95, len(shares) - 1, np.mean(shares), stats.sem(shares))
    assert interval[0] < 0 < interval[1]
    assert interval[1] - interval[0] < 0.1
