"""Pictures of studies: drawn without a warning or an overlap, titles that follow the data, bad rows named."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from study_rows import curve_rows, slot_rows, study_rows

from hae_lab import HAELabError, plots
from hae_lab.plots.ablations import ladder
from hae_lab.plots.base import PALETTE
from hae_lab.plots.compute import RULE_COLOURS
from hae_lab.study import statistics

RULES = tuple(RULE_COLOURS)
FIVE = ("unet", "hae", "lite", "v2", "v2_wide")
RATIOS = (0.0625, 0.125, 0.25, 0.5, 1, 2, 4)
STRICT = 1e-6  # %: a margin within which nothing is equal
APART = {"hae": -0.01, "lite": 0.0, "v2": 0.01, "unet": 0.02}  # far beyond the seeds' noise


def title_of(figure) -> str:
    return " ".join(figure._suptitle.get_text().split())


def ratio_rows(gap: float = 0.0, seeds: int = 5) -> pd.DataFrame:
    """The bottleneck ratios beside the control; each halving of the ratio adds `gap` to the loss."""
    names = {f"mlp_ratio={ratio}": ratio for ratio in RATIOS}
    gaps = {name: -gap * np.log2(ratio) for name, ratio in names.items()}
    rows = study_rows(("unet", *names), seeds, gaps)
    ratios = rows["cell"].map(names)
    return rows.assign(mlp_ratio=ratios, params=1_390_000 + 16_000 * ratios.fillna(0))


def factor_rows(name: str, levels, seeds: int = 3) -> pd.DataFrame:
    rows = study_rows([str(level) for level in levels], seeds)
    return rows.assign(**{name: rows["cell"].map({str(level): level for level in levels})})


def with_controls(worse: float = 0.005, seeds: int = 5, **margin) -> pd.DataFrame:
    """The variants of a study with two controls of HAE, of which one is `worse` by so much."""
    names = {"3/4 of the width": worse, "2/3 of the steps": 0.008}
    rows = study_rows(("unet", "hae", "lite", "v2", *names), seeds, names)
    role = rows["cell"].map(dict.fromkeys(names, "control")).fillna("question")
    reference = role.map({"control": "hae"}).fillna("")
    return rows.assign(role=role, reference=reference, data="phantoms", **margin)


PICTURES = {
    "forest with controls": lambda: plots.forest(with_controls(margin_percent=1.75)),
    "forest with controls not found": lambda: plots.forest(with_controls(0.0)),
    "forest of equal cells": lambda: plots.forest(study_rows(("hae", "lite", "v2"), gaps={})),
    "pareto of a void study": lambda: plots.pareto(with_controls(0.0)),
    "forest of all pairs": lambda: plots.forest(study_rows()),
    "forest against a baseline": lambda: plots.forest(study_rows(), baseline="unet"),
    "forest of 3 cells apart": lambda: plots.forest(study_rows(("hae", "lite", "v2"), gaps=APART)),
    "forest of 5 cells": lambda: plots.forest(study_rows(FIVE)),
    "forest of 6 rules": lambda: plots.forest(study_rows(RULES, seeds=3)),
    "pareto": lambda: plots.pareto(study_rows(FIVE)),
    "pareto of rules": lambda: plots.pareto(study_rows(RULES, seeds=3), costs=("macs", "ms")),
    "learning curves": lambda: plots.learning_curves(*curve_rows()),
    "learning curves of rules": lambda: plots.learning_curves(*curve_rows(RULES, seeds=3)),
    "loss by quartile": lambda: plots.loss_by_quartile(study_rows(FIVE)),
    "slot ladder": lambda: plots.slot_ladder(slot_rows()),
    "conclusions": lambda: plots.conclusions(study_rows(seeds=10)),
    "conclusions of 5 seeds": lambda: plots.conclusions(
        study_rows(("hae", "lite", "v2")), counts=(1, 2, 5), promised=("hae", "lite", "v2")
    ),
    "ratios": lambda: plots.dose(ratio_rows()),
    "rules": lambda: plots.dose(factor_rows("mask_rule", RULES), x="mask_rule", cost="macs"),
    "patch sizes": lambda: plots.dose(
        factor_rows("patch_sizes", [(1,), (1, 4), (1, 8), (1, 4, 8), (1, 2, 4, 8)]), x="patch_sizes"
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_texts_stay_on_the_page_and_apart(name, monkeypatch):
    figure = PICTURES[name]()
    assert tuple(figure.get_size_inches()) == (8, 6)
    drawn, draw = [], Text.draw

    def recorded(text, renderer, *args, **options):
        drawn.append(text)
        return draw(text, renderer, *args, **options)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout
    monkeypatch.setattr(Text, "draw", recorded)
    canvas.draw()
    texts = [text for text in dict.fromkeys(drawn) if text.get_text().strip() and text.get_visible()]
    extents = np.array([text.get_window_extent(canvas.get_renderer()).extents for text in texts])
    assert (extents[:, :2] >= 0).all()
    assert (extents[:, 2:] <= figure.bbox.size).all()
    low, high = np.maximum(extents[:, None, :2], extents[:, :2]), np.minimum(extents[:, None, 2:], extents[:, 2:])
    overlaps = np.argwhere(np.triu((high - low > 1).all(axis=2), k=1))
    assert [(texts[one].get_text(), texts[other].get_text()) for one, other in overlaps] == []


def test_pictures_are_repeatable():
    one, other = (plots.pareto(study_rows()).png() for _ in range(2))
    assert one == other


# titles


@pytest.mark.parametrize(
    ("gaps", "title"),
    [
        ({}, "All 3 pairs are equal within 2 % in held-out loss (5 seeds)"),
        ({"v2": 0.01}, "HAE beats HAE V2 and HAE Lite beats HAE V2 in held-out loss; "
                       "1 of 3 pairs is equal within 2 % (5 seeds)"),
        ({"v2": 0.001}, "2 of 3 pairs are equal within 2 % in held-out loss; "
                        "5 seeds cannot tell the other pair apart"),
    ],
)  # fmt: skip
def test_forest_says_what_is_equal(gaps, title):
    assert title_of(plots.forest(study_rows(("hae", "lite", "v2"), gaps=gaps))) == title


def test_forest_says_how_far_apart_equal_cells_may_be():
    rows = study_rows(("hae", "v2"), gaps={})
    found = statistics.paired_differences(rows).iloc[0]
    (text,) = plots.forest(rows).axes[0].texts
    assert text.get_text() == f"equal within 2 %\napart ≤ {found['equal_within_percent']:.2g} %"


def test_forest_shows_controls_last_and_the_margin_as_a_band():
    rows = with_controls(margin_percent=1.75)
    ax = plots.forest(rows).axes[0]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names[-2:] == ["3/4 of the width − HAE", "2/3 of the steps − HAE"]
    assert len(names) == 6 + 2
    assert not any("width" in name or "steps" in name for name in names[:6])
    (band,) = [patch for patch in ax.patches if patch.get_alpha() == 0.08]
    means = rows.groupby("cell")["loss"].mean()
    seconds = ["unet"] * 3 + ["hae"] * 2 + ["lite"] + ["hae"] * 2
    half = 0.0175 * np.mean([means[second] for second in seconds])
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-half, half))


@pytest.mark.parametrize(
    "draw",
    [
        plots.forest, plots.pareto, plots.loss_by_quartile, lambda rows: plots.conclusions(rows, counts=(1, 5)),
        lambda rows: plots.dose(rows.assign(ratio=rows["params"] / 1e6), x="ratio", control=None),
    ],
)  # fmt: skip
def test_a_study_that_misses_a_control_is_void(draw):
    assert title_of(draw(with_controls(0.0))).startswith("Void, for a control that is known to be worse was not found")
    assert "Void" not in title_of(draw(with_controls()))


@pytest.mark.parametrize(
    ("gaps", "title"),
    [
        ({}, "5 seeds cannot tell any of 3 pairs apart by held-out loss"),
        (APART, "3 of 3 pairs differ in held-out loss (5 seeds)"),
        (
            {"v2": 0.01},
            "HAE beats HAE V2 and HAE Lite beats HAE V2 in held-out loss; 5 seeds cannot tell the other pair apart",
        ),
        (
            {"v2": -0.01},
            "HAE V2 beats HAE and HAE V2 beats HAE Lite in held-out loss; 5 seeds cannot tell the other pair apart",
        ),
    ],
)
def test_forest_says_what_the_seeds_can_tell(gaps, title):
    rows = study_rows(("hae", "lite", "v2"), gaps=gaps)
    assert title_of(plots.forest(rows.assign(margin_percent=STRICT))) == title


def test_forest_of_one_pair():
    rows = study_rows(("hae", "lite"), gaps={})
    assert title_of(plots.forest(rows)) == "The two cells are equal within 2 % in held-out loss (5 seeds)"
    rows = rows.assign(margin_percent=STRICT)
    assert title_of(plots.forest(rows)) == "5 seeds cannot tell the two cells apart by held-out loss"


@pytest.mark.parametrize(("baseline", "name"), [(None, "% of the mean"), ("unet", "% of U-Net (control)")])
def test_the_upper_axis_of_a_forest_is_in_percent_of_the_second(baseline, name):
    rows = study_rows(("unet", "hae", "lite"))
    ax = plots.forest(rows, baseline=baseline).axes[0]
    (top,) = ax.child_axes
    assert top.get_xlabel() == name
    means = rows.groupby("cell")["loss"].mean()
    second = means["unet"] if baseline else np.mean([means["unet"], means["unet"], means["hae"]])
    ax.figure.draw_without_rendering()
    assert top.get_xlim() == pytest.approx(tuple(100 * np.array(ax.get_xlim()) / second))


def test_forest_writes_the_verdict_and_what_it_would_find_beside_each_row():
    rows = study_rows(("hae", "v2"), gaps=APART)
    found = statistics.paired_differences(rows).iloc[0]
    least = 100 * found["minimum_detectable_difference"] / rows.loc[rows["cell"] == "hae", "loss"].mean()
    (text,) = plots.forest(rows).axes[0].texts
    assert text.get_text() == f"HAE better\nfinds ≥ {least:.1f} %"


def test_forest_marks_intervals_that_holm_overrules():
    rows = study_rows(FIVE).assign(margin_percent=STRICT)
    found = statistics.paired_differences(rows)
    overruled = (found["verdict"] == "cannot tell") & (found["ci_low"].gt(0) | found["ci_high"].lt(0))
    texts = [text.get_text() for text in plots.forest(rows, stats=found).axes[0].texts]
    assert ["(Holm)" in text for text in texts] == overruled.tolist()
    assert overruled.any()


@pytest.mark.parametrize(
    ("gaps", "title"),
    [
        ({}, "No cell is surely beaten by one that costs no more (parameters, MACs, time)"),
        ({"hae": 0.01}, "HAE is surely beaten by one that costs no more (parameters, MACs, time)"),
        (
            {"hae": 0.01, "lite": 0.01},
            "HAE and HAE Lite are surely beaten by one that costs no more (parameters, MACs, time)",
        ),
        ({"unet": 0.01}, "No cell is surely beaten by one that costs no more (parameters, MACs, time)"),
    ],
)
def test_pareto_names_the_dominated(gaps, title):
    assert title_of(plots.pareto(study_rows(gaps=gaps))) == title


def test_pareto_draws_the_dominated_hollow():
    figure = plots.pareto(study_rows(gaps={"hae": 0.01}), costs=("params",))
    fills = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() in "osD^"]
    assert [fill == "white" for fill in fills] == [False, True, False, False]


def test_a_cell_has_the_colour_of_its_variant_or_rule_and_any_other_a_spare_one():
    cells = ("unet", "hae", "v2", "document_shared", "mine", "yours")
    (ax,) = plots.pareto(study_rows(cells), costs=("params",)).axes
    drawn = [bars.lines[0].get_color() for bars in ax.containers]
    assert drawn[:4] == [*map(plots.variant_colour, cells[:3]), RULE_COLOURS["document_shared"]]
    assert set(drawn[4:]) <= set(PALETTE) - set(drawn[:4])
    assert len(set(drawn)) == 6
    chosen = plots.pareto(study_rows(cells), costs=("params",), palette={"mine": "#123456"}).axes[0]
    assert chosen.containers[4].lines[0].get_color() == "#123456"


def test_pareto_knows_that_auroc_is_better_when_higher():
    rows = study_rows(gaps={"unet": 0.01}).rename(columns={"loss": "auroc"})
    assert title_of(plots.pareto(rows, "auroc", costs=("params",))).startswith(
        "HAE, HAE Lite and HAE V2 are surely beaten"
    )


def test_learning_curves_compare_at_equal_steps():
    curves, times = curve_rows(("hae", "lite", "v2"), seeds=6)
    title = "After 300 steps: 6 seeds cannot tell any of 3 pairs apart by held-out loss"
    assert title_of(plots.learning_curves(curves.assign(margin_percent=STRICT), times)) == title
    apart = curves.assign(loss=curves["loss"] * np.where(curves["cell"] == "v2", 1.1, 1))
    assert title_of(plots.learning_curves(apart, times)).startswith("After 300 steps: HAE beats HAE V2 and HAE Lite")


def test_learning_curves_say_how_far_the_loss_still_falls():
    curves, times = curve_rows(("hae", "lite"), seeds=6)
    means = curves.groupby(["cell", "step"])["loss"].mean().unstack()
    fallen = 100 * (1 - means[300] / means[225])
    note = plots.learning_curves(curves, times).legends[0].get_title().get_text()
    assert f"since step 225 it fell by {fallen.min():.1f} to {fallen.max():.1f} %" in note.split("\n")
    last = curves[curves["step"] == 300]
    assert "it fell by" not in plots.learning_curves(last, times).legends[0].get_title().get_text()


def test_learning_curves_take_the_last_step_in_common():
    curves, times = curve_rows()
    curves = curves[(curves["cell"] != "v2") | (curves["step"] <= 200)]
    assert title_of(plots.learning_curves(curves, times)).startswith("After 200 steps:")
    alone = curves.assign(step=curves["step"] + curves["cell"].eq("v2"))
    with pytest.raises(HAELabError, match="no step in common"):
        plots.learning_curves(alone, times)


def test_quartiles_name_winner_and_place():
    rows = study_rows().assign(margin_percent=STRICT)
    assert title_of(plots.loss_by_quartile(rows.assign(margin_percent=20))) == (
        "Against U-Net (control): 12 of 12 equal it within 20 % (5 seeds)"
    )
    assert title_of(plots.loss_by_quartile(rows)) == (
        "5 seeds cannot tell any cell from U-Net (control) in any quartile of the timestep"
    )
    better = rows["loss_q2"].mask(rows["cell"] == "hae", 0.8 * rows["loss_q2"])
    worse = rows["loss_q4"].mask(rows["cell"] == "v2", 1.5 * rows["loss_q4"])
    assert title_of(plots.loss_by_quartile(rows.assign(loss_q2=better, loss_q4=worse))) == (
        "Against U-Net (control): HAE beats it in q2, HAE V2 loses to it in q4; 5 seeds cannot tell the rest"
    )


def test_ladder_climbs_one_slot_at_a_time_through_the_variants():
    labels, slots = zip(*ladder(), strict=True)
    assert labels == ("HAE", "regions\npooled", "fusion\nmean\n= HAE Lite", "mlp_ratio\n0.25\n= HAE V2")
    changes = [sum(one[slot] != other[slot] for slot in one) for one, other in pairwise(slots)]
    assert changes == [1, 1, 1]


@pytest.mark.parametrize(
    ("pooled", "title"),
    [
        (0.0, "5 seeds cannot tell an effect of any of the 3 slots on held-out loss"),
        (0.0093, "In held-out loss, regions = linear is better by 9.8 %; 5 seeds cannot tell the other 2 slots"),
        (-0.0093, "In held-out loss, regions = pooled is better by"),
    ],
)
def test_ladder_names_the_slot_that_matters(pooled, title):
    rows = slot_rows(pooled=pooled).assign(margin_percent=STRICT)
    assert title_of(plots.slot_ladder(rows)).startswith(title)
    assert title_of(plots.slot_ladder(rows[::-1])).startswith(title)  # effects start at HAE, wherever its rows stand


def test_ladder_names_the_slots_that_do_not_matter():
    same = "In held-out loss, regions, mlp_ratio and fusion do not matter within 2 % (5 seeds)"
    assert title_of(plots.slot_ladder(slot_rows())) == same
    assert title_of(plots.slot_ladder(slot_rows().assign(data="digits"))) == f"digits: {same}"
    one = title_of(plots.slot_ladder(slot_rows(pooled=0.0093)))
    assert one.startswith(
        "In held-out loss, regions = linear is better by 9.8 % and mlp_ratio and fusion do not matter"
    )


def test_conclusions_count_contradictions():
    assert title_of(plots.conclusions(study_rows(seeds=10, gaps={}))) == (
        "Single seeds contradict each other on 6 of 6 pairs; 10 seeds tell none of them apart and find 6 equal within "
        "the margin"
    )
    assert title_of(plots.conclusions(study_rows(seeds=10).assign(margin_percent=STRICT))) == (
        "Single seeds contradict each other on 6 of 6 pairs; 10 seeds tell none of them apart"
    )
    assert title_of(plots.conclusions(study_rows(seeds=10, gaps=APART))) == (
        "Single seeds contradict each other on 0 of 6 pairs; 10 seeds tell 6 of them apart"
    )
    assert title_of(plots.conclusions(study_rows(seeds=6), counts=(2, 6))).startswith("Groups of 2 seeds contradict")


def test_conclusions_put_the_promised_order_beside_chance():
    rows = study_rows(("hae", "lite", "v2"), 4, APART)
    note = plots.conclusions(rows, counts=(1, 4), promised=("hae", "lite", "v2")).legends[0].get_title().get_text()
    assert note.endswith("HAE < HAE Lite < HAE V2: in 4 of 4 single seeds, 100 %, where chance alone gives 17 %")


@pytest.mark.parametrize(
    ("gap", "title"),
    [
        (0.0, "5 seeds show no trend of held-out loss with mlp_ratio (Page's test)"),
        (0.005, "The larger mlp_ratio, the better the held-out loss (Page's test, p ="),
        (-0.005, "The smaller mlp_ratio, the better the held-out loss (Page's test, p ="),
    ],
)
def test_doses_state_their_trend(gap, title):
    rows = ratio_rows(gap)
    assert title_of(plots.dose(rows)).startswith(title)
    assert title_of(plots.dose(rows.sample(frac=1, random_state=0))).startswith(title)


def test_named_levels_state_their_pairs():
    rows = factor_rows("mask_rule", RULES).assign(margin_percent=STRICT)
    assert title_of(plots.dose(rows, x="mask_rule")) == "3 seeds cannot tell any of 15 pairs apart by held-out loss"
    rows["loss"] += 0.05 * (rows["mask_rule"] == "dense")
    assert title_of(plots.dose(rows, x="mask_rule")).startswith("5 of 15 pairs differ in held-out loss")


def test_a_dose_compares_what_the_study_declares():
    rows = factor_rows("patch_sizes", [(1, 4, 8), (1, 4), (1,)])
    against_first = rows.assign(role="question", reference="(1, 4, 8)", data="twins")
    assert " 3 pairs" in title_of(plots.dose(rows, x="patch_sizes"))
    assert " 2 pairs" in title_of(plots.dose(against_first, x="patch_sizes"))


def test_ratios_stand_on_a_logarithmic_axis_and_the_control_on_a_line():
    figure = plots.dose(ratio_rows())
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "U-Net (control), 95 % interval"
    names = plots.dose(factor_rows("patch_sizes", [(1,), (1, 4)]), x="patch_sizes").axes[0]
    assert names.get_xscale() == "linear"
    assert names.get_legend() is None


# bad rows


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda rows: plots.forest(rows, stats=rows), "missing columns: first, second"),
        (lambda rows: plots.pareto(rows.drop(columns="macs")), "missing columns: macs; the rows have cell"),
        (
            lambda rows: plots.pareto(rows.assign(params=range(len(rows)))),
            "^params, macs, ms, ms_q1, ms_q3 must be one number a cell, but differ between the seeds of unet, hae",
        ),
        (lambda rows: plots.pareto(rows.assign(loss=np.nan)), "cell unet, seed 0: loss = nan must be a number"),
        (lambda rows: plots.learning_curves(rows, {}), "missing columns: step"),
        (lambda rows: plots.loss_by_quartile(rows.drop(columns="loss_q3")), "missing columns: loss_q3"),
        (lambda rows: plots.loss_by_quartile(rows, baseline="cnn"), "unknown baseline 'cnn'"),
        (lambda rows: plots.slot_ladder(rows), "missing columns: regions, mlp_ratio, fusion"),
        (lambda rows: plots.slot_ladder(slot_rows()[:35]), r"2 or more seeds with all 8 cells|has 1: "),
        (lambda rows: plots.conclusions(rows, stats=rows), "missing columns: n_seeds, group"),
        (lambda rows: plots.dose(rows), "missing columns: mlp_ratio"),
        (lambda rows: plots.dose(ratio_rows(), control="hae"), "mlp_ratio is missing in the cells unet"),
        (lambda rows: plots.dose(rows[rows["cell"] == "unet"], x="ms"), "all are the control 'unet'"),
    ],
)
def test_bad_rows_are_named(draw, message):
    with pytest.raises(HAELabError, match=message):
        draw(study_rows())
