"""What `hae-lab bench compile` measures: frozen and compiled models beside eager ones, and how long compiling takes."""

import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.models import build, freeze
from hae_lab.presets import config
from hae_lab.profilers.timing import interleaved, predict, step_inputs

PRESET = "lesson32"
EAGER, FROZEN, COMPILED = "eager", "frozen", "compiled"
RULES = ("document", "document_shared")
BATCHES = {"forward": 1, "training step": 32}  # of a sampler that makes one image, and of `Recipe`


def bench_compile(device: str = "cpu", repeats: int = 15) -> pd.DataFrame:
    """V2 of `lesson32` as it is, frozen, and frozen and compiled: a forward pass of one image, and a training step.

    `speed_up` is eager over each row; `compile_s` is the wall time of the first call, which compiles.
    """
    frames = []
    for direction, batch in BATCHES.items():
        for rule in RULES:
            cases, seconds = _cases(rule, direction, batch, device)
            rows = interleaved(cases, repeats=repeats, device=device)
            eager = rows.set_index("case")["ms_median"][f"{EAGER}, {rule}"]
            costs = {"speed_up": eager / rows["ms_median"], "compile_s": rows["case"].map(seconds)}
            frames.append(rows.assign(**costs, rule=rule, batch=batch, **{"pass": direction}))
    size = config("v2", PRESET).image_size
    return pd.concat(frames, ignore_index=True).assign(variant="v2", map=f"{size}x{size}")


def _cases(
    rule: str, direction: str, batch: int, device: str
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What runs, and the seconds of the first call where that compiles."""
    models = {name: build("v2", PRESET, mask_rule=rule).to(device) for name in (EAGER, FROZEN, COMPILED)}
    x, timesteps = step_inputs(models[EAGER].config, batch, device)
    models[FROZEN] = freeze(models[FROZEN])
    models[COMPILED] = torch.compile(freeze(models[COMPILED]), fullgraph=True)
    step = predict_step if direction == "forward" else training_step
    cases = {f"{name}, {rule}": step(model, x, timesteps) for name, model in models.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the program is made for the threads that will run it
    try:
        start = time.perf_counter()
        cases[f"{COMPILED}, {rule}"]()
        return cases, {f"{COMPILED}, {rule}": time.perf_counter() - start}
    finally:
        torch.set_num_threads(threads)


def predict_step(model: nn.Module, x: Tensor, timesteps: Tensor) -> Callable[[], object]:
    """One forward pass in eval mode without gradients."""
    return partial(predict, model.eval(), x, timesteps)


def training_step(model: nn.Module, x: Tensor, timesteps: Tensor) -> Callable[[], object]:
    """Forward, backward and AdamW; the optimizer itself stays eager."""
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-4)

    def run() -> None:
        model(x, timesteps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
