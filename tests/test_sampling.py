"""Sampling: DDIM, DDPM and guidance against their formulas, with the same starting noise for all variants."""

import re

import numpy as np
import pytest
import torch
from parity_data import with_parity_weights
from torch import nn

from hae_lab import HAELabError, build, config
from hae_lab.diffusion.sampling import SAMPLERS, denoise, sample, sampling_scheduler, starting_noise, starting_timestep
from hae_lab.diffusion.training import CHOICES, SAMPLING, Recipe, noise_scheduler, stream_seed

SIZE = 8
TINY = config("v2", "tiny", image_size=SIZE, dropout=0.4)
LABELS = torch.tensor([0, 2, 1, -1])

every_prediction = pytest.mark.parametrize("prediction", CHOICES["prediction"])
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Weights that make every part of the model speak; fresh ones predict 0."""
    return with_parity_weights(build(TINY))


class Knowing(nn.Module):
    """Predicts perfectly, because it knows the clean images (1, C, H, W) or (B, C, H, W)."""

    def __init__(self, clean: torch.Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.clean, self.recipe = nn.Parameter(clean), recipe
        self.shares = noise_scheduler(recipe).alphas_cumprod
        self.config = config("unet", "tiny", image_size=clean.shape[-1], in_channels=clean.shape[1])

    def forward(self, x, timesteps, y=None):
        share = self.shares[timesteps][:, None, None, None]
        clean = self.clean.expand_as(x)
        noise = (x - share.sqrt() * clean) / (1 - share).sqrt()
        return {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": share.sqrt() * noise - (1 - share).sqrt() * clean,
        }[self.recipe.prediction]


class Labelled(nn.Module):
    """The clean image is everywhere label / 4, or -1 without label."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.weight, self.seen = TINY, nn.Parameter(torch.zeros(())), []

    def forward(self, x, timesteps, y=None):
        self.seen.append(len(x))
        level = torch.full((len(x),), -1.0) if y is None else y / 4
        return level[:, None, None, None].expand_as(x)


# the noise and the steps


def test_starting_noise_is_normal_and_one_for_all():
    noise = starting_noise(500, (1, SIZE, SIZE), seed=3)
    assert noise.shape == (500, 1, SIZE, SIZE)
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert torch.equal(noise, starting_noise(500, (1, SIZE, SIZE), seed=3))
    assert not torch.equal(noise, starting_noise(500, (1, SIZE, SIZE), seed=4))


@pytest.mark.parametrize("variant", ["unet", "hae", "lite"])
def test_samples_begin_with_the_starting_noise_of_the_seed(variant, monkeypatch):
    seen = []
    model = build(config(variant, "tiny", image_size=SIZE))
    monkeypatch.setattr(model, "forward", lambda x, t, y=None: (seen.append((x, t[0].item())), torch.zeros_like(x))[1])
    sample(model, 5, steps=2, seed=8, batch_size=3)
    first = torch.cat([x for x, t in seen if t == 999])
    assert torch.equal(first, starting_noise(5, (1, SIZE, SIZE), seed=8))


@every_sampler
def test_the_timesteps_begin_with_pure_noise_except_for_epsilon(sampler):
    found = {p: sampling_scheduler(Recipe(prediction=p), sampler, 25).timesteps.tolist() for p in CHOICES["prediction"]}
    assert found["v_prediction"] == found["sample"] == list(range(999, 0, -40))
    assert found["epsilon"] == list(range(960, -1, -40))
    assert sampling_scheduler(Recipe(timesteps=8), sampler, 8).timesteps.tolist() == list(range(7, -1, -1))


@pytest.mark.parametrize(("prediction", "start", "first"), [("sample", 200, 199), ("epsilon", 200, 200)])
def test_a_start_takes_the_timesteps_up_to_it(prediction, start, first):
    recipe = Recipe(prediction=prediction)
    assert starting_timestep(recipe, start, 25) == first
    clean = torch.zeros(1, 1, SIZE, SIZE)
    taken = [step.timestep for step in denoise(Knowing(clean, recipe), clean, recipe, start=start)]
    assert taken == [timestep for timestep in range(first, -1, -40) if timestep >= 0]


# against the formulas


def shares_of(recipe: Recipe, timestep: int) -> tuple[float, float]:
    share = noise_scheduler(recipe).alphas_cumprod.double()[timestep].item() if timestep >= 0 else 1.0
    return share, 1 - share


def clean_and_noise(output, x, recipe: Recipe, timestep: int):
    """What a prediction says of the image: the clean one and the noise."""
    share, rest = shares_of(recipe, timestep)
    if recipe.prediction == "epsilon":
        clean, noise = (x - rest**0.5 * output) / share**0.5, output
    elif recipe.prediction == "sample":
        clean, noise = output, (x - share**0.5 * output) / rest**0.5
    else:
        clean, noise = share**0.5 * x - rest**0.5 * output, share**0.5 * output + rest**0.5 * x
    return clean, noise


