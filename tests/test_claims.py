"""The claims: every one judged from numbers by rule, quoted as the document has it."""

import numpy as np
import pandas as pd
import pytest

from hae_lab import HAELabError, build
from hae_lab.audit import clone, verdicts
from hae_lab.audit.bench_attention import FLEX, NATIVE
from hae_lab.audit.claims import ledger
from hae_lab.audit.claims.quality import readings_without
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import Measured
from hae_lab.masks import TokenGrid
from hae_lab.rules import mask_for


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return ledger.rows(Measured())


def of(rows: pd.DataFrame, claim: str, words: str) -> pd.Series:
    """The one reading of a claim whose reading or scope has these words."""
    told = rows[rows["id"] == claim]
    (found,) = [row for _, row in told.iterrows() if words in f"{row['reading']}, {row['scope']}"]
    return found


def readings(claim: str, measured: Measured) -> list:
    return ledger.claims()[claim].findings(measured)


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


def test_a_fact_and_a_gap():
    assert (verdicts.as_said(True), verdicts.as_said(False)) == ("holds", "does not hold")
    assert verdicts.unmeasured() == "cannot tell"


@pytest.mark.parametrize(
    ("numbers", "verdict"), [((3, 2, 1), "holds"), ((3, 3, 1), "does not hold"), ((3, 1, 2), "does not hold")]
)
def test_an_order_of_numbers_falls_at_each_step(numbers, verdict):
    assert verdicts.in_order(numbers) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.0, "holds"), (0.0, "holds"), (1.01, "does not hold")])
def test_a_limit_may_be_reached(value, verdict):
    assert verdicts.at_most(value, 1.0) == verdict


@pytest.mark.parametrize(("more", "verdict"), [(5.01, "holds"), (5, "does not hold"), (-20, "does not hold")])
def test_five_percent_more_is_not_worth_a_word(more, verdict):
    assert verdicts.noticeably_more(more) == verdict


@pytest.mark.parametrize(("percent", "verdict"), [(50, "holds"), (49.9, "does not hold"), (100, "holds")])
def test_most_is_half_or_more(percent, verdict):
    assert verdicts.mostly(percent) == verdict


@pytest.mark.parametrize(
    ("gib", "verdict"),
    [
        ((4, 8, 12), "holds"),
        ((4.01, 8, 12), "does not hold"),
        ((100, 200, 4), "does not hold"),
        ((30, 20, 10), "holds"),
        ((2, 2.5, 3), "does not hold"),
    ],
)
def test_cards_differ_if_the_smallest_that_hold_the_needs_do(gib, verdict):
    assert verdicts.different_cards(each * 2**30 for each in gib) == verdict


@pytest.mark.parametrize(
    ("than", "verdict"),
    [
        ("faster", "holds"),
        ("slower", "does not hold"),
        ("equal within 2 %", "does not hold"),
        ("cannot tell", "cannot tell"),
        (float("nan"), "cannot tell"),
    ],
)
def test_a_time_is_below_another_where_rounds_say_so(than, verdict):
    assert verdicts.faster(than) == verdict


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("first better", "holds"),
        ("equal", "holds"),
        ("second better", "does not hold"),
        ("cannot tell", "cannot tell"),
    ],
)
def test_quality_is_kept_by_what_is_equal_or_better(verdict, expected):
    assert verdicts.kept({"first": "lite", "second": "hae", "verdict": verdict}, "lite") == expected


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "nearly holds"), "nearly holds"),
        (("does not hold", "cannot tell"), "does not hold"),
        (("does not hold", "nearly holds"), "cannot tell"),
        (("holds", "cannot tell"), "cannot tell"),
        (("cannot tell", "void"), "cannot tell"),
    ],
)
def test_advice_on_mixed_grounds_decides_nothing(found, verdict):
    assert verdicts.rests_on(found) == verdict


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
    ("others", "verdict"),
    [
        (("slower", "slower"), "holds"),
        (("slower", "cannot tell"), "cannot tell"),
        (("slower", "equal within 2 %"), "does not hold"),
        (("cannot tell", "faster"), "does not hold"),
        (("slower", float("nan")), "cannot tell"),
    ],
)
def test_the_fastest_is_faster_than_each_of_the_others(others, verdict):
    assert verdicts.first_place(others) == verdict


