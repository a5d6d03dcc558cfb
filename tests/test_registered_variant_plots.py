"""Variants are data in every figure: a registered one is drawn or named, a stranger stands under its own name."""

import numpy as np
import pandas as pd
import plot_rows
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from study_rows import curve_rows, study_rows

from hae_lab import HAELabError, plots, presets
from hae_lab.plots.base import CLAIM_COLOUR, CONTROL_COLOUR, PALETTE, variant_colour
from hae_lab.profilers.anatomy import hybrid_family, unet_table

FIVE = (*plot_rows.FOUR, "v3")
OF_VARIANTS, OTHERS = plot_rows.OF_VARIANTS, plot_rows.OTHERS
TABLES = {
    "parameter_table": plot_rows.parameter_table,
    "where_parameters_sit": plot_rows.parameter_parts,
    "macs_by_part": plot_rows.macs_by_part,
    "variants_together": plot_rows.variants_together,
}


@pytest.fixture
def v3():
    presets.register_variant("v3", "HAE V3", regions="linear", mlp_ratio=0.25, fusion="mean")
    yield "v3"
    del presets.VARIANTS["v3"]


def words(figure: Figure) -> list[str]:
    """Every visible text, after the layout has settled."""
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def title_of(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def says(figure: Figure, text: str) -> bool:
    return any(text in line for line in words(figure))


# with and without


@pytest.mark.parametrize("name", OF_VARIANTS)
def test_a_registered_variant_is_drawn_last_and_under_its_title(name, v3):
    figure = OF_VARIANTS[name](FIVE)
    assert says(figure, "HAE V3")
    assert not says(figure, "not measured")
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    entries = [text.get_text() for legend in legends for text in legend.get_texts()]
    titles = [title for title in (variant.title for variant in presets.VARIANTS.values()) if title in entries]
    assert [entry for entry in entries if entry in titles] == titles


@pytest.mark.parametrize("name", TABLES)
def test_the_order_of_the_rows_does_not_matter(name, v3):
    draw, rows = getattr(plots, name), TABLES[name](FIVE)
    assert draw(rows.sort_values("variant", kind="stable")).png() == draw(rows).png()


@pytest.mark.parametrize("name", OF_VARIANTS)
def test_a_registered_variant_without_rows_is_named(name, v3):
    assert says(OF_VARIANTS[name](plot_rows.FOUR), "not measured: HAE V3")


@pytest.mark.parametrize("name", OTHERS)
def test_figures_of_the_document_do_not_change(name, request):
    before = OTHERS[name]().png()
    request.getfixturevalue("v3")
    assert OTHERS[name]().png() == before


@pytest.mark.parametrize("name", TABLES)
def test_a_variant_that_has_only_gaps_is_named(name, v3):
    rows = TABLES[name](FIVE)
    (value,) = rows.columns.intersection(["percent_of_hae", "params", "macs_document"])
    rows[value] = rows[value].astype(float).mask(rows["variant"] == "v3")
    figure = getattr(plots, name)(rows)
    assert says(figure, "not measured: HAE V3")
    assert not says(figure, "nan")


def test_a_single_gap_is_named_with_its_quantity(v3):
    rows = plot_rows.variants_together(FIVE)
    gap = (rows["variant"] == "v3") & (rows["quantity"] == "time")
    rows.loc[gap, ["percent_of_hae", "percent_q1", "percent_q3"]] = np.nan
    figure = plots.variants_together(rows)
    assert says(figure, "not measured: time of HAE V3")
    assert title_of(figure) == "V3 holds 50 % of HAE's parameters, but does 62 % of its work"
    same = plots.variants_together(rows[~gap])
    assert says(same, "not measured: time of HAE V3")


def test_costs_without_a_time_are_named(v3):
    rows = study_rows(FIVE)
    rows.loc[rows["cell"] == "v3", ["ms", "ms_q1", "ms_q3"]] = np.nan
    assert says(plots.pareto(rows), "time not measured: HAE V3")
    curves, times = curve_rows(FIVE)
    for missing in ({cell: ms for cell, ms in times.items() if cell != "v3"}, times | {"v3": np.nan}):
        figure = plots.learning_curves(curves, missing)
        assert says(figure, "time not measured: HAE V3")
        assert title_of(figure).startswith("After 300 steps")
        assert [len(ax.lines) for ax in figure.axes] == [5 + 1, 4]


def test_a_speed_up_of_the_users_rule_is_drawn():
    rules = ("document", "document_shared", "my_rule")
    figure = plots.attention_speed_up(plot_rows.attention(rules))
    _, labels = figure.axes[0].get_legend_handles_labels()
    assert [label for label in labels if label in rules] == list(rules)
    assert says(figure, "my_rule")
    assert says(plots.density_and_reach(plot_rows.visibility(rules)), "my_rule")
    assert says(plots.attention_speed_up(plot_rows.attention(rules[2:])), "my_rule")


# any others


@pytest.mark.parametrize("name", OF_VARIANTS)
@pytest.mark.parametrize("names", [("hae", "v2"), ("lite", "v2"), ("unet", "hae")])
def test_titles_speak_only_of_what_is_there(name, names):
    figure = OF_VARIANTS[name](names)
    title = title_of(figure)
    there = {*names, "unet"} if name == "loss_by_quartile" else set(names)
    for variant, word in (("lite", "Lite"), ("v2", "V2"), ("unet", "U-Net")):
        assert variant in there or word not in title


@pytest.mark.parametrize("name", OF_VARIANTS)
def test_a_stranger_stands_under_its_own_name(name):
    assert says(OF_VARIANTS[name](("hae", "lite", "my_model")), "my_model")


@pytest.mark.parametrize("names", [("hae",), ("lite",)])
def test_one_variant_alone(names):
    for name in TABLES:
        assert says(OF_VARIANTS[name](names), presets.variant_title(names[0]))


def test_published_counts_of_some_versions():
    figure = plots.published_counts(plot_rows.published_counts(("hae", "v2")))
    assert title_of(figure).startswith("The published 100 / 39 % compares two models that differ in placement")
    assert says(figure, "not measured: HAE Lite")


# colours


def test_colours_follow_the_order_of_registration(v3):
    assert [variant_colour(name) for name in plot_rows.FOUR] == [CONTROL_COLOUR, *PALETTE[:3]]
    assert variant_colour("v3") == PALETTE[9]
    presets.register_variant("v4", "HAE V4", regions="linear")
    try:
        assert variant_colour("v4") == PALETTE[8]
        assert variant_colour("v3") == PALETTE[9]
        assert plots.variant_title("v4") == plots.VARIANT_NAMES["v4"] == "HAE V4"
    finally:
        del presets.VARIANTS["v4"]
    assert CLAIM_COLOUR not in [variant_colour(name) for name in FIVE]


def test_registered_variants_have_their_colour_in_the_bars(v3):
    (ax,) = plots.variants_together(plot_rows.variants_together(FIVE)).axes
    mine = [bar for bar in ax.patches if to_hex(bar.get_facecolor()) == PALETTE[9]]
    assert [bar.get_height() for bar in mine] == [50, 62, 74]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in mine]
    assert centres == pytest.approx([group + 0.16 * 2 for group in range(3)])


