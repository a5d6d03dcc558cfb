"""Tables of work: their sums, the sampling runs, the paper's formula, the variants side by side."""

from fractions import Fraction

import pandas as pd
import pytest

from hae_lab import HAELabError, config
from hae_lab.audit import compute_tables as table
from hae_lab.profilers.macs import compute, total
from hae_lab.profilers.params import parameter_formulas


@pytest.fixture(scope="module")
def parts() -> pd.DataFrame:
    return table.part_rows()


def test_parts_sum_to_the_model(parts):
    whole = total(compute(config("lite", "cifar32")))
    mine = parts[(parts["preset"] == "cifar32") & (parts["variant"] == "lite")]
    for account in ("dense", "kept", "run", "document"):
        assert mine[f"macs_{account}"].sum() == whole[f"macs_{account}"]
        assert (mine[f"flops_{account}"] == 2 * mine[f"macs_{account}"]).all()


def test_variants_differ_in_their_slots_alone(parts):
    rows = parts[parts["preset"] == "brats128"].set_index(["variant", "part"])["macs_document"]
    for part in ("body", "CNN branch", "attention scores and values"):
        assert rows["hae", part] == rows["lite", part] == rows["v2", part]
    # hidden width 4C against C / 4
    assert rows["lite", "MLP"] == 16 * rows["v2", "MLP"]


def test_levels_hold_the_decoder():
    frame = compute(config("v2", "cifar32", mask_rule="document_shared"))
    rows = table.level_rows()
    mine = rows[(rows["preset"] == "cifar32") & (rows["variant"] == "v2")]
    assert mine["macs_run"].sum() == frame[frame["section"] == "decoder"]["macs_run"].sum()
    assert mine["height"].tolist() == [32, 16, 8, 4]


def test_dense_is_the_same_under_every_rule():
    rows = table.rule_rows("cifar32")
    assert (rows.groupby("variant")["macs_dense"].nunique() == 1).all()
    assert (rows["macs_kept"] <= rows["macs_dense"]).all()


def test_guidance_doubles_and_steps_multiply():
    rows = table.sampling_rows("cifar32").set_index(["variant", "sampler", "guidance"])["macs_run"]
    assert rows["v2", "DDPM", True] == 2000 * rows["v2", "one step", False]
    assert rows["v2", "DDIM", False] == 25 * rows["v2", "one step", False]


def test_the_papers_formula_is_told_a_query_and_channel_at_a_time():
    rows = table.paper_formula()
    pixels, width = rows["height"] * rows["width"], rows["channels"]
    each = pixels * width  # N C: what is left is linear in both
    assert (rows["macs_dense"] == each * (2 * pixels + 4 * width)).all()
    exact = [
        int(count * (Fraction(15, 100) * n + Fraction(375, 100) * c))
        for count, n, c in zip(each.tolist(), pixels.tolist(), width.tolist(), strict=True)
    ]
    assert (rows["macs_reduced"] - exact).abs().max() <= 1  # the table cuts off what floating point has
    assert rows["macs_dense"].iloc[0] == 71_303_168  # 64 pixels of 512 channels: 64 * 512 * (128 + 2048)


def test_the_papers_formula_reaches_ninety_percent_where_the_table_says():
    for row in table.paper_formula().to_dict("records"):
        n, c = row["pixels_for_90_percent"], row["channels"]
        assert (0.15 * n + 3.75 * c) / (2 * n + 4 * c) == pytest.approx(0.10)
        assert (row["saved_percent"] >= 90) == (row["height"] ** 2 >= n)


def model_rows(**ms: float) -> pd.DataFrame:
    """Rows of `hae-lab bench model`: a variant's median, a millisecond between its quartiles and it."""
    rows = [
        {"variant": variant, "way": "" if variant == "unet" else way, "ms_median": factor * value}
        for variant, value in ms.items()
        for way, factor in (("document_shared", 1), ("document's way", 7))[: 1 if variant == "unet" else 2]
    ]
    frame = pd.DataFrame(rows).assign(device_name="here")
    return frame.assign(ms_q1=frame["ms_median"] - 1, ms_q3=frame["ms_median"] + 1)


def test_variants_together_takes_time_from_the_measured_rows():
    latency = model_rows(unet=50, hae=100, lite=90, v2=80)
    elsewhere = latency.assign(device_name="that computer", ms_median=3.0)
    both = pd.concat([elsewhere, latency])  # of several computers the first by name
    rows = table.variants_together(both, "cifar32").set_index(["variant", "quantity"])
    assert rows.loc[("v2", "time"), ["percent_of_hae", "percent_q1", "percent_q3"]].tolist() == [80, 79, 81]
    assert rows.loc[("unet", "time"), "percent_of_hae"] == 50
    assert rows.loc[("v2", "parameters"), "value"] == 45_110_339
    assert rows.loc[("hae", "MACs"), "percent_of_hae"] == 100


def test_the_time_of_a_variant_that_was_not_measured_is_a_gap():
    rows = table.variants_together(model_rows(unet=50, hae=100, v2=80), "cifar32").set_index(["variant", "quantity"])
    assert rows.loc[("lite", "time"), ["value", "percent_of_hae", "percent_q1", "percent_q3"]].isna().all()
    assert rows.loc[("lite", "parameters"), "value"] == parameter_formulas(config("lite", "cifar32"))["model"]
    assert rows.loc[("lite", "parameters"), "claim_percent"] == 70
    assert rows.loc["lite", "percent_of_hae"][["parameters", "MACs"]].between(1, 100).all()
    with pytest.raises(HAELabError, match="no time of HAE"):
        table.variants_together(model_rows(unet=50, v2=80), "cifar32")
