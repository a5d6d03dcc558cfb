"""Figures of lesions and of what models use, against rows made here."""

from itertools import product

import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from hae_lab import plots
from hae_lab.plots.base import CONTROL_COLOUR, variant_colour
from hae_lab.plots.lesions import CHANGES, DETECTORS

VARIANTS = ("hae", "lite", "v2")


def uses_rows(**percents: float) -> pd.DataFrame:
    rows = []
    for (place, variant), (number, change) in product(enumerate(VARIANTS), enumerate(CHANGES)):
        percent = percents.get(change, 5.0 * number + place)
        row = {"variant": variant, "change": change, "percent": percent}
        rows.append(row | {"percent_low": percent - 0.5, "percent_high": percent + 0.7})
    return pd.DataFrame(rows)


def detection_rows(won: tuple[str, ...] = ("foreign",)) -> pd.DataFrame:
    rows = []
    for task, (place, detector) in product(("bright", "foreign"), enumerate((*DETECTORS, *VARIANTS))):
        better = 0.3 if detector == "lite" and task in won else 0
        row = {"task": task, "detector": detector, "auroc": 0.52 + 0.01 * place + better}
        rows.append(row | {"place_auroc": 0.58 - 0.005 * place + better})
    return pd.DataFrame(rows)


def title_of(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def test_bars_are_the_growth_of_the_loss():
    rows = uses_rows(tokens_swapped=0.02)
    figure = plots.what_a_model_needs(rows)
    (ax,) = figure.axes
    for variant, bars in zip(VARIANTS, [c for c in ax.containers if hasattr(c, "patches")], strict=True):
        expected = rows.loc[rows["variant"] == variant, "percent"]
        assert [bar.get_width() for bar in bars] == pytest.approx(list(expected))
        assert {bar.get_facecolor() for bar in bars} == {to_rgba(variant_colour(variant))}
    assert {"+0.02 %", "+20.0 %", "+22.0 %"} <= {text.get_text() for text in ax.texts}


def test_a_growth_is_written_right_of_its_interval_and_of_zero():
    figure = plots.what_a_model_needs(uses_rows(tokens_swapped=0.02, mask_redrawn=-3.0))
    (ax,) = figure.axes
    figure.draw_without_rendering()
    centres = [place + shift for shift in (-0.8 / 3, 0, 0.8 / 3) for place in range(len(CHANGES))]
    assert [text.xy[1] for text in ax.texts] == pytest.approx(centres)
    assert len(CHANGES) == 5
    ends = {text.get_text(): text.xy[0] for text in ax.texts}
    assert (ends["-3.0 %"], ends["+0.02 %"], ends["+20.0 %"]) == pytest.approx((0, 0.72, 20.7))
    for text in ax.texts:  # 6 points to the right
        assert text.get_window_extent().x0 > ax.transData.transform(text.xy)[0]
    low, high = ax.get_xlim()
    assert (low, high) == pytest.approx((1.1 * -3.5, 1.2 * 22.7))


@pytest.mark.parametrize(
    ("percents", "start"),
    [
        ({"tokens_swapped": 0.02}, "Trained models lean on the CNN branch"),
        ({"tokens_swapped": 0.2}, "How much the held-out loss grows"),
        ({"tokens_swapped": 0.02, "itself_only": 90}, "How much the held-out loss grows"),
    ],
)
def test_the_title_says_what_the_rows_show(percents, start):
    assert title_of(plots.what_a_model_needs(uses_rows(**percents))).startswith(start)


def test_dots_are_both_scores_of_every_detector():
    rows = detection_rows()
    figure = plots.lesions_found(rows)
    for ax, (task, found) in zip(figure.axes, rows.groupby("task", sort=False), strict=True):
        assert ax.get_title() == task
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        drawn = [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor() == "white") for line in dots]
        expected = [
            (row[name], place, name == "place_auroc")
            for place, row in enumerate(found.to_dict("records"))
            for name in ("auroc", "place_auroc")
        ]
        assert drawn == expected
        colours = [line.get_color() for line in dots]
        assert colours[:8] == [CONTROL_COLOUR] * 8
        assert colours[8:] == [variant_colour(variant) for variant in VARIANTS for _ in range(2)]


def test_detectors_and_changes_are_named_in_words():
    labels = plots.lesions_found(detection_rows()).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [
        "brightness", "depth in the head", "mean head", "five nearest heads", "HAE", "HAE Lite", "HAE V2",
    ]  # fmt: skip
    labels = plots.what_a_model_needs(uses_rows()).axes[0].get_yticklabels()
    assert [" ".join(label.get_text().split()) for label in labels] == [
        "regional tokens of another image", "mask drawn anew", "each pixel sees itself only",
        "Transformer branch silenced", "CNN branch silenced",
    ]  # fmt: skip


def test_a_growth_of_nothing_has_no_minus():
    (ax,) = plots.what_a_model_needs(uses_rows(tokens_swapped=-0.004)).axes
    written = {text.get_text() for text in ax.texts}
    assert "+0.00 %" in written
    assert not any(text.startswith(("-0.00", "−0.00")) for text in written)


@pytest.mark.parametrize(
    ("won", "start"),
    [
        (("foreign",), "Only on foreign lesions a model"),
        (("bright", "foreign"), "Only on bright and foreign lesions a model"),
        ((), "On no kind of lesions a model"),
    ],
)
def test_the_title_names_the_tasks_that_a_model_wins(won, start):
    assert title_of(plots.lesions_found(detection_rows(won))).startswith(start)


def test_the_title_names_heads_that_are_no_phantoms():
    figure = plots.lesions_found(detection_rows(), heads="slices of one average brain")
    assert title_of(figure).endswith(", in slices of one average brain")
    equal = plots.lesions_found(detection_rows(("foreign",)).replace({"task": {"foreign": "equal"}}))
    assert title_of(equal).startswith("Only on isointense lesions")
    assert "isointense" in [ax.get_title() for ax in equal.axes]


def test_a_win_needs_both_scores():
    rows = detection_rows()
    rows.loc[(rows["task"] == "foreign") & (rows["detector"] == "depth"), "auroc"] = 0.99
    assert title_of(plots.lesions_found(rows)).startswith("On no kind of lesions")
