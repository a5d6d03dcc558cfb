"""What `hae-lab bench faster_training` measures: ways in which training HAE might take less time an image."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from hae_lab.audit.bench_compile import compared
from hae_lab.diffusion.training import Recipe
from hae_lab.models import build, freeze
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.presets import config
from hae_lab.profilers.paired import FEWEST
from hae_lab.profilers.timing import rounds

VARIANT, PRESETS = "hae", ("lesson16", "lesson32")
CHECKED_STEPS = 10  # whose losses are compared
Step = Callable[[Tensor, Tensor, Tensor], float]  # of noisy images, timesteps and noise; returns the loss before it


@dataclass(frozen=True)
class Way:
    """How a training step runs: forward, backward and AdamW."""

    fused: bool = True  # AdamW in one kernel for all parameters
    channels_last: bool = False
    precision: torch.dtype | None = None  # of autocast
    compiled: bool = False
    batch: int = Recipe().batch_size
    models: int = 1  # of different seeds, trained together under `torch.func.vmap`


BEFORE = "AdamW by tensors"  # the loop of version 0.1.0
WAYS: Mapping[str, Way] = {
    BEFORE: Way(fused=False),
    "AdamW fused": Way(),  # the loop of today
    "channels last": Way(channels_last=True),
    "bfloat16": Way(precision=torch.bfloat16),
    "compiled": Way(compiled=True),
    "batch 128": Way(batch=128),
    "4 models at once": Way(models=4),
}


def bench_faster_training(device: str = "cpu", repeats: int = FEWEST) -> pd.DataFrame:
    """HAE of the lesson presets trained in each of `WAYS`: milliseconds an image and model.

    `speed_up` is the time of version 0.1.0's loop over this one's in the same round. `loss_change_percent` is by how
    much the loss differs from that loop's at most in the first ten steps; another batch size is another training.
    """
    return pd.concat([_of_preset(preset, device, repeats) for preset in PRESETS], ignore_index=True)


def _of_preset(preset: str, device: str, repeats: int) -> pd.DataFrame:
    size = config(VARIANT, preset).image_size
    steps = {name: start(way, preset, device) for name, way in WAYS.items()}
    # before anything is timed, for these are the first steps of the same models
    losses = {name: losses_of(step, size, device) for name, step in steps.items() if WAYS[name].batch == Way.batch}
    inputs = {way.batch: noisy_batch(way.batch, size, device) for way in WAYS.values()}
    cases = {name: partial(step, *inputs[WAYS[name].batch]) for name, step in steps.items()}
    ms = rounds(cases, repeats=repeats, device=device)
    rows = compared(ms / [way.batch * way.models for way in WAYS.values()], BEFORE, device)
    batches = {name: way.batch for name, way in WAYS.items()}
    changes = {name: change_percent(each, losses[BEFORE]) for name, each in losses.items()}
    rows = rows.assign(loss_change_percent=rows["way"].map(changes), batch=rows["way"].map(batches))
    return rows.assign(variant=VARIANT, preset=preset, map=f"{size}x{size}", **{"pass": "training step"})


def start(way: Way, preset: str, device: str = "cpu") -> Step:
    """A step of fresh models, seeds from 0 on."""
    models = [build(VARIANT, preset, seed=seed).train().to(device) for seed in range(way.models)]
    if way.channels_last:
        models = [model.to(memory_format=torch.channels_last) for model in models]
    return _of_many(models, way) if way.models > 1 else _of_one(models[0], way)


def _of_one(model: nn.Module, way: Way) -> Step:
    update = _update(list(model.parameters()), way)
    run = torch.compile(freeze(model), fullgraph=True) if way.compiled else model

    def step(x: Tensor, timesteps: Tensor, noise: Tensor) -> float:
        with torch.autocast(x.device.type, way.precision, enabled=way.precision is not None):
            output = run(x, timesteps)
        loss = F.mse_loss(output.float(), noise)
        loss.backward()
        update()
        return loss.item()

    return step


def _of_many(models: list[nn.Module], way: Way) -> Step:
    """One step of all models; each sees the same images, and the loss returned is the first one's."""
    for layer in models[0].modules():
        if isinstance(layer, SparseMultiheadAttention):
            layer.kernel = "blocks"  # `columns` keeps nothing for its backward pass where vmap hides that weights train
    weights, buffers = stack_module_state(models)  # (models, ...)
    update = _update(list(weights.values()), way)

    def loss_of(own: dict[str, Tensor], kept: dict[str, Tensor], x: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        return F.mse_loss(functional_call(models[0], (own, kept), (x, timesteps)), noise)

    each_loss_of = vmap(loss_of, randomness="different")  # dropout

    def step(*batch: Tensor) -> float:
        many = (each.expand(way.models, *each.shape) for each in batch)
        with warnings.catch_warnings(action="ignore"):  # torch has no rule for one kernel: it runs model after model
            losses = each_loss_of(weights, buffers, *many)  # (models,)
        losses.sum().backward()
        update()
        return losses[0].item()

    return step


def _update(parameters: list[Tensor], way: Way) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameters, Recipe().learning_rate, fused=way.fused)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


def noisy_batch(batch: int, size: int, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images (batch, 1, size, size), timesteps (batch,), and the noise to be found."""
    generator = torch.Generator().manual_seed(seed)
    images, noise = torch.randn((2, batch, 1, size, size), generator=generator)
    timesteps = torch.randint(Recipe().timesteps, (batch,), generator=generator)
    return (images + noise).to(device), timesteps.to(device), noise.to(device)


def losses_of(step: Step, size: int, device: str = "cpu") -> list[float]:
    """The losses of the first steps, at the batch size of `Recipe`."""
    return [step(*noisy_batch(Way.batch, size, device, seed)) for seed in range(CHECKED_STEPS)]


def change_percent(losses: list[float], before: list[float]) -> float:
    """The largest difference from other losses, step by step, in percent of them."""
    return 100 * max(abs(one / other - 1) for one, other in zip(losses, before, strict=True))
