"""The notebooks that are talks: what nbconvert makes slides of, and what it leaves out."""

import html
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbconvert import SlidesExporter

from hae_lab.__main__ import main
from hae_lab.book import notebooks, slides
from hae_lab.book.slides import slide_type

TALKS = ("03", "04", "05")
PICTURE = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "figure"})


def code(source: str, *tags: str, **options):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)}, **options)


def text(source: str, *tags: str):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (text("# 03 HAE\n\nwords"), "slide"),
        (text("What to see.\n\n## 2. Tokens"), "subslide"),
        (text("What to see."), "-"),
        (text("**Answer:** 276", "answer"), "fragment"),
        (text("## Exercises\n\n**A.**"), "skip"),
        (text("**B. Read off.** Which?"), "skip"),
        (code("draw()", outputs=[PICTURE]), "subslide"),
        (code("print(1)", outputs=[nbformat.v4.new_output("stream", text="1")]), "-"),
        (code("1 + 1", "check"), "skip"),
        (code("def f(): ...", "stub"), "skip"),
        (code("draw()", "solution", outputs=[PICTURE]), "skip"),
    ],
)
def test_each_cell_has_its_place(cell, expected):
    assert slide_type(cell) == expected


def test_only_a_talk_is_marked_and_stays_one():
    plain = nbformat.v4.new_notebook(cells=[text("# 1")])
    assert "slideshow" not in notebooks.normalise(plain).cells[0].metadata
    plain.metadata["hae_lab"] = {"slides": True}
    once = notebooks.normalise(plain)
    assert once.cells[0].metadata.slideshow.slide_type == "slide"
    assert notebooks.normalise(once) == once
    assert notebooks.is_fresh(once)


@pytest.mark.parametrize(
    "path", notebooks.find(Path(__file__).parent.parent / "notebooks", TALKS), ids=lambda p: p.stem
)
def test_nbconvert_makes_a_talk_of_it(path):
    notebook = notebooks.read(path)
    types = Counter(slide_type(cell) for cell in notebook.cells)
    page, _ = SlidesExporter().from_notebook_node(notebook)
    sections = [cell for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.startswith("#")]
    shown = [cell for cell in sections if not cell.source.startswith("## Exercises")]
    assert types["slide"] == len(shown) >= 4
    # a slide is a <section> around the <section>s of what stands below one another on it
    assert page.count("<section>") == 2 * types["slide"] + types["subslide"]
    assert len(re.findall(r'class="fragment"', page)) == types["fragment"] >= 1
    plain = html.unescape(re.sub("<[^>]*>", "", page))
    is_there = {slide_type(cell): [] for cell in notebook.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            is_there[slide_type(cell)].append(cell.source in plain)
    assert not any(is_there.pop("skip"))
    assert all(all(found) for found in is_there.values())


def test_any_notebook_becomes_a_talk_by_one_command(tmp_path, capsys):
    source = tmp_path / "monday"
    lesson = nbformat.v4.new_notebook(cells=[text("# Heads"), code("draw()", outputs=[PICTURE]), code("x", "stub")])
    for name in ("02_mine", "06_mine", "07_other"):
        notebooks.write(lesson, source / f"{name}.ipynb")
    before = (source / "02_mine.ipynb").read_bytes()
    command = ["notebooks", "--slides", "02", "06", "--from", str(source), "--out", str(tmp_path / "talk")]
    for _ in range(2):  # a talk of before is replaced
        assert main(command) == 0
    written = sorted(path.name for path in (tmp_path / "talk").iterdir())
    assert written == ["02_mine.slides.html", "06_mine.slides.html"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "talk" / name) for name in written] * 2
    page = (tmp_path / "talk" / "02_mine.slides.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 2 + 1  # the slide, what stands on it, the picture below
    assert "scroll" in page
    assert (source / "02_mine.ipynb").read_bytes() == before
    assert page == slides.page(lesson)
    (tmp_path / "talk" / "reveal.js").mkdir()
    assert main(command) == 0
    offline = (tmp_path / "talk" / "02_mine.slides.html").read_text(encoding="utf-8")
    assert "reveal.js/dist/reveal.css" in offline
    assert not re.search(r'(src|href)="https?://[^"]*reveal', offline)
