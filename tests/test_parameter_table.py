"""The audit of 100/70/40: reproduction, like for like, algebra, waterfall, impossibility, what it would take."""

import numpy as np
import pandas as pd
import pytest
from parity_data import COUNTS

from hae_lab import config
from hae_lab.audit import parameter_tables as table
from hae_lab.profilers.params import parameter_formulas


def test_published_counts_are_reproduced_to_the_last_parameter_but_v2s():
    rows = table.published_counts().set_index("variant")
    assert rows["our_params"].to_dict() == {"hae": 683_777_028, "lite": 469_936_644, "v2": 275_996_292}
    rounding = 100 * 0.05 / rows["published_million_params"]
    assert (rows["our_error_percent"].abs() < rounding).to_dict() == {"hae": True, "lite": True, "v2": False}
    assert rows.loc["v2", "our_error_percent"] == pytest.approx(0.25, abs=0.005)


def test_table_equals_the_measured_percentages():
    rows = table.parameter_table()
    assert len(rows) == 4 * 4 * 4
    splits = {"whole model": "total", "decoder": "decoder", "hybrid blocks": "hybrid_blocks", "MSTB": "mstb"}
    for row in rows.to_dict("records"):
        preset, split = COUNTS["as_described"][row["preset"]], splits[row["scope"]]
        assert row["params"] == preset[row["variant"]][split]
        assert row["percent_of_hae"] == pytest.approx(100 * row["params"] / preset["hae"][split])


def test_coefficients_are_the_sums_of_the_slots():
    rows = table.block_coefficients().set_index(["scope", "variant"])["c2_coefficient"]
    shared = 18 + 4  # CNN branch, attention
    assert rows["hybrid blocks"].to_dict() == {
        "hae": shared + 4**2 + 8**2 + 8 + 2,
        "lite": shared + 1 + 8 + 1,
        "v2": shared + 1 + 0.5 + 1,
    }
    assert rows["MSTB"].to_dict() == {"hae": 4 + 80 + 8, "lite": 4 + 1 + 8, "v2": 4 + 1 + 0.5}


def test_coefficients_do_not_depend_on_the_widths():
    narrow, wide = table.block_coefficients((32, 64, 96)), table.block_coefficients((128, 256, 384))
    assert narrow["c2_coefficient"].tolist() == wide["c2_coefficient"].tolist()


def test_every_family_lies_on_the_line_and_the_claim_far_off():
    points = table.feasibility().set_index("preset")
    assert points.drop("the claim")["off_line_points"].abs().max() < 0.1
    assert len(points) == 4 * 4 + 1
    assert points.loc["the claim", "line_v2_percent"] == pytest.approx(67.1875)
    assert points.loc["the claim", "off_line_points"] == pytest.approx(-27.1875)
    assert set(points["slope"]) == {7.5 / 80, 7.5 / 79}


def test_waterfall_adds_up_in_every_order_and_each_slot_saves_the_same():
    rows = table.slot_waterfall("cifar32")
    hae, v2 = (COUNTS["as_described"]["cifar32"][name]["total"] for name in ("hae", "v2"))
    assert rows["order"].nunique() == 6
    assert (rows.groupby("order")["saved_params"].sum() == hae - v2).all()
    assert (rows.groupby("slot")["saved_params"].nunique() == 1).all()
    # the first two changes of one order are exactly Lite
    lite_step = rows[(rows["order"] == "regions > fusion > mlp_ratio") & (rows["step"] == 2)]
    assert lite_step["params"].item() == COUNTS["as_described"]["cifar32"]["lite"]["total"]


def test_no_shared_setting_reaches_the_claim():
    rows = table.impossibility((0.0, 1.0, 2.0, 6.0, 9.0)).set_index(["lite_at_least_s", "tolerance_points"])
    # enough slack would void each proof
    assert rows["possible"].unstack().to_numpy().tolist() == [
        [False, False, True, True, True],
        [False, False, False, True, True],
        [False, False, False, False, True],
    ]
    assert rows.loc[(23, 0.0), ["hae_at_most_s", "hae_at_least_s"]].tolist() == pytest.approx([8.5 / 0.30, 23 / 0.70])
    assert rows.loc[(32, 0.0), "hae_at_least_s"] == pytest.approx(45.7, abs=0.05)


def test_bounds_meet_where_they_say():
    rows = table.impossibility((0.0,))
    assert rows["impossible_below_points"].round(2).tolist() == [1.74, 5.03, 8.34]
    for meet in rows["impossible_below_points"]:
        near = table.impossibility((meet - 1e-6, meet + 1e-6)).query("impossible_below_points == @meet")
        assert near["possible"].tolist() == [False, True]


