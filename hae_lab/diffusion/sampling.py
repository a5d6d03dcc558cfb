"""Sampling: DDPM and DDIM from one starting noise for all variants, with classifier-free guidance.

Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Song et al. 2021, https://arxiv.org/abs/2010.02502 (DDIM);
Ho & Salimans 2022, https://arxiv.org/abs/2207.12598 (guidance). The schedulers are diffusers'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from hae_lab.checks import require, require_name, require_number, require_seed, require_whole
from hae_lab.diffusion.process import threads, threads_for
from hae_lab.diffusion.training import SAMPLING, Recipe, noise_scheduler, stream_seed
from hae_lab.models import HAEUNet

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DDPMScheduler

SAMPLERS = ("ddim", "ddpm")
STEPS = 25  # where nothing else is asked
MOST = 1_000_000  # images of one call


class Denoised(NamedTuple):
    """One step of sampling: images (B, C, H, W) after it, and the clean images the model saw in them."""

    timestep: int
    images: Tensor
    clean: Tensor


def starting_noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """(count, C, H, W) of normal noise, drawn on the CPU: the same for every variant and device."""
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout inside; the model's mode is put back."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


@torch.no_grad()
def denoise(
    model: HAEUNet,
    images: Tensor,
    recipe: Recipe | None = None,
    *,
    start: int | None = None,
    sampler: str = "ddim",
    steps: int = STEPS,
    seed: int = 0,
    labels: Tensor | None = None,
    guidance: float = 1.0,
    clip_sample: bool = False,
) -> Iterator[Denoised]:
    """Take noise out of `images` (B, C, H, W) step by step, from timestep `start` (default: pure noise) down to 0.

    `steps` counts the steps of the whole chain, of which those up to `start` are taken. `labels` (B,) with
    `guidance` w: without + w * (with - without); w = 1 is the conditional model. `clip_sample`, diffusers' word, holds
    the clean images of each step to [-1, 1]; off here, since where images lie on that edge, as air does, it leaves the
    errors to one side alone and turns black to grey. The model's mode is put back.
    Raises `HAELabError` for an unknown sampler, a number out of range, and guidance without labels.
    """
    recipe = recipe or Recipe()
    scheduler = sampling_scheduler(recipe, sampler, steps, clip_sample)
    timesteps = _timesteps(scheduler, start)
    require_number("guidance", guidance)
    seed = require_seed("seed", seed)
    require(guidance == 1 or labels is not None, f"guidance={guidance} needs labels (B,)")
    device = next(model.parameters()).device
    # DDPM's noise; from the seed itself it would be the starting noise once more
    generator = torch.Generator().manual_seed(stream_seed(seed, SAMPLING))
    images = images.to(device)
    with eval_mode(model):
        for timestep in timesteps:
            output = _guided(model, images, timestep, labels, guidance)
            step = scheduler.step(output, timestep, images, generator=generator)
            images = step.prev_sample
            yield Denoised(timestep, images, step.pred_original_sample)


def sample(
    model: HAEUNet, count: int, recipe: Recipe | None = None, *, seed: int = 0, batch_size: int = 64, **options
) -> Tensor:
    """`count` new images, (count, C, H, W), in the end held to [-1, 1]; `options` are those of `denoise`.

    One seed is one starting noise for all variants. `labels` are (count,).
    """
    count, batch_size = require_whole("count", count, 1, most=MOST), require_whole("batch_size", batch_size, 1)
    seed = require_seed("seed", seed)
    config = model.config
    noise = starting_noise(count, (config.in_channels, config.image_size, config.image_size), seed)
    labels = options.pop("labels", None)
    require(labels is None or len(labels) == count, f"{count} images take as many labels")
    drawn = []
    with threads(threads_for(config, next(model.parameters()).device)):
        for number, part in enumerate(noise.split(batch_size)):
            some = None if labels is None else labels[number * batch_size :][: len(part)]
            *_, last = denoise(model, part, recipe, seed=stream_seed(seed, number), labels=some, **options)
            drawn.append(last.images.clamp(-1, 1).cpu())
    return torch.cat(drawn)


def sampling_scheduler(
    recipe: Recipe, sampler: str, steps: int, clip_sample: bool = False
) -> "DDIMScheduler | DDPMScheduler":
    """A sampler on the recipe's noise schedule, with its timesteps set. Raises `HAELabError` for steps unlike it."""
    from diffusers import DDIMScheduler, DDPMScheduler

    require_name("sampler", sampler, SAMPLERS)
    require_whole("steps", steps, 1, recipe.timesteps)
    even = recipe.timesteps % steps == 0
    require(even, f"steps={steps} does not divide the chain of {recipe.timesteps}, and diffusers' DDIM would drift")
    kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
    # with v the last timestep, which is pure noise, is well defined; with epsilon it is 0 / 0
    spacing = "leading" if recipe.prediction == "epsilon" else "trailing"
    options = {"timestep_spacing": spacing, "clip_sample": clip_sample}
    scheduler = kind.from_config(noise_scheduler(recipe).config, **options)
    scheduler.set_timesteps(steps)
    return scheduler


def starting_timestep(recipe: Recipe, start: int, steps: int, sampler: str = "ddim") -> int:
    """The first timestep that `denoise` takes from `start`: noise an image to it, and it fits."""
    return _timesteps(sampling_scheduler(recipe, sampler, steps), start)[0]


def _timesteps(scheduler: "DDIMScheduler | DDPMScheduler", start: int | None) -> list[int]:
    start = None if start is None else require_whole("start", start, 0)
    timesteps = [int(t) for t in scheduler.timesteps if start is None or t <= start]
    require(bool(timesteps), f"start={start} is before the first timestep, {int(scheduler.timesteps[-1])}: raise it")
    return timesteps


def _guided(model: HAEUNet, images: Tensor, timestep: int, labels: Tensor | None, guidance: float) -> Tensor:
    timesteps = torch.full((len(images),), timestep, device=images.device)
    if labels is None:
        return model(images, timesteps)
    labels = labels.to(images.device)
    with_label = model(images, timesteps, labels)
    if guidance == 1:
        return with_label
    without = model(images, timesteps)
    return without + guidance * (with_label - without)
