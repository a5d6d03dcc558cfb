"""The two one-sided tests on numbers of any size, against statsmodels; what it means to be equal without spread."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.weightstats import DescrStatsW

from hae_lab import HAELabError
from hae_lab.study.equivalence import alpha_of, equivalence, margin_of, verdicts

ALPHA = 0.05


def found(differences: np.ndarray, mean_second: float, margin_percent: float) -> pd.DataFrame:
    row = {
        "mean_difference": differences.mean(),
        "sd_difference": differences.std(ddof=1),
        "n_seeds": len(differences),
        "mean_second": mean_second,
        "margin_percent": margin_percent,
    }
    return pd.DataFrame([row])


@pytest.mark.parametrize("scale", [1e-3, 0.5, 40.0])
@pytest.mark.parametrize("mean_second", [3.0, -3.0])
@pytest.mark.parametrize("shift", [0.0, 0.02, -0.05, 0.2])
def test_tests_are_those_of_statsmodels_on_losses_of_any_size(scale, mean_second, shift):
    differences = scale * (np.random.default_rng(4).normal(0, 0.04, 6) + shift)
    table = found(differences, scale * mean_second, 2.5)
    margin = scale * 3.0 * 2.5 / 100
    (row,) = equivalence(table, ALPHA).to_dict("records")
    assert row["p_equal"] == pytest.approx(DescrStatsW(differences).ttost_mean(-margin, margin)[0], rel=1e-9)
    least = row["equal_within_percent"] / 100 * scale * 3.0
    assert DescrStatsW(differences).ttost_mean(-least, least)[0] == pytest.approx(ALPHA, rel=1e-6)


@pytest.mark.parametrize(
    ("difference", "p_value"), [(0.0, 0.0), (0.019, 0.0), (-0.019, 0.0), (0.021, 1.0), (-0.5, 1.0)]
)
def test_differences_without_spread_are_equal_inside_the_margin_alone(difference, p_value):
    (row,) = equivalence(found(np.full(4, difference), 1.0, 2.0), ALPHA).to_dict("records")
    assert row["p_equal"] == p_value
    assert row["equal_within_percent"] == pytest.approx(100 * abs(difference))


def test_equal_comes_before_better_and_better_before_nothing():
    table = pd.DataFrame({"p_equal": [0.01, 0.01, 0.05, 0.9]})
    detected = np.array(["first better", "", "second better", ""])
    assert verdicts(table, detected, ALPHA).tolist() == ["equal", "equal", "second better", "cannot tell"]


def test_looks_share_the_error_rate_and_margins_are_the_metrics_own_first():
    rows = pd.DataFrame({"looks": [4, 4], "margin_percent": [3, 3], "margin_percent_auroc": [np.nan, 1.5]})
    assert alpha_of(rows, 0.1) == 0.025
    assert alpha_of(rows[[]], 0.1) == 0.1
    assert (margin_of(rows, "auroc"), margin_of(rows), margin_of(rows[["looks"]])) == (1.5, 3.0, 2.0)
    with pytest.raises(HAELabError, match="rows of one study have one margin_percent"):
        margin_of(rows.assign(margin_percent=[3, 4]))
    with pytest.raises(HAELabError, match="margin_percent is a number above 0, got 0"):
        margin_of(rows.assign(margin_percent=0))
