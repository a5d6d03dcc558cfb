"""Statistics over seeds, each against an independent source: arithmetic, scipy's tests, tables, simulation."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from study_rows import SLOTS, curve_rows, slot_rows, study_rows

from hae_lab import HAELabError
from hae_lab.study import orders, power, statistics, tradeoffs


def rows_of(**cells) -> pd.DataFrame:
    """rows_of(hae=[...]): one run a value, seeds 0, 1, 2, ..."""
    return pd.DataFrame(
        [(cell, seed, loss) for cell, losses in cells.items() for seed, loss in enumerate(losses)],
        columns=["cell", "seed", "loss"],
    )


# one cell


def test_summary_by_hand():
    found = statistics.summary(rows_of(hae=[1.0, 2.0, 4.0], lite=[5.0])).set_index("cell")
    mean, sd = 7 / 3, np.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert found.loc["hae", ["n_seeds", "mean", "sd"]].tolist() == pytest.approx([3, mean, sd])
    half = 4.302653 * sd / np.sqrt(3)  # Student's t table: 2 degrees of freedom, 97.5 %
    assert found.loc["hae", ["ci_low", "ci_high"]].tolist() == pytest.approx([mean - half, mean + half])
    assert found.loc["lite", ["sd", "ci_low", "ci_high"]].isna().all()


def test_intervals_cover_the_truth_as_often_as_they_say():
    losses = np.random.default_rng(0).normal(0.093, 0.001, (2000, 5))
    found = statistics.summary(rows_of(**{f"study {index}": study for index, study in enumerate(losses)}))
    covered = found["ci_low"].lt(0.093) & found["ci_high"].gt(0.093)
    assert covered.mean() == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 2000))


# pairs


def test_differences_equal_scipys_paired_test():
    rows = study_rows(seeds=7)
    losses = rows.pivot(index="seed", columns="cell", values="loss")
    for row in statistics.paired_differences(rows, confidence=0.9).to_dict("records"):
        test = stats.ttest_rel(losses[row["first"]], losses[row["second"]])
        assert row["p_value"] == pytest.approx(test.pvalue)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval(0.9)))
        assert row["mean_difference"] == pytest.approx((losses[row["first"]] - losses[row["second"]]).mean())
        assert row["mean_second"] == pytest.approx(losses[row["second"]].mean())


def test_pairs_are_all_or_against_a_baseline():
    rows = study_rows()
    found = statistics.paired_differences(rows)
    pairs = list(zip(found["first"], found["second"], strict=True))
    assert pairs == [("hae", "unet"), ("lite", "unet"), ("v2", "unet"), ("lite", "hae"), ("v2", "hae"), ("v2", "lite")]
    against = statistics.paired_differences(rows, baseline="lite")
    assert against["first"].tolist() == ["unet", "hae", "v2"]
    assert set(against["second"]) == {"lite"}


def test_a_cell_with_a_reference_is_compared_with_that_alone():
    rows = study_rows(("unet", "hae", "no CNN", "no mask"), seeds=4)
    references = rows["cell"].map({"no CNN": "hae", "no mask": "no CNN"})
    for gap in (references, references.fillna("")):
        found = statistics.paired_differences(rows.assign(reference=gap, role="question"))
        pairs = list(zip(found["first"], found["second"], strict=True))
        assert pairs == [("hae", "unet"), ("no CNN", "hae"), ("no mask", "no CNN")]
    control = rows.assign(role="question").assign(role=rows["cell"].map({"no mask": "control"}).fillna("question"))
    assert len(statistics.paired_differences(control)) == 3  # a control is not asked about


def test_pairing_removes_what_seeds_share():
    rows = study_rows(seeds=10, shared_sd=0.01)
    assert statistics.summary(rows)["sd"].min() > 0.005
    assert statistics.paired_differences(rows)["sd_difference"].max() < 0.003


@pytest.mark.parametrize(
    ("metric", "gap", "told", "verdict"),
    [
        ("loss", 1, None, "first better"),
        ("loss", -1, None, "second better"),
        ("auroc", 1, None, "second better"),  # a higher one is better: it is the second's
        ("dice", -1, None, "first better"),
        ("reward", 1, False, "second better"),
        ("loss", 0, None, "cannot tell"),
    ],
)
def test_verdict_follows_the_metric(metric, gap, told, verdict):
    noise = np.array([0.01, -0.01, 0.02, -0.02, 0.0])
    rows = rows_of(hae=gap + noise, lite=[0.0] * 5).rename(columns={"loss": metric})
    found = statistics.paired_differences(rows, metric, baseline="hae", lower_better=told)
    assert found["verdict"].item() == verdict


def test_common_seeds_are_paired_and_counted():
    rows = study_rows(seeds=5)
    rows = rows[~((rows["cell"] == "v2") & rows["seed"].isin([0, 3]))]
    found = statistics.paired_differences(rows).set_index(["first", "second"])
    assert found["n_seeds"].to_dict() == {pair: 3 if "v2" in pair else 5 for pair in found.index}
    both = rows.pivot(index="seed", columns="cell", values="loss").loc[[1, 2, 4]]
    assert found.loc[("v2", "hae"), "mean_difference"] == pytest.approx((both["v2"] - both["hae"]).mean())


def test_no_variance_is_no_obstacle():
    found = statistics.paired_differences(rows_of(hae=[1.0, 2.0, 3.0], lite=[1.0, 2.0, 3.0], v2=[2.0, 3.0, 4.0]))
    assert found["p_value"].tolist() == [1, 0, 0]
    assert found["verdict"].tolist() == ["equal", "second better", "second better"]
    assert found["equal_within_percent"].tolist() == pytest.approx([0, 50, 50])
    assert found["seeds_needed"].tolist() == [np.inf, 2, 2]
    assert found["minimum_detectable_difference"].tolist() == [0, 0, 0]


def test_order_of_the_rows_does_not_matter():
    rows = study_rows()
    shuffled = rows.sample(frac=1, random_state=0)
    found, again = (statistics.paired_differences(part, baseline="unet") for part in (rows, shuffled))
    pd.testing.assert_frame_equal(found, again.set_index("first").loc[found["first"]].reset_index()[found.columns])


def test_seed_differences_average_to_the_differences():
    rows = study_rows()
    found = statistics.paired_differences(rows)
    each = statistics.seed_differences(rows, list(zip(found["first"], found["second"], strict=True)))
    means = each.groupby(["first", "second"])["difference"].mean()
    expected = found.set_index(["first", "second"])["mean_difference"]
    pd.testing.assert_series_equal(means[expected.index], expected, check_names=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="seed"), "missing columns: seed; the rows have cell, loss"),
        (lambda rows: rows[:0], "no rows"),
        (lambda rows: rows.assign(loss=rows["loss"].mask(rows.index == 6)), "cell hae, seed 1: loss = nan"),
        (lambda rows: rows.assign(loss=np.inf), "cell unet, seed 0: loss = inf must be a number"),
        (lambda rows: rows.assign(loss=rows["loss"].astype(object).mask(rows.index == 6, "?")), r"seed 1: loss = \?"),
        (lambda rows: pd.concat([rows, rows[7:8]]), "cell hae, seed 2: .* second row"),
        (lambda rows: rows[rows["cell"] == "hae"], r"two or more cells, got \['hae'\]"),
        (lambda rows: rows[(rows["cell"] == "hae") | (rows["seed"] == 4)], "'hae' and 'unet' share 1 of the seeds"),
    ],
)
def test_bad_rows_are_named(change, message):
    with pytest.raises(HAELabError, match=message):
        statistics.paired_differences(change(study_rows()))


def test_unknown_baseline_and_confidence_are_named():
    with pytest.raises(HAELabError, match="unknown baseline 'liet': did you mean 'lite'"):
        statistics.paired_differences(study_rows(), baseline="liet")
    with pytest.raises(HAELabError, match=r"0\.95 for 95 %, got 95"):
        statistics.paired_differences(study_rows(), confidence=95)


# several pairs


def closed_testing(p_values) -> list[float]:
    """Holm as the closure of Bonferroni: the largest adjusted p value of all the sets of hypotheses it belongs to."""
    places = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(places, size)]
    bonferroni = {chosen: min(1, len(chosen) * min(p_values[place] for place in chosen)) for chosen in sets}
    return [max(p for chosen, p in bonferroni.items() if place in chosen) for place in places]


@pytest.mark.parametrize(
    "p_values", [[0.01, 0.04, 0.03, 0.005], [0.2], [0.5, 0.5, 0.9], [0.012, 0.011, 0.013, 0.4, 0.011, 0.9]]
)
def test_holm_is_the_closure_of_bonferroni(p_values):
    assert statistics.holm(p_values) == pytest.approx(closed_testing(p_values))


def test_holm_makes_a_verdict_harder():
    rows = rows_of(hae=[0, 0, 0, 0], lite=[1.0, 1.2, 0.9, 2.5], v2=[0.1, -0.1, 0.1, -0.1])
    alone = statistics.paired_differences(rows[rows["cell"] != "v2"])
    among = statistics.paired_differences(rows)
    assert alone["verdict"].item() == "second better"
    assert among["verdict"][0] == "cannot tell"
    assert among["ci_low"][0] == alone["ci_low"].item() > 0


# power


@pytest.mark.parametrize(("effect_size", "n_seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_equal_cohens_cases(effect_size, n_seeds):
    # the sample sizes that G*Power gives for matched pairs: two-sided 5 %, 80 % power
    assert power.seeds_needed(effect_size) == n_seeds
    assert power.paired_power(effect_size, n_seeds) >= 0.8 > power.paired_power(effect_size, n_seeds - 1)


def test_power_at_its_edges():
    assert power.paired_power(0, 5) == pytest.approx(0.05)
    assert power.paired_power(np.inf, 2) == 1
    assert power.seeds_needed(0) == np.inf
    assert power.seeds_needed(np.inf) == 2
    with pytest.raises(HAELabError, match="2 or more seeds, got 1"):
        power.paired_power(1, 1)


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_detectable_effect_is_found_four_times_in_five(n_seeds):
    shift = power.detectable_effect_size(n_seeds)
    studies = np.random.default_rng(n_seeds).normal(shift, 1, (4000, n_seeds))
    found = stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / 4000))
    assert shift > (1.95996 + 0.84162) / np.sqrt(n_seeds)  # what the normal approximation would promise


def test_minimum_detectable_difference_is_in_units_of_the_metric():
    found = statistics.paired_differences(study_rows(seeds=10))
    expected = found["sd_difference"] * power.detectable_effect_size(10)
    assert found["minimum_detectable_difference"].tolist() == pytest.approx(expected.tolist())
    assert (found["seeds_needed"] > 10).tolist() == (
        found["mean_difference"].abs() < found["minimum_detectable_difference"]
    ).tolist()


# an order


def test_trend_equals_pages_own_formula():
    # the three teaching methods that scipy's documentation takes from Statext: L = 133.5, exact p = 0.00182
    tutorial, lecture, seminar = (
        [3, 2, 3, 1, 2, 2, 1, 3, 2, 1],
        [4, 2, 3, 3, 3, 4, 2, 4, 4, 3],
        [3, 4, 5, 2, 2, 5, 4, 4, 5, 4],
    )
    found = orders.trend(
        rows_of(seminar=seminar, tutorial=tutorial, lecture=lecture), ("tutorial", "lecture", "seminar")
    ).iloc[0]
    assert (found["statistic"], found["n_seeds"], found["verdict"]) == (133.5, 10, "holds")
    assert found["p_value"] == pytest.approx(0.0018191161948127822)


@pytest.mark.parametrize(
    ("metric", "order", "verdict"),
    [
        ("loss", ("hae", "lite", "v2"), "holds"),
        ("loss", ("v2", "lite", "hae"), "does not hold"),
        ("loss", ("lite", "hae", "v2"), "cannot tell"),
        ("auroc", ("hae", "lite", "v2"), "does not hold"),
        ("auroc", ("v2", "lite", "hae"), "holds"),
    ],
)
def test_trend_knows_its_direction(metric, order, verdict):
    rows = rows_of(hae=[1, 2, 3], lite=[2, 3, 4], v2=[3, 4, 5]).rename(columns={"loss": metric})
    found = orders.trend(rows, order, metric).iloc[0]
    assert found["verdict"] == verdict
    assert found["order"] == ", ".join(order)


def test_trend_counts_exactly_the_permutations():
    # two seeds in full agreement: one of 3! x 3! pairs of orders
    found = orders.trend(rows_of(hae=[1, 1], lite=[2, 2], v2=[3, 3]), ("hae", "lite", "v2")).iloc[0]
    assert found["p_value"] == pytest.approx(1 / 36)
    assert found["p_opposite"] == 1


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("hae", "lite"), "three or more different cells, got"),
        (("hae", "lite", "lite"), "three or more different cells"),
        (("hae", "lite", "v3"), "unknown cell 'v3'"),
    ],
)
def test_impossible_orders_are_refused(order, message):
    with pytest.raises(HAELabError, match=message):
        orders.trend(study_rows(), order)


def test_trend_needs_two_whole_seeds():
    rows = study_rows(seeds=3)
    rows = rows[(rows["cell"] != "v2") | (rows["seed"] == 2)]
    with pytest.raises(HAELabError, match="2 or more seeds that hae, lite, v2 all have, got 1"):
        orders.trend(rows, ("hae", "lite", "v2"))


def test_single_seeds_show_any_order_one_time_in_six():
    rows = study_rows(seeds=3000, gaps={})
    found = orders.order_in_single_seeds(rows, ("hae", "lite", "v2")).iloc[0]
    assert found["percent_by_chance"] == pytest.approx(100 / 6)
    assert found["percent_in_order"] == pytest.approx(100 / 6, abs=300 * np.sqrt(5 / 36 / 3000))


def test_order_in_single_seeds_by_hand():
    rows = rows_of(hae=[1, 2, 3, 1], lite=[2, 1, 4, 1], v2=[3, 3, 5, 2])  # seeds 0 and 2; a tie is no order
    found = orders.order_in_single_seeds(rows, ("hae", "lite", "v2")).iloc[0]
    assert (found["n_in_order"], found["n_seeds"], found["percent_in_order"]) == (2, 4, 50)
    assert orders.order_in_single_seeds(rows, ("v2", "lite", "hae"), lower_better=False)["n_in_order"].item() == 2


# what fewer seeds would have said


def test_conclusions_take_disjoint_groups_of_consecutive_seeds():
    found = orders.conclusions_by_seeds(study_rows(seeds=11), (1, 3, 10))
    groups = found.drop_duplicates(["n_seeds", "group"]).groupby("n_seeds")["seeds"].agg(list)
    assert groups[3] == ["0, 1, 2", "3, 4, 5", "6, 7, 8"]
    assert groups[10] == [", ".join(map(str, range(10)))]
    assert len(groups[1]) == 11
    assert len(found) == (11 + 3 + 1) * 6


def test_conclusions_of_all_seeds_are_the_verdicts():
    rows = study_rows(seeds=6)
    found = orders.conclusions_by_seeds(rows, (6,))
    expected = statistics.paired_differences(rows)
    assert found["conclusion"].tolist() == expected["verdict"].tolist()
    assert found["ci_low"].tolist() == expected["ci_low"].tolist()


def test_one_seed_concludes_by_its_sign():
    rows = rows_of(hae=[1, 2], lite=[2, 1], v2=[1, 1])
    found = orders.conclusions_by_seeds(rows, (1,), [("lite", "hae"), ("v2", "hae")])
    assert found["conclusion"].tolist() == ["second better", "cannot tell", "first better", "first better"]
    assert found["ci_low"].isna().all()
    other = orders.conclusions_by_seeds(rows, (1,), [("lite", "hae")], lower_better=False)
    assert other["conclusion"].tolist() == ["first better", "second better"]


def test_false_alarms_of_equal_cells():
    rows = study_rows(seeds=450, gaps={}).query("cell in ['hae', 'lite', 'v2']")
    found = orders.conclusions_by_seeds(rows.assign(margin_percent=1e-9), (1, 3))
    alarm = found["conclusion"].ne("cannot tell").groupby([found["n_seeds"], found["group"]]).any()
    assert alarm[1].all()  # a single seed always finds a winner
    assert alarm[3].mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)  # Holm: any false alarm in a group of pairs


def test_conclusions_refuse_more_seeds_than_there_are():
    with pytest.raises(HAELabError, match="from 1 to the 5 seeds that all cells have, got 10"):
        orders.conclusions_by_seeds(study_rows(seeds=5))


# slots and quartiles


def test_main_effects_equal_the_least_squares_of_the_grid():
    rows = slot_rows(seeds=6)
    found = statistics.main_effects(rows, SLOTS).set_index("factor")
    coded = np.column_stack([np.ones(len(rows))] + [rows[slot].eq(found.loc[slot, "first"]) for slot in SLOTS])
    effects = np.linalg.lstsq(coded.astype(float), rows["loss"], rcond=None)[0][1:]
    assert found["mean_difference"].tolist() == pytest.approx(effects.tolist())
    assert found["n_seeds"].tolist() == [6, 6, 6]
    assert found["second"].tolist() == ["linear", 4.0, "concat"]


def test_main_effects_take_seeds_for_the_unit():
    rows = slot_rows(seeds=6)
    found = statistics.main_effects(rows, SLOTS).set_index("factor").loc["fusion"]
    means = rows.groupby(["fusion", "seed"])["loss"].mean()
    test = stats.ttest_rel(means["mean"], means["concat"])
    assert found["p_value"] == pytest.approx(test.pvalue)
    assert found["n_seeds"] == 6


def test_main_effects_leave_out_broken_seeds():
    rows = slot_rows(seeds=4)
    found = statistics.main_effects(rows.drop(index=rows.index[rows["seed"] == 2][0]), SLOTS)
    pd.testing.assert_frame_equal(found, statistics.main_effects(rows[rows["seed"] != 2], SLOTS))


def test_main_effects_refuse_what_is_no_grid():
    rows = slot_rows(seeds=3)
    with pytest.raises(HAELabError, match=r"with all 8 cells of .*cells by seed: \{0: 4, 1: 4, 2: 4\}"):
        statistics.main_effects(rows[(rows["fusion"] == "mean") == (rows["regions"] == "pooled")], SLOTS)
    with pytest.raises(HAELabError, match="two levels, but fusion has 1"):
        statistics.main_effects(rows[rows["fusion"] == "mean"], SLOTS)
    with pytest.raises(HAELabError, match=r"regions linear, .* second row"):
        statistics.main_effects(rows, ("regions", "mlp_ratio"))


def test_quartiles_are_judged_together():
    rows = study_rows()
    found = statistics.quartile_differences(rows)
    assert len(found) == 4 * 3
    assert found["p_holm"].tolist() == pytest.approx(closed_testing(found["p_value"].tolist()))
    third = statistics.paired_differences(rows, "loss_q3", "unet")
    part = found[found["metric"] == "loss_q3"]
    assert part["ci_high"].tolist() == third["ci_high"].tolist()


# time


def test_seconds_follow_the_steps():
    curves, times = curve_rows()
    found = tradeoffs.with_seconds(curves, pd.Series(times))
    last = found[found["step"] == 300].groupby("cell")["seconds"].max()
    assert last.to_dict() == pytest.approx({cell: 0.3 * ms for cell, ms in times.items()})


@pytest.mark.parametrize(
    ("times", "change", "message"),
    [
        ({"v2": None}, {}, "cell 'v2' has no ms per training step above 0; known are unet"),
        ({"v2": 0}, {}, "cell 'v2' has no ms per training step above 0"),
        ({}, {"step": 25}, "step 25: loss = .* second row"),
    ],
)
def test_bad_curves_are_named(times, change, message):
    curves, known = curve_rows()
    known = {cell: time for cell, time in (known | times).items() if time is not None}
    with pytest.raises(HAELabError, match=message):
        tradeoffs.with_seconds(curves.assign(**change), known)


# cost


def test_only_separated_intervals_dominate():
    rows = pd.DataFrame(
        {"params": [10, 20, 20, 30, 5], "ci_low": [1, 2, 3.5, 2.9, 9], "ci_high": [3, 4, 4.5, 5, 10]},
        index=list("abcde"),
    )
    # a is cheap and good; b overlaps a; c and d lie above a or not; e is the cheapest
    assert tradeoffs.non_dominated(rows, "params").to_dict() == {
        "a": True,
        "b": True,
        "c": False,
        "d": True,
        "e": True,
    }
    assert tradeoffs.non_dominated(rows, "params", lower_better=False)[["a", "e"]].tolist() == [False, True]


def test_dominance_equals_its_definition():
    generator = np.random.default_rng(1)
    low = generator.normal(size=40)
    rows = pd.DataFrame({"ms": generator.integers(1, 9, 40), "ci_low": low, "ci_high": low + generator.random(40)})
    found = tradeoffs.non_dominated(rows, "ms")
    expected = [
        not any(other.ms <= this.ms and other.ci_high < this.ci_low for other in rows.itertuples())
        for this in rows.itertuples()
    ]
    assert found.tolist() == expected
    assert 0 < found.sum() < 40
