"""The committed notebooks: normal form, fresh, small, without errors, importable."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from hae_lab import HAELabError
from hae_lab.book import notebooks

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = notebooks.find(FOLDER)
EACH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]


def trees(path: Path) -> list[ast.Module]:
    return [ast.parse(source) for source in code_cells(path)]


@EACH
def test_normal_form(path):
    notebook = notebooks.read(path)
    nbformat.validate(notebook)
    assert notebook == notebooks.normalise(notebook)


@EACH
def test_outputs_are_those_of_the_code_that_stands_there(path):
    notebook = notebooks.read(path)
    assert notebooks.is_fresh(notebook)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@EACH
def test_no_errors_and_no_warnings_in_outputs(path):
    outputs = [output for cell in notebooks.read(path).cells for output in cell.get("outputs", [])]
    assert outputs
    assert [output for output in outputs if output.output_type == "error"] == []
    assert "Warning" not in "".join(output.get("text", "") for output in outputs)


@EACH
def test_small(path):
    assert path.stat().st_size < 500_000


@EACH
def test_imports_can_be_found(path):
    for tree in trees(path):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(find_spec(name) for name in names), names


@EACH
def test_cells_are_short_and_define_nothing_but_parts_of_ones_own(path):
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    for cell, tree in zip(cells, trees(path), strict=True):
        assert cell.source.count("\n") < 25
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        defines = any(isinstance(node, kinds) for node in ast.walk(tree))
        assert defines == ("part" in cell.metadata.get("tags", []))


@EACH
def test_first_cell_says_what_a_reader_needs(path):
    first = notebooks.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.stem[:2]} ")
    for word in ("**You will learn**", "| time |", "| you need |", "| previous |", "| next |"):
        assert word in first.source


@EACH
def test_it_asks_before_it_shows_checks_after_and_hides_solutions(path):
    cells = notebooks.read(path).cells
    text = "\n".join(cell.source for cell in cells)
    assert "**Predict:**" in text
    assert "# check:" in text
    assert "## Exercises" in text
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert solutions
    assert all(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in solutions if cell.cell_type == "code")


@EACH
def test_links_to_notebooks_lead_somewhere(path):
    text = "\n".join(cell.source for cell in notebooks.read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [target for target in targets if not (FOLDER / target).exists()] == []


def test_an_edited_cell_is_noticed():
    notebook = notebooks.read(PATHS[0])
    next(cell for cell in notebook.cells if cell.cell_type == "code").source += "\n1 + 1"
    assert not notebooks.is_fresh(notebook)


def test_normalise_drops_what_changes_from_run_to_run():
    cell = nbformat.v4.new_code_cell("x", metadata={"execution": {"iopub.execute_input": "now"}, "tags": ["solution"]})
    cell.execution_count = 7
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%|###"),
        nbformat.v4.new_output("execute_result", {"text/plain": "<f at 0x7f00aa11bb22>"}, execution_count=7),
    ]
    normal = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell])).cells[0]
    assert normal.metadata == {"tags": ["solution"]}
    assert normal.execution_count == 1
    assert [output.data["text/plain"] for output in normal.outputs] == ["<f at 0x0>"]


def test_blank_keeps_the_text_and_drops_outputs_and_solutions():
    notebook = notebooks.read(PATHS[0])
    blank = notebooks.blank(notebook)
    assert len(blank.cells) < len(notebook.cells)
    assert all(not cell.get("outputs") for cell in blank.cells)
    assert not any("solution" in cell.metadata.get("tags", []) for cell in blank.cells)


def test_blank_copies_never_overwrite(tmp_path):
    written = notebooks.write_blank(FOLDER, tmp_path)
    assert [path.name for path in written] == [path.name for path in PATHS]
    written[0].write_text("a student's work")
    with pytest.raises(HAELabError, match=f"already holds .*{written[0].name}"):
        notebooks.write_blank(FOLDER, tmp_path)
    assert written[0].read_text() == "a student's work"


def test_a_failing_notebook_stays_as_it_was(tmp_path):
    path = tmp_path / "00_fails.ipynb"
    notebooks.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="a")]), path)
    before = path.read_bytes()
    with pytest.raises(HAELabError, match="stopped at a cell that failed") as raised:
        notebooks.refresh(path)
    assert "ZeroDivisionError" in str(raised.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_notebook_is_named():
    with pytest.raises(HAELabError, match="no notebook '99': known are"):
        notebooks.find(FOLDER, ("99",))