def test_a_time_says_how_and_where_it_was_measured(rows):
    told = rows[["way", "device_name", "clock"]].ne("").all(axis=1)
    assert (told == (rows["kind"] == "time")).all()
    committed = read_table("bench_model_cpu")
    assert set(rows.loc[told, "device_name"]) == set(committed["device_name"])
    assert set(rows.loc[told, "clock"]) == set(committed["clock"])


def test_ninety_percent_in_each_scope(rows):
    hidden = of(rows, "attention_90", "pairs that the mask hides")
    blocked = mask_for("document", TokenGrid(64, 64)).blocked()
    assert hidden["computed"] == f"{100 * blocked.mean():.1f} %" == "88.0 %"
    assert of(rows, "attention_90", "as printed")["computed"] == "0.0 %"
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
    assert of(rows, "three_scales", "brats128, maps")["verdict"] == "holds"
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
        ("equal", "equal", "equal", "cannot tell", "does not hold"),
        ("second better", "equal", "second better", "holds", "does not hold"),
        ("cannot tell", "cannot tell", "equal", "cannot tell", "does not hold"),
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


@pytest.mark.parametrize(
    ("verdict", "promised", "expected"),
    [
        ("first better", "v2", "holds"),
        ("second better", "v2", "does not hold"),
        ("second better", "hae", "holds"),
        ("equal", "v2", "does not hold"),
        ("cannot tell", "v2", "cannot tell"),
    ],
)
def test_a_promised_cell_has_to_be_better(verdict, promised, expected):
    assert verdicts.first_of_pair({"first": "v2", "second": "hae", "verdict": verdict}, promised) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["first better", "first better"], "holds"),
        (["first better", "cannot tell"], "cannot tell"),
        (["first better", "equal"], "does not hold"),
        (["cannot tell", "second better"], "does not hold"),
    ],
)
def test_all_promised_cells_have_to_be_better(found, expected):
    pairs = [({"first": "hae", "second": "unet", "verdict": verdict}, "hae") for verdict in found]
    assert verdicts.all_first(pairs) == expected


@pytest.mark.parametrize(("controls", "verdict"), [("found", "holds"), ("none", "holds"), ("not found", "void")])
def test_a_verdict_is_void_without_its_controls(controls, verdict):
    assert verdicts.valid("holds", controls) == verdict


def test_quality_says_what_the_table_says(rows):
    losses = read_table("quality_differences").query("metric == 'loss'")
    told = rows[rows["id"].isin(["quality_order", "heterogeneous"]) & rows["reading"].str.contains("loss at equal")]
    orders = read_table("quality_order")
    ordered = set(zip(orders["study"], orders["data"], orders["equal"], strict=True))
    for (study, data, equal), pairs in losses.groupby(["study", "data", "equal"]):
        here = told[
            told["reading"].str.endswith(f"equal {equal}") & told["scope"].str.startswith(f"{data}, study {study},")
        ]
        words = "; ".join(here["computed"])
        for pair in pairs.to_dict("records") if len(here) else ():
            cells = {pair["first"], pair["second"]}
            if cells <= {"unet", "hae", "lite", "v2"} and ("unet" in cells or (study, data, equal) in ordered):
                percent = 100 * pair["mean_difference"] / pair["mean_second"]
                assert f"{pair['first']} - {pair['second']} {percent:+.2f} %" in words
    assert len(told) >= 2


def measured(**changed: pd.DataFrame) -> Measured:
    """The committed measurements, some of them changed."""
    return Measured(lambda name: changed[name] if name in changed else read_table(name))


