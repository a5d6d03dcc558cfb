"""A notebook as a talk: which cell stands where, and the page that shows it."""

import logging
import re

import nbformat
from nbformat import NotebookNode

EXERCISES = {"stub", "solution", "check"}  # tags of cells that a talk leaves out
EXERCISE_TEXT = re.compile(r"## Exercises|\*\*[A-Z]\. ")  # so begins what asks for them


def slide_type(cell: NotebookNode) -> str:
    """A section is a slide; a picture begins a slide below it; an answer comes when asked for; the rest stays put.

    Returns reveal.js's "slide", "subslide", "fragment", "skip", or "-" for a cell that stands with the one before.
    """
    tags = set(cell.metadata.get("tags", []))
    if tags & EXERCISES or EXERCISE_TEXT.match(cell.source):
        return "skip"
    if "answer" in tags:
        return "fragment"
    if cell.cell_type == "markdown":
        return "slide" if cell.source.startswith("#") else "subslide" if "\n## " in cell.source else "-"
    return "subslide" if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])) else "-"


def mark(notebook: NotebookNode) -> None:
    """Give each cell its place in a talk."""
    for cell in notebook.cells:
        cell.metadata["slideshow"] = NotebookNode(slide_type=slide_type(cell))


def page(notebook: NotebookNode, reveal: str | None = None) -> str:
    """The talk as HTML, with the outputs that the notebook has; slides that are too long scroll.

    It loads reveal.js from the address or folder `reveal`, by default from the network.
    """
    from nbconvert import SlidesExporter

    talk = nbformat.from_dict(notebook)  # a copy
    mark(talk)
    exporter = SlidesExporter(reveal_scroll=True, **({"reveal_url_prefix": reveal} if reveal else {}))
    exporter.log.setLevel(logging.ERROR)  # it misses texts for pictures, which their captions are
    html, _ = exporter.from_notebook_node(talk)
    return html
