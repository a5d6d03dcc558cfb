"""The claims: every one judged from numbers by rule, quoted as the document has it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hae_lab import HAELabError, build
from hae_lab.audit import claims, clone, quality_readings, quality_tables, readings, verdicts
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import Measured
from hae_lab.masks import TokenGrid
from hae_lab.rules import mask_for

DOCUMENT = Path(__file__).parents[2] / "shared" / "seed"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return claims.claims(Measured())


def of(rows: pd.DataFrame, claim: str, scope: str) -> pd.Series:
    (found,) = [row for _, row in rows[rows["id"] == claim].iterrows() if scope in row["scope"]]
    return found


@pytest.mark.parametrize(
    ("computed", "verdict"),
    [(70, "holds"), (69.0, "holds"), (71.01, "nearly holds"), (65, "nearly holds"), (64.9, "does not hold")],
)
def test_verdict_on_a_percentage(computed, verdict):
    assert verdicts.judge(computed, 70) == verdict


@pytest.mark.parametrize(
    ("saved", "verdict"),
    [(99, "holds"), (89, "holds"), (88.9, "nearly holds"), (85, "nearly holds"), (84.9, "does not hold")],
)
def test_verdict_on_a_saving_that_may_be_larger(saved, verdict):
    assert verdicts.judge_saving(saved, 90) == verdict


@pytest.mark.parametrize(
    ("several", "verdict"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "nearly holds"), "nearly holds"),
        (("does not hold", "holds", "nearly holds"), "does not hold"),
    ],
)
def test_a_claim_of_several_numbers_is_as_good_as_the_worst(several, verdict):
    assert verdicts.worst(several) == verdict


@pytest.mark.parametrize(
    ("q1", "q3", "verdict"), [(1, 2, "holds"), (2, 4, "cannot tell"), (5, 6, "cannot tell"), (8, 9, "does not hold")]
)
def test_an_order_of_times_needs_quartiles_that_do_not_overlap(q1, q3, verdict):
    others = pd.DataFrame({"ms_q1": [3, 6], "ms_q3": [7, 8]})
    assert verdicts.first_place(pd.Series({"ms_q1": q1, "ms_q3": q3}), others) == verdict


def test_every_claim_has_readings_with_all_fields(rows):
    assert set(rows["id"]) == {
        "parameters", "attention_90", "paper_90", "bottleneck_75", "three_scales", "v2_efficiency", "quality_order",
        "interchangeable",
    }  # fmt: skip
    assert (rows.drop(columns=["way", "device_name", "clock"]).astype(str) != "").all(axis=None)
    assert set(rows["kind"]) == {"parameters", "macs", "time", "mask", "quality", "interface"}
    assert set(rows["verdict"]) <= {"holds", "nearly holds", "does not hold", "cannot tell"}


def test_a_time_says_how_and_where_it_was_measured(rows):
    told = rows[["way", "device_name", "clock"]].ne("").all(axis=1)
    assert (told == (rows["kind"] == "time")).all()
    committed = read_table("bench_model_cpu")
    assert set(rows.loc[told, "device_name"]) == set(committed["device_name"])
    assert set(rows.loc[told, "clock"]) == set(committed["clock"])


def test_each_claim_has_one_example(rows):
    assert (rows.groupby("id")["example"].sum() == 1).all()


def test_evidence_files_exist(rows):
    root = clone.root()
    files = {word.rstrip(",") for text in rows["evidence"] for word in text.split() if word.startswith("data/")}
    assert files
    assert [file for file in files if not (root / file).exists()] == []


def test_ninety_percent_in_each_scope(rows):
    hidden = of(rows, "attention_90", "pairs that the mask hides")
    blocked = mask_for("document", TokenGrid(64, 64)).blocked()
    assert hidden["computed"] == f"{100 * blocked.mean():.1f} %" == "88.0 %"
    assert of(rows, "attention_90", "as published")["computed"] == "0.0 %"
    assert of(rows, "attention_90", "whole model")["verdict"] == "does not hold"


def test_seventy_five_percent_of_what(rows):
    # C = 512: C x 128 + 128 + 128 x C + C against C x C + C, twice, and against C x 4C + 4C + 4C x C + C
    bottleneck = 512 * 128 + 128 + 128 * 512 + 512
    wide, full = 2 * (512 * 512 + 512), 2 * 4 * 512 * 512 + 5 * 512
    assert of(rows, "bottleneck_75", "as wide inside")["computed"] == f"{100 * (1 - bottleneck / wide):.1f} %"
    assert of(rows, "bottleneck_75", "4x MLP")["computed"] == f"{100 * (1 - bottleneck / full):.1f} %"
    assert of(rows, "bottleneck_75", "whole model")["computed"] == f"{100 * (1 - 115_808_580 / 119_499_780):.1f} %"


def test_the_papers_arithmetic(rows):
    n, c = 64 * 64, 128
    saved = 1 - (0.15 * n + 3.75 * c) / (2 * n + 4 * c)
    assert of(rows, "paper_90", "64 x 64 map")["computed"] == f"{100 * saved:.1f} %"


def test_three_scales_fail_where_a_patch_does_not_divide_the_map(rows):
    assert of(rows, "three_scales", "brats128")["verdict"] == "holds"
    assert of(rows, "three_scales", "cifar32")["verdict"] == "does not hold"


@pytest.mark.parametrize(
    ("lite_hae", "v2_lite", "v2_hae", "trend", "verdict"),
    [
        ("second better", "second better", "second better", "holds", "holds"),
        ("second better", "second better", "cannot tell", "cannot tell", "holds"),
        ("second better", "cannot tell", "second better", "holds", "cannot tell"),
        ("cannot tell", "cannot tell", "cannot tell", "cannot tell", "cannot tell"),
        ("second better", "first better", "cannot tell", "cannot tell", "does not hold"),
        ("cannot tell", "cannot tell", "cannot tell", "does not hold", "does not hold"),
    ],
)
def test_an_order_of_quality_needs_both_neighbours(lite_hae, v2_lite, v2_hae, trend, verdict):
    pairs = pd.DataFrame(
        {
            "first": ["lite", "v2", "v2"],
            "second": ["hae", "lite", "hae"],
            "verdict": [lite_hae, v2_lite, v2_hae],
        }
    )
    assert verdicts.order_of_quality(pairs, trend) == verdict


def test_quality_says_no_more_than_the_intervals(rows):
    found = read_table("quality_differences").query("data == 'phantoms' and equal == 'steps'")
    pairs = found.query("metric == 'loss' and first != 'unet' and second != 'unet'")
    row = of(rows, "quality_order", "equal steps, phantoms")
    if (pairs["verdict"] == "cannot tell").all():
        assert row["verdict"] in ("cannot tell", "does not hold")
    assert all(f"{difference:+.2g}" in row["computed"] for difference in pairs["mean_difference"])


def measured(**changed: pd.DataFrame) -> Measured:
    """The committed measurements, some of them changed."""
    return Measured(lambda name: changed[name] if name in changed else read_table(name))


def test_sixty_percent_less_time_is_not_ninety():
    rows = read_table("bench_attention_cpu")
    found = {}
    for speed_up in (2.5, 9.0, 10.0, 20.0):
        changed = measured(bench_attention_cpu=rows.assign(speed_up=speed_up))
        found[speed_up] = {
            (finding.computed, finding.verdict) for finding in readings.attention(changed) if finding.kind == "time"
        }
    assert found == {
        2.5: {("60.0 % (2.5 times faster)", "does not hold")},
        9.0: {("88.9 % (9.0 times faster)", "nearly holds")},
        10.0: {("90.0 % (10.0 times faster)", "holds")},
        20.0: {("95.0 % (20.0 times faster)", "holds")},
    }


def test_an_order_of_times_names_what_was_not_measured():
    rows = read_table("bench_model_cpu").query("variant != 'lite'")
    found = [each for each in readings.efficiency(measured(bench_model_cpu=rows)) if each.way == "document_shared"]
    assert [(each.computed, each.verdict) for each in found] == [("not measured: HAE Lite", "cannot tell")]


def test_the_fastest_is_found_on_each_computer():
    rows = read_table("bench_training_cpu")
    ms = rows["variant"].map({"unet": 1.0, "hae": 30.0, "lite": 20.0, "v2": 10.0})
    fast = rows.assign(ms_median=ms, ms_q1=ms - 1, ms_q3=ms + 1, device_name="fast")
    late = {quartile: fast[quartile].where(rows["variant"] != "v2", 50) for quartile in ("ms_q1", "ms_q3")}
    slow = fast.assign(**late, device_name="slow")
    found = readings.efficiency(measured(bench_training_cpu=pd.concat([slow, fast])))
    assert {each.device_name: (each.verdict, each.computed) for each in found if each.way == "hae_lab"} == {
        "fast": ("holds", "100 % / 67 % / 33 % of HAE (HAE / Lite / V2)"),
        "slow": ("does not hold", "100 % / 67 % / 33 % of HAE (HAE / Lite / V2)"),
    }


def runs(losses: dict[str, float], seeds: int = 5) -> pd.DataFrame:
    """A run a cell and seed: the cell's loss, and a little noise that pairs do not share."""
    noise = np.random.default_rng(0).normal(0, 1e-4, (len(losses), seeds))
    rows = [
        {"cell": cell, "seed": seed, "loss": loss + noise[place, seed]}
        for place, (cell, loss) in enumerate(losses.items())
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("hae", "wide", "verdict"), [(0.08, 0.09, "holds"), (0.09, 0.08, "does not hold"), (0.08, 0.08, "cannot tell")]
)
def test_the_verdict_at_equal_parameters_is_that_of_the_better(hae, wide, verdict):
    rows = runs({"hae": hae, quality_tables.WIDE_V2: wide}).assign(params=1000, macs=10)
    rows.loc[rows["cell"] == quality_tables.WIDE_V2, ["params", "macs"]] = [1200, 15]
    found = list(quality_readings.quality(measured(study_equal_parameters=rows)))
    (finding,) = [each for each in found if "V2 widened" in each.scope]
    assert finding.verdict == verdict
    assert "V2 widened to 120 % of HAE's parameters and 150 % of its MACs" in finding.scope
    assert f"{wide - hae:+.1g}" in finding.computed or verdict == "cannot tell"


