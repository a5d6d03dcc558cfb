"""The rules of the verdicts: every one follows from numbers.

"holds" within one point of the claimed percentage, "nearly holds" within five, else "does not hold"; a measured order
needs times whose quartiles do not overlap, and an order of quality needs differences over training seeds that are
decided after Holm, else "cannot tell"; a reversed pair or trend refutes it.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any

import pandas as pd

from hae_lab.presets import DOCUMENT

HOLDS, NEARLY, FAILS, OPEN = "holds", "nearly holds", "does not hold", "cannot tell"
EXACT, NEAR = 1, 5  # percentage points


def judge(computed_percent: float, claimed_percent: float) -> str:
    """Of a percentage."""
    off = abs(computed_percent - claimed_percent)
    return HOLDS if off <= EXACT else NEARLY if off <= NEAR else FAILS


def judge_saving(saved_percent: float, claimed_percent: float) -> str:
    """Of a saving, which may be larger than claimed."""
    return HOLDS if saved_percent >= claimed_percent - EXACT else judge(saved_percent, claimed_percent)


def worst(verdicts: Iterable[str]) -> str:
    """The worst of verdicts on percentages: a claim of several numbers holds if all of them do."""
    return max(verdicts, key=(HOLDS, NEARLY, FAILS).index)


def first_place(mine: pd.Series, others: pd.DataFrame) -> str:
    """Whether one time is below all others: rows with ms_q1 and ms_q3, which must not overlap."""
    if mine["ms_q3"] < others["ms_q1"].min():
        return HOLDS
    return FAILS if mine["ms_q1"] > others["ms_q3"].min() else OPEN


def times_differ(times: pd.DataFrame, order: Iterable[str] = DOCUMENT) -> bool:
    """Whether the quartiles of no two neighbours overlap. Rows: by variant, with ms_q1 and ms_q3."""
    return all(
        times.loc[a, "ms_q3"] < times.loc[b, "ms_q1"] or times.loc[b, "ms_q3"] < times.loc[a, "ms_q1"]
        for a, b in pairwise(order)
    )


def better(pair: Mapping[str, Any]) -> str:
    """The better cell of a row of `statistics.paired_differences`, or "" where the seeds cannot tell."""
    return {"first better": pair["first"], "second better": pair["second"]}.get(pair["verdict"], "")


def order_of_quality(pairs: pd.DataFrame, trend: str = OPEN) -> str:
    """Whether HAE > Lite > V2 is supported: both neighbours decided as promised after Holm.

    One pair decided against it refutes it, and so does a trend in the opposite direction.
    """
    decided = {frozenset((pair["first"], pair["second"])): better(pair) for pair in pairs.to_dict("records")}
    promised = {frozenset(pair): pair[0] for pair in combinations(DOCUMENT, 2)}
    against = any(found and found != promised[pair] for pair, found in decided.items())
    if against or trend == FAILS:
        return FAILS
    return HOLDS if all(decided[frozenset(pair)] for pair in pairwise(DOCUMENT)) else OPEN


def order_at_equal_time(pairs: pd.DataFrame, trend: str, times: pd.DataFrame) -> str:
    """The same after equal compute time, which says nothing if the times of a step cannot be told apart."""
    return order_of_quality(pairs, trend) if times_differ(times) else OPEN


def first_of_pair(pair: Mapping[str, Any], promised: str) -> str:
    """Whether the promised cell of one pair is the better one."""
    found = better(pair)
    return OPEN if not found else HOLDS if found == promised else FAILS
