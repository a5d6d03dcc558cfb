"""The audit of 100/70/40: reproduction, like for like, algebra, waterfall, impossibility, what it would take."""

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
    rows = table.impossibility((0.0, 1.0, 2.0))
    assert rows["possible"].tolist() == [False, False, True]  # two points of slack would void the proof
    assert rows["hae_at_most_s"].iloc[0] == pytest.approx(8.5 / 0.30)
    assert rows["hae_at_least_s"].iloc[0] == pytest.approx(23 / 0.70)


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
