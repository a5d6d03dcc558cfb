"""Honest statistics of a study: the unit is the training seed, and cells are compared paired by seed.

Rows are tidy, one a run: "cell" (which model), "seed", and metric columns. Runs of one seed share data order, noise and
timesteps, so their difference carries less noise than each of them. To bootstrap images within one run would leave out
the noise of training, and find differences that the next seed reverses.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import factorial
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from hae_lab.checks import HAELabError, require, require_name
from hae_lab.diffusion.metrics import higher_is_better
from hae_lab.presets import CONTROL

ALPHA = 0.05  # two-sided
TARGET_POWER = 0.8
MOST_SEEDS = 1_000_000
CANNOT_TELL = "cannot tell"
QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")  # of the timestep, least noise first

Numbers = TypeVar("Numbers", float, "pd.Series[float]")  # one, or a column
Pair = tuple[str, str]
Contrast = tuple[dict[str, Any], pd.Series]  # what is compared, and the difference in each seed


# rows


def seed_table(rows: pd.DataFrame, metric: str = "loss") -> pd.DataFrame:
    """A row a seed, a column a cell, in the order of the rows; NaN where a cell lacks a seed.

    Raises `HAELabError` for missing columns, a repeated cell and seed, and a metric that is not a finite number.
    """
    checked = _checked_runs(rows, ("cell", "seed"), metric)
    return checked.pivot(index="seed", columns="cell", values=metric)[list(rows["cell"].unique())]


def _checked_runs(rows: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
    require_columns(rows, *keys, metric)
    require(len(rows) > 0, "no rows: a comparison needs two or more cells, each with two or more seeds")
    values = pd.to_numeric(rows[metric], errors="coerce").astype(float)
    failed = "must be a number; leave out a failed run, or repeat it"
    _refuse(rows[~np.isfinite(values)], keys, metric, failed)
    _refuse(rows[rows.duplicated(list(keys))], keys, metric, "is a second row of this run; choose one data set")
    return rows.assign(**{metric: values})


def _refuse(bad: pd.DataFrame, keys: Sequence[str], metric: str, reason: str) -> None:
    """Raise `HAELabError` that names the first bad row, if there is one."""
    if len(bad):
        place = ", ".join(f"{key} {bad[key].iloc[0]!s}" for key in keys)
        raise HAELabError(f"{place}: {metric} = {bad[metric].iloc[0]} {reason}")


def require_columns(rows: pd.DataFrame, *names: str) -> None:
    """Raise `HAELabError` unless the rows have all of these columns."""
    missing = ", ".join(name for name in names if name not in rows.columns)
    require(not missing, f"missing columns: {missing}; the rows have {', '.join(map(str, rows.columns))}")


def lower_is_better(metric: str, told: bool | None = None) -> bool:
    """What the caller says, else what is known of the metric."""
    return not higher_is_better(metric) if told is None else told


# one cell, one pair


def summary(rows: pd.DataFrame, metric: str = "loss", *, confidence: float = 1 - ALPHA) -> pd.DataFrame:
    """A row a cell: cell, n_seeds, mean, sd, ci_low, ci_high (t interval over seeds).

    One seed has neither sd nor interval: NaN.
    """
    table = seed_table(rows, metric)
    count, mean, sd = table.count(), table.mean(), table.std()
    half = _half_width(sd, count.astype(float), confidence)
    columns = {"n_seeds": count, "mean": mean, "sd": sd, "ci_low": mean - half, "ci_high": mean + half}
    return pd.DataFrame(columns).rename_axis("cell").reset_index()


def _half_width(sd: Numbers, count: Numbers, confidence: float) -> Numbers:
    require(0 < confidence < 1, f"confidence lies between 0 and 1, 0.95 for 95 %, got {confidence}")
    return cast(Numbers, stats.t.ppf((1 + confidence) / 2, count - 1) * sd / np.sqrt(count))


def _one_sample(differences: pd.Series, confidence: float) -> dict[str, float]:
    """The t test of differences against zero, and its power; without variance, any difference is certain."""
    count, mean, sd = len(differences), differences.mean(), differences.std()
    half = _half_width(sd, count, confidence)
    effect_size = abs(mean) / sd if sd > 0 else np.inf if mean else 0.0
    return {
        "n_seeds": count,
        "mean_difference": mean,
        "sd_difference": sd,
        "ci_low": mean - half,
        "ci_high": mean + half,
        "p_value": 2 * stats.t.sf(effect_size * np.sqrt(count), count - 1),
        "minimum_detectable_difference": sd * detectable_effect_size(count),
        "seeds_needed": seeds_needed(effect_size),
    }


# power of the paired t test


def paired_power(effect_size: float, n_seeds: int) -> float:
    """Chance that the paired t test at two-sided 5 % finds a difference of `effect_size` standard deviations.

    From the noncentral t distribution, since the normal approximation promises too much with few seeds.
    """
    require(n_seeds >= 2, f"a paired test needs 2 or more seeds, got {n_seeds}")
    limit = stats.t.ppf(1 - ALPHA / 2, n_seeds - 1)
    shift = np.clip(abs(effect_size) * np.sqrt(n_seeds), 1e-4, 1e3)  # beyond, scipy errs; nothing changes there
    # the square of t is noncentral F, which scipy computes everywhere; its noncentral t is NaN in the far tail
    return float(stats.ncf.sf(limit**2, 1, n_seeds - 1, shift**2))


@lru_cache
def detectable_effect_size(n_seeds: int) -> float:
    """Difference, in standard deviations of the paired differences, that `n_seeds` find with 80 % power."""
    return optimize.brentq(lambda effect_size: paired_power(effect_size, n_seeds) - TARGET_POWER, 0, 50)


def seeds_needed(effect_size: float) -> float:
    """Fewest seeds that find a difference of `effect_size` standard deviations with 80 % power.

    inf where a million would not do.
    """
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, TARGET_POWER, key=lambda count: paired_power(effect_size, count))
    return counts[place] if place < len(counts) else np.inf


# comparisons


def paired_differences(
    rows: pd.DataFrame,
    metric: str = "loss",
    baseline: str | None = None,
    *,
    lower_better: bool | None = None,
    confidence: float = 1 - ALPHA,
) -> pd.DataFrame:
    """Differences first - second over the seeds that both cells have: every pair, or every cell against `baseline`.

    Columns: first, second, mean_second, n_seeds, mean_difference, sd_difference, ci_low, ci_high (t interval of this
    pair alone), p_value (paired t test), p_holm (Holm over the rows), minimum_detectable_difference (80 % power at
    two-sided 5 %, from the observed sd), seeds_needed (80 % power at the observed mean and sd: an order of magnitude),
    verdict: "first better" or "second better" where p_holm is below 1 - confidence, which keeps zero out of the
    interval too; else "cannot tell". `lower_better` overrides what `diffusion.metrics` knows.
    Raises `HAELabError` for fewer than two common seeds, and as `seed_table`.
    """
    table = seed_table(rows, metric)
    contrasts = _pair_contrasts(table, _pairs(table, baseline))
    return _compare(contrasts, lower_is_better(metric, lower_better), confidence)


def seed_differences(rows: pd.DataFrame, pairs: Sequence[Pair], metric: str = "loss") -> pd.DataFrame:
    """What `paired_differences` averages: first, second, seed, difference (first - second)."""
    parts = [
        pd.DataFrame(
            {"first": found["first"], "second": found["second"], "seed": each.index, "difference": each.values}
        )
        for found, each in _pair_contrasts(seed_table(rows, metric), pairs)
    ]
    return pd.concat(parts, ignore_index=True)


def quartile_differences(rows: pd.DataFrame, baseline: str = CONTROL, *, confidence: float = 1 - ALPHA) -> pd.DataFrame:
    """`paired_differences` to a baseline in each of `QUARTILES`, named by a column metric; Holm over all rows."""
    contrasts = []
    for metric in QUARTILES:
        table = seed_table(rows, metric)
        for labels, differences in _pair_contrasts(table, _pairs(table, baseline)):
            contrasts.append(({"metric": metric} | labels, differences))
    return _compare(contrasts, True, confidence)


def main_effects(
    rows: pd.DataFrame,
    factors: Sequence[str],
    metric: str = "loss",
    *,
    lower_better: bool | None = None,
    confidence: float = 1 - ALPHA,
) -> pd.DataFrame:
    """What one factor of a full grid of two-level factors does, averaged over the others, paired by seed.

    Rows: the factors' columns, seed, metric. Columns: factor, then as `paired_differences` with levels for cells;
    second is the level that comes first in the rows. Seeds that lack a cell of the grid are left out.
    Raises `HAELabError` for a factor without exactly two levels, and for fewer than two seeds with the whole grid.
    """
    rows = _checked_runs(rows, ("seed", *factors), metric)
    levels = {factor: _two_levels(rows, factor) for factor in factors}
    cells = rows.groupby("seed").size()
    whole = rows[rows["seed"].map(cells) == 2 ** len(levels)]
    require(
        whole["seed"].nunique() >= 2,
        f"main effects need 2 or more seeds with all {2 ** len(levels)} cells of {', '.join(factors)}; "
        f"cells by seed: {cells.to_dict()}",
    )
    contrasts = []
    for factor, (old, new) in levels.items():
        means = whole.groupby(["seed", factor])[metric].mean().unstack()
        labels = {"factor": factor, "first": new, "second": old, "mean_second": means[old].mean()}
        contrasts.append((labels, means[new] - means[old]))
    return _compare(contrasts, lower_is_better(metric, lower_better), confidence)


def _two_levels(rows: pd.DataFrame, factor: str) -> tuple[Any, Any]:
    levels = list(rows[factor].unique())
    require(len(levels) == 2, f"a main effect compares two levels, but {factor} has {len(levels)}: {levels}")
    return tuple(levels)


def _pairs(table: pd.DataFrame, baseline: str | None = None) -> list[Pair]:
    cells = list(table.columns)
    require(len(cells) >= 2, f"a comparison needs two or more cells, got {cells}")
    if baseline is None:
        return [(later, earlier) for earlier, later in combinations(cells, 2)]
    require_name("baseline", baseline, cells)
    return [(cell, baseline) for cell in cells if cell != baseline]


def _pair_contrasts(table: pd.DataFrame, pairs: Sequence[Pair]) -> list[Contrast]:
    contrasts = []
    for first, second in pairs:
        both = whole_seeds(table, (first, second))
        require(
            len(both) >= 2,
            f"{first!r} and {second!r} share {len(both)} of the seeds {list(table.index)}, but a comparison needs 2",
        )
        labels = {"first": first, "second": second, "mean_second": both[second].mean()}
        contrasts.append((labels, both[first] - both[second]))
    return contrasts


def whole_seeds(table: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """The seeds of a `seed_table` that all of these cells have."""
    for cell in cells:
        require_name("cell", cell, table.columns)
    return table[list(cells)].dropna()


def _compare(contrasts: Sequence[Contrast], lower_better: bool, confidence: float) -> pd.DataFrame:
    found = pd.DataFrame([labels | _one_sample(differences, confidence) for labels, differences in contrasts])
    found.insert([*found.columns].index("p_value") + 1, "p_holm", holm(found["p_value"]))
    better = _favoured(found["mean_difference"], lower_better)
    return found.assign(verdict=np.where(found["p_holm"] < 1 - confidence, better, CANNOT_TELL))


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values adjusted for their number. Source: Holm 1979, https://www.jstor.org/stable/4615733."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def _favoured(differences: pd.Series, lower_better: bool) -> np.ndarray:
    """Which of the two the bare sign speaks for."""
    gain = -differences if lower_better else differences
    return np.select([gain > 0, gain < 0], ["first better", "second better"], CANNOT_TELL)


# an order promised beforehand, and what fewer seeds would have said of it


def trend(
    rows: pd.DataFrame, order: Sequence[str], metric: str = "loss", *, lower_better: bool | None = None
) -> pd.DataFrame:
    """Page's trend test over the seeds for an order of cells, best first, that was fixed before looking.

    One row: order, n_seeds, statistic (Page's L), p_value (one-sided), p_opposite (of the reverse order), verdict:
    "holds", "does not hold" (the reverse order at 5 %) or "cannot tell". That it holds says that the cells are not all
    equal and follow the order, not that each step is real. Source: Page 1963, https://doi.org/10.2307/2282965.
    Raises `HAELabError` for fewer than three cells, or fewer than two seeds that all of them have.
    """
    worse = _worse_along(rows, order, metric, lower_better)
    require(len(worse) >= 2, f"Page's test needs 2 or more seeds that {', '.join(order)} all have, got {len(worse)}")
    test, opposite = stats.page_trend_test(worse), stats.page_trend_test(-worse)
    verdict = "holds" if test.pvalue < ALPHA else "does not hold" if opposite.pvalue < ALPHA else CANNOT_TELL
    found = {"order": ", ".join(order), "n_seeds": len(worse), "statistic": test.statistic, "p_value": test.pvalue}
    return pd.DataFrame([found | {"p_opposite": opposite.pvalue, "verdict": verdict}])


def order_in_single_seeds(
    rows: pd.DataFrame, order: Sequence[str], metric: str = "loss", *, lower_better: bool | None = None
) -> pd.DataFrame:
    """How often a single seed shows the whole order, best first, and how often chance alone would show it.

    One row: order, n_seeds, n_in_order, percent_in_order, percent_by_chance (100 / k! for k cells).
    """
    in_order: np.ndarray = np.all(np.diff(_worse_along(rows, order, metric, lower_better), axis=1) > 0, axis=1)
    found = {"order": ", ".join(order), "n_seeds": len(in_order), "n_in_order": in_order.sum()}
    percents = {"percent_in_order": 100 * in_order.mean(), "percent_by_chance": 100 / factorial(len(order))}
    return pd.DataFrame([found | percents])


def _worse_along(rows: pd.DataFrame, order: Sequence[str], metric: str, lower_better: bool | None) -> np.ndarray:
    """(seeds, cells in the order), with the sign that makes the values grow where the order holds."""
    require(len(set(order)) == len(order) >= 3, f"an order is of three or more different cells, got {list(order)}")
    whole = whole_seeds(seed_table(rows, metric), order).to_numpy()
    require(len(whole) > 0, f"no seed has all of the cells {', '.join(order)}")
    return whole if lower_is_better(metric, lower_better) else -whole


def conclusions_by_seeds(
    rows: pd.DataFrame,
    counts: Sequence[int] = (1, 3, 10),
    pairs: Sequence[Pair] | None = None,
    metric: str = "loss",
    *,
    lower_better: bool | None = None,
) -> pd.DataFrame:
    """What one would have concluded from 1, 3 or 10 seeds, of each disjoint group of so many consecutive seeds.

    A row a count, group and pair: n_seeds, group, seeds, first, second, mean_second, mean_difference, ci_low, ci_high,
    conclusion. One seed has no interval, so its conclusion is the bare sign; more seeds conclude as
    `paired_differences` (Holm over the pairs of the group). Only seeds that all cells of the pairs have are used.
    Raises `HAELabError` for a count that the seeds do not fill once.
    """
    table = seed_table(rows, metric)
    pairs = list(pairs or _pairs(table))
    table = whole_seeds(table, list(dict.fromkeys(cell for pair in pairs for cell in pair)))
    parts = []
    for n_seeds, group, seeds in _groups(table, counts):
        conclude = _bare_signs if n_seeds == 1 else _conclude
        found = conclude(seeds, pairs, lower_is_better(metric, lower_better))
        parts.append(found.assign(n_seeds=n_seeds, group=group, seeds=", ".join(map(str, seeds.index))))
    columns = "n_seeds group seeds first second mean_second mean_difference ci_low ci_high conclusion".split()
    return pd.concat(parts, ignore_index=True)[columns]


def _groups(table: pd.DataFrame, counts: Sequence[int]) -> Iterator[tuple[int, int, pd.DataFrame]]:
    for count in counts:
        require(
            1 <= count <= len(table), f"counts go from 1 to the {len(table)} seeds that all cells have, got {count}"
        )
        for group in range(len(table) // count):
            yield count, group, table.iloc[group * count : (group + 1) * count]


def _bare_signs(seed: pd.DataFrame, pairs: Sequence[Pair], lower_better: bool) -> pd.DataFrame:
    found = pd.DataFrame(pairs, columns=["first", "second"])
    firsts, seconds = (found[side].map(seed.iloc[0]) for side in ("first", "second"))
    found = found.assign(mean_second=seconds, mean_difference=firsts - seconds, ci_low=np.nan, ci_high=np.nan)
    return found.assign(conclusion=_favoured(found["mean_difference"], lower_better))


def _conclude(seeds: pd.DataFrame, pairs: Sequence[Pair], lower_better: bool) -> pd.DataFrame:
    return _compare(_pair_contrasts(seeds, pairs), lower_better, 1 - ALPHA).rename(columns={"verdict": "conclusion"})


# quality against cost


def with_seconds(curves: pd.DataFrame, ms_per_step: Mapping[str, float], metric: str = "loss") -> pd.DataFrame:
    """Learning curves (cell, seed, step, metric) with the compute time of each point as a column seconds.

    `ms_per_step` is the time of one training step of each cell.
    Raises `HAELabError` for a cell without a time above 0, and as `seed_table`.
    """
    curves = _checked_runs(curves, ("cell", "seed", "step"), metric)
    for cell in curves["cell"].unique():
        time = ms_per_step.get(cell, np.nan)
        known = ", ".join(f"{name} {ms:g}" for name, ms in ms_per_step.items())
        require(0 < time < np.inf, f"cell {cell!r} has no ms per training step above 0; known are {known}")
    return curves.assign(seconds=curves["step"] * curves["cell"].map(dict(ms_per_step)) / 1000)


def at_equal_time(curves: pd.DataFrame, ms_per_step: Mapping[str, float], metric: str = "loss") -> pd.DataFrame:
    """The loss of every cell and seed at the longest compute time that all of them reach, for `paired_differences`.

    Curves and times as in `with_seconds`; between two points of a curve, the logarithm of the loss is linear in time.
    Columns: cell, seed, seconds, step (with a fraction), metric.
    Raises `HAELabError` for a loss of zero or less, a curve that begins after that time, and as `with_seconds`.
    """
    curves = with_seconds(curves, ms_per_step, metric)
    keys = ("cell", "seed", "step")
    _refuse(curves[curves[metric] <= 0], keys, metric, "must be above 0: it is interpolated in its logarithm")
    runs = {run: curve.sort_values("seconds") for run, curve in curves.groupby(["cell", "seed"], sort=False)}
    seconds = min(curve["seconds"].max() for curve in runs.values())
    reached = []
    for (cell, seed), curve in runs.items():
        late = curve[:1][curve["seconds"][:1] > seconds]
        _refuse(late, keys, metric, f"begins the curve after {seconds:g} s, the time that all reach")
        loss = np.exp(np.interp(seconds, curve["seconds"], np.log(curve[metric])))
        step = 1000 * seconds / ms_per_step[str(cell)]
        reached.append({"cell": cell, "seed": seed, "seconds": seconds, "step": step, metric: loss})
    return pd.DataFrame(reached)


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
