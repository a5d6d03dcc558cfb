"""Quality: held-out denoising loss under common random numbers, distances between sets of images, anomaly maps."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hae_lab.checks import require, require_whole
from hae_lab.diffusion.sampling import STEPS, denoise, eval_mode, starting_noise, starting_timestep
from hae_lab.diffusion.training import MEASURING, Recipe, known_labels, noise_scheduler, stream_seed
from hae_lab.models import HAEUNet

QUARTILES = 4


@torch.no_grad()
def denoising_loss(
    model: HAEUNet, dataset: Dataset, recipe: Recipe | None = None, *, seed: int = 0, batch_size: int = 64
) -> dict[str, float]:
    """Mean squared error of the noise found in held-out images: "loss", and "loss_q1" (least noise) to "loss_q4".

    Each image is seen at one timestep of each quarter of the chain; timesteps and noise depend on the seed alone, so
    that two models are compared on the same draws. Whatever the model predicts, the error is that of the noise.
    """
    recipe = recipe or Recipe()
    scheduler = noise_scheduler(recipe)
    generator = torch.Generator().manual_seed(stream_seed(seed, MEASURING))
    device = next(model.parameters()).device
    sums = torch.zeros(QUARTILES, dtype=torch.float64)
    with eval_mode(model):
        for batch in DataLoader(dataset, batch_size, generator=torch.Generator()):
            images, labels = batch["image"], known_labels(model.config, batch)
            labels = None if labels is None else labels.to(device)
            for quartile, (timesteps, noise) in enumerate(_draws(images, recipe.timesteps, generator)):
                noisy = scheduler.add_noise(images, noise, timesteps)
                output = model(noisy.to(device), timesteps.to(device), labels).float().cpu()
                found = as_noise(output, noisy, scheduler.alphas_cumprod[timesteps], recipe.prediction)
                sums[quartile] += (found - noise).double().square().flatten(1).mean(1).sum()
    means = (sums / len(dataset)).tolist()
    return {"loss": sum(means) / QUARTILES} | {f"loss_q{place}": mean for place, mean in enumerate(means, 1)}


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
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn((first.shape[1], projections), generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    gap = (first @ directions).sort(0).values - (second @ directions).sort(0).values
    return gap.square().mean().sqrt().item()


def mmd(first: Tensor, second: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of images (N, ...), around 0 when they are alike.

    Mean of three Gaussian kernels, half, once and twice as wide as the median distance within `second`, the real
    images. Source: Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html.
    """
    first, second = _flat_pair(first, second)
    count = len(first)
    squares = torch.cdist(torch.cat([first, second]), torch.cat([first, second])).square()
    median = squares[count:, count:][~torch.eye(count, dtype=torch.bool)].median()
    kernel = sum(torch.exp(-squares / (2 * scale**2 * median)) for scale in (0.5, 1, 2)) / 3
    within = [_mean_off_diagonal(block) for block in (kernel[:count, :count], kernel[count:, count:])]
    return (sum(within) - 2 * kernel[:count, count:].mean()).item()


def _mean_off_diagonal(square: Tensor) -> Tensor:
    return (square.sum() - square.diagonal().sum()) / (square.numel() - len(square))


def _flat_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    require(
        first.shape == second.shape and len(first) > 1,
        f"two sets of equally many images (N > 1) of one size, got {tuple(first.shape)} and {tuple(second.shape)}",
    )
    return first.flatten(1).double(), second.flatten(1).double()


def real_floor(images: Tensor, splits: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    """Both distances between random halves of real images (N, ...): what a perfect generator would get.

    Returns "swd" and "mmd", (splits,) each.
    """
    require(len(images) >= 4, f"halves of at least 2 images each need 4 images, got {len(images)}")
    half = len(images) // 2
    orders = [np.random.default_rng((seed, split)).permutation(len(images)) for split in range(splits)]
    pairs = [(images[order[:half]], images[order[half : 2 * half]]) for order in orders]
    return {
        "swd": np.array([sliced_wasserstein(*pair) for pair in pairs]),
        "mmd": np.array([mmd(*pair) for pair in pairs]),
    }


# anomaly maps


def anomaly_maps(
    model: HAEUNet,
    images: Tensor,
    recipe: Recipe | None = None,
    *,
    draws: int = 4,
    window: int = 3,
    seed: int = 0,
    **options: Any,
) -> Tensor:
    """How far images (N, C, H, W) are from what the model makes of them, (N, 1, H, W).

    A model of healthy images noises each, denoises it and so replaces what it does not know; the absolute difference
    is averaged over channels, `draws` of the noise and `window` x `window` pixels, an odd number. `options` are those
    of `restore`: a conditional model takes the `labels` of healthy images.
    Source: Wyatt et al. 2022 (AnoDDPM), https://doi.org/10.1109/CVPRW56347.2022.00080.
    """
    draws, seed = require_whole("draws", draws, 1), require_whole("seed", seed, 0)
    require(require_whole("window", window, 1) % 2 == 1, f"window is an odd number of pixels, got {window!r}")
    difference = torch.zeros_like(images)
    for draw in range(draws):
        restored = restore(model, images, recipe, seed=seed + draw, **options)
        difference += (images - restored).abs() / draws
    gray = difference.mean(1, keepdim=True)  # (N, 1, H, W)
    return F.avg_pool2d(gray, window, stride=1, padding=window // 2, count_include_pad=False)


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
    first = starting_timestep(recipe, start, steps)
    noise = starting_noise(len(images), tuple(images.shape[1:]), seed)
    noisy = noise_scheduler(recipe).add_noise(images, noise, torch.full((len(images),), first))
    *_, last = denoise(model, noisy, recipe, start=first, steps=steps, seed=seed, **options)
    return last.images.clamp(-1, 1).cpu()


def detection(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """How well maps (N, 1, H, W) find the pixels of masks: "auroc", and "dice" at the best threshold.

    Raises `HAELabError` for other shapes and for masks without or full of lesions.
    """
    from torchmetrics.functional.classification import binary_auroc, binary_precision_recall_curve

    shapes = tuple(maps.shape), tuple(masks.shape)
    require(shapes[0] == shapes[1], f"maps and masks have one shape, got {shapes[0]} and {shapes[1]}")
    share = masks.float().mean().item()
    require(0 < share < 1, f"detection needs pixels with and without lesion; {share:.0%} of them have one")
    # torchmetrics puts scores beyond 1 through a sigmoid, which is flat where they are large
    scores, truth = maps.flatten() / maps.abs().max().clamp_min(1e-12), masks.flatten().int()
    precision, recall, _ = binary_precision_recall_curve(scores, truth)
    dice = 2 * precision * recall / (precision + recall).clamp_min(1e-12)  # F1 of pixels
    return {"auroc": binary_auroc(scores, truth).item(), "dice": dice.max().item()}
