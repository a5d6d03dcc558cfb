"""Rows as a study would give them: losses around 0.093, a seed's sd 0.001, half of which all cells of a seed share."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd

SLOTS = ("regions", "mlp_ratio", "fusion")
COSTS = {  # params, MACs, ms with quartiles
    "unet": (1_178_800, 9.1e6, 4.1), "hae": (2_116_200, 15.8e6, 7.3), "lite": (1_460_700, 15.1e6, 7.1),
    "v2": (1_398_800, 14.9e6, 7.0),
}  # fmt: skip
QUARTILE_SHARES = (2.9, 0.8, 0.23, 0.07)  # of the mean loss, from little noise to much
SD = 0.0007


def study_rows(
    cells=("unet", "hae", "lite", "v2"),
    seeds: int = 5,
    gaps: Mapping[str, float] | None = None,
    shared_sd: float = SD,
    seed: int = 0,
) -> pd.DataFrame:
    """cell, seed, loss, loss_q1 to loss_q4, and costs; `gaps` are the cells' true differences (by default, small)."""
    gaps = {"unet": 0.0009, "lite": 0.0001, "v2": 0.0003} if gaps is None else gaps
    generator = np.random.default_rng(seed)
    shared = generator.normal(0, shared_sd, seeds)
    rows = []
    for place, cell in enumerate(cells):
        params, macs, ms = COSTS.get(cell, (1e6 * (2 + place), 1e7 * (1 + place / 20), 7 + place / 5))
        losses = 0.093 + gaps.get(cell, 0) + shared + generator.normal(0, SD, seeds)
        quartiles = losses[:, None] * QUARTILE_SHARES * (1 + generator.normal(0, 0.01, (seeds, 4)))
        costs = {"params": params, "macs": macs, "ms": ms, "ms_q1": 0.97 * ms, "ms_q3": 1.05 * ms}
        names = {f"loss_q{quartile + 1}": quartiles[:, quartile] for quartile in range(4)}
        rows.append(pd.DataFrame({"cell": cell, "seed": range(seeds), "loss": losses, **names, **costs}))
    return pd.concat(rows, ignore_index=True)


def slot_rows(seeds: int = 5, pooled: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """The 2 x 2 x 2 grid of slots: the slots, seed, loss, params; `pooled` is what pooled regions add to the loss."""
    grid = list(product(("linear", "pooled"), (4.0, 0.25), ("concat", "mean")))
    names = [" ".join(map(str, slots)) for slots in grid]
    rows = study_rows(names, seeds, {name: pooled for name in names if name.startswith("pooled")}, seed=seed)
    slots = rows["cell"].map(dict(zip(names, grid, strict=True)))
    rows = rows.assign(**{slot: slots.str[place] for place, slot in enumerate(SLOTS)})
    saved = {"pooled": 640_000, 0.25: 62_000, "mean": 16_000}
    return rows.assign(params=2_116_200 - sum(rows[slot].map(saved).fillna(0) for slot in SLOTS))


def curve_rows(cells=("unet", "hae", "lite", "v2"), seeds: int = 5, seed: int = 0) -> tuple[pd.DataFrame, dict]:
    """Learning curves to step 300 (cell, seed, step, loss), and ms per training step of each cell."""
    ends, steps = study_rows(cells, seeds, seed=seed), np.arange(25, 301, 25)
    generator = np.random.default_rng(seed)
    curves = [
        pd.DataFrame({"cell": cell, "seed": run, "step": steps, "loss": loss * (300 / steps) ** 0.25})
        for cell, run, loss in ends[["cell", "seed", "loss"]].itertuples(index=False)
    ]
    curves = pd.concat(curves, ignore_index=True)
    noise = np.exp(generator.normal(0, 0.004, len(curves)))
    return curves.assign(loss=curves["loss"] * noise), dict(zip(cells, (110, 180, 175, 170, 190, 200), strict=False))
