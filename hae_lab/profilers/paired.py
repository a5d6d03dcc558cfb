"""Which of two times is shorter, from rounds in which both ran: they are paired, whatever slows one round.

The test is Wilcoxon's signed-rank test on the logarithms of the ratios, which supposes that these lie symmetrically
about their centre, and nothing of their shape. Two are equal within a margin if both one-sided tests say that the
centre is less than the margin away (Schuirmann's two one-sided tests, by ranks).
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from hae_lab.checks import require

EQUAL_PERCENT = 2.0  # a difference of time that nobody would act on
ALPHA = 0.05
FEWEST = 15  # rounds, from which on such a margin can be shown on a busy computer
FASTER, SLOWER, EQUAL, OPEN = "faster", "slower", f"equal within {EQUAL_PERCENT:g} %", "cannot tell"


def compare(ms: pd.DataFrame, against: Mapping[str, str]) -> pd.DataFrame:
    """Times of cases against those of others in the same rounds; a row a case in `against`, under its name.

    `ms` has a row a round and a column a case. Columns: against; faster_percent, by how much less time the case takes,
    negative if it takes more; p_value, two-sided; equal_within_percent, the smallest margin within which the two are
    equal at 5 %; verdict: "equal within 2 %", else "faster" or "slower" if p is below 5 %, else "cannot tell".
    """
    require(len(ms) >= FEWEST, f"a verdict on times takes {FEWEST} rounds or more, got {len(ms)}")
    rows = {case: _pair(np.log(ms[case].to_numpy() / ms[other].to_numpy())) for case, other in against.items()}
    columns = ["faster_percent", "p_value", "equal_within_percent", "verdict"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    found.insert(0, "against", pd.Series(against))
    return found


def _pair(logs: np.ndarray) -> tuple[float, float, float, str]:
    """Of the logarithms of the ratios, a number a round."""
    centre, low, high = _centre(logs)
    p_value = signed_rank_p(logs)
    equal_within = 100 * float(np.expm1(max(abs(low), abs(high))))
    if equal_within <= EQUAL_PERCENT:
        verdict = EQUAL
    elif p_value < ALPHA:
        verdict = FASTER if centre < 0 else SLOWER
    else:
        verdict = OPEN
    return -100 * float(np.expm1(centre)), p_value, equal_within, verdict


def signed_rank_p(logs: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros say nothing and are left out."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(logs[logs != 0]).pvalue) if np.any(logs) else 1.0


def _centre(logs: np.ndarray) -> tuple[float, float, float]:
    """The Hodges-Lehmann centre, and the ends of its interval that both one-sided tests at 5 % leave over."""
    first, second = np.triu_indices(len(logs))
    means = np.sort((logs[first] + logs[second]) / 2)  # Walsh averages
    outside = _outside(len(logs), ALPHA)
    return float(np.median(means)), float(means[outside]), float(means[-1 - outside])


@lru_cache
def _outside(n: int, alpha: float) -> int:
    """Most Walsh averages beyond a margin at which a one-sided test passes, by the exact law of the rank sum."""
    counts = np.ones(1)
    for rank in range(1, n + 1):
        counts = np.convolve(counts, np.concatenate([[0.5], np.zeros(rank - 1), [0.5]]))
    return int((counts.cumsum() <= alpha).sum()) - 1
