"""An order promised beforehand, and what fewer seeds would have said of it."""

from collections.abc import Iterator, Sequence
from math import factorial

import numpy as np
import pandas as pd
from scipy import stats

from hae_lab.checks import require
from hae_lab.study.equivalence import CANNOT_TELL, alpha_of, margin_of
from hae_lab.study.power import ALPHA
from hae_lab.study.statistics import (
    Pair,
    compared,
    declared_pairs,
    favoured,
    lower_is_better,
    pair_contrasts,
    question,
    seed_table,
    whole_seeds,
)


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
    alpha = alpha_of(rows)
    verdict = "holds" if test.pvalue < alpha else "does not hold" if opposite.pvalue < alpha else CANNOT_TELL
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
    rows = question(rows)
    table, margin_percent = seed_table(rows, metric), margin_of(rows, metric)
    pairs = list(pairs or declared_pairs(rows))
    require(len(pairs) > 0, f"a comparison needs two or more cells, got {list(table.columns)}")
    table = whole_seeds(table, list(dict.fromkeys(cell for pair in pairs for cell in pair)))
    parts = []
    for n_seeds, group, seeds in _groups(table, counts):
        better = lower_is_better(metric, lower_better)
        found = _bare_signs(seeds, pairs, better) if n_seeds == 1 else _conclude(seeds, pairs, better, margin_percent)
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
    signs = favoured(found["mean_difference"], lower_better)
    return found.assign(conclusion=np.where(signs == "", CANNOT_TELL, signs))


def _conclude(seeds: pd.DataFrame, pairs: Sequence[Pair], lower_better: bool, margin_percent: float) -> pd.DataFrame:
    found = compared(pair_contrasts(seeds, pairs), lower_better, 1 - ALPHA, margin_percent, ALPHA)
    return found.rename(columns={"verdict": "conclusion"})
