"""Honest statistics of a study: the unit is the training seed, and cells are compared paired by seed.

Rows are tidy, one a run: "cell" (which model), "seed", and metric columns. Runs of one seed share data order, noise and
timesteps, so their difference carries less noise than each of them. To bootstrap images within one run would leave out
the noise of training, and find differences that the next seed reverses.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from hae_lab.checks import HAELabError, require, require_name
from hae_lab.diffusion.metrics import higher_is_better
from hae_lab.presets import CONTROL
from hae_lab.study.equivalence import BETTER, alpha_of, equivalence, margin_of, verdicts
from hae_lab.study.grid import QUESTION
from hae_lab.study.power import ALPHA, detectable_effect_size, seeds_needed

QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")  # of the timestep, least noise first

Numbers = TypeVar("Numbers", float, "pd.Series[float]")  # one, or a column
Pair = tuple[str, str]
Contrast = tuple[dict[str, Any], pd.Series]  # what is compared, and the difference in each seed


# rows


def question(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cells that a study asks about: without its controls, and without those at equal cost."""
    return rows[rows["role"] == QUESTION] if "role" in rows.columns else rows


def declared_pairs(rows: pd.DataFrame) -> list[Pair]:
    """What is compared: every pair of cells, but a cell that has a reference with that alone."""
    cells = rows.drop_duplicates("cell")
    named = "reference" in rows.columns
    references = dict(zip(cells["cell"], cells["reference"].fillna(""), strict=True)) if named else {}
    free = [cell for cell in cells["cell"] if not references.get(cell)]
    bound = [(cell, reference) for cell, reference in references.items() if reference and reference != cell]
    return [(later, earlier) for earlier, later in combinations(free, 2)] + bound


def seed_table(rows: pd.DataFrame, metric: str = "loss") -> pd.DataFrame:
    """A row a seed, a column a cell, in the order of the rows; NaN where a cell lacks a seed.

    Raises `HAELabError` for missing columns, a repeated cell and seed, and a metric that is not a finite number.
    """
    checked = checked_runs(rows, ("cell", "seed"), metric)
    return checked.pivot(index="seed", columns="cell", values=metric)[list(rows["cell"].unique())]


def checked_runs(rows: pd.DataFrame, keys: Sequence[str], metric: str) -> pd.DataFrame:
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


# comparisons


def paired_differences(
    rows: pd.DataFrame,
    metric: str = "loss",
    baseline: str | None = None,
    *,
    lower_better: bool | None = None,
    confidence: float = 1 - ALPHA,
    margin_percent: float | None = None,
) -> pd.DataFrame:
    """Differences first - second over the seeds that both cells have: declared pairs, or all against a `baseline`.

    Every pair is declared, but for cells with a reference; of rows with a column role, those of the question. Columns:
    first, second, mean_second, n_seeds, mean_difference, sd_difference, ci_low, ci_high (t interval of this pair
    alone), p_value (paired t test), p_holm (Holm over the rows), minimum_detectable_difference (80 % power at two-sided
    5 %, from the observed sd), seeds_needed (80 % power at the observed mean and sd: an order of magnitude),
    margin_percent (the rows' own, unless given, in percent of mean_second), p_equal (two one-sided t tests at that
    margin), equal_within_percent (the smallest margin at which they pass), detected ("first better" or "second better"
    where p_holm is below 1 - confidence, which keeps zero out of the interval too; else "") and verdict, by
    `equivalence.verdicts`: "equal" within the margin, else what is detected, else "cannot tell". A pair's "equal" is
    wrong with 5 % at most, and so is "all pairs are equal", for which all of them must pass. Rows of a study with
    several looks spend 5 % over them.
    `lower_better` overrides what `diffusion.metrics` knows.
    Raises `HAELabError` for fewer than two common seeds, and as `seed_table`.
    """
    rows = question(rows)
    table = seed_table(rows, metric)
    pairs = declared_pairs(rows) if baseline is None else against(table, baseline)
    require(len(pairs) > 0, f"a comparison needs two or more cells, got {list(table.columns)}")
    return compared(
        pair_contrasts(table, pairs),
        lower_is_better(metric, lower_better),
        confidence,
        margin_of(rows, metric) if margin_percent is None else margin_percent,
        alpha_of(rows, 1 - confidence),
    )


