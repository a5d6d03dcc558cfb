"""What `hae-lab bench compile` measures: frozen and compiled models beside eager ones, and how long compiling takes."""

import os
from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.models import build, freeze
from hae_lab.presets import config
from hae_lab.profilers.paired import FEWEST, compare
from hae_lab.profilers.timing import predict, rounds, speed_ups, step_inputs, summary

VARIANT, PRESET = "v2", "lesson32"
EAGER, FROZEN, COMPILED = "eager", "frozen", "compiled"
BATCHES = {"forward": 1, "training step": 32}  # of a sampler that makes one image, and of `Recipe`


def bench_compile(device: str = "cpu", repeats: int = FEWEST) -> pd.DataFrame:
    """V2 of `lesson32` eager, frozen, and frozen and compiled: a forward pass of one image, and a training step.

    `speed_up` is the median over the rounds of eager's time over this one's in the same round, between its quartiles;
    the verdict compares the two in the same rounds. `compile_s` is the CPU time of the first call, which compiles,
    with empty caches.
    """
    frames = []
    for direction, batch in BATCHES.items():
        cases, compile_s = _cases(direction, batch, device)
        rows = in_rounds(cases, EAGER, repeats, device)
        rows["compile_s"] = rows["way"].map({COMPILED: compile_s})
        frames.append(rows.assign(batch=batch, **{"pass": direction}))
    model_config = config(VARIANT, PRESET)
    size, rule = model_config.image_size, model_config.mask_rule
    return pd.concat(frames, ignore_index=True).assign(variant=VARIANT, mask_rule=rule, map=f"{size}x{size}")


def in_rounds(cases: Mapping[str, Callable[[], object]], baseline: str, repeats: int, device: str) -> pd.DataFrame:
    """Run ways in rounds and compare them."""
    return compared(rounds(cases, repeats=repeats, device=device), baseline, device)


def compared(ms: pd.DataFrame, baseline: str, device: str) -> pd.DataFrame:
    """A row a way: medians and quartiles of its time, and how it compares with the baseline, round by round."""
    rows = summary(ms, device=device).rename(columns={"case": "way"}).assign(**speed_ups(ms, baseline, "speed_up"))
    return rows.join(compare(ms, {way: baseline for way in ms.columns if way != baseline}), on="way")


def _cases(direction: str, batch: int, device: str) -> tuple[dict[str, Callable[[], object]], float]:
    """What runs, and the seconds of the first compiled call."""
    models = {way: build(VARIANT, PRESET).to(device) for way in (EAGER, FROZEN, COMPILED)}
    x, timesteps = step_inputs(models[EAGER].config, batch, device)
    models[FROZEN] = freeze(models[FROZEN])
    models[COMPILED] = torch.compile(freeze(models[COMPILED]), fullgraph=True)
    step = predict_step if direction == "forward" else training_step
    cases = {way: step(model, x, timesteps) for way, model in models.items()}
    return cases, _first_call(cases[COMPILED])


def _first_call(run: Callable[[], object]) -> float:
    """CPU seconds of a call that compiles, its compilers' included, for one thread, as it is timed afterwards."""
    from torch._inductor import config as inductor

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    try:
        # in this process, whose times include those of the compilers that it waits for
        with torch.compiler.config.patch(force_disable_caches=True), inductor.patch(compile_threads=1):
            start = sum(os.times()[:4])
            run()
            return sum(os.times()[:4]) - start
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
