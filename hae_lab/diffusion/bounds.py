"""The least denoising loss of images of a `Pattern`, with and without the other cells of a bit, and who reaches it.

A fair bit, shown as v or -v by k pixels in Gaussian noise, has the posterior mean v tanh(v sqrt(A) y / (1 - A)), with y
the sum of the noisy pixels and A the signal's share alpha-bar. Its mean squared error is v^2 (1 - E tanh(s +
sqrt(s) z)), with s = v^2 k A / (1 - A) and z standard normal (Guo, Shamai & Verdu 2005,
https://doi.org/10.1109/TIT.2005.844072). An error of the image counts A / (1 - A) times as an error of the noise. The
bits are independent, so that nothing does better on the whole image.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from hae_lab.checks import require_name
from hae_lab.diffusion.patterns import BACKGROUND, PATTERNS, Pattern
from hae_lab.diffusion.quality import quarters
from hae_lab.diffusion.training import Recipe, noise_scheduler

NODES = np.linspace(-12, 12, 2401)  # of z, the width of the step being 0.01
WEIGHTS = np.exp(-(NODES**2) / 2) / np.sqrt(2 * np.pi) * 0.01  # trapezoid rule: exact to rounding on a smooth bell


def binary_error(ratio: np.ndarray) -> np.ndarray:
    """Least mean squared error of a fair bit, shown as 1 or -1, at the signal-to-noise ratios, of any shape."""
    ratio = np.asarray(ratio, float)[..., None]
    return (WEIGHTS * (1 - np.tanh(ratio + np.sqrt(ratio) * NODES))).sum(-1)


@dataclass(frozen=True)
class LossBounds:
    """Two least losses, each with the names and in the unit of `denoising_loss`.

    `own`: of a model that sees each cell alone; `shared`: of any model.
    """

    own: dict[str, float]
    shared: dict[str, float]

    def gain_share(self, loss: float) -> float:
        """Which share of the possible gain a loss is: 0 without the other cells, 1 at the optimum."""
        return (self.own["loss"] - loss) / (self.own["loss"] - self.shared["loss"])


def loss_bounds(pattern: Pattern | str, recipe: Recipe | None = None, size: int = 32) -> LossBounds:
    """Both bounds of a pattern, or of the data set of that name; there `size` makes no difference.

    Of the recipe they depend on `timesteps` and `beta_schedule`. Raises `HAELabError` for a data set without bounds.
    """
    if not isinstance(pattern, Pattern):
        require_name("data set with known bounds", pattern, PATTERNS)
        pattern = PATTERNS[pattern](size)
    recipe = recipe or Recipe()
    return LossBounds(own=_least_loss(pattern, recipe, False), shared=_least_loss(pattern, recipe, True))


def gain_share(loss: float, data: str, recipe: Recipe | None = None) -> float:
    """The share of the possible gain that a held-out loss on one of `PATTERNS` is: `LossBounds.gain_share`."""
    return loss_bounds(data, recipe).gain_share(loss)


def _least_loss(pattern: Pattern, recipe: Recipe, shared: bool) -> dict[str, float]:
    errors = np.zeros(recipe.timesteps)
    counts, times = np.unique(pattern.pixels(shared), return_counts=True)
    for count, area in zip(counts.tolist(), times / pattern.size**2, strict=True):
        if count:  # the background is known
            errors += area * _noise_errors(pattern.value, count, recipe.timesteps, recipe.beta_schedule)
    means = [float(errors[low:high].mean()) for low, high in quarters(recipe.timesteps)]
    return {"loss": sum(means) / len(means)} | {f"loss_q{place}": mean for place, mean in enumerate(means, 1)}


@lru_cache(maxsize=64)  # a table asks again and again for the bounds of one recipe
def _noise_errors(value: float, count: int, timesteps: int, beta_schedule: str) -> np.ndarray:
    """Least error of the noise in a pixel, whose bit `count` pixels show, at each timestep: (timesteps,)."""
    scheduler = noise_scheduler(Recipe(timesteps=timesteps, beta_schedule=beta_schedule))
    signal = scheduler.alphas_cumprod.double().numpy()
    ratio = signal / (1 - signal)
    errors = ratio * value**2 * binary_error(value**2 * count * ratio)
    errors.setflags(write=False)
    return errors


class BayesDenoiser(nn.Module):
    """The best denoiser of a pattern, called as a model is: (B, 1, H, W), timesteps (B,) -> what the recipe predicts.

    With `shared` it reads all cells of a bit, else each cell alone, blind to all else. It has nothing to learn.
    """

    config = SimpleNamespace(num_classes=None)

    def __init__(self, pattern: Pattern, recipe: Recipe | None = None, *, shared: bool = True) -> None:
        super().__init__()
        self.recipe = recipe or Recipe()
        self.value = nn.Parameter(torch.tensor(pattern.value, dtype=torch.float64), requires_grad=False)
        places = torch.from_numpy(pattern.bits if shared else pattern.cells).flatten()
        self.n_groups = int(places.max()) + 1
        self.register_buffer("groups", places.where(places != BACKGROUND, self.n_groups))  # the last is the background
        signal = noise_scheduler(self.recipe).alphas_cumprod.double()
        self.register_buffer("alphas_cumprod", signal)

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        pixels = noisy.double().flatten(1)  # (B, H W)
        signal = self.alphas_cumprod[timesteps][:, None]  # (B, 1)
        sums = pixels.new_zeros(len(pixels), self.n_groups + 1).index_add_(1, self.groups, pixels)  # (B, groups + 1)
        means = self.value * torch.tanh(self.value * signal.sqrt() * sums / (1 - signal))
        means[:, -1] = 0
        image = means[:, self.groups]  # (B, H W)
        noise = (pixels - signal.sqrt() * image) / (1 - signal).sqrt()
        output = {
            "epsilon": noise,
            "v_prediction": signal.sqrt() * noise - (1 - signal).sqrt() * image,
            "sample": image,
        }[self.recipe.prediction]
        return output.to(noisy.dtype).view_as(noisy)
