"""Times of the same rounds, compared: error rates by simulation, and scipy beside our own numbers."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from hae_lab import HAELabError
from hae_lab.profilers import paired

ROUNDS, TRIALS = 15, 2000
SPREAD = 0.02  # of the logarithm of a ratio


def found(percent_less: float, seed: int, spread: float = SPREAD, rounds: int = ROUNDS) -> pd.Series:
    """The row of a case that takes so much less time; what slows a round slows both."""
    rng = np.random.default_rng(seed)
    slow = 10 * (1 + np.abs(rng.standard_cauchy(rounds)))
    ratio = (1 - percent_less / 100) * np.exp(spread * rng.standard_normal(rounds))
    return paired.compare(pd.DataFrame({"a": slow * ratio, "b": slow}), {"a": "b"}).loc["a"]


def share(percent_less: float, *verdicts: str, spread: float = SPREAD) -> float:
    """How often cases that take so much less time get one of the verdicts; what slows a round slows all of them."""
    rng = np.random.default_rng(0)
    slow = 10 * (1 + np.abs(rng.standard_cauchy(ROUNDS)))
    ratios = (1 - percent_less / 100) * np.exp(spread * rng.standard_normal((TRIALS, ROUNDS)))
    cases = {f"case {trial}": slow * ratio for trial, ratio in enumerate(ratios)}
    rows = paired.compare(pd.DataFrame(cases | {"other": slow}), dict.fromkeys(cases, "other"))
    return float(rows["verdict"].isin(verdicts).mean())


def test_equal_times_are_called_different_in_no_more_than_five_percent():
    assert share(0, "faster", "slower", spread=0.2) == pytest.approx(0.05, abs=0.02)
    assert share(0, "faster", "slower") <= 0.05


@pytest.mark.parametrize("percent_less", [100 * (1 - 1 / 1.02), 100 * (1 - 1.02)])
def test_times_that_differ_by_the_margin_are_called_equal_in_no_more_than_five_percent(percent_less):
    assert share(percent_less, paired.EQUAL) <= 0.06


def test_real_differences_and_real_equality_are_found():
    assert share(4, "faster") > 0.98
    assert share(-4, "slower") > 0.98
    assert share(0, paired.EQUAL, spread=0.01) > 0.98
    assert share(0, paired.EQUAL) > 0.8


def test_a_bent_rule_would_be_noticed(monkeypatch):
    monkeypatch.setattr(paired, "ALPHA", 0.25)
    assert share(0, "faster", "slower", spread=0.2) > 0.2


def test_numbers_are_those_of_scipy():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logs = rng.normal(0.01, 0.02, 17)
        ms = pd.DataFrame({"b": np.full(17, 5.0), "a": 5 * np.exp(logs)})
        row = paired.compare(ms, {"a": "b"}).loc["a"]
        assert row["p_value"] == pytest.approx(wilcoxon(logs).pvalue)
        margin = np.log1p(row["equal_within_percent"] / 100)
        for factor, passes in ((1.0001, True), (0.9999, False)):
            above = wilcoxon(logs + factor * margin, alternative="greater").pvalue
            below = wilcoxon(logs - factor * margin, alternative="less").pvalue
            assert (max(above, below) <= 0.05) == passes
        means = [(x + y) / 2 for place, x in enumerate(logs) for y in logs[place:]]
        assert row["faster_percent"] == pytest.approx(100 * (1 - np.exp(np.median(means))))


def test_the_same_times_are_equal_within_nothing():
    row = paired.compare(pd.DataFrame({"a": range(1, 16), "b": range(1, 16)}), {"a": "b"}).loc["a"]
    assert row.to_dict() == {
        "against": "b", "faster_percent": 0.0, "p_value": 1.0, "equal_within_percent": 0.0, "verdict": paired.EQUAL
    }  # fmt: skip


def test_signs_tell_who_is_faster():
    assert found(30, seed=0)["faster_percent"] == pytest.approx(30, abs=2)
    assert found(-30, seed=0)["faster_percent"] == pytest.approx(-30, abs=3)
    assert found(-30, seed=0)["equal_within_percent"] == pytest.approx(30, abs=4)


def test_too_few_rounds_are_refused():
    with pytest.raises(HAELabError, match="15 rounds or more, got 14"):
        found(0, seed=0, rounds=14)