@every_prediction
def test_ddim_is_its_formula(model, prediction):
    recipe = Recipe(prediction=prediction)
    x = starting_noise(4, (1, SIZE, SIZE))
    steps = list(denoise(model, x, recipe, steps=5, labels=LABELS))
    for step in steps:
        t = torch.full((4,), step.timestep)
        clean, noise = clean_and_noise(model(x, t, LABELS).detach(), x, recipe, step.timestep)
        share, rest = shares_of(recipe, step.timestep - 200)
        torch.testing.assert_close(step.clean, clean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(step.images, share**0.5 * clean + rest**0.5 * noise, atol=1e-4, rtol=1e-3)
        x = step.images
    assert len(steps) == 5
    assert steps[-1].timestep - 200 < 0  # so that the last images are clean


@every_sampler
def test_clean_images_are_held_to_the_range_of_images_only_if_asked(model, sampler):
    recipe, x = Recipe(), 3 * starting_noise(4, (1, SIZE, SIZE))
    free, held = (
        next(denoise(model, x, recipe, sampler=sampler, labels=LABELS, clip_sample=clip)) for clip in (False, True)
    )
    assert free.clean.abs().max() > 1.5
    torch.testing.assert_close(held.clean, free.clean.clamp(-1, 1))
    assert not torch.allclose(held.images, free.images, atol=0.01)


def test_samples_are_held_to_the_range_of_images_in_the_end(model):
    options = {"labels": LABELS, "steps": 5}
    *_, last = denoise(model, starting_noise(4, (1, SIZE, SIZE)), seed=stream_seed(0, 0), **options)
    assert last.images.abs().max() > 1
    assert torch.equal(sample(model, 4, **options), last.images.clamp(-1, 1))


@every_prediction
def test_ddpm_is_its_formula(model, prediction):
    recipe = Recipe(prediction=prediction)
    x = starting_noise(4, (1, SIZE, SIZE), seed=2)
    generator = torch.Generator().manual_seed(stream_seed(2, SAMPLING))
    for step in denoise(model, x, recipe, steps=5, labels=LABELS, sampler="ddpm", seed=2):
        t = torch.full((4,), step.timestep)
        clean, _ = clean_and_noise(model(x, t, LABELS).detach(), x, recipe, step.timestep)
        (share, rest), (before, rest_before) = (shares_of(recipe, step.timestep - back) for back in (0, 200))
        beta = 1 - share / before  # equations 6 and 7 of Ho et al.
        mean = before**0.5 * beta / rest * clean + (share / before) ** 0.5 * rest_before / rest * x
        deviation = (rest_before / rest * beta) ** 0.5
        noise = torch.randn(x.shape, generator=generator) if step.timestep > 0 else 0
        torch.testing.assert_close(step.images, mean + deviation * noise, atol=2e-4, rtol=1e-4)
        x = step.images


@every_sampler
@every_prediction
def test_a_perfect_model_finds_the_image(prediction, sampler):
    recipe = Recipe(prediction=prediction)
    clean = 0.9 * torch.rand(3, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    *_, last = denoise(Knowing(clean, recipe), torch.randn(clean.shape), recipe, steps=10, sampler=sampler)
    torch.testing.assert_close(last.images, clean, atol=2e-3, rtol=0)


def test_the_noise_of_ddpm_is_not_the_starting_noise():
    recipe = Recipe(prediction="sample", timesteps=10)
    noise = starting_noise(64, (1, SIZE, SIZE), seed=5)
    step = next(
        denoise(Knowing(torch.zeros(1, 1, SIZE, SIZE), recipe), noise, recipe, sampler="ddpm", steps=10, seed=5)
    )
    (share, rest), (before, rest_before) = (shares_of(recipe, timestep) for timestep in (9, 8))
    kept = (share / before) ** 0.5 * rest_before / rest * noise
    added = (step.images - kept).flatten()
    assert added.std() > 0.3
    assert abs(np.corrcoef(added, noise.flatten())[0, 1]) < 0.06


# guidance and labels


@every_prediction
def test_guidance_is_its_formula(model, prediction):
    recipe = Recipe(prediction=prediction)
    x, t = starting_noise(4, (1, SIZE, SIZE)), torch.full((4,), sampling_scheduler(recipe, "ddim", 5).timesteps[0])
    with_label, without = model(x, t, LABELS).detach(), model(x, t).detach()
    assert (with_label - without)[:3].abs().max() > 0.01
    assert torch.equal(with_label[3], without[3])  # label -1 is none
    for guidance in (0.0, 1.0, 2.5):
        step = next(denoise(model, x, recipe, steps=5, labels=LABELS, guidance=guidance))
        output = without + guidance * (with_label - without)
        clean, _ = clean_and_noise(output, x, recipe, int(t[0]))
        torch.testing.assert_close(step.clean, clean, atol=1e-4, rtol=1e-4)


def test_guidance_one_is_the_conditional_model_and_asks_it_once():
    labelled = Labelled()
    recipe = Recipe(prediction="sample")
    noise = starting_noise(4, (1, SIZE, SIZE))
    *_, last = denoise(labelled, noise, recipe, labels=torch.tensor([0, 1, 2, 2]), steps=5)
    assert last.images[:, 0, 0, 0].tolist() == pytest.approx([0, 0.25, 0.5, 0.5], abs=1e-6)
    assert labelled.seen == [4] * 5
    *_, last = denoise(labelled, noise, recipe, labels=torch.tensor([0, 1, 2, 2]), guidance=0, steps=5)
    assert last.images.unique().tolist() == [-1]


def test_every_image_keeps_its_label_over_batches():
    labels = torch.tensor([2, 0, 1, 2, 1, 0, 2])
    labelled = Labelled()
    images = sample(labelled, 7, Recipe(prediction="sample"), labels=labels, steps=2, batch_size=3)
    assert images.shape == (7, 1, SIZE, SIZE)
    assert images[:, 0, 3, 3].tolist() == pytest.approx((labels / 4).tolist(), abs=1e-6)
    assert labelled.seen == [3, 3, 3, 3, 1, 1]


# samples


@every_sampler
def test_one_seed_is_one_result_and_another_differs(model, sampler):
    options = {"steps": 4, "sampler": sampler, "batch_size": 4}
    first, second, other = (sample(model, 6, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1
    assert len({image.numpy().tobytes() for image in first}) == 6


def test_only_ddpm_draws_on_the_way(model):
    x = starting_noise(2, (1, SIZE, SIZE))
    last = {
        (sampler, seed): list(denoise(model, x, steps=4, sampler=sampler, seed=seed))[-1].images
        for sampler in SAMPLERS
        for seed in (0, 1)
    }
    assert torch.equal(last["ddim", 0], last["ddim", 1])
    assert not torch.equal(last["ddpm", 0], last["ddpm", 1])


def test_batches_of_ddim_make_no_difference(model):
    whole, parts = (sample(model, 5, steps=4, batch_size=batch_size) for batch_size in (64, 2))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


def test_batches_of_ddpm_have_noise_of_their_own():
    recipe = Recipe(prediction="sample", timesteps=4)
    zero = Knowing(torch.zeros(1, 1, SIZE, SIZE), recipe)
    seen = []
    zero.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sample(zero, 2, recipe, steps=4, sampler="ddpm", batch_size=1)
    second_of_each = torch.stack([seen[1], seen[5]]).flatten(1)
    assert abs(np.corrcoef(second_of_each)[0, 1]) < 0.5


@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_the_mode_of_the_model_is_put_back_and_dropout_is_off(mode):
    model = with_parity_weights(build(TINY)).train(mode)
    x = starting_noise(2, (1, SIZE, SIZE))
    first, second = (list(denoise(model, x, steps=4))[-1].images for _ in range(2))
    assert torch.equal(first, second)
    assert model.training is mode
    half = denoise(model, x, steps=4)
    next(half)
    half.close()
    assert model.training is mode
    with refused("labels [9] are out of range"):
        next(denoise(model, x[:1], labels=torch.tensor([9])))
    assert model.training is mode
    assert all(module.training is mode for module in model.modules())


def test_global_random_states_are_untouched_and_no_gradient_is_kept(model, random_states):
    before = random_states()
    images = sample(model, 2, steps=2, sampler="ddpm")
    assert random_states() == before
    assert not images.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddim2"}, "unknown sampler 'ddim2': did you mean 'ddim'?"),
        ({"steps": 0}, "steps is a whole number from 1 to 1,000, got 0"),
        ({"steps": 1001}, "steps is a whole number from 1 to 1,000, got 1001"),
        ({"steps": 30}, "steps=30 does not divide the chain of 1000"),
        ({"start": 10}, "start=10 is before the first timestep, 39: raise it"),
        ({"guidance": 2.0}, "guidance=2.0 needs labels (B,)"),
        ({"count": 0}, "count is a whole number from 1, got 0"),
        ({"labels": torch.tensor([1])}, "2 images take as many labels"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_refused(model, options, message):
    with refused(message):
        sample(model, options.pop("count", 2), **options)


def test_labels_for_a_model_without_classes_are_refused():
    with refused("unconditional model"):
        sample(build(TINY.replace(num_classes=None)), 1, labels=torch.tensor([0]))
