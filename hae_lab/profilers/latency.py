"""How long one denoising step takes, for any models side by side."""

from collections.abc import Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.config import HAEConfig
from hae_lab.errors import require
from hae_lab.models import build
from hae_lab.profilers.timing import check_device, environment, interleaved


def latency(
    models: Mapping[str, HAEConfig | nn.Module],
    *,
    batch: int = 1,
    repeats: int = 7,
    threads: int = 1,
    device: str = "cpu",
) -> pd.DataFrame:
    """Time of one forward pass in eval mode, a row a model; repeats are interleaved over the models.

    Configs are built with seed 0; modules need an HAEConfig in `.config`, and stay in the mode they were in.
    Columns: case, ms_median, ms_q1, ms_q3, repeats, threads, clock, params, batch, and the device with its versions.
    Raises `HAELabError` for no models, or for a device that is not there.
    """
    require(len(models) > 0, 'name at least one model, for example {"v2": hae_lab.config("v2", "lesson16")}')
    check_device(device)
    built = {name: build(model) if isinstance(model, HAEConfig) else model for name, model in models.items()}
    modes = {name: model.training for name, model in built.items()}
    try:
        cases = {
            name: partial(predict, model.eval().to(device), *step_inputs(model.config, batch, device))
            for name, model in built.items()
        }
        rows = interleaved(cases, repeats=repeats, threads=threads, device=device)
    finally:
        for name, model in built.items():
            model.train(modes[name])
    params = [sum(p.numel() for p in model.parameters()) for model in built.values()]
    return rows.assign(params=params, batch=batch, **environment(device))


def step_inputs(config: HAEConfig, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """A noisy image (seed 0) and a timestep for each sample."""
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.to(device), torch.full((batch,), 500, device=device)


def predict(model: nn.Module, x: Tensor, timesteps: Tensor) -> Tensor:
    """One forward pass without gradients."""
    with torch.no_grad():
        return model(x, timesteps)