@pytest.mark.parametrize(("spread", "verdict"), [(0.1, "holds"), (20.0, "cannot tell")])
def test_an_order_at_equal_time_needs_times_that_differ(spread, verdict):
    ends = runs({"unet": 0.12, "hae": 0.08, "lite": 0.09, "v2": 0.10})
    curves = pd.concat([ends.assign(step=step, loss=ends["loss"] * (300 / step) ** 0.25) for step in (100, 200, 300)])
    training = read_table("bench_training_cpu")
    ms = training["variant"].map({"unet": 90.0, "hae": 100.0, "lite": 99.0, "v2": 98.0})
    training = training.assign(ms_median=ms, ms_q1=ms - spread, ms_q3=ms + spread)
    changed = measured(study_variants_curves=curves, bench_training_cpu=training)
    (finding,) = [each for each in quality_readings.quality(changed) if "equal compute time, phantoms" in each.scope]
    assert finding.verdict == verdict
    assert ("cannot be told apart" in finding.computed) == (verdict == "cannot tell")


def test_a_measured_table_is_read_once_and_only_when_asked_for():
    asked = []
    tables = Measured(lambda name: asked.append(name) or pd.DataFrame({"name": [name]}))
    assert asked == []
    assert tables.bench_model is tables.bench_model
    assert tables.slots["name"].tolist() == ["study_slots"]
    assert asked == ["bench_model_cpu", "study_slots"]
    with pytest.raises(AttributeError):
        tables.read = None


