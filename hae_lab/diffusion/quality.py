"""Quality: held-out denoising loss under common random numbers, distances between sets of images, anomaly maps."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hae_lab.checks import require, require_name, require_seed, require_whole
from hae_lab.diffusion.sampling import STEPS, denoise, eval_mode, starting_noise, starting_timestep
from hae_lab.diffusion.training import MEASURING, Recipe, known_labels, noise_scheduler, stream_seed
from hae_lab.models import HAEUNet

QUARTILES = 4


def denoising_loss(
    model: HAEUNet, dataset: Dataset, recipe: Recipe | None = None, *, seed: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """Mean squared error of the noise found in held-out images: "loss", and "loss_q1" (least noise) to "loss_q4".

    Each image is seen at one timestep of each quarter of the chain; timesteps and noise depend on the seed alone, so
    that two models are compared on the same draws. Whatever the model predicts, the error is that of the noise.
    """
    require(len(dataset) > 0, "the dataset is empty")
    sums = torch.zeros(QUARTILES, dtype=torch.float64)
    for losses in _batch_losses(model, dataset, recipe or Recipe(), seed, batch_size):
        sums += losses.sum(1)
    means = (sums / len(dataset)).tolist()
    return {"loss": sum(means) / QUARTILES} | {f"loss_q{place}": mean for place, mean in enumerate(means, 1)}


def image_losses(
    model: HAEUNet, dataset: Dataset, recipe: Recipe | None = None, *, seed: int = 0, batch_size: int = 64
) -> Tensor:
    """The loss of each image by itself, (N,): `denoising_loss` is their mean."""
    return torch.cat([losses.mean(0) for losses in _batch_losses(model, dataset, recipe or Recipe(), seed, batch_size)])


@torch.no_grad()
def _batch_losses(model: HAEUNet, dataset: Dataset, recipe: Recipe, seed: int, batch_size: int) -> Iterator[Tensor]:
    """The mean squared errors of each batch, (QUARTILES, B)."""
    batch_size, seed = require_whole("batch_size", batch_size, 1), require_seed("seed", seed)
    scheduler = noise_scheduler(recipe)
    generator = torch.Generator().manual_seed(stream_seed(seed, MEASURING))
    device = next(model.parameters()).device
    with eval_mode(model):
        for batch in DataLoader(dataset, batch_size, generator=torch.Generator()):
            images, labels = batch["image"], known_labels(model.config, batch)
            labels = None if labels is None else labels.to(device)
            losses = []
            for timesteps, noise in _draws(images, recipe.timesteps, generator):
                noisy = scheduler.add_noise(images, noise, timesteps)
                output = model(noisy.to(device), timesteps.to(device), labels).float().cpu()
                found = as_noise(output, noisy, scheduler.alphas_cumprod[timesteps], recipe.prediction)
                losses.append((found - noise).double().square().flatten(1).mean(1))
            yield torch.stack(losses)


def quarters(chain: int) -> list[tuple[int, int]]:
    """First timestep and the one after the last of each quarter of a chain; a short chain's quarters overlap."""
    edges = [chain * edge // QUARTILES for edge in range(QUARTILES + 1)]
    return [(low, max(high, low + 1)) for low, high in pairwise(edges)]


def _draws(images: Tensor, chain: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(timesteps (B,), noise (B, C, H, W)) a quartile, drawn image by image, so that batches make no difference."""
    spans = quarters(chain)
    timesteps, noise = torch.empty(QUARTILES, len(images), dtype=torch.int64), torch.empty(QUARTILES, *images.shape)
    for place in range(len(images)):
        for quartile, span in enumerate(spans):
            timesteps[quartile, place] = torch.randint(*span, (), generator=generator)
            noise[quartile, place] = torch.randn(images.shape[1:], generator=generator)
    return list(zip(timesteps, noise, strict=True))


def as_noise(output: Tensor, noisy: Tensor, alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """The noise that an output (B, C, H, W) stands for, with the signal's share `alphas_cumprod` (B,) of each image."""
    signal, rest = (share.sqrt()[:, None, None, None] for share in (alphas_cumprod, 1 - alphas_cumprod))
    if prediction == "epsilon":
        return output
    return signal * output + rest * noisy if prediction == "v_prediction" else (noisy - signal * output) / rest


# distances between two sets of images


def sliced_wasserstein(first: Tensor, second: Tensor, *, projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of two sets of images (N, ...) by random projections of their pixels.

    Source: Bonneel et al. 2015, https://doi.org/10.1007/s10851-014-0506-3. Raises `HAELabError` for unequal sets.
    """
    first, second = _flat_pair(first, second)
    directions = _directions(first.shape[1], projections, seed)
    gap = (first @ directions).sort(0).values - (second @ directions).sort(0).values
    return gap.square().mean().sqrt().item()


def _directions(pixels: int, count: int, seed: int) -> Tensor:
    """Random directions of length 1: (pixels, count)."""
    count = require_whole("projections", count, 1)
    generator = torch.Generator().manual_seed(require_seed("seed", seed))
    directions = torch.randn((pixels, count), generator=generator, dtype=torch.float64)
    return directions / directions.norm(dim=0)


def mmd(first: Tensor, second: Tensor, *, median: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of images (N, ...), around 0 when they are alike.

    Mean of three Gaussian kernels, half, once and twice as wide as the median distance within `second`, the real
    images, or as the one whose square is `median`.
    Source: Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html.
    """
    first, second = _flat_pair(first, second)
    count = len(first)
    squares = _squares(torch.cat([first, second]))
    kernel = _kernel(squares, _median(squares[count:, count:]) if median is None else median)
    within = [_mean_off_diagonal(block) for block in (kernel[:count, :count], kernel[count:, count:])]
    return (sum(within) - 2 * kernel[:count, count:].mean()).item()


def _squares(flat: Tensor) -> Tensor:
    return torch.cdist(flat, flat).square()  # (N, N)


def _median(squares: Tensor) -> float:
    """Of the squared distances (N, N) of different images."""
    return squares[~torch.eye(len(squares), dtype=torch.bool)].median().item()


def _kernel(squares: Tensor, median: float) -> Tensor:
    return sum((torch.exp(-squares / (2 * scale**2 * median)) for scale in (0.5, 1, 2)), torch.zeros(())) / 3


def _mean_off_diagonal(square: Tensor) -> Tensor:
    return (square.sum() - square.diagonal().sum()) / (square.numel() - len(square))


def _flat_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    require(
        first.shape == second.shape and len(first) > 1,
        f"two sets of equally many images (N > 1) of one size, got {tuple(first.shape)} and {tuple(second.shape)}",
    )
    _check_finite(first)
    _check_finite(second)
    return first.flatten(1).double(), second.flatten(1).double()


def sample_gaps(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Which part of the distribution of real images (N, ...) samples miss.

    "mean_gap": root mean square of the difference of the mean images. "spread": standard deviation of the samples over
    that of real images, all pixels together. "mmd_matched": the `mmd` that is left when each pixel of the samples is
    given the mean and standard deviation of the real ones; near `mmd` if these are not what is missed.
    """
    samples, real = _flat_pair(samples, real)
    gap, spreads = samples.mean(0) - real.mean(0), [images.std(0) for images in (samples, real)]
    matched = (samples - samples.mean(0)) / spreads[0].clamp_min(1e-12) * spreads[1] + real.mean(0)
    return {
        "mean_gap": gap.square().mean().sqrt().item(),
        "spread": (spreads[0].square().sum() / spreads[1].square().sum()).sqrt().item(),
        "mmd_matched": mmd(matched, real),
    }


def real_floor(images: Tensor, splits: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    """The distances between random halves of real images (N, ...): what a perfect generator would get.

    Returns "swd", "mmd", "mean_gap" and "spread", (splits,) each; all splits share the kernels of the median distance
    of all images.
    """
    splits, seed = require_whole("splits", splits, 1), require_seed("seed", seed)
    _check_finite(images)
    require(len(images) >= 4, f"halves of at least 2 images each need 4 images, got {len(images)}")
    half = len(images) // 2
    orders = np.stack([np.random.default_rng((seed, split)).permutation(len(images)) for split in range(splits)])
    sides = torch.zeros(2, splits, len(images), dtype=torch.float64)  # which images are in which half
    for side, places in zip(sides, (orders[:, :half], orders[:, half : 2 * half]), strict=True):
        side.scatter_(1, torch.from_numpy(places), 1.0)
    flat = images.flatten(1).double()
    return {"swd": _split_swd(flat, sides), "mmd": _split_mmd(flat, sides)} | _split_gaps(flat, sides)


def _split_swd(flat: Tensor, sides: Tensor) -> np.ndarray:
    """Sliced Wasserstein distance of the two sides of each split: all images are sorted once."""
    projected, order = (flat @ _directions(flat.shape[1], 256, 0)).T.sort(1)  # (256, N)
    found = []
    for first, second in zip(*(sides > 0), strict=True):
        halves = [projected[side[order]].unflatten(0, (256, -1)) for side in (first, second)]
        found.append((halves[0] - halves[1]).square().mean().sqrt().item())
    return np.array(found)


def _split_mmd(flat: Tensor, sides: Tensor) -> np.ndarray:
    """`mmd` of the two sides of each split."""
    squares = _squares(flat)
    kernel = _kernel(squares, _median(squares))
    count = sides[0].sum(1)  # images a side
    within = [((side @ kernel * side).sum(1) - side @ kernel.diagonal()) / (count * (count - 1)) for side in sides]
    between = (sides[0] @ kernel * sides[1]).sum(1) / count**2
    return (within[0] + within[1] - 2 * between).numpy()


def _split_gaps(flat: Tensor, sides: Tensor) -> dict[str, np.ndarray]:
    """`sample_gaps` of the two sides of each split, from the sums of their pixels and squares."""
    count = sides[0].sum(1)[:, None]  # images a side
    means = [side @ flat / count for side in sides]  # (splits, pixels)
    pairs = zip(sides, means, strict=True)
    variances = [((side @ flat.square() - count * mean.square()) / (count - 1)).sum(1) for side, mean in pairs]
    return {
        "mean_gap": (means[0] - means[1]).square().mean(1).sqrt().numpy(),
        "spread": (variances[0] / variances[1]).sqrt().numpy(),
    }


# anomaly maps

# what counts as an anomaly in image - restored: any change, tissue that is too bright, tissue that is too dark
SIGNS: dict[str, Callable[[Tensor], Tensor]] = {"absolute": Tensor.abs, "bright": Tensor.clone, "dark": Tensor.neg}


def anomaly_maps(
    model: HAEUNet,
    images: Tensor,
    recipe: Recipe | None = None,
    *,
    sign: str = "absolute",
    draws: int = 4,
    window: int = 3,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """How far images (N, C, H, W) are from what the model makes of them, (N, 1, H, W).

    A model of healthy images noises each, denoises it and so replaces what it does not know; `difference_maps` says how
    the differences of `draws` of the noise make a map. `options` are those of `restore`: a conditional model takes the
    `labels` of healthy images.
    Source: Wyatt et al. 2022 (AnoDDPM), https://doi.org/10.1109/CVPRW56347.2022.00080.
    """
    draws, seed = require_whole("draws", draws, 1), require_seed("seed", seed)
    _check_map(sign, window)
    _check_finite(images)
    restored = (restore(model, images, recipe, seed=seed + draw, **options) for draw in range(draws))
    return difference_maps(torch.stack([images - each for each in restored]), sign, window)


def difference_maps(differences: Tensor, sign: str = "absolute", window: int = 3) -> Tensor:
    """Differences (draws, N, C, H, W) of images to what was expected as maps (N, 1, H, W), larger where less likely.

    `sign` is one of `SIGNS`; the mean over draws, channels and `window` x `window` pixels, an odd number.
    """
    _check_map(sign, window)
    _check_finite(differences)
    gray = SIGNS[sign](differences).mean((0, 2))[:, None]  # (N, 1, H, W)
    return F.avg_pool2d(gray, window, stride=1, padding=window // 2, count_include_pad=False)


def _check_finite(images: Tensor) -> None:
    require(isinstance(images, Tensor), f"images are a torch tensor, got a {type(images).__name__}")
    wrong = int((~images.isfinite()).sum())
    require(wrong == 0, f"images are of finite numbers; {wrong:,} of {images.numel():,} values are NaN or infinite")


def _check_map(sign: str, window: int) -> None:
    require_name("sign", sign, SIGNS)
    require(require_whole("window", window, 1) % 2 == 1, f"window is an odd number of pixels, got {window!r}")


def restore(
    model: HAEUNet,
    images: Tensor,
    recipe: Recipe | None = None,
    *,
    start: int = 200,
    steps: int = STEPS,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """Images (N, C, H, W) noised to timestep `start` and denoised again; `options` are those of `denoise`."""
    recipe = recipe or Recipe()
    _check_finite(images)
    first = starting_timestep(recipe, start, steps)
    noise = starting_noise(len(images), tuple(images.shape[1:]), seed)
    noisy = noise_scheduler(recipe).add_noise(images, noise, torch.full((len(images),), first))
    *_, last = denoise(model, noisy, recipe, start=first, steps=steps, seed=seed, **options)
    return last.images.clamp(-1, 1).cpu()


def detection(maps: Tensor, masks: Tensor, inside: Tensor | None = None) -> dict[str, float]:
    """How well maps (N, 1, H, W) find the pixels of masks: "auroc", and "dice" at the best threshold.

    Of the pixels `inside` alone, (N, 1, H, W) bool, if it is given; all images share one threshold.
    Raises `HAELabError` for other shapes, a map with a value that is no number, and masks that are empty or full.
    """
    given = [each for each in (maps, masks, inside) if each is not None]
    kinds = [str(getattr(each, "dtype", type(each).__name__)) for each in given]
    right = all(isinstance(each, Tensor) for each in given) and all(each.dtype == torch.bool for each in given[1:])
    require(right, f"maps are a tensor of numbers, masks and inside of bool, got {', '.join(kinds)}")
    shapes = [tuple(each.shape) for each in given]
    require(len(set(shapes)) == 1, f"maps and masks have one shape, got {' and '.join(map(str, shapes))}")
    require(bool(maps.isfinite().all()), "a map has a value that is no finite number")
    chosen = torch.ones_like(masks) if inside is None else inside
    scores, truth = maps[chosen].double().numpy(), masks[chosen].numpy()
    share = truth.mean() if truth.size else 0.0
    require(0 < share < 1, f"detection needs pixels with and without lesion; {share:.0%} of them have one")
    return {"auroc": _auroc(scores, truth), "dice": _best_dice(scores, truth)}


def detection_by_image(maps: Tensor, masks: Tensor, inside: Tensor | None = None) -> list[dict[str, float]]:
    """`detection` in each image by itself, with a threshold of its own; images whose mask is empty or full are none."""
    chosen = torch.ones_like(masks) if inside is None else inside
    shares = [mask[where].float().mean() for mask, where in zip(masks, chosen, strict=True)]
    places = [place for place, share in enumerate(shares) if 0 < share < 1]
    return [detection(maps[[place]], masks[[place]], chosen[[place]]) for place in places]


def _auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs of pixels, one with and one without lesion, that are in the right order (Mann and Whitney)."""
    from scipy.stats import rankdata

    ill = int(truth.sum())
    above = rankdata(scores)[truth].sum() - ill * (ill + 1) / 2
    return float(above / (ill * (len(truth) - ill)))


def _best_dice(scores: np.ndarray, truth: np.ndarray) -> float:
    """Twice the overlap over both areas, of the pixels above the best threshold."""
    order = np.argsort(-scores, kind="stable")
    overlap, area = truth[order].cumsum(), np.arange(1, len(truth) + 1)
    threshold = np.append(np.diff(scores[order]) != 0, True)  # equal scores are above a threshold together
    return float((2 * overlap / (area + truth.sum()))[threshold].max())
