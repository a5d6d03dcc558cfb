"""The rules of the verdicts: every one follows from numbers.

"holds" within one point of the claimed percentage or, of a saving, above it, "nearly holds" within five, else "does not
hold"; a measured order
needs times that differ in rounds that are paired (`profilers.paired`), and an order of quality needs differences over
training seeds that are decided after Holm, else "cannot tell"; a reversed pair or trend refutes it, and so does a pair
that is equal within the margin its study declared. What a study says is "void" if it does not find a control that is
known to be worse.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations, pairwise
from typing import Any

import pandas as pd

from hae_lab.presets import DOCUMENT
from hae_lab.profilers.paired import EQUAL as SAME_TIME
from hae_lab.profilers.paired import FASTER, SLOWER
from hae_lab.study.comparisons import NOT_FOUND
from hae_lab.study.equivalence import EQUAL

HOLDS, NEARLY, FAILS, OPEN, VOID = "holds", "nearly holds", "does not hold", "cannot tell", "void"
EXACT, NEAR = 1, 5  # percentage points
GREATLY, MOSTLY = 50, 50  # percent that "greatly" saves at least, and that "most" is at least: ours
CARDS_GIB = (4, 8, 12, 16, 24, 32, 48, 80)  # memory of graphics cards that one buys


def judge(computed_percent: float, claimed_percent: float) -> str:
    """Of a percentage."""
    off = abs(computed_percent - claimed_percent)
    return HOLDS if off <= EXACT else NEARLY if off <= NEAR else FAILS


def judge_saving(saved_percent: float, claimed_percent: float) -> str:
    """Of a saving, which may be larger than claimed."""
    return HOLDS if saved_percent >= claimed_percent - EXACT else judge(saved_percent, claimed_percent)


def as_said(fact: bool) -> str:
    """Of a fact that is true or not."""
    return HOLDS if fact else FAILS


def unmeasured() -> str:
    """Of a sentence that nothing which was measured decides."""
    return OPEN


def in_order(numbers: Iterable[float]) -> str:
    """Whether each number is below the one before it."""
    return as_said(all(after < before for before, after in pairwise(numbers)))


def at_most(value: float, limit: float) -> str:
    """Of an upper limit."""
    return as_said(value <= limit)


def noticeably_more(percent_more: float) -> str:
    """Whether something costs more: a difference within five percent is none worth a word."""
    return as_said(percent_more > NEAR)


def mostly(percent: float) -> str:
    """Whether a share is most of something."""
    return as_said(percent >= MOSTLY)


def different_cards(needed_bytes: Iterable[float]) -> str:
    """Whether what several models need fills cards of different sizes, the smallest that hold them."""
    sizes = [next((card for card in CARDS_GIB if need <= card * 2**30), CARDS_GIB[-1] + 1) for need in needed_bytes]
    return as_said(len(set(sizes)) == len(sizes))


def worst(verdicts: Iterable[str]) -> str:
    """The worst of verdicts on percentages: a claim of several numbers holds if all of them do."""
    return max(verdicts, key=(HOLDS, NEARLY, FAILS).index)


def first_place(others: Iterable[str]) -> str:
    """Whether one time is below all others, from the verdicts on these against it (`profilers.paired`).

    One that is faster refutes it, and so does one that is equal within the margin.
    """
    others = list(others)
    if set(others) & {FASTER, SAME_TIME}:
        return FAILS
    return HOLDS if set(others) == {SLOWER} else OPEN


def faster(than: object) -> str:
    """Whether one time is below another, from the verdict of `profilers.paired` on the first."""
    return {FASTER: HOLDS, SLOWER: FAILS, SAME_TIME: FAILS}.get(str(than), OPEN)


def better(pair: Mapping[str, Any]) -> str:
    """The better cell of a row of `statistics.paired_differences`, "equal", or "" where the seeds cannot tell."""
    found = {"first better": pair["first"], "second better": pair["second"], EQUAL: EQUAL}
    return found.get(pair["verdict"], "")


def order_of_quality(pairs: pd.DataFrame, trend: str = OPEN) -> str:
    """Whether HAE > Lite > V2 is supported: both neighbours decided as promised after Holm.

    One pair decided against it refutes it, and so do a trend in the opposite direction and a pair that is equal
    within the margin: beyond the margin there is no such order.
    """
    decided = {frozenset((pair["first"], pair["second"])): better(pair) for pair in pairs.to_dict("records")}
    promised = {frozenset(pair): pair[0] for pair in combinations(DOCUMENT, 2)}
    against = any(found and found != promised[pair] for pair, found in decided.items())
    if against or trend == FAILS:
        return FAILS
    return HOLDS if all(decided[frozenset(pair)] for pair in pairwise(DOCUMENT)) else OPEN


def first_of_pair(pair: Mapping[str, Any], promised: str) -> str:
    """Whether the promised cell of one pair is the better one; equal within the margin, it is not."""
    found = better(pair)
    return OPEN if not found else HOLDS if found == promised else FAILS


def kept(pair: Mapping[str, Any], cell: str) -> str:
    """Whether a cell of one pair is as good as the other: equal within the margin, or better."""
    found = better(pair)
    return OPEN if not found else as_said(found in (EQUAL, cell))


def rests_on(found: Iterable[str]) -> str:
    """Of advice, from the verdicts on what it rests on.

    What holds in one reading and fails in another decides nothing.
    """
    told = set(found)
    if told <= {HOLDS, NEARLY}:
        return HOLDS if told == {HOLDS} else NEARLY
    return FAILS if FAILS in told and not told & {HOLDS, NEARLY} else OPEN


def all_first(pairs: Iterable[tuple[Mapping[str, Any], str]]) -> str:
    """Whether each promised cell is the better one of its pair: a single failure refutes that."""
    found = [first_of_pair(pair, promised) for pair, promised in pairs]
    return max(found, key=(HOLDS, OPEN, FAILS).index)


def valid(verdict: str, controls: str) -> str:
    """A verdict on quality, which is void if its study does not find what is known to be worse."""
    return VOID if controls == NOT_FOUND else verdict