def test_no_random_family_comes_nearer_than_the_bound():
    generator = np.random.default_rng(0)
    most = table.impossibility()["impossible_below_points"].max()
    for _ in range(150):
        depth = generator.integers(2, 6)
        body = {
            "image_size": 256, "model_channels": int(8 * generator.integers(1, 24)),
            "channel_mult": generator.integers(1, 5, depth).tolist(), "num_res_blocks": int(generator.integers(1, 4)),
            "attention_resolutions": [], "num_heads": 1, "patch_sizes": [1, *generator.choice([2, 4, 8], 2, False)],
        }  # fmt: skip
        counts = {name: parameter_formulas(config(name, **body))["model"] for name in ("hae", "lite", "v2")}
        off = [abs(100 * counts[name] / counts["hae"] - claim) for name, claim in (("lite", 70), ("v2", 40))]
        assert max(off) > most


def test_the_slope_depends_on_the_patches():
    rows = table.slopes().set_index("patch_sizes")
    assert rows.loc["(1, 4, 8)", ["slope", "line_v2_percent"]].tolist() == pytest.approx([7.5 / 80, 67.1875])
    assert rows.loc["(1, 2)", "slope"] == pytest.approx(1.88, abs=0.01)
    assert rows.loc["(1, 4, 8, 16)", "slope"] == pytest.approx(0.022, abs=0.0005)
    for patches in table.PATCHES:  # counted on wide blocks, where the leading terms rule
        counts = [
            parameter_formulas(config(name, image_size=256, model_channels=1024, patch_sizes=patches))["model"]
            for name in ("hae", "lite", "v2")
        ]
        counted = (counts[1] - counts[2]) / (counts[0] - counts[1])
        assert rows.loc[str(patches), "slope"] == pytest.approx(counted, rel=2e-3)


def test_three_changes_hang_on_a_few_hundredths_of_a_point():
    (row,) = table.one_change_less().to_dict("records")
    assert (row["changes"], row["v2_changes"]) == (2, "model_channels=96")
    assert row["v2_percent"] == pytest.approx(41.04, abs=0.005)
    assert row["misses_by_points"] == pytest.approx(row["v2_percent"] - 41)
    assert table.what_it_would_take(tolerance_points=1.05)["changes"].min() == 2


def test_own_changes_make_a_version_narrower_shallower_or_poorer():
    """By hand, from brats128: 128 channels times (1, 1, 2, 3, 4), 2 blocks a level, attention from rate 4 on."""
    labels = {kind: list(changes) for kind, changes in table.OWN_CHANGES.items()}
    assert {kind: len(found) for kind, found in labels.items()} == {
        "body width": 8, "level widths": 5, "depth": 1, "residual blocks": 1, "attention blocks": 3, "CNN branch": 1
    }  # fmt: skip
    whole = parameter_formulas(config("v2"))["model"]
    for name, change in (change for changes in table.OWN_CHANGES.values() for change in changes.items()):
        changed = config("v2", **change)
        assert parameter_formulas(changed)["model"] < whole
        assert name == "one level less" or name == ", ".join(f"{field}={value}" for field, value in change.items())
    shallower = config("v2", **table.OWN_CHANGES["depth"]["one level less"])
    assert shallower.channels == config("v2").channels[:-1]
    assert shallower.attention_resolutions == config("v2").attention_resolutions[:-1]


def test_found_families_reach_the_claim_within_a_point():
    rows = table.what_it_would_take()
    assert len(rows) == 3
    assert rows["lite_percent"].between(69, 71).all()
    assert rows["v2_percent"].between(39, 41).all()
    assert rows["changes"].is_monotonic_increasing


def test_no_smaller_set_of_changes_exists_in_the_search_space():
    fewest = table.what_it_would_take()["changes"].iloc[0]
    hae = parameter_formulas(config("hae"))["model"]
    reach = {}
    for variant, claim in (("lite", 70), ("v2", 40)):
        percents = {
            names: 100 * parameter_formulas(config(variant, **_fields(names)))["model"] / hae
            for names in table._change_sets(2)
        }
        reach[variant] = min(len(names) for names, percent in percents.items() if abs(percent - claim) <= 1)
    assert fewest == sum(reach.values())


def _fields(names) -> dict:
    return {field: value for kind, label in names for field, value in table.OWN_CHANGES[kind][label].items()}


def test_module_and_part_rows_cover_the_variants():
    modules, parts = table.module_rows("tiny"), table.part_rows()
    assert list(modules["variant"].unique()) == ["unet", "hae", "lite", "v2"]
    assert len(parts) == 4 * 4 * len(parts["part"].unique())
    assert isinstance(modules, pd.DataFrame)
    assert (parts["params"] == parts["params_formula"]).all()
