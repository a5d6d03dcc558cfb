"""Quality: losses against a computation by hand, distances against scipy and naive loops, maps against scikit-learn."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_data import with_parity_weights
from scipy.stats import wasserstein_distance
from sklearn.metrics import precision_recall_curve, roc_auc_score
from torch import nn

from hae_lab import HAELabError, build, config
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.quality import (
    anomaly_maps,
    as_noise,
    denoising_loss,
    detection,
    detection_by_image,
    difference_maps,
    mmd,
    real_floor,
    restore,
    sample_gaps,
    sliced_wasserstein,
)
from hae_lab.diffusion.sampling import denoise
from hae_lab.diffusion.training import CHOICES, Recipe, noise_scheduler

SIZE = 8
TINY = config("lite", "tiny", image_size=SIZE, dropout=0.4)
HELD_OUT = phantoms(7, SIZE, lesions=0.5, split="held-out")

every_prediction = pytest.mark.parametrize("prediction", CHOICES["prediction"])


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return with_parity_weights(build(TINY))


def shares_of(recipe: Recipe, timesteps: torch.Tensor) -> torch.Tensor:
    return noise_scheduler(recipe).alphas_cumprod.double()[timesteps][:, None, None, None]


class Knowing(nn.Module):
    """Knows the one clean image (1, C, H, W), and with it the noise; finds `error` more noise than there is."""

    def __init__(self, clean: torch.Tensor, recipe: Recipe | None = None, error: float = 0.0) -> None:
        super().__init__()
        self.config = config("unet", "tiny", image_size=SIZE, num_classes=None)
        self.clean, self.recipe, self.error = nn.Parameter(clean), recipe or Recipe(), error

    def forward(self, x, timesteps, y=None):
        x, share = x.double(), shares_of(self.recipe, timesteps)
        noise = (x - share.sqrt() * self.clean) / (1 - share).sqrt() + self.error
        clean = (x - (1 - share).sqrt() * noise) / share.sqrt()
        heads = {"epsilon": noise, "sample": clean, "v_prediction": share.sqrt() * noise - (1 - share).sqrt() * clean}
        return heads[self.recipe.prediction].float()


def copies(count: int) -> ImageSet:
    return HELD_OUT.select([0] * count)


# the held-out loss


@every_prediction
def test_the_loss_is_the_error_of_the_noise_by_hand(model, prediction):
    recipe = Recipe(prediction=prediction)
    seen = []
    hook = model.register_forward_hook(lambda module, inputs, output: seen.append((*inputs, output)))
    found = denoising_loss(model, HELD_OUT, recipe, seed=3, batch_size=4)
    hook.remove()
    assert [len(x) for x, *_ in seen] == [4] * 4 + [3] * 4
    errors = {place: [] for place in range(4)}
    for number, (x, timesteps, labels, output) in enumerate(seen):
        first = number // 4 * 4
        clean, x, output = HELD_OUT.images[first : first + len(x)].double(), x.double(), output.double()
        assert labels.tolist() == HELD_OUT.labels[first : first + len(x)].tolist()
        assert ((timesteps >= number % 4 * 250) & (timesteps < number % 4 * 250 + 250)).all()
        share = shares_of(recipe, timesteps)
        noise = (x - share.sqrt() * clean) / (1 - share).sqrt()
        assert noise.std() == pytest.approx(1, abs=0.25)
        predicted = {
            "epsilon": output,
            "sample": (x - share.sqrt() * output) / (1 - share).sqrt(),
            "v_prediction": (output + (1 - share).sqrt() / share.sqrt() * x) * share.sqrt(),
        }[prediction]
        errors[number % 4] += ((predicted - noise) ** 2).mean((1, 2, 3)).tolist()
    for place, values in errors.items():
        assert len(values) == len(HELD_OUT)
        assert found[f"loss_q{place + 1}"] == pytest.approx(np.mean(values), rel=1e-4)
    quartiles = [found[f"loss_q{place}"] for place in range(1, 5)]
    assert found["loss"] == pytest.approx(np.mean(quartiles), rel=1e-12)


@every_prediction
def test_a_perfect_model_has_no_loss_and_heads_of_one_guess_have_the_same(prediction):
    recipe = Recipe(prediction=prediction)
    clean = HELD_OUT.images[:1]
    assert denoising_loss(Knowing(clean, recipe), copies(9), recipe)["loss"] < 1e-5
    off = denoising_loss(Knowing(clean, recipe, error=0.3), copies(9), recipe)
    assert all(value == pytest.approx(0.09, rel=1e-3) for value in off.values())


@every_prediction
def test_as_noise_undoes_each_head(prediction):
    recipe = Recipe(prediction=prediction)
    clean, noise, timesteps = normal(5, 2, 4, 4), normal(5, 2, 4, 4, seed=1), torch.tensor([5, 100, 400, 700, 990])
    scheduler = noise_scheduler(recipe)
    output = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": scheduler.get_velocity(clean, noise, timesteps),
    }[prediction]
    noisy = scheduler.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(
        as_noise(output, noisy, scheduler.alphas_cumprod[timesteps], prediction), noise, atol=1e-4, rtol=1e-4
    )


def test_an_untrained_model_guesses_nothing():
    """Fresh weights output 0: as epsilon the error is that of the noise itself, which is 1."""
    found = denoising_loss(build(TINY), phantoms(64, SIZE, split="held-out"), Recipe(prediction="epsilon"))
    assert all(value == pytest.approx(1, abs=0.1) for value in found.values())


def test_batches_make_no_difference(model):
    whole, parts, single = (denoising_loss(model, HELD_OUT, batch_size=size) for size in (64, 3, 1))
    assert whole == pytest.approx(parts, rel=1e-5)
    assert whole == pytest.approx(single, rel=1e-5)


def test_two_models_see_the_same_draws_and_another_seed_others():
    seen = {}
    for variant in ("unet", "v2"):
        model = build(config(variant, "tiny", image_size=SIZE))
        for seed in (0, 1):
            inputs = seen[variant, seed] = []
            hook = model.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.extend(args[:2]))
            denoising_loss(model, HELD_OUT, seed=seed)
            hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(seen["unet", 0], seen["v2", 0], strict=True))
    assert not torch.equal(seen["unet", 0][0], seen["unet", 1][0])
    noisiest = torch.stack(seen["unet", 0][4::2]).flatten(1)  # of the third and fourth quarter: noise of their own
    assert abs(np.corrcoef(noisiest)[0, 1]) < 0.6


@pytest.mark.parametrize("mode", [True, False], ids=["training", "eval"])
def test_dropout_is_off_and_the_mode_is_put_back(model, random_states, mode):
    before, expected = random_states(), denoising_loss(model, HELD_OUT)
    again = with_parity_weights(build(TINY)).train(mode)
    assert denoising_loss(again, HELD_OUT) == expected
    assert again.training is mode
    assert random_states() == before


def test_a_short_chain_has_quartiles_too(model):
    for timesteps in (1, 2, 3, 5):
        found = denoising_loss(model, HELD_OUT, Recipe(timesteps=timesteps))
        assert all(math.isfinite(value) for value in found.values())


def test_a_model_with_classes_needs_labels(model):
    with refused("the model has num_classes=3, but the images have no labels"):
        denoising_loss(model, ImageSet(images=HELD_OUT.images))


# distances


def test_sliced_wasserstein_in_one_dimension_is_that_of_sorted_values():
    """Images of one pixel have one direction, +1 or -1."""
    first, second = normal(200, 1), 2 * normal(200, 1, seed=1) + 1
    a, b = np.sort(first.double().numpy().ravel()), np.sort(second.double().numpy().ravel())
    assert sliced_wasserstein(first, second) == pytest.approx(np.sqrt(np.mean((a - b) ** 2)), rel=1e-9)
    # where one set lies wholly above the other the 1-distance is a mean difference, and a lower bound
    assert sliced_wasserstein(first, second) >= wasserstein_distance(a, b)


def test_sliced_wasserstein_is_the_mean_over_projections():
    first, second = normal(50, 2, 3, 3), normal(50, 2, 3, 3, seed=1) * 1.5
    generator = torch.Generator().manual_seed(4)
    directions = torch.randn((18, 20), generator=generator, dtype=torch.float64).numpy()
    squares = []
    for direction in directions.T / np.linalg.norm(directions, axis=0)[:, None]:
        projected = [
            np.sort([float(np.dot(image.double().numpy().ravel(), direction)) for image in s]) for s in (first, second)
        ]
        levels = (np.arange(50) + 0.5) / 50
        quantiles = [np.quantile(values, levels, method="inverted_cdf") for values in projected]
        squares.append(np.mean((quantiles[0] - quantiles[1]) ** 2))
    assert sliced_wasserstein(first, second, projections=20, seed=4) == pytest.approx(np.sqrt(np.mean(squares)))


@pytest.mark.parametrize("step", [0.25, -2.0])
def test_sliced_wasserstein_of_a_shift_is_the_shift(step):
    """Shifting every pixel moves each projection by step * sum(direction), whose square is 1 on average."""
    first = normal(30, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn((64, 256), generator=generator, dtype=torch.float64)
    sums = (directions / directions.norm(dim=0)).sum(0)
    found = sliced_wasserstein(first, first + step)
    assert found == pytest.approx(abs(step) * sums.square().mean().sqrt().item(), rel=1e-6)
    assert found == pytest.approx(abs(step), rel=0.15)


def test_sliced_wasserstein_is_a_distance():
    first, second = normal(40, 1, 4, 4), 2 * normal(40, 1, 4, 4, seed=1)
    found = sliced_wasserstein(first, second)
    assert found == pytest.approx(sliced_wasserstein(second, first))
    assert sliced_wasserstein(first, first.flip(0)) == pytest.approx(0, abs=1e-12)
    assert found == sliced_wasserstein(first, second)
    assert found != sliced_wasserstein(first, second, seed=1)
    assert found == pytest.approx(sliced_wasserstein(first, second, seed=1), rel=0.2)


def naive_mmd(first: torch.Tensor, second: torch.Tensor) -> float:
    x, y = ([image.double().numpy().ravel() for image in images] for images in (first, second))
    n = len(x)
    within = sorted(((y[i] - y[j]) ** 2).sum() for i in range(n) for j in range(n) if i != j)
    median = within[(len(within) - 1) // 2]

    def kernel(a, b):
        square = ((a - b) ** 2).sum()
        return np.mean([math.exp(-square / (2 * (scale * math.sqrt(median)) ** 2)) for scale in (0.5, 1, 2)])

    off = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return off - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_mmd_is_its_double_sum(scale):
    first, second = scale * normal(9, 2, 3, 3), normal(9, 2, 3, 3, seed=1)
    assert mmd(first, second) == pytest.approx(naive_mmd(first, second), rel=1e-9)


def test_mmd_is_unbiased_and_sees_a_difference():
    alike = [mmd(normal(20, 1, 2, 2, seed=2 * n), normal(20, 1, 2, 2, seed=2 * n + 1)) for n in range(200)]
    assert min(alike) < 0 < max(alike)
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 200**0.5
    shifted = [mmd(normal(20, 1, 2, 2, seed=n) + 1, normal(20, 1, 2, 2, seed=n + 500)) for n in range(20)]
    assert min(shifted) > max(alike)


@pytest.mark.parametrize("distance", [sliced_wasserstein, mmd])
@pytest.mark.parametrize("shapes", [((4, 1, 2, 2), (5, 1, 2, 2)), ((4, 1, 2, 2), (4, 1, 4, 4)), ((1, 1, 2, 2),) * 2])
def test_unequal_sets_are_refused(distance, shapes):
    with refused(f"got {shapes[0]} and {shapes[1]}"):
        distance(*(torch.zeros(shape) for shape in shapes))


def test_the_real_floor_is_the_distance_of_random_halves():
    images = phantoms(21, SIZE).images
    floor = real_floor(images, splits=6, seed=2)
    assert set(floor) == {"swd", "mmd", "mean_gap", "spread"}
    assert all(values.shape == (6,) and len(set(values)) == 6 for values in floor.values())
    order = np.random.default_rng((2, 4)).permutation(21)
    pair = images[order[:10]], images[order[10:20]]
    assert floor["swd"][4] == pytest.approx(sliced_wasserstein(*pair), rel=1e-9)
    flat = images.flatten(1).double()
    median = torch.pdist(flat).repeat_interleave(2).median().item() ** 2  # each pair counts from both its images
    assert floor["mmd"][4] == pytest.approx(mmd(*pair, median=median), rel=1e-9)
    gaps = sample_gaps(*pair)
    assert all(floor[name][4] == pytest.approx(gaps[name], rel=1e-9) for name in ("mean_gap", "spread"))
    more = real_floor(images, splits=8, seed=2)
    assert all(more[name][:6] == pytest.approx(floor[name]) for name in floor)
    apart = sliced_wasserstein(images[:10], -images[10:20])
    assert apart > 3 * floor["swd"].max()
    with refused("need 4 images, got 3"):
        real_floor(images[:3])


def test_gaps_say_what_of_the_distribution_is_missed():
    real = phantoms(60, SIZE).images
    flat = real.double().numpy().reshape(60, -1)
    same = {"mmd_matched": mmd(real, real)}
    assert sample_gaps(real + 0.1, real) == pytest.approx({"mean_gap": 0.1, "spread": 1} | same, abs=1e-6)
    narrow = torch.from_numpy(0.5 * (flat - flat.mean(0)) + flat.mean(0)).reshape(real.shape)
    assert sample_gaps(narrow, real) == pytest.approx(
        {"mean_gap": 0, "spread": 0.5, "mmd_matched": mmd(real, real)}, abs=1e-6
    )
    other = phantoms(60, SIZE, seed=1).images
    found, drawn = sample_gaps(other, real), other.double().numpy().reshape(60, -1)
    assert found["mean_gap"] == pytest.approx(np.sqrt(np.mean((drawn.mean(0) - flat.mean(0)) ** 2)))
    assert found["spread"] == pytest.approx(np.sqrt(drawn.var(0, ddof=1).sum() / flat.var(0, ddof=1).sum()))
    assert mmd(narrow, real) > sample_gaps(narrow, real)["mmd_matched"] + 0.01


# anomaly maps


@every_prediction
def test_the_map_of_a_perfect_restorer_is_zero(prediction):
    recipe = Recipe(prediction=prediction)
    image = HELD_OUT.images[:1]
    assert anomaly_maps(Knowing(image, recipe), image.expand(3, -1, -1, -1), recipe, draws=2).abs().max() < 2e-3


def test_the_map_shows_what_the_model_does_not_know():
    """A model that knows one healthy head and nothing else restores it: the map is the lesion."""
    healthy, ill = (phantoms(1, SIZE, seed=6, lesions=lesions).images for lesions in (False, True))
    maps = anomaly_maps(Knowing(healthy), ill, draws=1, window=1)
    torch.testing.assert_close(maps, (ill - healthy).abs(), atol=2e-3, rtol=0)


def test_maps_average_a_window_of_the_pixels_that_exist():
    known, other = (normal(1, 1, SIZE, SIZE, seed=seed).tanh() for seed in (0, 1))
    smooth = anomaly_maps(Knowing(known), other, draws=2, window=3)
    change = (other - known).abs()[0, 0].numpy()
    for row, column in [(0, 0), (3, 4), (7, 2)]:
        near = change[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert smooth[0, 0, row, column] == pytest.approx(near.mean(), abs=2e-3)


def test_maps_average_channels_and_draws():
    recipe = Recipe()
    model = with_parity_weights(build(config("unet", "tiny", image_size=SIZE, in_channels=2, out_channels=2)))
    images = phantoms(2, SIZE).images.repeat(1, 2, 1, 1)
    maps = anomaly_maps(model, images, recipe, start=400, steps=5, draws=3, window=1, seed=7)
    restored = [restore(model, images, recipe, start=400, steps=5, seed=seed) for seed in (7, 8, 9)]
    by_hand = torch.stack([(images - one).abs().mean(1, keepdim=True) for one in restored]).mean(0)
    torch.testing.assert_close(maps, by_hand, atol=1e-6, rtol=1e-6)
    assert maps.shape == (2, 1, SIZE, SIZE)
    assert not torch.equal(restored[0], restored[1])


def test_restoring_is_noising_and_denoising_from_the_same_timestep(model):
    images = HELD_OUT.images
    found = restore(model, images, start=450, steps=5, seed=3)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    share = noise_scheduler(Recipe()).alphas_cumprod[399]  # of 999, 799, 599, 399 and 199 the first below 450
    *_, last = denoise(model, share.sqrt() * images + (1 - share).sqrt() * noise, start=399, steps=5)
    torch.testing.assert_close(found, last.images.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def test_restoring_under_a_label_is_denoising_under_it(model):
    images, labels = HELD_OUT.images, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    options = {"labels": labels, "guidance": 3.0}
    found = restore(model, images, start=450, steps=5, seed=3, **options)
    share = noise_scheduler(Recipe()).alphas_cumprod[399]
    noisy = share.sqrt() * images + (1 - share).sqrt() * normal(*images.shape, seed=3)
    *_, last = denoise(model, noisy, start=399, steps=5, **options)
    torch.testing.assert_close(found, last.images.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, restore(model, images, start=450, steps=5, seed=3), atol=1e-2)
    maps = anomaly_maps(model, images, start=450, steps=5, draws=1, window=1, seed=3, **options)
    torch.testing.assert_close(maps, (images - found).abs())


@pytest.mark.parametrize(("sign", "expected"), [("bright", 1), ("dark", -1)])
def test_signed_maps_keep_the_sign_of_the_mean_difference(sign, expected):
    known, other = (normal(1, 1, SIZE, SIZE, seed=seed).tanh() for seed in (0, 1))
    found = anomaly_maps(Knowing(known), other, sign=sign, draws=2, window=1)
    torch.testing.assert_close(found, expected * (other - known), atol=2e-3, rtol=0)


def test_maps_of_differences_are_means_of_their_absolute_or_signed_values():
    differences = normal(3, 2, 2, SIZE, SIZE)  # draws, images, channels
    absolute = [[differences[:, n, :, 1, 2].abs().mean()] for n in range(2)]
    torch.testing.assert_close(difference_maps(differences, window=1)[:, :, 1, 2], torch.tensor(absolute))
    signed = [[differences[:, n, :, 1, 2].mean()] for n in range(2)]
    torch.testing.assert_close(difference_maps(differences, "bright", 1)[:, :, 1, 2], torch.tensor(signed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sign": "drak"}, "unknown sign 'drak': did you mean 'dark'?"),
        ({"window": 2}, "window is an odd number of pixels, got 2"),
        ({"draws": 0}, "draws is a whole number from 1, got 0"),
        ({"start": 5}, "start=5 is before the first timestep, 39"),
    ],
    ids=["sign", "window", "draws", "start"],
)
def test_maps_that_make_no_sense_are_refused(model, options, message):
    with refused(message):
        anomaly_maps(model, HELD_OUT.images, **options)


@pytest.mark.parametrize("scale", [0.3, 2.0, 500.0])
def test_detection_is_scikit_learns(scale):
    masks = phantoms(12, 16, lesions=0.7).masks
    maps = scale * (0.2 * F.avg_pool2d(masks.float(), 3, 1, 1) + normal(*masks.shape).abs())
    found = detection(maps, masks)
    scores, truth = maps.double().numpy().ravel(), masks.numpy().ravel()
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found["dice"] == pytest.approx(f1.max(), abs=1e-9)


def test_detection_inside_a_region_leaves_the_rest_out():
    ill = phantoms(6, 16, lesions=True)
    maps, inside = normal(*ill.masks.shape).round(decimals=1), ill.images > -1  # rounded: with ties
    found = detection(maps, ill.masks, inside)
    truth, scores = ill.masks[inside].numpy(), maps[inside].numpy()
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    elsewhere = maps.where(inside, 99)
    assert detection(elsewhere, ill.masks, inside) == found
    assert detection(elsewhere, ill.masks) != detection(maps, ill.masks)


def test_detection_by_image_is_that_of_each_image_with_a_lesion():
    ill = phantoms(9, 16, lesions=0.5)
    maps, inside = normal(*ill.masks.shape), ill.images > -1
    found = detection_by_image(maps, ill.masks, inside)
    places = [n for n in range(9) if ill.labels[n]]
    assert 0 < len(places) < 9
    expected = [roc_auc_score(ill.masks[n][inside[n]], maps[n][inside[n]]) for n in places]
    assert [each["auroc"] for each in found] == pytest.approx(expected, abs=1e-9)
    assert [each["dice"] for each in found] == [
        detection(maps[[n]], ill.masks[[n]], inside[[n]])["dice"] for n in places
    ]


def test_dice_is_the_best_overlap_over_all_thresholds():
    masks, maps = phantoms(3, SIZE, lesions=True).masks, normal(3, 1, SIZE, SIZE)
    maps = maps + masks
    overlaps = []
    for threshold in maps.unique():
        found = maps >= threshold
        overlaps.append(2 * (found & masks).sum().item() / (found.sum() + masks.sum()).item())
    assert detection(maps, masks)["dice"] == pytest.approx(max(overlaps), abs=1e-6)


def test_detection_of_the_truth_is_one_and_of_chance_a_half():
    masks = phantoms(40, 16, lesions=True).masks
    assert detection(masks.float(), masks) == pytest.approx({"auroc": 1, "dice": 1})
    assert detection(torch.zeros(masks.shape), masks)["auroc"] == pytest.approx(0.5)
    assert detection(normal(*masks.shape), masks)["auroc"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool), "0% of them have one"),
        (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool), "100% of them have one"),
        (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 8, 8, dtype=torch.bool), "maps and masks have one shape"),
        (torch.full((2, 1, 4, 4), torch.nan), torch.ones(2, 1, 4, 4, dtype=torch.bool), "no finite number"),
    ],
    ids=["healthy", "ill", "shape", "nan"],
)
def test_detection_refuses(maps, masks, message):
    with refused(message):
        detection(maps, masks)