def saved_times(rows: pd.DataFrame, rule: str = "document") -> dict[str, tuple[str, str]]:
    """What is said about the time of a rule, by what it is measured against."""
    found = readings("attention_90", measured(bench_attention_cpu=rows))
    told = [each for each in found if each.kind == "time" and each.way == rule]
    return {each.reading.partition("against ")[2]: (each.computed, each.verdict) for each in told}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (2.5, ("60.0 % (2.5 times as fast)", "does not hold")),
        (9.0, ("88.9 % (9.0 times as fast)", "nearly holds")),
        (10.0, ("90.0 % (10.0 times as fast)", "holds")),
        (20.0, ("95.0 % (20.0 times as fast)", "holds")),
    ],
)
def test_sixty_percent_less_time_is_not_ninety(times, expected):
    rows = read_table("bench_attention_cpu")
    ms = np.where(rows["way"] == "document", 10.0, 10.0 * times)
    assert set(saved_times(rows.assign(ms_median=ms)).values()) == {expected}


def test_time_is_saved_against_the_document_and_against_fair_denominators():
    rows = read_table("bench_attention_cpu").query("part == 'layer' and `pass` == 'forward' and n == 4416")
    ms = rows.set_index("way")["ms_median"]
    found = saved_times(rows)
    for words, way in (("document's layer", "document's layer"), ("dense SDPA, local queries", "dense")):
        assert found[words][0].startswith(f"{100 * (1 - ms['document'] / ms[way]):.1f} %")
    assert any("SDPA with the mask" in words for words in found)
    assert not any(rule in found for rule in ("window2d", "spatial_reduction", "always_regional"))


def test_a_kernel_for_a_mask_is_set_beside_the_rule_of_that_mask():
    rows = read_table("bench_attention_cpu").query("part == 'layer' and `pass` == 'forward' and n == 4416")
    rows = rows[~rows["way"].isin(FLEX)]
    flex = rows.iloc[:1].assign(way="FlexAttention, document_shared", ms_median=100.0)
    rows = pd.concat([rows, flex], ignore_index=True)
    assert "FlexAttention, document_shared" in saved_times(rows, "document_shared")
    assert "FlexAttention, document_shared" not in saved_times(rows, "document")


def test_a_native_kernel_is_a_second_way_of_its_rule_and_no_opponent():
    rows = read_table("bench_attention_cpu").query("part == 'layer' and `pass` == 'forward' and n == 4416")
    dense = rows.loc[rows["way"] == "dense", "ms_median"].item()
    natively = rows.iloc[:1].assign(way="document, native", ms_median=dense / 4)
    rows = pd.concat([rows[~rows["way"].isin(NATIVE)], natively], ignore_index=True)
    assert not set(saved_times(rows)) & set(NATIVE)
    assert saved_times(rows, "document, native")["dense SDPA, local queries"] == (
        "75.0 % (4.0 times as fast)", "does not hold"
    )  # fmt: skip


def test_an_order_of_times_names_what_was_not_measured():
    rows = read_table("bench_model_cpu").query("variant != 'lite'")
    found = [
        each for each in readings("v2_efficiency", measured(bench_model_cpu=rows)) if each.way == "document_shared"
    ]
    assert [(each.computed, each.verdict) for each in found] == [("not measured: HAE Lite", "cannot tell")]


def test_the_fastest_is_found_on_each_computer():
    rows = read_table("bench_training_cpu").query("preset == 'lesson16'")
    ms = rows["variant"].map({"unet": 1.0, "hae": 30.0, "lite": 20.0, "v2": 10.0})
    fast = rows.assign(ms_median=ms, verdict="slower", device_name="fast")
    slow = fast.assign(verdict=fast["verdict"].where(rows["variant"] != "hae", "faster"), device_name="slow")
    old = fast.assign(verdict=np.nan, device_name="old")
    found = readings("v2_efficiency", measured(bench_training_cpu=pd.concat([slow, fast, old])))
    words = "100 % / 67 % / 33 % of HAE (HAE / Lite / V2)"
    assert {each.device_name: (each.verdict, each.computed) for each in found if each.way == "hae_lab"} == {
        "fast": ("holds", words), "slow": ("does not hold", words), "old": ("cannot tell", words)
    }  # fmt: skip


