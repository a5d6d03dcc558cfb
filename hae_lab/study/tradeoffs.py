"""Quality against cost: learning curves over seconds, and which cells another beats for no more."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hae_lab.checks import require
from hae_lab.study.statistics import checked_runs, require_columns


def with_seconds(curves: pd.DataFrame, ms_per_step: Mapping[str, float], metric: str = "loss") -> pd.DataFrame:
    """Learning curves (cell, seed, step, metric) with the compute time of each point as a column seconds.

    `ms_per_step` is the time of one training step of each cell.
    Raises `HAELabError` for a cell without a time above 0, and as `seed_table`.
    """
    curves = checked_runs(curves, ("cell", "seed", "step"), metric)
    for cell in curves["cell"].unique():
        time = ms_per_step.get(cell, np.nan)
        known = ", ".join(f"{name} {ms:g}" for name, ms in ms_per_step.items())
        require(0 < time < np.inf, f"cell {cell!r} has no ms per training step above 0; known are {known}")
    return curves.assign(seconds=curves["step"] * curves["cell"].map(dict(ms_per_step)) / 1000)


def non_dominated(
    rows: pd.DataFrame,
    cost: str,
    quality_low: str = "ci_low",
    quality_high: str = "ci_high",
    *,
    lower_better: bool = True,
) -> pd.Series:
    """False where another row is as cheap or cheaper and its interval lies wholly on the better side; else True.

    Rows: one a cell, with a cost (lower is better) and the interval of its quality.
    """
    require_columns(rows, cost, quality_low, quality_high)
    costs, low, high = (rows[column].to_numpy(float) for column in (cost, quality_low, quality_high))
    worst, best = (high, low) if lower_better else (-low, -high)
    dominates = (costs[:, None] <= costs) & (worst[:, None] < best)  # (the other, this one)
    return pd.Series(~dominates.any(axis=0), rows.index, name="non_dominated")
