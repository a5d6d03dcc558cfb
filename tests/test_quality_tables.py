"""Tables of quality from studies made up here: which families and metrics they hold, and their numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from hae_lab.audit import quality_tables

LOSSES = {"unet": 0.12, "hae": 0.08, "lite": 0.09, "v2": 0.10}
SEEDS = 4


def study(losses: dict[str, float], data: str = "phantoms") -> pd.DataFrame:
    """A run a cell and seed as `Study.results` has them; the noise of a run is far below the gaps between cells."""
    noise = np.random.default_rng(0).normal(0, 1e-4, (len(losses), SEEDS))
    rows = [
        {"cell": cell, "role": "question", "data": data, "seed": seed, "macs_kept": 1,
         "loss": loss + noise[place, seed], "loss_q1": 3 * loss, "swd": 10 * loss + noise[place, seed], "key": "k"}
        for place, (cell, loss) in enumerate(losses.items()) for seed in range(SEEDS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def measured(**studies: pd.DataFrame):
    return type("Fixed", (), {"studies": studies})()


def test_of_training_steps_those_of_our_loop_on_lesson16_are_taken():
    rows = pd.DataFrame(
        [
            {"variant": "v2", "device_name": "a", "way": way, "preset": preset, "ms_median": place}
            for place, (way, preset) in enumerate(
                [("bare", "lesson16"), ("hae_lab", "brats128"), ("hae_lab", "lesson16"), ("hae_lab", "tiny")]
            )
        ]
    )
    assert quality_tables.training_steps(rows)["ms_median"].tolist() == [2]
    assert quality_tables.ms_per_step(rows).to_dict() == {"v2": 2}
    assert quality_tables.training_steps(rows, "brats128")["ms_median"].tolist() == [1]


def test_variants_are_compared_by_every_metric_and_other_cells_by_the_loss():
    variants, widths = study(LOSSES), study({"narrow": 0.2, "wide": 0.1})
    found = quality_tables.quality_differences(measured(variants=variants, widths=widths, one=study({"hae": 0.1})))
    counts = found.groupby(["study", "metric"], sort=False).size()
    assert counts.to_dict() == {("variants", "loss"): 6, ("variants", "swd"): 6, ("widths", "loss"): 1}
    assert list(found.columns[:4]) == ["study", "data", "equal", "metric"]
    assert found.index.tolist() == list(range(13))
    for row in found.to_dict("records"):
        rows = {"variants": variants, "widths": widths}[row["study"]]
        by_seed = rows.pivot(index="seed", columns="cell", values=row["metric"])
        assert row["mean_difference"] == pytest.approx((by_seed[row["first"]] - by_seed[row["second"]]).mean())


def test_the_floor_is_that_of_twice_as_many_real_images_as_were_drawn(monkeypatch):
    given = []

    def real_floor(images) -> dict[str, list[float]]:
        given.append(images)
        return {"swd": [place / 100 for place in range(101)], "other": [0.0]}

    monkeypatch.setattr(quality_tables, "real_floor", real_floor)
    found = quality_tables.sample_floor(pd.DataFrame({"swd": [0.123456]}))
    assert found.to_dict("list") == {
        "metric": ["swd"], "samples": [0.12346], "real_mean": [0.5], "real_05": [0.05], "real_95": [0.95]
    }  # fmt: skip
    assert given[0].shape == (512, 1, 16, 16)  # halves of 256, as many as the study of samples draws


def test_the_promised_order_is_a_row_of_each_family_that_has_all_three_versions():
    backwards = study({"hae": 0.1, "lite": 0.09, "v2": 0.08}, data="twins")
    both = pd.concat([study(LOSSES), backwards], ignore_index=True)
    found = quality_tables.quality_order(measured(two=study({"hae": 0.1, "lite": 0.2}), variants=both))
    assert found["study"].tolist() == ["variants"] * 2
    assert found["data"].tolist() == ["phantoms", "twins"]
    assert found["order"].tolist() == ["hae, lite, v2"] * 2
    # Page's L: ranks of a seed times their places, 1 + 4 + 9 or 3 + 4 + 3
    assert found["statistic"].tolist() == [14 * SEEDS, 10 * SEEDS]
    assert found["n_in_order"].tolist() == [SEEDS, 0]
    assert found["n_seeds"].tolist() == [SEEDS] * 2
    assert found["percent_by_chance"].to_numpy() == pytest.approx(100 / 6)
    assert found.notna().all(axis=None)
    assert found["equal"].tolist() == ["steps"] * 2