def seed_differences(rows: pd.DataFrame, pairs: Sequence[Pair], metric: str = "loss") -> pd.DataFrame:
    """What `paired_differences` averages: first, second, seed, difference (first - second)."""
    parts = [
        pd.DataFrame(
            {"first": found["first"], "second": found["second"], "seed": each.index, "difference": each.values}
        )
        for found, each in pair_contrasts(seed_table(rows, metric), pairs)
    ]
    return pd.concat(parts, ignore_index=True)


def quartile_differences(rows: pd.DataFrame, baseline: str = CONTROL, *, confidence: float = 1 - ALPHA) -> pd.DataFrame:
    """`paired_differences` to a baseline in each of `QUARTILES`, named by a column metric; Holm over all rows."""
    rows, contrasts = question(rows), []
    for metric in QUARTILES:
        table = seed_table(rows, metric)
        for labels, differences in pair_contrasts(table, against(table, baseline)):
            contrasts.append(({"metric": metric} | labels, differences))
    return compared(contrasts, True, confidence, margin_of(rows), alpha_of(rows, 1 - confidence))


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
    rows = checked_runs(question(rows), ("seed", *factors), metric)
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
    lower_better, alpha = lower_is_better(metric, lower_better), alpha_of(rows, 1 - confidence)
    return compared(contrasts, lower_better, confidence, margin_of(rows, metric), alpha)


def _two_levels(rows: pd.DataFrame, factor: str) -> tuple[Any, Any]:
    levels = list(rows[factor].unique())
    require(len(levels) == 2, f"a main effect compares two levels, but {factor} has {len(levels)}: {levels}")
    return tuple(levels)


def against(table: pd.DataFrame, baseline: str) -> list[Pair]:
    """Every cell of a `seed_table` with the baseline."""
    cells = list(table.columns)
    require(len(cells) >= 2, f"a comparison needs two or more cells, got {cells}")
    require_name("baseline", baseline, cells)
    return [(cell, baseline) for cell in cells if cell != baseline]


def pair_contrasts(table: pd.DataFrame, pairs: Sequence[Pair]) -> list[Contrast]:
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


def compared(
    contrasts: Sequence[Contrast], lower_better: bool, confidence: float, margin_percent: float, alpha: float
) -> pd.DataFrame:
    """The tests and the verdict of each contrast, as `paired_differences` describes them; Holm over all of them."""
    found = pd.DataFrame([labels | _one_sample(differences, confidence) for labels, differences in contrasts])
    return judged(found.assign(margin_percent=float(margin_percent)), lower_better, alpha)


def judged(found: pd.DataFrame, lower_better: bool, alpha: float, families: pd.Series | None = None) -> pd.DataFrame:
    """Comparisons with p_holm, the tests of `equivalence`, detected and verdict; one family, unless told which.

    Columns: mean_difference, sd_difference, n_seeds, mean_second, p_value, margin_percent.
    """
    groups = found["p_value"].groupby(families if families is not None else np.zeros(len(found)))
    p_holm = groups.transform(holm)
    detected = np.where(p_holm < alpha, favoured(found["mean_difference"], lower_better), "")
    found = found.join(equivalence(found, alpha))
    found.insert([*found.columns].index("p_value") + 1, "p_holm", p_holm)
    return found.assign(detected=detected, verdict=verdicts(found, detected, alpha))


def holm(p_values: ArrayLike) -> np.ndarray:
    """p values adjusted for their number. Source: Holm 1979, https://www.jstor.org/stable/4615733."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def favoured(differences: pd.Series, lower_better: bool) -> np.ndarray:
    """Which of the two the bare sign speaks for; "" if neither."""
    gain = -differences if lower_better else differences
    return np.select([gain > 0, gain < 0], BETTER, "")