# options


@pytest.mark.parametrize("name", TABLES)
def test_order_chooses_and_sorts_without_a_note(name):
    draw, rows = getattr(plots, name), TABLES[name]
    figure = draw(rows(), order=["v2", "hae"])
    found = [text for text in words(figure) if text in ("HAE", "HAE Lite", "HAE V2")]
    assert found == ["HAE V2", "HAE"]
    assert not says(figure, "not measured")
    assert says(draw(rows(("hae",)), order=["v2", "hae"]), "not measured: HAE V2")


def test_order_of_cells():
    rows = study_rows()
    figure = plots.forest(rows, order=["v2", "hae"])
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["HAE − HAE V2"]
    assert not says(figure, "not measured")
    assert says(plots.pareto(rows, order=["v2", "hae", "v9"]), "not measured: v9")


def test_palette_takes_the_place_of_our_colours():
    (ax,) = plots.variants_together(plot_rows.variants_together(), palette={"hae": "#123456"}).axes
    assert [to_hex(bar.get_facecolor()) for bar in ax.patches[3:6]] == ["#123456"] * 3
    figure = plots.pareto(study_rows(), palette={"hae": "#123456"})
    assert figure.axes[0].containers[1].lines[0].get_color() == "#123456"


AXES = {
    "parameter_table": lambda ax: plots.parameter_table(plot_rows.parameter_table(), ax=ax),
    "published_counts": lambda ax: plots.published_counts(plot_rows.published_counts(), ax=ax),
    "feasibility": lambda ax: plots.feasibility(plot_rows.feasibility(), ax=ax),
    "where_parameters_sit": lambda ax: plots.where_parameters_sit(plot_rows.parameter_parts(), ax=ax),
    "what_it_would_take": lambda ax: plots.what_it_would_take(plot_rows.what_it_would_take(), ax=ax),
    "macs_by_part": lambda ax: plots.macs_by_part(plot_rows.macs_by_part(), ax=ax),
    "macs_by_level": lambda ax: plots.macs_by_level(plot_rows.macs_by_level(), ax=ax),
    "variants_together": lambda ax: plots.variants_together(plot_rows.variants_together(), ax=ax),
    "forest": lambda ax: plots.forest(study_rows(), ax=ax),
    "loss_by_quartile": lambda ax: plots.loss_by_quartile(study_rows(), ax=ax),
}


@pytest.mark.parametrize("name", AXES)
def test_a_users_axes_are_drawn_into_and_their_figure_is_returned(name):
    page = Figure(figsize=(16, 6), layout="constrained")
    left, right = page.subplots(1, 2)
    assert AXES[name](right) is page
    assert right.get_title()
    assert not left.get_title()
    assert not left.patches
    assert not left.lines
    assert right.get_legend() is not None
    own = AXES[name](None)
    assert " ".join(right.get_title().split()) == title_of(own)
    assert len(own.axes[0].patches) == len(right.patches)


# architecture


def test_pictures_of_a_registered_model(v3):
    table = unet_table("tiny")
    assert plots.unet(table, variant="v3").get_suptitle().startswith("HAE V3: 1 hybrid block holds")
    family = hybrid_family("tiny")
    figure = plots.hybrid_blocks(family)
    assert "HAE V3 changes regions" in title_of(figure)
    assert not says(figure, "not drawn")
    assert says(plots.hybrid_blocks(family[family["variant"] != "v3"]), "not drawn: HAE V3")
    faces = [to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]
    assert [faces.count(variant_colour(name)) for name in ("hae", "lite", "v2", "v3")] == [1, 1, 1, 1]


def test_a_model_that_the_rows_lack_is_an_error():
    rows = pd.DataFrame({"variant": ["hae"]})
    with pytest.raises(HAELabError, match="unknown variant 'v3'"):
        plots.unet(rows, variant="v3")
