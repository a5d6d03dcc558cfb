"""What a model of the family takes for one denoising step."""

import torch
from torch import Tensor, nn

from hae_lab.checks import HAELabError, require_whole
from hae_lab.family import HAEConfig

TIMESTEP = 500


def config_of(model: nn.Module, instead: str = "") -> HAEConfig:
    """The config of a model of the family. Raises `HAELabError`, which says what to do `instead`, if it has none."""
    config = getattr(model, "config", None)
    if isinstance(config, HAEConfig):
        return config
    raise HAELabError(f"{type(model).__name__} has no HAEConfig in .config{instead and ': '}{instead}")


def step_inputs(
    config: HAEConfig,
    batch: int = 1,
    device: str = "meta",
    *,
    labels: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """A noisy image (seed 0) and a timestep for each sample; with `labels`, class 0 too if the model has classes.

    Shapes: (B, C_in, H, W), (B,), (B,). The global random state stays untouched.
    """
    batch = require_whole("batch", batch, 1)
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    if device == "meta":
        x = torch.empty(shape, dtype=dtype, device=device)
    else:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device, dtype)
    timesteps = torch.full((batch,), TIMESTEP, device=device)
    if not labels or config.num_classes is None:
        return x, timesteps
    return x, timesteps, torch.zeros(batch, dtype=torch.int64, device=device)
