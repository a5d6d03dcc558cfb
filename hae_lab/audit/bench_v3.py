"""What `hae-lab bench v3` measures: a step of the v3 that the search chose, beside the variants and U-Nets of its cost.

The cases are also those with which the search times its candidates.
"""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F

from hae_lab.audit.v3_tables import v3_models
from hae_lab.diffusion.training import Recipe
from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.profilers.paired import FEWEST, compare
from hae_lab.profilers.timing import predict, rounds, step_inputs, summary

TRAINING, DENOISING = "training step", "forward"
STEPS = {TRAINING: 2, DENOISING: 10}  # of one timed case
AGAINST = "v2"  # the fastest, by the document

Case = Callable[[], None]


def bench_v3(device: str = "cpu", repeats: int = FEWEST) -> pd.DataFrame:
    """A training step of batch 32, and a denoising step of one image, of each of `v3_models`; compared with V2."""
    frames = []
    for direction, make in ((TRAINING, training_case), (DENOISING, denoising_case)):
        cases = {name: make(each, STEPS[direction], device) for name, each in v3_models().items()}
        ms = rounds(cases, repeats=repeats, device=device) / STEPS[direction]
        found = compare(ms, {name: AGAINST for name in cases if name != AGAINST})
        rows = summary(ms, device=device).join(found, on="case").rename(columns={"case": "variant"})
        batch = Recipe().batch_size if direction == TRAINING else 1
        frames.append(rows.assign(**{"pass": direction}, batch=batch))
    return pd.concat(frames, ignore_index=True).assign(preset="lesson16", map="16x16")


def training_case(config: HAEConfig, steps: int, device: str = "cpu") -> Case:
    """So many training steps of one batch: forward, backward, AdamW, nothing else."""
    model = build(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), Recipe().learning_rate)
    x, timesteps = step_inputs(config, Recipe().batch_size, device)[:2]

    def run() -> None:
        for _ in range(steps):
            F.mse_loss(model(x, timesteps), x).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def denoising_case(config: HAEConfig, steps: int, device: str = "cpu") -> Case:
    """So many denoising steps of one image, without gradients."""
    model = build(config).eval().to(device)
    x, timesteps = step_inputs(config, 1, device)[:2]

    def run() -> None:
        for _ in range(steps):
            predict(model, x, timesteps)

    return run
