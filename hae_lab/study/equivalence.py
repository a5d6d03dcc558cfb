"""When two cells are equal: within a margin that was declared before the run, by two one-sided tests.

Source of the tests: Schuirmann 1987, https://doi.org/10.1007/BF01068419.
"""

import numpy as np
import pandas as pd
from scipy import stats

from hae_lab.checks import require, require_number
from hae_lab.study.grid import MARGIN_PERCENT
from hae_lab.study.power import ALPHA

BETTER = ("first better", "second better")
EQUAL, CANNOT_TELL = "equal", "cannot tell"


def margin_of(rows: pd.DataFrame, metric: str = "loss") -> float:
    """The margin in percent that the rows' study declares for a metric: its own, that of all, or 2.

    Raises `HAELabError` for rows of several margins.
    """
    for name in (f"margin_percent_{metric}", "margin_percent"):
        if name in rows.columns:
            margins = rows[name].dropna().unique()
            require(len(margins) == 1, f"rows of one study have one {name}, got {list(margins)}")
            return require_number(name, float(margins[0]), 0, low_open=True)
    return MARGIN_PERCENT


def alpha_of(rows: pd.DataFrame, alpha: float = ALPHA) -> float:
    """The error rate of one look: a study that may look several times spends an equal share at each.

    By Bonferroni over the looks, so the rate holds for the whole study however the looks depend on each other.
    """
    return alpha / int(rows["looks"].max()) if "looks" in rows.columns else alpha


def equivalence(found: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The two one-sided tests of comparisons: p_equal, equal_within_percent.

    `found` has mean_difference, sd_difference, n_seeds, mean_second and margin_percent. The second column is the
    smallest margin at which the tests pass at `alpha`; the mean of the second is taken as known.
    """
    unit = found["mean_second"].abs() / 100
    error = found["sd_difference"] / np.sqrt(found["n_seeds"])
    room = found["margin_percent"] * unit - found["mean_difference"].abs()  # to the nearer bound
    freedom = found["n_seeds"] - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = np.where(error > 0, stats.t.sf(room / error, freedom), np.where(room > 0, 0.0, 1.0))
        needed = (found["mean_difference"].abs() + stats.t.ppf(1 - alpha, freedom) * error) / unit
    return pd.DataFrame({"p_equal": p_value, "equal_within_percent": needed}, index=found.index)


def verdicts(found: pd.DataFrame, detected: np.ndarray, alpha: float) -> np.ndarray:
    """The verdict of each comparison, one rule for all of them.

    "equal" where both one-sided tests pass at the margin, whatever its sign: a difference below the smallest effect of
    interest makes no cell better. Else what the t test `detected`, "first better" or "second better"; else "cannot
    tell".
    """
    return np.select([found["p_equal"] < alpha, detected != ""], [EQUAL, detected], CANNOT_TELL)
