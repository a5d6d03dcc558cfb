"""Every number of the quality tables once more, by statsmodels and by hand, from the committed rows of the studies."""

from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import study_names
from hae_lab.presets import SLOTS

STUDIES = {name: read_table(f"study_{name}") for name in study_names()}
DIFFERENCES = read_table("quality_differences")
FAMILY = ["study", "data", "equal", "metric"]


def family_table(study: str, data: str, equal: str, metric: str) -> pd.DataFrame:
    """Seeds x cells of what a family compares, straight from the rows."""
    rows = STUDIES[study]
    rows = rows[rows["data"] == data]
    roles = rows["role"] if "role" in rows else pd.Series("question", rows.index)
    if equal == "steps":
        rows = rows[roles == "question"]
    else:
        chosen = rows[roles == f"equal {equal}"]
        rows = pd.concat([rows[rows["cell"].isin(chosen["reference"]) & (roles == "question")], chosen])
        if rows.groupby("variant")["cell"].nunique().eq(1).all():
            rows = rows.assign(cell=rows["variant"])
    return rows.pivot(index="seed", columns="cell", values=metric)


def pairs_asked(study: str, data: str, equal: str, cells: pd.Index) -> set[frozenset]:
    """Every pair, but for cells of the question that name a reference."""
    rows = STUDIES[study][STUDIES[study]["data"] == data]
    bound = {}
    if equal == "steps" and "reference" in rows:
        named = rows[(rows["role"] == "question") & rows["reference"].fillna("").ne("")]
        bound = dict(zip(named["cell"], named["reference"], strict=True))
    free = {frozenset(pair) for pair in combinations([cell for cell in cells if cell not in bound], 2)}
    return free | {frozenset(pair) for pair in bound.items() if pair[0] != pair[1]}


def declared(study: str, column: str, otherwise: float) -> float:
    rows = STUDIES[study]
    return float(rows[column].iloc[0]) if column in rows else otherwise


def margin(study: str, metric: str) -> float:
    return declared(study, f"margin_percent_{metric}", declared(study, "margin_percent", 2.0))


def expected(first: pd.Series, second: pd.Series, margin_percent: float, alpha: float) -> dict[str, float]:
    """What statsmodels makes of one pair."""
    both = pd.concat([first, second], axis=1).dropna()
    one, other = both.iloc[:, 0].to_numpy(), both.iloc[:, 1].to_numpy()
    described = DescrStatsW(one - other)
    bound = margin_percent / 100 * abs(other.mean())

    def p_equal(limit: float) -> float:
        return ttost_paired(one, other, -limit, limit)[0]

    low, high = described.tconfint_mean()
    most = optimize.brentq(lambda limit: p_equal(limit) - alpha, 0, 100 * (abs(low) + abs(high)) + 1e-12, xtol=1e-15)
    return {
        "n_seeds": len(both),
        "mean_second": other.mean(),
        "mean_difference": described.mean,
        "sd_difference": np.std(one - other, ddof=1),
        "ci_low": low,
        "ci_high": high,
        "p_value": described.ttest_mean()[1],
        "margin_percent": margin_percent,
        "p_equal": p_equal(bound),
        "equal_within_percent": 100 * most / abs(other.mean()),
    }


def check(rows: pd.DataFrame, pairs: list[tuple[pd.Series, pd.Series]], metric: str, study: str) -> None:
    """The rows of one family against what the pairs give."""
    alpha = 0.05 / declared(study, "looks", 1)
    found = pd.DataFrame([expected(*pair, margin(study, metric), alpha) for pair in pairs], index=rows.index)
    for name in found:
        assert rows[name].to_numpy(float) == pytest.approx(found[name].to_numpy(float), rel=2e-4, abs=1e-9), name
    holm = multipletests(found["p_value"], method="holm")[1]
    assert rows["p_holm"].to_numpy() == pytest.approx(holm, rel=2e-4, abs=1e-12)
    signs = np.sign(found["mean_difference"]) * (
        1 if metric.endswith(("auroc", "dice")) else -1
    )  # a higher one is better
    better = np.where(signs > 0, "first better", "second better")
    detected = np.where(holm < alpha, better, "")
    assert rows["detected"].fillna("").tolist() == detected.tolist()
    verdicts = np.where(found["p_equal"] < alpha, "equal", np.where(detected != "", detected, "cannot tell"))
    assert rows["verdict"].tolist() == verdicts.tolist()