def test_a_missing_table_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(clone, "root", lambda: tmp_path)
    with pytest.raises(HAELabError, match=r"no table at .*bench_model_cpu.*`hae-lab bench`"):
        _ = Measured().bench_model


def test_outside_a_clone_the_audit_says_that_it_needs_one(monkeypatch, tmp_path):
    monkeypatch.setattr(clone, "PACKAGE", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HAELabError, match="clone of the repository"):
        clone.root()
    for folder in ("data", "studies"):
        (tmp_path / folder).mkdir()
    assert clone.root() == tmp_path


def test_interface_is_shared_and_weights_are_not(rows):
    assert of(rows, "interchangeable", "constructor")["verdict"] == "holds"
    shared = of(rows, "interchangeable", "weights of v2 that fit hae")
    assert shared["verdict"] == "does not hold"
    v2, hae = (build(variant, "lesson16").state_dict() for variant in ("v2", "hae"))
    fits = sum(v2[name].numel() for name in v2 if name in hae and hae[name].shape == v2[name].shape)
    percent = 100 * fits / sum(tensor.numel() for tensor in hae.values())
    assert shared["computed"].startswith(f"{percent:.1f} %")


def test_quotes_are_in_the_document(rows):
    files = list(DOCUMENT.glob("*.txt"))
    if not files:
        pytest.skip("the document is not here")
    text = files[0].read_text(encoding="utf-8").replace("**", "")
    quotes = rows[rows["id"] != "paper_90"]["original"].unique()
    for quote in quotes:
        for part in quote.replace("|", "…").split("…"):
            assert part.strip() in text
