"""Notebooks as files: execute, bring into one normal form, tell whether outputs are fresh, strip for class, show.

The committed notebooks are written by `refresh` alone, so two people who refresh get the same bytes.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from hae_lab.book import slides
from hae_lab.checks import HAELabError, require
from hae_lab.files import atomic_path

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("tags", "jupyter")
ANSWER, SOLUTION = "answer", "solution"  # tags of cells that a copy for class has not
YOURS = "**Your answer:** "
TIMEOUT_SECONDS = 300  # for one cell


def find(folder: str | Path = "notebooks", names: tuple[str, ...] = ()) -> list[Path]:
    """The notebooks of a folder in reading order, or those whose file name starts with one of `names`.

    Raises `HAELabError` if there is none, or none for one of the names.
    """
    paths = sorted(Path(folder).glob("*.ipynb"))
    require(bool(paths), f"no notebooks in {str(folder)!r}: run this in a clone of the repository, or name a folder")
    for name in names:
        known = [path.stem for path in paths]
        require(any(stem.startswith(name) for stem in known), f"no notebook {name!r}: known are {', '.join(known)}")
    return [path for path in paths if not names or path.stem.startswith(tuple(names))]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def refresh(path: Path) -> None:
    """Execute a notebook in its folder and write it back in normal form. Raises `HAELabError` if a cell fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = read(path)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        report = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        raise HAELabError(f"{path.name} stopped at a cell that failed; the file is unchanged:\n{report}") from None
    write(normalise(notebook), path)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """A copy in normal form: outputs without time stamps, progress bars, widget views and memory addresses.

    Below each picture and table stands a small line that says where it is from (`captions`).
    Code cells are numbered 1..n, and `metadata.hae_lab.source_sha256` says which source made the outputs. Where
    `metadata.hae_lab.slides` says that the notebook is a talk, each cell has its place in it.
    """
    from hae_lab.book.captions import with_captions  # which knows every table and figure, and so waits for torch

    notebook = nbformat.from_dict(notebook)
    is_talk = bool(notebook.metadata.get("hae_lab", {}).get("slides"))
    number = 0
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata})
        cell.source = "\n".join(line.rstrip() for line in cell.source.rstrip().split("\n"))
        if cell.cell_type == "code":
            number += bool(cell.source)
            cell.execution_count = number if cell.source else None
            cell.outputs = list(_normal_outputs(cell))
    if is_talk:
        slides.mark(notebook)
    with_captions(notebook)
    language = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNEL),
        language_info=NotebookNode(language),
        hae_lab=NotebookNode({"slides": True} if is_talk else {}, source_sha256=source_sha256(notebook)),
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def source_sha256(notebook: NotebookNode) -> str:
    """Hash of the code cells: what the outputs depend on."""
    source = "\0".join(cell.source.strip() for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(source.encode()).hexdigest()


def is_fresh(notebook: NotebookNode) -> bool:
    """Whether the outputs were made by the code that stands there now."""
    return notebook.metadata.get("hae_lab", {}).get("source_sha256") == source_sha256(notebook)


def blank(notebook: NotebookNode) -> NotebookNode:
    """A copy for class: no outputs and solutions; the functions to complete and their checks stay.

    In the place of each answer is a cell to write one's own into. It runs to its first check.
    """
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if SOLUTION not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if ANSWER in cell.metadata.get("tags", []):
            cell.update(cell_type="markdown", source=YOURS)
            for name in ("outputs", "execution_count"):
                cell.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def write_blank(folder: str | Path, out: str | Path, names: tuple[str, ...] = ()) -> list[Path]:
    """Write the copies for class into `out`. Raises `HAELabError` if one is there already: it may be a student's."""
    paths = find(folder, names)
    there = [path.name for path in paths if (Path(out) / path.name).exists()]
    require(not there, f"{str(out)!r} already holds {', '.join(there)}: name a new folder")
    for path in paths:
        write(blank(read(path)), Path(out) / path.name)
    return [Path(out) / path.name for path in paths]


def write_slides(folder: str | Path, out: str | Path, names: tuple[str, ...] = ()) -> list[Path]:
    """Write a talk of each notebook into `out`, in the place of an older one. Raises `HAELabError` as `find` does.

    The talks use the copy of reveal.js that lies in `out`, if one does; else they load it from the network.
    """
    written, reveal = [], "reveal.js" if (Path(out) / "reveal.js").is_dir() else None
    for path in find(folder, names):
        with atomic_path(Path(out) / f"{path.stem}.slides.html") as temporary:
            temporary.write_text(slides.page(read(path), reveal), encoding="utf-8")
        written.append(Path(out) / f"{path.stem}.slides.html")
    return written


def _joined(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """Neighbouring pieces of one stream as one: where a kernel cuts what is printed depends on the clock."""
    last: NotebookNode | None = None
    for output in outputs:
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
            continue
        last = output if output.output_type == "stream" else None
        yield output


def _normal_outputs(cell: NotebookNode) -> Iterator[NotebookNode]:
    for output in list(_joined(cell.outputs)):
        if output.output_type == "stream":
            if output.name == "stderr":
                continue  # progress bars
            output.text = _without_addresses(output.text)
        elif output.output_type in ("display_data", "execute_result"):
            if "application/vnd.jupyter.widget-view+json" in output.data:
                continue
            output.metadata = NotebookNode()
            if "execution_count" in output:
                output.execution_count = cell.execution_count
            for kind in ("text/plain", "text/html"):
                if kind in output.data:
                    output.data[kind] = _without_addresses(output.data[kind])
        yield output


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]{6,}", "0x0", text)
