"""The reading site: what is staged and where it is written; and every page in a real browser without a network."""

import ast
import inspect
import re
import shutil
from dataclasses import is_dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from urllib.parse import unquote

import nbformat
import pytest
from browser import PROJECT, chromium_page, keep_picture, missing

import hae_lab
from hae_lab import HAELabError
from hae_lab.audit.lessons import RECIPE
from hae_lab.book import api, denoiser, notebooks, site
from hae_lab.deploy.web_runtime import web_runtime

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
    reference = {f"api/{name}.md" for name in api.pages()}
    assert names == pages | reference | {"conf.py", "_static/tables.css", "data/a.csv", "explorer.md"}
    index = (tmp_path / "staged" / "index.md").read_text()
    assert index.startswith("# Project")
    assert "notebooks/01_squares\nnotebooks/02_cubes\n" in index
    assert "explorer\napi/index\n" in index


def test_files_outside_the_project_are_not_staged(tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    folder = make_project(tmp_path / "project", **{"README.md": "# Project\n\n[out](../secret.txt)\n"})
    site.stage(notebooks.find(folder), tmp_path / "staged")
    assert not list(tmp_path.glob("staged/**/secret.txt"))


def test_a_project_with_the_lesson_model_has_a_page_that_draws(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project")
    for_page = denoiser.model_file(tmp_path / "project")
    for_page.parent.mkdir(parents=True)
    shutil.copyfile(denoiser.model_file(PROJECT), for_page)
    made = []
    monkeypatch.setattr(denoiser, "write_page", lambda model, path, *rest: made.append((path, rest)))
    assert site.stage(notebooks.find(folder), tmp_path / "staged") == []
    assert made == [(tmp_path / "staged" / "_static" / "denoiser.html", (denoiser.TITLE, RECIPE, denoiser.LABELS))]
    assert "explorer\ndenoiser\napi/index\n" in (tmp_path / "staged" / "index.md").read_text()
    assert "<iframe" in (tmp_path / "staged" / "denoiser.md").read_text()


def test_a_page_that_cannot_draw_says_why(tmp_path, monkeypatch):
    def write_page(*arguments):
        raise HAELabError("install Node.js")

    monkeypatch.setattr(denoiser, "write_page", write_page)
    (tmp_path / "_static").mkdir()
    assert denoiser.stage(PROJECT, tmp_path) == "no model draws on the site: install Node.js"
    page = (tmp_path / "denoiser.md").read_text()
    assert "It was built without that: install Node.js." in page
    assert "iframe" not in page


def test_solutions_are_folded_and_nothing_else(tmp_path):
    notebook = notebooks.read(notebooks.find(make_project(tmp_path))[0])
    sources = [cell.source for cell in notebook.cells]
    cells = site.with_hidden_solutions(notebook).cells
    assert [cell.metadata.get("tags") for cell in cells] == [None, None, ["solution", "hide-cell"], ["solution"]]
    assert [cell.source for cell in cells[:3]] == sources[:3]
    assert cells[3].source.startswith("<details>")
    assert sources[3] in cells[3].source


def test_a_cell_with_the_explorer_leads_to_the_page_that_needs_no_kernel():
    sources = ["explore(rule='document')", "explorer = 1\nhow = 'explore() is a widget'", "shown = explore()\nshown"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    linked = site.with_explorer_links(nbformat.v4.new_notebook(cells=cells)).cells
    assert [cell.cell_type for cell in linked] == ["code", "markdown", "code", "code", "markdown"]
    assert "(../explorer.md)" in linked[1].source


# the API: what the pages say against what Python finds when it imports the modules

MODULES = [module.name for module in walk_packages(hae_lab.__path__, "hae_lab.") if "__main__" not in module.name]
DIRECTIVE = re.compile(r"^`+\{py:(module|class|function|data)\} ([\w.]+)(.*)$", re.MULTILINE)


@cache
def documented() -> dict[str, str]:
    """Qualified name -> signature of everything that the pages describe."""
    found, module = {}, ""
    for page in api.pages().values():
        for kind, name, signature in DIRECTIVE.findall(page):
            if kind == "module":
                module = name
            else:
                found[f"{module}.{name}"] = signature
    return found


def public(module_name: str) -> dict[str, object]:
    """Qualified name -> object: a module's own public functions and classes, and what its `__all__` names."""
    module = import_module(module_name)
    own = {name: value for name, value in vars(module).items() if is_own(value, module_name) and name[0] != "_"}
    own |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {f"{getattr(value, '__module__', '?')}.{name}": value for name, value in own.items()}


def is_own(value: object, module_name: str) -> bool:
    plain = inspect.isfunction(value) or inspect.isclass(value)
    return plain and value.__module__ == module_name and value.__qualname__ == value.__name__


@pytest.mark.parametrize("module", ["hae_lab", *MODULES])
def test_every_public_name_has_its_place_in_the_api(module):
    names = documented()
    ends = {name.rpartition(".")[2] for name in names}  # constants do not know where they were defined
    found = public(module)
    classes = {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert set(classes) - set(names) == set()
    assert {name.rpartition(".")[2] for name in set(found) - set(classes)} <= ends


def test_signatures_are_those_of_python():
    checked = 0
    for name, signature in documented().items():
        module, _, last = name.rpartition(".")
        value = getattr(import_module(module), last)
        is_built = inspect.isclass(value) and ("__init__" in vars(value) or is_dataclass(value))
        is_built = is_built and not getattr(value, "_is_protocol", False)  # nobody makes one
        if inspect.isfunction(value) or is_built:
            value = partial(value.__init__, None) if is_built else value
            written = ast.parse(f"def f{signature}: ...").body[0].args
            names = [*written.posonlyargs, *written.args, written.vararg, *written.kwonlyargs, written.kwarg]
            assert [each.arg for each in names if each] == list(inspect.signature(value).parameters), name
            checked += 1
    assert checked > 200


def test_the_front_door_leads_to_the_homes_of_its_names():
    index = api.pages()["index"]
    links = dict(re.findall(r"\{py:obj\}`(\w+) <([\w.]+)>`", index))
    assert list(links) == hae_lab.__all__
    for name, home in links.items():
        module, _, last = home.rpartition(".")
        assert getattr(import_module(module), last) is getattr(hae_lab, name)


def test_the_api_holds_docstrings_and_methods():
    page = api.pages()["masks"]
    assert inspect.getdoc(hae_lab.masks.TokenGrid).splitlines()[0] in page
    methods = [name for name, value in vars(hae_lab.masks.SparseMask).items() if name[0] != "_" and callable(value)]
    assert methods
    assert all(f"{{py:method}} {name}(" in page for name in methods)


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
    for name, message in (("mine", r"did not write, such as 'thesis.tex'"), ("file", "is a file: name a folder")):
        with pytest.raises(HAELabError, match=message):
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
    assert 'id="hae_lab.presets.config"' in (out / "api" / "presets.html").read_text()
    (out / "notebooks" / "notes.txt").write_text("a reader's")
    with pytest.raises(HAELabError, match=r"did not write, such as 'notebooks/notes.txt'"):
        site.build_site(folder, out)
    assert (out / "notebooks" / "notes.txt").read_text() == "a reader's"
    (out / "notebooks" / "notes.txt").unlink()
    (folder / "02_cubes.ipynb").unlink()
    built = site.build_site(folder, out)
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
    try:
        web_runtime()
    except HAELabError as error:
        missing(f"onnxruntime-web ({error})")
    built = site.build_site(PROJECT / "notebooks", tmp_path / "site")
    assert built.warnings == ()
    assert dead_links(tmp_path / "site") == []
    paths = [built.index, *sorted((tmp_path / "site").glob("notebooks/*.html"))]
    assert len(paths) == 2 + len(notebooks.find(PROJECT / "notebooks"))  # the first page, and the plans for the class
    reference = sorted((tmp_path / "site").glob("api/*.html"))
    assert len(reference) == len(api.pages())
    paths += [tmp_path / "site" / "explorer.html", *reference]
    paths.append(tmp_path / "site" / "denoiser.html")
    with chromium_page(offline=True) as (page, watched):
        formulas = [check_page(page, path) for path in paths]
        check_explorer(page, tmp_path / "site" / "explorer.html")
        check_denoiser(page, tmp_path / "site" / "denoiser.html")
        search(page, tmp_path / "site", "projections")
        keep_picture(page, "site_search")
        page.goto(built.index.as_uri())
        keep_picture(page, "site")
    assert sum(formulas) > 0
    assert watched.hosts() == set()
    assert {url.split(":")[0] for url in watched.urls} <= {"file", "data", "blob"}
    assert watched.complaints == []


def check_page(page, path: Path) -> int:
    """Open a page: pictures load, formulas are set, solutions unfold. Returns the number of formulas."""
    page.goto(path.as_uri())
    formulas = page.locator(".math").count()
    page.wait_for_function(f"document.querySelectorAll('mjx-container').length === {formulas}")
    page.wait_for_function(LOADED)
    assert page.locator("mjx-merror").count() == 0, path
    assert page.locator("h1").first.inner_text().strip()
    solutions = page.locator("details.hide")
    if solutions.count():
        code = solutions.first.locator(".cell_input, .highlight").first
        assert not code.is_visible()
        solutions.first.locator("summary").click()
        code.wait_for(state="visible")
    return formulas


def check_explorer(page, path: Path) -> None:
    """The explorer runs among the styles of the site; what it says is tested in `test_explorer_page.py`."""
    page.goto(path.as_uri())
    page.locator(".hae-numbers td").first.wait_for()
    page.locator("select[name=rule]").select_option("window2d")
    page.locator(".hae-numbers", has_text="seen").wait_for()
    keep_picture(page, "site_explorer")


def check_denoiser(page, path: Path) -> None:
    """The model draws in its frame; that it draws torch's samples is tested in `test_denoiser_page.py`."""
    page.goto(path.as_uri())
    status = page.frame_locator("iframe").locator(".hae-status", has_text="step 25 of 25")
    status.wait_for()
    keep_picture(page, "site_denoiser")


def search(page, folder: Path, word: str) -> None:
    """Search for a word from the first page; a result leads to a page that holds it."""
    page.goto((folder / "index.html").as_uri())
    page.locator("input[name=q]").first.fill(word)
    page.keyboard.press("Enter")
    page.locator("#search-results li a").first.wait_for()
    target = page.locator("#search-results li a").first.get_attribute("href")
    assert word in (folder / target.split("#")[0].split("?")[0]).read_text()


def test_pictures_of_the_first_page_say_where_they_are_from():
    text = "![one](figures/feasibility.png)\n\n![two](figures/explorer.png)\n"
    lines = site.with_sources(text).splitlines()
    assert lines[1].startswith("<small>data/feasibility.csv · plots.parameters.feasibility")
    assert [line for line in lines if line and not line.startswith("<small>")] == text.splitlines()[0::2]
