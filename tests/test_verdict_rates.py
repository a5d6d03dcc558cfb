"""How often verdicts are wrong, and how often they come: 2,000 simulated studies with a known effect.

A rule that is bent, one look more or one correction less, must show: each test has its counterpart.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from hae_lab.study import comparisons, equivalence, power, statistics

STUDIES = 2000
LIMIT = 0.05 + 3 * np.sqrt(0.05 * 0.95 / STUDIES)  # a rate of 5 % comes out above it once in 700 times
SD, LOSS = 0.001, 0.1  # of a paired difference, and of the second cell: 1 % is one standard deviation


def studies(gaps, seeds: int = 10, seed: int = 0) -> np.ndarray:
    """(studies, cells, seeds): losses of cells whose means differ by `gaps`, independent over seeds."""
    noise = np.random.default_rng(seed).normal(0, SD / np.sqrt(2), (STUDIES, len(gaps), seeds))
    return LOSS + np.array(gaps)[:, None] + noise


def judged(losses: np.ndarray, margin_percent: float, alpha: float = 0.05, together: bool = True) -> pd.DataFrame:
    """Verdicts of all pairs of each study: study, first, second, verdict; by numpy and scipy up to the rule."""
    cells = losses.shape[1]
    rows = []
    for first, second in ((i, j) for j in range(cells) for i in range(j + 1, cells)):
        differences = losses[:, first] - losses[:, second]
        columns = {"study": range(STUDIES), "first": first, "second": second, "mean_second": losses[:, second].mean(1)}
        columns |= {"mean_difference": differences.mean(1), "sd_difference": differences.std(1, ddof=1)}
        rows.append(pd.DataFrame(columns).assign(p_value=stats.ttest_1samp(differences, 0, axis=1).pvalue))
    found = pd.concat(rows, ignore_index=True).assign(n_seeds=losses.shape[2], margin_percent=margin_percent)
    families = found["study"] if together else pd.Series(range(len(found)))
    return statistics.judged(found, True, alpha, families)


def rate(found: pd.DataFrame, verdicts: tuple[str, ...], every: bool = False) -> float:
    """Share of the studies in which any pair, or every pair, has such a verdict."""
    hits = found["verdict"].isin(verdicts).groupby(found["study"])
    return float((hits.all() if every else hits.any()).mean())


BETTER = ("first better", "second better")


def test_equal_cells_are_called_better_in_five_percent_of_studies():
    losses = studies([0, 0, 0])
    assert 0.03 < rate(judged(losses, 1e-9), BETTER) <= LIMIT
    assert rate(judged(losses, 1e-9, together=False), BETTER) > LIMIT  # without Holm


def test_a_difference_as_large_as_the_margin_is_called_equal_in_five_percent_of_studies():
    margin = 3.0
    gap = margin / 100 * LOSS
    found = judged(studies([0, gap]), margin)
    assert 0.03 < rate(found, ("equal",)) <= LIMIT
    assert rate(judged(studies([0, gap]), 1.2 * margin), ("equal",)) > 2 * LIMIT  # with a wider margin than declared


def test_all_pairs_equal_needs_no_correction():
    margin = 3.0
    gap = margin / 100 * LOSS
    assert rate(judged(studies([0, 0, gap]), margin), ("equal",), every=True) <= LIMIT


@pytest.mark.parametrize("seeds", [5, 10])
def test_a_detectable_difference_is_found_four_times_in_five(seeds):
    gap = SD * power.detectable_effect_size(seeds)
    found = judged(studies([gap, 0], seeds), 1e-9)
    assert rate(found, ("first better",)) == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / STUDIES))


def chance_of_equal(margin: float, sd: float, seeds: int) -> float:
    """The power of the two one-sided tests for equal cells, by integration over the sample's sd."""
    freedom = seeds - 1
    limit, error = stats.t.ppf(0.95, freedom), sd / np.sqrt(seeds)

    def share(chi2: float) -> float:
        room = (margin - limit * error * np.sqrt(chi2 / freedom)) / error
        return stats.chi2.pdf(chi2, freedom) * max(0.0, 2 * stats.norm.cdf(room) - 1)

    return integrate.quad(share, 0, 20 * freedom, limit=200)[0]


