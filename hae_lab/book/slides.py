"""Which cell of a notebook stands where in a talk, for `jupyter nbconvert --to slides`."""

import re

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
