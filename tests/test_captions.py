"""The small line under pictures and tables of notebooks: it is read from the code, and names what the code reads."""

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from hae_lab.audit.registry import figures
from hae_lab.book import captions, notebooks, provenance

IMPORTS = (
    "from hae_lab import plots, config\nfrom hae_lab.audit.clone import read_table\n"
    "from hae_lab.audit import parameter_tables as table\nfrom hae_lab.profilers.params import parameters\n"
    "from hae_lab.book.tables import Folded"
)


def shown(*sources: str, kind: str = "image/png") -> list[str]:
    """The lines of the last of these cells, all of which show something."""
    cells = [new_code_cell(source, outputs=[picture(kind)]) for source in (IMPORTS, *sources)]
    last = captions.with_captions(new_notebook(cells=cells)).cells[-1]
    return [each.data["text/html"] for each in last.outputs if captions.is_caption(each)]


def picture(kind: str):
    return new_output("display_data", {kind: '<table class="dataframe">' if kind == "text/html" else "iVBORw0"})


@pytest.fixture(autouse=True)
def no_seconds(monkeypatch):
    monkeypatch.setattr(provenance, "_seconds", lambda name, kind: 12.0 if name == "forest" else None)


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        (["plots.forest(read_table('study_variants'))"], "data/study_variants.csv · plots.studies.forest"),
        (["plots.forest(read_table('study_digits'))"], "data/study_digits.csv · plots.studies.forest"),
        (["plots.feasibility(table.feasibility())"], "data/feasibility.csv · plots.parameters.feasibility"),
        (["rows = table.slopes()", "rows.round(2)"], "data/slopes.csv · audit.parameter_tables.slopes"),
        (
            ["a = read_table('slopes')\na = a[a.x > 1]", "b = a + 1\nb"],
            "data/slopes.csv · audit.parameter_tables.slopes",
        ),
        (["a = read_table('slopes')", "a = 1\na"], "computed in this notebook"),
        (["a = {}\nfor n in read_table('lessons'):\n    a[n] = n + 1\na"], "data/lessons.csv"),
        (
            ["Folded(parameters(config('v2')), 'all')"],
            "computed in this notebook · profilers.params.parameters, presets.config",
        ),
        (["1 + 1"], "computed in this notebook"),
    ],
)
def test_a_line_follows_names_to_what_they_were_made_of(sources, line):
    assert shown(*sources) == [f"{captions.MARK}{line}</small>"]


def test_cells_that_show_neither_picture_nor_table_have_none():
    assert shown("read_table('slopes')", kind="text/plain") == []
    assert len(shown("read_table('slopes')", kind="text/html")) == 1
    assert shown("assert read_table('slopes') is not None") == []


def test_an_older_line_is_replaced():
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[picture("image/png")])])
    once = captions.with_captions(notebook).cells[0].outputs
    assert captions.with_captions(notebook).cells[0].outputs == once
    assert len(once) == 2


@pytest.mark.parametrize("path", notebooks.find(provenance.committed_path("claims").parents[1] / "notebooks"), ids=str)
def test_every_picture_and_table_of_the_notebooks_has_its_line(path):
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    shows = [cell for cell in cells if any(map(captions._shows, cell.outputs))]
    assert shows
    ends_in_value = [cell for cell in shows if captions.is_caption(cell.outputs[-1])]
    assert ends_in_value == shows


def test_a_function_of_the_registry_is_named_where_it_is_at_home():
    assert provenance.function_name(figures()["bottleneck_ratio"].draw) == "plots.ablations.dose"
    assert provenance.of_table("claims").function.startswith("audit.claims.")
