"""The committed studies: what they declare is what is there, and the tables follow from the rows."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hae_lab.audit import clone, quality_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import CURVES
from hae_lab.audit.rerun import studies
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.quality import sliced_wasserstein

STUDIES = {study.name: study for study in studies()}


def pairs(rows: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(rows["cell"], rows["seed"], strict=True))


def test_every_declared_study_is_committed():
    committed = {path.stem.removeprefix("study_") for path in (clone.root() / "data").glob("study_*.csv")}
    assert committed == set(STUDIES) | {f"{name}_curves" for name in CURVES}


@pytest.mark.parametrize("name", STUDIES)
def test_rows_are_the_declared_runs(name):
    rows = read_table(f"study_{name}")
    assert pairs(rows) == [(run.cell.label, run.seed) for run in STUDIES[name].planned]
    static = STUDIES[name].static().drop_duplicates("cell").set_index("cell")  # data make no other model
    for column in ("params", "macs", "macs_kept"):
        assert (rows[column].to_numpy() == static.loc[rows["cell"], column].to_numpy()).all()
    assert np.isfinite(rows[["loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4"]]).all(axis=None)


@pytest.mark.parametrize("name", STUDIES)
def test_loss_is_the_mean_of_its_quartiles(name):
    rows = read_table(f"study_{name}")
    assert np.allclose(rows[[f"loss_q{place}" for place in range(1, 5)]].mean(axis=1), rows["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", CURVES)
def test_curves_end_in_the_loss_of_the_run(name):
    curves, rows = read_table(f"study_{name}_curves"), read_table(f"study_{name}")
    last = curves.groupby(["cell", "seed"])["loss"].last()
    assert (last.loc[pairs(rows)].to_numpy() == rows["loss"].to_numpy()).all()
    assert (curves.groupby(["cell", "seed"])["loss"].diff().dropna() < 0).all()  # every run learns


def test_seeds_are_those_the_question_needs():
    fewest = {"variants": 4, "twins": 5, "digits": 5, "slots": 5, "bottleneck": 5, "masks": 3, "patches": 3}
    assert all(len(STUDIES[name].seeds) >= count for name, count in fewest.items())
    seeds = pd.Series([run.cell.label for run in STUDIES["twins"].planned]).value_counts()
    assert (seeds[["unet", "hae", "lite", "v2"]] >= 10).all()
    assert {cell.experiment.config.mask_rule for cell in STUDIES["masks"].cells} == {
        "dense", "document", "document_shared", "always_regional", "window2d", "spatial_reduction",
    }  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_cells_at_equal_cost_have_it(name):
    rows = read_table(f"study_{name}")
    cells = {(cell.label, cell.experiment.data): cell.experiment.recipe for cell in STUDIES[name].cells}
    costs = rows.groupby(["cell", "data"])[["params", "macs"]].first()
    for cell in STUDIES[name].cells:
        place, other = (cell.label, cell.experiment.data), (cell.reference, cell.experiment.data)
        images = [cells[key].steps * cells[key].batch_size for key in (place, other)] if cell.reference else []
        if cell.role == "equal parameters":
            ratio = costs.loc[place, "params"] / costs.loc[other, "params"]
            assert ratio == pytest.approx(1, abs=0.09)  # widths are even
        elif cell.role == "equal MACs":
            mine, theirs = (costs.loc[key, "macs"] * count for key, count in zip((place, other), images, strict=True))
            assert mine / theirs == pytest.approx(1, abs=0.02)


def test_differences_by_hand():
    found = read_table("quality_differences")
    row = found.query(
        "study == 'variants' and equal == 'steps' and metric == 'loss' and first == 'v2' and second == 'hae'"
    )
    table = read_table("study_variants").pivot(index="seed", columns="cell", values="loss")
    test = stats.ttest_rel(table["v2"], table["hae"])
    interval = test.confidence_interval()
    assert row[["mean_difference", "p_value", "ci_low", "ci_high"]].to_numpy()[0] == pytest.approx(
        [(table["v2"] - table["hae"]).mean(), test.pvalue, interval.low, interval.high], rel=1e-4
    )


def test_order_by_scipy():
    table = read_table("study_variants").pivot(index="seed", columns="cell", values="loss")
    expected = stats.page_trend_test(table[["hae", "lite", "v2"]].to_numpy())  # a higher loss is worse
    row = read_table("quality_order").query("study == 'variants' and equal == 'steps'").iloc[0]
    assert (row["statistic"], row["p_value"]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-4)


def test_slot_effects_by_hand():
    rows = read_table("study_slots").query("data == 'twins' and role == 'question'")
    contrast = rows.groupby(["fusion", "seed"])["loss"].mean().unstack(0)
    row = read_table("slot_effects").query("data == 'twins' and factor == 'fusion'").iloc[0]
    by_hand = (contrast[row["first"]] - contrast[row["second"]]).mean()
    assert row["mean_difference"] == pytest.approx(by_hand, rel=1e-4)


def test_time_of_a_step_is_that_of_our_loop():
    training = read_table("bench_training_cpu")
    speed = quality_tables.ms_per_step(training)
    assert set(speed.index) == {"unet", "hae", "lite", "v2"}
    ((v2,),) = training.query("variant == 'v2' and way == 'hae_lab' and preset == 'lesson16'")[["ms_median"]].to_numpy()
    assert speed["v2"] == v2


def test_of_several_computers_the_first_by_name_is_taken():
    here = read_table("bench_training_cpu")
    both = pd.concat([here.assign(device_name="B", ms_median=1.0), here.assign(device_name="A", ms_median=2.0)])
    assert set(quality_tables.ms_per_step(both)) == {2.0}


def test_our_loop_is_within_ten_percent_of_a_bare_one():
    ours = quality_tables.training_steps(read_table("bench_training_cpu"))
    assert len(ours) >= 4
    assert (ours["speed_up"] >= 0.9).all()  # steps per second of the bare loop


def test_samples_are_near_the_floor_of_real_images():
    floor = read_table("sample_floor").set_index("metric")
    assert floor.loc["swd", "samples"] < 3 * floor.loc["swd", "real_mean"]
    assert floor.loc["swd", "samples"] == pytest.approx(read_table("study_samples")["swd"].iloc[0], abs=1e-5)
    images = phantoms(512, 16, split="held-out").images
    order = np.random.default_rng((0, 0)).permutation(512)
    one = sliced_wasserstein(images[order[:256]], images[order[256:]])
    assert floor.loc["swd", "real_mean"] == pytest.approx(one, rel=0.3)