@pytest.mark.parametrize(("seeds", "margin_percent"), [(5, 1.74), (10, 1.0)])
def test_equal_cells_are_called_equal_as_often_as_theory_says(seeds, margin_percent):
    expected = chance_of_equal(margin_percent / 100 * LOSS, SD, seeds)
    assert 0.7 < expected < 0.95
    found = rate(judged(studies([0, 0], seeds), margin_percent), ("equal",))
    assert found == pytest.approx(expected, abs=3 * np.sqrt(0.16 / STUDIES))


def test_a_difference_below_the_margin_makes_no_cell_better_however_sure_it_is():
    losses = studies([0.005 * LOSS, 0], seeds=100)  # half a percent, five standard errors
    found = judged(losses, 1.0)
    assert (found["detected"] == "first better").mean() > 0.99
    assert rate(found, ("equal",)) > 0.95
    assert rate(judged(losses, 0.1), ("first better",)) > 0.99


def any_look(losses: np.ndarray, margin_percent: float, alpha: float, verdicts: tuple[str, ...]) -> float:
    """Share of the studies that would stop with such a verdict at one of three looks."""
    looks = [judged(losses[:, :, :seeds], margin_percent, alpha) for seeds in (5, 10, 15)]
    hits = [look["verdict"].isin(verdicts).groupby(look["study"]).any() for look in looks]
    return float(pd.concat(hits, axis=1).any(axis=1).mean())


def alpha_at_each_look(looks: int) -> float:
    return equivalence.alpha_of(pd.DataFrame({"looks": [looks]}))


def test_looking_three_times_is_wrong_in_five_percent_of_studies():
    equal, apart = studies([0, 0], seeds=15), studies([0, 0.02 * LOSS], seeds=15)
    spent = alpha_at_each_look(3)
    assert any_look(equal, 1e-9, spent, BETTER) <= LIMIT
    assert any_look(apart, 2.0, spent, ("equal",)) <= LIMIT
    assert any_look(equal, 1e-9, 0.05, BETTER) > LIMIT  # as if each look were the only one
    assert any_look(apart, 2.0, 0.05, ("equal",)) > LIMIT


def test_rows_of_one_look_spend_all_at_once():
    assert equivalence.alpha_of(pd.DataFrame({"loss": [1.0]})) == 0.05
    assert alpha_at_each_look(1) == 0.05
    assert alpha_at_each_look(4) == pytest.approx(0.0125)


def control_rows(effect: float, seeds: int, seed: int) -> pd.DataFrame:
    losses = LOSS + np.random.default_rng(seed).normal(0, SD / np.sqrt(2), (2, seeds)) + np.array([[0], [effect]])
    parts = [("hae", "question", "", losses[0]), ("narrow", "control", "hae", losses[1])]
    return pd.concat(
        [
            pd.DataFrame(
                {"cell": cell, "role": role, "reference": other, "data": "x", "seed": range(seeds), "loss": loss}
            )
            for cell, role, other, loss in parts
        ]
    )


@pytest.mark.parametrize(
    ("effect", "margin", "low", "high"),
    [
        (0.0, 1e-9, 0.0, 0.15),  # no worse at all: found by accident, one side of 5 %
        (0.005, 1.0, 0.95, 1.0),  # 5 % worse
        (-0.005, 1.0, 0.0, 0.02),  # better
        (0.0003, 1.0, 0.0, 0.1),  # surely worse, by less than the margin
    ],
)
def test_a_control_is_found_if_it_is_worse_beyond_the_margin(effect, margin, low, high):
    found = [
        comparisons.controls_found(control_rows(effect, 8, seed).assign(margin_percent=margin)) == "found"
        for seed in range(40)
    ]
    assert low <= np.mean(found) <= high


def test_a_study_without_controls_says_so():
    rows = control_rows(0.005, 5, 0)
    assert comparisons.controls_found(rows[rows["role"] == "question"]) == "none"
    assert comparisons.controls_found(rows.drop(columns=["role", "reference"])) == "none"
    both = pd.concat([rows, rows[rows["role"] == "control"].assign(cell="same", loss=LOSS)])
    assert comparisons.controls_found(both) == "not found"
