"""Power of the paired t test at two-sided 5 %: how large a difference so many seeds find, and how many it takes."""

from bisect import bisect_left
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from hae_lab.checks import require

ALPHA = 0.05  # two-sided
TARGET_POWER = 0.8
MOST_SEEDS = 1_000_000


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
