"""The reading site: what is staged and where it is written; and every page in a real browser without a network."""

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from browser import PROJECT, chromium_page, keep_picture

from hae_lab import HAELabError
from hae_lab.book import notebooks, site

NEEDS_SPHINX = pytest.mark.slow
LINKED = re.compile(r'(?:href|src)="([^"#?]+)')
LOADED = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"


def make_project(folder: Path, **files: str) -> Path:
    """A project with a notebook that holds a formula, a link, a picture and solutions; returns its notebook folder."""
    cells = [
        nbformat.v4.new_markdown_cell(
            "# 01 Squares\n\n$a^2$, see [the second](02_cubes.ipynb) and [data](../data/a.csv)"
        ),
        nbformat.v4.new_code_cell("1 + 1"),
        nbformat.v4.new_code_cell("'folded code'", metadata={"tags": ["solution"]}),
        nbformat.v4.new_markdown_cell("folded words with $b^2$", metadata={"tags": ["solution"]}),
    ]
    second = [nbformat.v4.new_markdown_cell("# 02 Cubes\n\nback to [the first](01_squares.ipynb)")]
    for name, contents in (("01_squares", cells), ("02_cubes", second)):
        notebook = notebooks.normalise(nbformat.v4.new_notebook(cells=contents))
        notebooks.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    for name, text in {"data/a.csv": "1\n", "data/not_linked.csv": "2\n", **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "notebooks"


def dead_links(folder: Path) -> list[tuple[str, str]]:
    """(page, target) of every link or picture of a site that leads to no file."""
    pages = [(page, target) for page in folder.rglob("*.html") for target in LINKED.findall(page.read_text())]
    local = [(page, unquote(target)) for page, target in pages if ":" not in target]
    return [(page.name, target) for page, target in local if not (page.parent / target).exists()]


# what is staged


def test_staged_are_the_notebooks_the_readme_and_what_they_link_to(tmp_path):
    readme = {"README.md": "# Project\n\n[first](notebooks/01_squares.ipynb)\n"}
    folder = make_project(tmp_path / "project", **readme)
    site.stage(notebooks.find(folder), tmp_path / "staged")
    names = {path.relative_to(tmp_path / "staged").as_posix() for path in (tmp_path / "staged").rglob("*.*")}
    pages = {"index.md", "notebooks/01_squares.ipynb", "notebooks/02_cubes.ipynb"}
    assert names == pages | {"conf.py", "_static/tables.css", "data/a.csv"}
    index = (tmp_path / "staged" / "index.md").read_text()
    assert index.startswith("# Project")
    assert "notebooks/01_squares\nnotebooks/02_cubes\n" in index


def test_files_outside_the_project_are_not_staged(tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    folder = make_project(tmp_path / "project", **{"README.md": "# Project\n\n[out](../secret.txt)\n"})
    site.stage(notebooks.find(folder), tmp_path / "staged")
    assert not list(tmp_path.glob("staged/**/secret.txt"))


def test_solutions_are_folded_and_nothing_else(tmp_path):
    notebook = notebooks.read(notebooks.find(make_project(tmp_path))[0])
    sources = [cell.source for cell in notebook.cells]
    cells = site.with_hidden_solutions(notebook).cells
    assert [cell.metadata.get("tags") for cell in cells] == [None, None, ["solution", "hide-cell"], ["solution"]]
    assert [cell.source for cell in cells[:3]] == sources[:3]
    assert cells[3].source.startswith("<details>")
    assert sources[3] in cells[3].source


# where it is written


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "EXTRA", ("sphinx", "no_such_theme"))
    with pytest.raises(HAELabError, match=r"the site needs no_such_theme: install .* -e '.\[site\]'"):
        site.build_site(make_project(tmp_path / "project"), tmp_path / "out")


def test_foreign_folders_and_files_are_left_alone(tmp_path):
    folder = make_project(tmp_path / "project")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("also mine")
    for name in ("mine", "file"):
        with pytest.raises(HAELabError, match="is not a site that this command wrote"):
            site.build_site(folder, tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also mine"


def test_no_notebooks_is_an_error(tmp_path):
    with pytest.raises(HAELabError, match="no notebooks in"):
        site.build_site(tmp_path, tmp_path / "out")


@NEEDS_SPHINX
def test_a_second_site_replaces_the_first_and_a_failed_one_does_not(tmp_path, monkeypatch):
    folder, out = make_project(tmp_path / "project"), tmp_path / "new" / "out"
    built = site.build_site(folder, out)
    assert built.index == out / "index.html"
    assert built.warnings == ()
    assert dead_links(out) == []
    page = (out / "notebooks" / "01_squares.html").read_text()
    assert page.count("<details") == 2
    assert 'href="02_cubes.html"' in page
    (out / "notebooks" / "left_over.html").touch()
    (folder / "02_cubes.ipynb").unlink()
    built = site.build_site(folder, out)
    assert not (out / "notebooks" / "left_over.html").exists()
    assert not (out / "notebooks" / "02_cubes.html").exists()
    assert any("02_cubes.ipynb" in warning for warning in built.warnings)  # the first page still links to it
    assert "staged" not in "".join(built.warnings)
    monkeypatch.setitem(site.CONF, "html_theme", "no_such_theme")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(HAELabError, match=r"Sphinx could not build the site:\n(.|\n)*no_such_theme"):
        site.build_site(folder, out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


# the project's own site, read without a network


@pytest.mark.slow
@pytest.mark.browser
def test_every_page_opens_from_disk_without_a_network(tmp_path):
    built = site.build_site(PROJECT / "notebooks", tmp_path / "site")
    assert built.warnings == ()
    assert dead_links(tmp_path / "site") == []
    paths = [built.index, *sorted((tmp_path / "site" / "notebooks").glob("*.html"))]
    assert len(paths) == 1 + len(notebooks.find(PROJECT / "notebooks"))
    with chromium_page(offline=True) as (page, watched):
        formulas = [check_page(page, path) for path in paths]
        search(page, tmp_path / "site", "projections")
        keep_picture(page, "site_search")
        page.goto(built.index.as_uri())
        keep_picture(page, "site")
    assert sum(formulas) > 0
    assert watched.hosts() == set()
    assert {url.split(":")[0] for url in watched.urls} <= {"file", "data"}
    assert watched.complaints == []


def check_page(page, path: Path) -> int:
    """Open a page: pictures load, formulas are set, solutions unfold. Returns the number of formulas."""
    page.goto(path.as_uri())
    formulas = page.locator(".math").count()
    page.wait_for_function(f"document.querySelectorAll('mjx-container').length === {formulas}", timeout=20_000)
    page.wait_for_function(LOADED, timeout=10_000)
    assert page.locator("mjx-merror").count() == 0, path
    assert page.locator("h1").first.inner_text().strip()
    solutions = page.locator("details.hide")
    if solutions.count():
        code = solutions.first.locator(".cell_input, .highlight").first
        assert not code.is_visible()
        solutions.first.locator("summary").click()
        code.wait_for(state="visible", timeout=5_000)
    return formulas


def search(page, folder: Path, word: str) -> None:
    """Search for a word from the first page; a result leads to a page that holds it."""
    page.goto((folder / "index.html").as_uri())
    page.locator("input[name=q]").first.fill(word)
    page.keyboard.press("Enter")
    page.locator("#search-results li a").first.wait_for(timeout=10_000)
    target = page.locator("#search-results li a").first.get_attribute("href")
    assert word in (folder / target.split("#")[0].split("?")[0]).read_text()