@pytest.mark.parametrize("family", list(DIFFERENCES[FAMILY].drop_duplicates().itertuples(index=False)), ids="-".join)
def test_differences_are_those_of_statsmodels(family):
    rows = DIFFERENCES[(DIFFERENCES[FAMILY] == pd.Series(family._asdict())).all(axis=1)]
    table = family_table(*family)
    asked = pairs_asked(family.study, family.data, family.equal, table.columns)
    assert {frozenset(pair) for pair in zip(rows["first"], rows["second"], strict=True)} == asked
    assert len(rows) == len(asked)
    pairs = [(table[first], table[second]) for first, second in zip(rows["first"], rows["second"], strict=True)]
    check(rows, pairs, family.metric, family.study)


def test_power_is_that_of_statsmodels():
    rows = DIFFERENCES[DIFFERENCES["metric"] == "loss"]
    effects = {n: TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8) for n in rows["n_seeds"].unique()}
    assert rows["minimum_detectable_difference"].to_numpy() == pytest.approx(
        (rows["sd_difference"] * rows["n_seeds"].map(effects)).to_numpy(), rel=1e-3
    )
    # statsmodels solves for a broken number of seeds; below three of them its root is not to be found
    for row in rows[rows["seeds_needed"].between(4, 500)].to_dict("records"):
        needed = TTestPower().solve_power(
            effect_size=abs(row["mean_difference"]) / row["sd_difference"], alpha=0.05, power=0.8
        )
        assert row["seeds_needed"] == np.ceil(needed)


def test_controls_are_those_of_statsmodels():
    table = read_table("quality_controls")
    declares = {
        (name, data)
        for name, rows in STUDIES.items()
        if "role" in rows
        for data in rows.loc[rows["role"] == "control", "data"].unique()
    }
    assert declares == set(zip(table["study"], table["data"], strict=True))
    for (study, data), rows in table.groupby(["study", "data"]):
        runs = STUDIES[study][STUDIES[study]["data"] == data].pivot(index="seed", columns="cell", values="loss")
        pairs = [(runs[first], runs[second]) for first, second in zip(rows["first"], rows["second"], strict=True)]
        check(rows, pairs, "loss", study)
        beyond = 100 * rows["mean_difference"] > rows["margin_percent"] * rows["mean_second"]
        assert rows["found"].tolist() == (rows["verdict"].eq("second better") & beyond).tolist()


def test_slot_effects_are_those_of_statsmodels():
    rows = STUDIES["slots"]
    rows = rows[rows["role"] == "question"] if "role" in rows else rows
    found = read_table("slot_effects")
    assert set(found["factor"]) == set(SLOTS)
    assert set(found["data"]) == set(rows["data"])
    for data, effects in found.groupby("data"):
        here, pairs = rows[rows["data"] == data], []
        for row in effects.to_dict("records"):
            levels = here.assign(level=here[row["factor"]].astype(str))
            means = levels.groupby(["seed", "level"])["loss"].mean().unstack()
            pairs.append((means[row["first"]], means[row["second"]]))
        check(effects, pairs, "loss", "slots")


def test_orders_by_counting():
    for row in read_table("quality_order").to_dict("records"):
        table = family_table(row["study"], row["data"], row["equal"], "loss")[row["order"].split(", ")].dropna()
        ranks = stats.rankdata(table, axis=1)
        assert row["statistic"] == pytest.approx((ranks * np.arange(1, 4)).sum())
        assert row["n_in_order"] == sum(hae < lite < v2 for hae, lite, v2 in table.to_numpy())
        assert row["percent_by_chance"] == pytest.approx(100 / factorial(3), rel=1e-5)
        # shuffle ranks within seeds: how often is the sum as large?
        generator = np.random.default_rng(0)
        shuffled = generator.permuted(np.broadcast_to([1.0, 2, 3], (20_000, len(table), 3)), axis=2)
        sums = (shuffled * np.arange(1, 4)).sum(axis=(1, 2))
        assert row["p_value"] == pytest.approx((sums >= row["statistic"]).mean(), abs=0.02)
        assert row["p_opposite"] == pytest.approx((sums <= row["statistic"]).mean(), abs=0.02)
