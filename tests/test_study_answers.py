"""The picture of all comparisons: marks and counts follow the table; long names stay on the page."""

import pandas as pd
import pytest
import test_study_plots
from study_rows import study_rows
from test_study_plots import APART, title_of, with_controls

from hae_lab import HAELabError, plots
from hae_lab.plots.base import variant_colour
from hae_lab.study import comparisons

LONG = "HAE without its Transformer, in a body without attention"


def table(gaps=None, controls: str = "found", data=("phantoms", "twins")) -> pd.DataFrame:
    """Rows of `quality_differences`: at equal steps on two data sets, and the control against HAE at equal time."""
    parts = []
    for place, name in enumerate(data):
        found = comparisons.differences(study_rows(gaps=gaps, seed=place).assign(data=name, margin_percent=3))
        late = found[(found["first"] == "hae") & (found["second"] == "unet")].assign(equal="time")
        parts += [found, late]
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(study="asked", metric="loss", controls=controls)


def marks(ax) -> list[tuple[str, str]]:
    """Marker and fill of each comparison of a panel."""
    return [(line.get_marker(), line.get_markerfacecolor()) for line in ax.lines if line.get_marker() in "osD^vx"]


def test_a_comparison_has_the_colour_of_its_winner():
    steps, time = plots.quality_verdicts(table(APART)).axes
    hae, lite, v2 = (variant_colour(name) for name in ("hae", "lite", "v2"))
    assert [fill for _, fill in marks(steps)] == [hae, lite, v2, hae, hae, lite] * 2
    assert [fill for _, fill in marks(time)] == [hae] * 2
    assert (steps.get_title(), time.get_title()) == ("steps", "time")


def test_each_comparison_has_a_row_of_its_own_with_half_a_row_of_room():
    rows = table(APART)
    steps, time = plots.quality_verdicts(rows).axes
    names = [tick.get_text() for tick in steps.get_yticklabels()]
    assert len(names) == len(set(names)) == 12  # six pairs on each of two data sets
    assert steps.get_ylim() == time.get_ylim() == (11.5, -0.5)
    drawn = [line for line in steps.lines if line.get_marker() in "osD^vx"]
    assert sorted(line.get_ydata()[0] for line in drawn) == list(range(12))
    at_steps = rows[rows["equal"] == "steps"]
    percents = 100 * at_steps["mean_difference"] / at_steps["mean_second"]
    assert sorted(line.get_xdata()[0] for line in drawn) == pytest.approx(sorted(percents))


def test_one_comparison_is_enough():
    one = table(APART)[:1]
    (ax,) = plots.quality_verdicts(one).axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["phantoms: HAE − U-Net"]
    assert len(marks(ax)) == 1


def test_equal_and_open_comparisons_are_grey():
    equal = {fill for _, fill in marks(plots.quality_verdicts(table({})).axes[0])}
    assert len(equal) == 1
    rows = table({}).assign(verdict="cannot tell")
    assert {fill for _, fill in marks(plots.quality_verdicts(rows).axes[0])} == {"white"}
    assert equal != {"white"}


def test_void_comparisons_are_crossed_out_and_counted():
    rows = table(APART)
    rows.loc[rows["data"] == "twins", "controls"] = "not found"
    figure = plots.quality_verdicts(rows)
    assert [marker for marker, _ in marks(figure.axes[0])].count("x") == 6
    assert title_of(figure).startswith("7 of 14 comparisons are decided, 7 are void")
    assert any("controls not found" in text.get_text() for text in figure.legends[0].get_texts())


@pytest.mark.parametrize(("gaps", "steps", "time"), [(APART, 6, 2), ({}, 0, 0)])
def test_the_title_counts_decisions_and_wins(gaps, steps, time):
    assert title_of(plots.quality_verdicts(table(gaps))) == (
        f"14 of 14 comparisons are decided; hybrids beat the U-Net in {steps} of 6 at equal steps and {time} of 2 at "
        "equal time"
    )


def test_a_pair_of_two_studies_stands_once_with_the_more_seeds():
    rows = table(APART, data=("phantoms",))
    again = table({}, data=("phantoms",)).query("equal == 'steps'").assign(study="before", n_seeds=3)
    both = pd.concat([again, rows], ignore_index=True)
    assert plots.quality_verdicts(both).png() == plots.quality_verdicts(rows).png()


def test_other_cells_and_metrics_are_left_out():
    rows = table(APART)
    more = pd.concat([rows, rows.assign(metric="swd"), rows.assign(first="HAE, no CNN branch")], ignore_index=True)
    assert plots.quality_verdicts(more).png() == plots.quality_verdicts(rows).png()
    with pytest.raises(HAELabError, match="no comparison of the variants by dice"):
        plots.quality_verdicts(rows, "dice")


PICTURES = {
    "all comparisons": lambda: plots.quality_verdicts(table(APART)),
    "void comparisons": lambda: plots.quality_verdicts(table({}, "not found", ("phantoms", "digits", "twins"))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_texts_of_answers_stay_on_the_page_and_apart(name, monkeypatch):
    monkeypatch.setattr("test_study_plots.PICTURES", PICTURES)
    test_study_plots.test_texts_stay_on_the_page_and_apart(name, monkeypatch)


def test_long_names_break_and_the_figure_grows():
    rows = with_controls()
    long = rows["cell"].replace({"3/4 of the width": LONG, "lite": f"{LONG}, too"})
    figure = plots.forest(rows.assign(cell=long))
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert " ".join(names[-2].split()) == f"{LONG} − HAE"
    assert max(len(line) for name in names for line in name.split("\n")) <= 36
    assert figure.get_figheight() > 6
    assert plots.forest(rows).get_figheight() == 6
    assert all(len(text.get_text()) < 40 for text in figure.axes[0].texts)