def runs(losses: dict[str, float], seeds: int = 5) -> pd.DataFrame:
    """A run a cell and seed: the cell's loss, and a little noise that pairs do not share."""
    noise = np.random.default_rng(0).normal(0, 1e-4, (len(losses), seeds))
    rows = [
        {"cell": cell, "seed": seed, "loss": loss + noise[place, seed]}
        for place, (cell, loss) in enumerate(losses.items())
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


VARIANTS = {"unet": 0.12, "hae": 0.08, "lite": 0.09, "v2": 0.10}


def asked(losses: dict[str, float], role: str = "question", **columns) -> pd.DataFrame:
    return runs(losses).assign(role=role, data="phantoms", macs_kept=1, key="k", **columns)


def readings_of(monkeypatch, rows: pd.DataFrame, claim: str) -> list:
    """What a study with these rows alone says."""
    monkeypatch.setattr("hae_lab.audit.measured.study_names", lambda: ("asked",))
    last = ["macs_kept", "loss", "key"]  # where `Study.results` has its metrics
    rows = rows[[*(name for name in rows.columns if name not in last), *last]]
    return readings(claim, measured(study_asked=rows))


@pytest.mark.parametrize(
    ("hae", "wide", "verdict"), [(0.08, 0.09, "holds"), (0.09, 0.08, "does not hold"), (0.08, 0.08, "does not hold")]
)
def test_the_verdict_at_equal_parameters_is_that_of_the_better(hae, wide, verdict, monkeypatch):
    base = asked(VARIANTS | {"hae": hae}).assign(variant=lambda rows: rows["cell"], reference="")
    widened = asked({"v2 widened": wide}, "equal parameters", variant="v2", reference="hae")
    found = readings_of(monkeypatch, pd.concat([base, widened], ignore_index=True), "quality_order")
    (finding,) = [each for each in found if "equal parameters" in each.reading]
    assert finding.verdict == verdict
    assert finding.computed.startswith(f"v2 - hae {100 * (wide - hae) / hae:+.0f}") or hae == wide


@pytest.mark.parametrize(
    ("losses", "order", "hybrid"),
    [
        ({}, "holds", "holds"),
        ({"hae": 0.11}, "does not hold", "holds"),
        ({"v2": 0.13}, "holds", "does not hold"),
        ({"hae": 0.12, "lite": 0.12, "v2": 0.12}, "does not hold", "does not hold"),
    ],
)
@pytest.mark.parametrize(("narrow", "void"), [(0.2, False), (0.0801, True), (None, False)])
def test_readings_follow_the_losses_and_the_controls(losses, order, hybrid, narrow, void, monkeypatch):
    losses = VARIANTS | losses
    rows = asked(losses).assign(reference="")
    if narrow:
        control = asked({"narrow": narrow + losses["hae"] - VARIANTS["hae"]}, "control", reference="hae")
        rows = pd.concat([rows, control], ignore_index=True)
    for claim, verdict in (("quality_order", order), ("heterogeneous", hybrid)):
        (finding,) = readings_of(monkeypatch, rows, claim)
        assert finding.verdict == ("void" if void else verdict)
        assert ("was not found" in finding.computed) == void
        assert finding.example
    equal = len(set(losses.values())) == 1
    assert ("no order beyond 2 %" in readings_of(monkeypatch, rows, "quality_order")[0].computed) == equal


def test_a_study_at_equal_macs_is_read_by_variants(monkeypatch):
    base = asked(VARIANTS).assign(variant=lambda rows: rows["cell"], reference="")
    longer = [
        asked({f"{variant} longer": loss}, "equal MACs", variant=variant, reference="hae")
        for variant, loss in (("unet", 0.05), ("lite", 0.07), ("v2", 0.06))
    ]
    rows = pd.concat([base, *longer], ignore_index=True)
    steps, macs = readings_of(monkeypatch, rows, "heterogeneous")
    assert (steps.verdict, macs.verdict) == ("holds", "does not hold")
    assert "equal MACs" in macs.reading
    assert "hae - unet +60" in macs.computed
    assert "v2 - lite -14" in readings_of(monkeypatch, rows, "quality_order")[1].computed
    assert [each.verdict for each in readings_of(monkeypatch, rows, "quality_order")] == [
        "holds",
        "does not hold",
    ]


@pytest.mark.parametrize(
    ("without", "margin", "verdict"),
    [(0.09, 2, "holds"), (0.07, 2, "does not hold"), (0.08, 2, "does not hold"), (0.08, 0.001, "cannot tell")],
)
def test_a_piece_helps_where_the_same_without_it_is_worse(without, margin, verdict, monkeypatch):
    cells = {"HAE": 0.08, "HAE, no Transformer": without, "HAE, dense mask": 0.2}
    near, far = (asked(cells).assign(data=data, reference="HAE", margin_percent=margin) for data in ("near", "far"))
    far.loc[far["cell"] == "HAE, no Transformer", "loss"] += 0.05
    monkeypatch.setattr("hae_lab.audit.measured.study_names", lambda: ("asked",))
    tables = measured(study_asked=pd.concat([near, far], ignore_index=True))
    found = list(readings_without(tables, "asked", "HAE, no Transformer", "HAE", "it helps", "a_figure"))
    assert [(each.scope, each.verdict) for each in found] == [
        ("near, study asked, 5 seeds", verdict), ("far, study asked, 5 seeds", "holds")
    ]  # fmt: skip
    assert {(each.claimed, each.evidence.figure) for each in found} == {("better than without", "a_figure")}
    assert found[1].computed.startswith(f"HAE, no Transformer - HAE {100 * (without + 0.05 - 0.08) / 0.08:+.0f}")
    assert not list(readings_without(tables, "another", "HAE, no Transformer", "HAE", "it helps", "a_figure"))


def test_other_metrics_are_read_at_equal_steps_alone(monkeypatch):
    base = asked(VARIANTS).assign(variant=lambda rows: rows["cell"], reference="")
    longer = [
        asked({f"{variant} longer": 0.05}, "equal MACs", variant=variant, reference="hae")
        for variant in ("unet", "lite", "v2")
    ]
    rows = pd.concat([base, *longer], ignore_index=True).assign(swd=lambda rows: 2 * rows["loss"])
    last = ["macs_kept", "loss", "swd", "key"]
    rows = rows[[*(name for name in rows.columns if name not in last), *last]]
    monkeypatch.setattr("hae_lab.audit.measured.study_names", lambda: ("asked",))
    for claim in ("quality_order", "heterogeneous"):
        found = readings(claim, measured(study_asked=rows))
        assert [(each.reading, each.verdict) for each in found] == [
            ("held-out loss at equal steps", "holds"),
            ("held-out loss at equal MACs", "does not hold"),
            ("sliced Wasserstein distance", "holds"),
        ]
        assert found[2].computed == found[0].computed.split("; Page")[0]  # twice as large, the same in percent


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
    shared = of(rows, "upgrade_later", "those of v2 that fit hae")
    assert (shared["verdict"], shared["asked_of"]) == ("does not hold", "beyond the document")
    assert of(rows, "upgrade_later", "hae takes the place of v2")["verdict"] == "holds"
    v2, hae = (build(variant, "lesson16").state_dict() for variant in ("v2", "hae"))
    fits = sum(v2[name].numel() for name in v2 if name in hae and hae[name].shape == v2[name].shape)
    percent = 100 * fits / sum(tensor.numel() for tensor in hae.values())
    assert shared["computed"].startswith(f"{percent:.1f} %")
