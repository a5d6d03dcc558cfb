"""Axes of the figures: what they say they show, and limits that leave nothing out."""

import plot_rows
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from hae_lab import plots

# name: rows, options, labels (x, y) of each axis
LABELS = {
    "parameter_table": (
        plot_rows.parameter_table,
        {},
        [("preset (body of the U-Net)", "parameters, % of HAE on the same body")],
    ),
    "published_counts": (plot_rows.published_counts, {}, [("", "parameters, million")]),
    "feasibility": (
        plot_rows.feasibility,
        {},
        [("HAE Lite, parameters in % of HAE", "HAE V2, parameters in % of HAE")],
    ),
    "where_parameters_sit": (plot_rows.parameter_parts, {}, [("", "parameters, million (brats128)")]),
    "what_it_would_take": (plot_rows.what_it_would_take, {}, [("parameters, % of HAE (brats128)", "")]),
    "macs_by_part": (
        plot_rows.macs_by_part,
        {},
        [("GMACs of one denoising step,\nas published (brats128)", "part, and its share of HAE's work")],
    ),
    "macs_by_level": (
        plot_rows.macs_by_level,
        {"variant": "lite"},
        [("map of the decoder level, pixels (brats128, document_shared)", "GMACs of one denoising step")],
    ),
    "variants_together": (plot_rows.variants_together, {}, [("", "% of HAE; lower is cheaper")]),
    "attention_speed_up": (
        plot_rows.attention,
        {},
        [("tokens n, forward", "speed-up over dense SDPA, local queries"), ("tokens n, forward + backward", "")],
    ),
}


def drawn(name: str) -> Figure:
    rows, options, _ = LABELS[name]
    return getattr(plots, name)(rows(), **options)


@pytest.mark.parametrize("name", LABELS)
def test_axes_say_quantity_and_unit(name):
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in drawn(name).axes] == LABELS[name][2]


@pytest.mark.parametrize("name", LABELS)
def test_no_bar_is_cut_off(name):
    for ax in drawn(name).axes:
        (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        for patch in (patch for held in ax.containers if isinstance(held, BarContainer) for patch in held):
            box = patch.get_bbox()
            assert left <= box.x0 <= box.x1 <= right
            assert low <= box.y0 <= box.y1 <= high


def test_limits_are_a_headroom_over_the_highest_bar():
    (ax,) = drawn("published_counts").axes
    assert ax.get_ylim() == pytest.approx((0, 1.18 * 654.321), rel=1e-9)
    (ax,) = drawn("parameter_table").axes
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 3.5), pytest.approx((0, 108)))
    high = plot_rows.parameter_table()
    high.loc[0, "percent_of_hae"] = 150
    assert plots.parameter_table(high).axes[0].get_ylim() == pytest.approx((0, 162))
    (ax,) = drawn("variants_together").axes
    assert ax.get_ylim() == pytest.approx((0, 1.08 * 108))  # time of HAE: 100 %, its third quartile 8 above


def test_limits_of_percentages_are_those_of_percentages():
    (ax,) = drawn("feasibility").axes
    assert (ax.get_xlim(), ax.get_ylim()) == ((0, 100), (0, 100))
    (ax,) = drawn("what_it_would_take").axes
    assert ax.get_xlim() == (0, 135)


def test_claims_are_named_right_of_the_last_group():
    (ax,) = drawn("parameter_table").axes
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places["claimed\nHAE Lite 70 %"] == (2.5, 69)
    assert places["claimed\nHAE V2 40 %"] == (2.5, 39)


def test_each_part_has_half_a_row_of_room_on_either_side():
    (ax,) = drawn("macs_by_part").axes
    assert ax.get_ylim() == (len(plot_rows.WORK) - 0.5, -0.5)


def test_attention_is_on_logarithmic_axes():
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in drawn("attention_speed_up").axes} == {("log", "log")}
