"""The committed notebooks: normal form, fresh, small, without errors, importable."""

import ast
import re
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from hae_lab import HAELabError
from hae_lab.book import notebooks
from hae_lab.book.tables import LONGEST

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = notebooks.find(FOLDER)
EACH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
BY_HAND = {"01_diffusion_from_scratch", "02_build_the_block"}  # they define what they teach
LONGEST_ANSWER = 60  # words


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in notebooks.read(path).cells if cell.cell_type == "code"]


def cells_of(path: Path) -> list[NotebookNode]:
    return notebooks.read(path).cells


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def shown(cell: NotebookNode, kind: str) -> list[str]:
    """What a code cell shows of one kind, such as "image/png"."""
    return [output.data[kind] for output in cell.get("outputs", []) if kind in output.get("data", {})]


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
    assert path.stat().st_size < 512 * 1024


@EACH
def test_imports_can_be_found(path):
    for tree in trees(path):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(find_spec(name) for name in names), names


@EACH
def test_cells_are_short_and_define_nothing_but_what_is_built(path):
    cells = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    for cell, tree in zip(cells, trees(path), strict=True):
        assert cell.source.count("\n") < 25
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        defines = any(isinstance(node, kinds) for node in ast.walk(tree))
        assert not defines or path.stem in BY_HAND or tags(cell) & {"part", "stub", "solution"}
        assert defines or not tags(cell) & {"part", "stub"}


@EACH
def test_first_cell_says_what_a_reader_needs(path):
    first = notebooks.read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {path.stem[:2]} ")
    for word in ("**You will learn**", "| time |", "| you need |", "| previous |", "| next |"):
        assert word in first.source


@EACH
def test_headings_are_in_both_languages(path):
    prose = [cell.source for cell in cells_of(path) if cell.cell_type == "markdown"]
    headings = [line for source in prose for line in source.split("\n") if re.match("#+ ", line)]
    assert len(headings) > 3
    assert [line for line in headings if not re.fullmatch(r"#+ [A-Z0-9].*[a-zA-Z].*[\u4e00-\u9fff].*", line)] == []


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
def test_every_question_is_answered_directly_under_the_result(path):
    cells = cells_of(path)
    for place, cell in enumerate(cells):
        if "**Predict:**" not in cell.source:
            assert "answer" not in tags(cell) or cells[place - 1].cell_type == "code"
            continue
        assert cell.source.count("**Predict:**") == 1, cell.source
        assert "\n\n" not in cell.source.split("**Predict:**")[1], f"the question ends its cell: {cell.source}"
        result = list(takewhile(lambda each: each.cell_type == "code", cells[place + 1 :]))
        assert any(each.outputs or "assert " in each.source for each in result), cell.source
        answer = cells[place + 1 + len(result)]
        assert "answer" in tags(answer)
        assert answer.source.startswith("**Answer:** ")
        assert len(answer.source.split()) <= LONGEST_ANSWER


@EACH
def test_every_picture_is_followed_by_what_to_see(path):
    cells = cells_of(path)
    for place, cell in enumerate(cells):
        if shown(cell, "image/png"):
            below = cells[place + 1]
            assert below.cell_type == "markdown", cell.source
            assert not below.source.startswith(("#", "|", "**Predict")), below.source


@EACH
def test_long_tables_are_folded(path):
    for cell in cells_of(path):
        for html in shown(cell, "text/html"):
            assert "<details>" in html or html.count("<tr>") <= 1 + LONGEST, cell.source
        lines = (
            [line for line in cell.source.split("\n") if line.startswith("|")] if cell.cell_type == "markdown" else []
        )
        assert "<details>" in cell.source or len(lines) <= 2 + LONGEST


@EACH
def test_an_exercise_builds_and_is_checked(path):
    cells = cells_of(path)
    stubs = [place for place, cell in enumerate(cells) if "stub" in tags(cell)]
    assert stubs
    for place in stubs:
        stub, solution, check = cells[place : place + 3]
        name = re.search(r"^def (\w+)\(", stub.source, re.MULTILINE)[1]
        assert "raise NotImplementedError" in stub.source
        assert f"def {name}(" in solution.source
        assert "solution" in tags(solution)
        assert tags(check) == {"check"}
        assert re.fullmatch(rf"exercises\.check_\w+\({name}\)", check.source)


@EACH
def test_it_ends_with_a_summary_and_what_it_did_not_show(path):
    summary, not_shown = cells_of(path)[-1].source.split("\n\n")[1:]
    assert cells_of(path)[-1].source.startswith("## Summary (小结)\n\n")
    assert len(re.findall(r"[.?](?= [A-Z]|$)", summary)) == 3
    assert not_shown.startswith("**What we did not show:** ")


def test_the_two_that_build_by_hand_define_classes_and_the_others_none():
    with_classes = {path.stem for path in PATHS if any("\nclass " in f"\n{source}" for source in code_cells(path))}
    assert with_classes - BY_HAND <= {"07_sparse_masks", "09_ablation_study"}  # parts of one's own
    assert with_classes >= BY_HAND


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


def test_normalise_joins_what_was_printed_in_pieces():
    pieces = [("stdout", "16"), ("stdout", "4033\n"), ("stderr", "50%"), ("stdout", "end")]
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    cell.outputs.insert(2, nbformat.v4.new_output("display_data", {"text/plain": "picture"}))
    normal = notebooks.normalise(nbformat.v4.new_notebook(cells=[cell])).cells[0]
    assert [output.get("text", "picture") for output in normal.outputs] == ["164033\n", "picture", "end"]


@EACH
def test_blank_keeps_text_stubs_and_checks_and_drops_outputs_and_solutions_and_asks_for_answers(path):
    notebook = notebooks.read(path)
    blank = notebooks.blank(notebook)
    assert all(not cell.get("outputs") for cell in blank.cells)
    dropped = [cell for cell in notebook.cells if cell.id not in {kept.id for kept in blank.cells}]
    assert [cell.id for cell in dropped] == [cell.id for cell in notebook.cells if "solution" in tags(cell)]
    answers = {cell.id: cell.source for cell in notebook.cells if "answer" in tags(cell)}
    for cell in blank.cells:
        empty = cell.cell_type == "markdown" and cell.source == "**Your answer:** "
        assert empty == (cell.id in answers)
    assert not any(answer in nbformat.writes(blank) for answer in answers.values())
    nbformat.validate(blank)


def runs_to(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The cell at which a notebook stops."""
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    with pytest.raises(CellExecutionError):
        client.execute()
    return next(
        cell for cell in notebook.cells if any(output.output_type == "error" for output in cell.get("outputs", []))
    )


@pytest.mark.slow
@EACH
def test_a_blank_copy_runs_to_its_first_unsolved_check(path):
    blank = notebooks.blank(notebooks.read(path))
    stopped = runs_to(blank, FOLDER)
    assert stopped.id == next(cell.id for cell in blank.cells if "check" in tags(cell))
    assert [output.ename for output in stopped.outputs] == ["NotImplementedError"]


def test_blank_copies_never_overwrite(tmp_path):
    written = notebooks.write_blank(FOLDER, tmp_path)
    assert [path.name for path in written] == [path.name for path in PATHS]
    written[0].write_text("a student's work")
    with pytest.raises(HAELabError, match=f"already holds .*{written[0].name}"):
        notebooks.write_blank(FOLDER, tmp_path)
    assert written[0].read_text() == "a student's work"
    assert notebooks.write_blank(FOLDER, tmp_path / "two", ("02", "06")) == [
        tmp_path / "two" / name for name in ("02_build_the_block.ipynb", "06_parameter_table.ipynb")
    ]


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
