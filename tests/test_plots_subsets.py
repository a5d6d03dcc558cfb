"""Figures of any variants and presets: each draws what is there, or says in one line what it lacks."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from study_rows import curve_rows, study_rows

from hae_lab import HAELabError, plots
from hae_lab.__main__ import main
from hae_lab.audit import registry, reproduce
from hae_lab.audit.clone import read_table

# of two cells or more
COMPARISONS = {
    *("quality_verdicts", "quality_forest", "quality_forest_digits", "quality_forest_mri"),
    *("loss_by_quartile", "how_many_seeds"),
}
BESIDE_THE_UNET = {"quality_forest_scales"}  # whose cells are compared with a U-Net
OF_HYBRID_BLOCKS = {"published_counts", "hybrid_blocks", "what_a_model_needs", "roofline"}
REFUSED = {
    ("unet",): COMPARISONS | OF_HYBRID_BLOCKS,
    # its studies have controls, which are cells too
    ("hae",): {"quality_verdicts", "quality_forest_mri", "how_many_seeds", "roofline"} | BESIDE_THE_UNET,
    ("lite",): COMPARISONS | {"roofline"} | BESIDE_THE_UNET,
    ("v2",): COMPARISONS | BESIDE_THE_UNET,
    ("hae", "v2"): BESIDE_THE_UNET,
    ("unet", "lite"): {"how_many_seeds", "roofline"},
}


def title_of(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


@pytest.mark.slow
@pytest.mark.parametrize("variants", REFUSED)
def test_every_figure_draws_any_variants_or_says_what_it_lacks(variants):
    refused, rows = set(), reproduce.subset(variants)
    for name, source in registry.FIGURES.items():
        try:
            figure = reproduce.draw(source, rows)
        except HAELabError:
            refused.add(name)
        else:
            assert title_of(figure)
            assert any(ax.has_data() for ax in figure.axes)
    assert refused == REFUSED[variants]


def test_a_subset_is_the_committed_table_without_the_others():
    whole, part = read_table("parameter_table"), reproduce.subset(["hae", "v2"], ["cifar32"])("parameter_table")
    assert set(part["variant"]) == {"hae", "v2"}
    assert set(part["preset"]) == {"cifar32"}
    expected = [
        row for row in whole.to_dict("records") if row["variant"] in "hae v2".split() and row["preset"] == "cifar32"
    ]
    assert len(part) == len(expected) > 0
    cells = set(reproduce.subset(["lite"])("study_variants")["cell"])
    assert "lite" in cells
    assert not {"unet", "hae", "v2"} & cells
    assert "the claim" in set(reproduce.subset(presets=["cifar32"])("feasibility")["preset"])


def test_the_command_draws_these_variants_alone(tmp_path, capsys):
    arguments = ["reproduce", "--variants", "hae,v2", "--presets", "cifar32", "--only", "parameter_table"]
    assert main([*arguments, "--style", "talk", "--format", "png", "--out", str(tmp_path)]) == 0
    table = read_table("parameter_table")
    table = table[table["variant"].isin(["hae", "v2"]) & (table["preset"] == "cifar32")]
    asked = plots.parameter_table(table, order=["hae", "v2"])  # those left out by wish are not called unmeasured
    assert "not measured" not in asked.axes[0].get_xlabel()
    assert (tmp_path / "parameter_table.png").read_bytes() == asked.png()
    with plots.only(["hae", "lite", "v2"]):
        partly = plots.parameter_table(table)
    assert partly.axes[0].get_xlabel().endswith("not measured: HAE Lite")
    assert "U-Net (control)" in plots.parameter_table(table).axes[0].get_xlabel()


def test_what_these_variants_cannot_fill_is_named_and_the_rest_is_drawn(tmp_path):
    written, left_out = reproduce.print_figures(
        tmp_path, variants=["unet"], style="talk", formats=["svg"], only=["feasibility"]
    )
    assert [path.name for path in written] == ["feasibility.svg"]
    assert left_out == []
    with pytest.raises(HAELabError, match="no block to draw"):
        reproduce.print_figures(tmp_path, ["hybrid_blocks"], variants=["unet"])


@pytest.mark.parametrize(
    ("option", "message"), [("--variants=v3", "unknown variant 'v3'"), ("--presets=x", "unknown preset 'x'")]
)
def test_unknown_names_are_refused(option, message, capsys, tmp_path):
    assert main(["reproduce", option, "--only", "feasibility", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("draw", [plots.macs_by_part, plots.macs_by_level, plots.where_parameters_sit])
def test_without_the_documents_preset_the_first_is_drawn(draw):
    table = {plots.where_parameters_sit: "parameter_parts"}.get(draw, draw.__name__)
    rows = reproduce.subset(presets=["cifar32", "imagenet64"])(table)
    if rows.empty:
        pytest.skip(f"{table} has the document's preset alone")
    first = rows["preset"].iloc[0]
    labels = " ".join(ax.get_xlabel() + ax.get_ylabel() for ax in draw(rows).axes)
    assert f"({first}" in labels
    assert "brats128" not in labels


# learning curves


def means_of(rows, cell):
    return rows[rows["cell"] == cell].groupby("step")["loss"].mean()


def test_learning_curves_need_no_times():
    rows, _ = curve_rows()
    figure = plots.learning_curves(rows)
    (ax,) = figure.axes
    assert title_of(figure) == title_of(plots.learning_curves(*curve_rows()))
    drawn = {tuple(np.round(line.get_ydata(), 12)) for line in ax.lines}
    assert {tuple(np.round(means_of(rows, cell), 12)) for cell in rows["cell"].unique()} <= drawn


def test_one_cell_or_one_seed_is_drawn_and_not_compared():
    rows, times = curve_rows()
    for part in (rows[rows["cell"] == "v2"], rows[rows["seed"] == 0]):
        for given in (None, times):
            figure = plots.learning_curves(part, given)
            last = means_of(part, "v2").iloc[-1]
            assert f"HAE V2 {last:.3g}" in title_of(figure)
            assert not any(line.get_linestyle() == ":" for line in figure.axes[0].lines)
            assert len(figure.axes) == 1 + (given is not None)


# without what a default compares with


def test_quartiles_without_the_control_compare_with_the_first():
    rows = study_rows(["hae", "lite", "v2"])
    assert title_of(plots.loss_by_quartile(rows)) == title_of(plots.loss_by_quartile(rows, baseline="hae"))


def test_levels_without_hae_are_those_of_the_first_with_hybrid_blocks():
    rows = reproduce.subset(["unet", "lite", "v2"])("macs_by_level")
    assert "HAE Lite" in title_of(plots.macs_by_level(rows))
