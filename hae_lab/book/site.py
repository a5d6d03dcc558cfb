"""The reading site: README, notebooks, mask explorer, a model that draws, and API as pages that open from
disk, without kernel and network.

Sphinx with myst-nb and furo, in a process of its own, over staged copies. The pages show the committed outputs.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from hae_lab.audit.registry import figures
from hae_lab.book import api, denoiser, notebooks, provenance
from hae_lab.checks import HAELabError, require
from hae_lab.explorer.page import page_html

EXTRA = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")  # modules of the extra [site]
CONF = {
    "project": "hae_lab",
    "language": "en",
    "extensions": ["myst_nb", "sphinx-mathjax-offline"],
    "html_theme": "furo",
    "html_title": "hae_lab",
    "html_copy_source": False,
    "html_show_search_summary": False,  # the summaries are fetched, which browsers refuse for files on disk
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_static_path": ["_static"],
    "html_css_files": ["tables.css"],
    "html_use_index": False,
    "suppress_warnings": ["toc.not_included"],  # pages that only a link leads to, such as data/README.md
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",  # links between notebooks work in Markdown that a cell shows, too
    "nb_ipywidgets_js": {},  # otherwise scripts from the network
    "nb_code_prompt_show": "Show the solution",
    "nb_code_prompt_hide": "Hide the solution",
    "myst_enable_extensions": ["dollarmath", "amsmath", "html_image"],
    "myst_heading_anchors": 3,
    "mathjax3_config": {"options": {"enableMenu": False}},  # the menu would load parts that are left out
}
TABLES = """\
table.dataframe { border: none; border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85em; }
table.dataframe th, table.dataframe td {
  border: none; border-bottom: 1px solid var(--color-background-border); padding: 0.3em 0.8em; text-align: right;
}
"""
EXPLORER = """\
# The mask explorer

Which keys may a query see? Choose a rule and a token. This page needs no kernel: the masks of two maps come with it,
drawn at sparsity 0.9 from seed 0. In JupyterLab, `hae_lab.explorer.explore()` has all maps, sparsities and seeds.

````{{raw}} html
{}
````
"""
CALLS_EXPLORER = re.compile(r"^explore\(|= explore\(", re.MULTILINE)
EXPLORER_NOTE = "*Nothing runs on this page. [The mask explorer](../explorer.md) works here too, for two maps.*"
MATHJAX_KEPT = ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")
MANIFEST = ".hae-lab-site"  # in every folder that `build_site` wrote: what it wrote, a file a line
FIGURE = re.compile(r"^!\[[^\]]*\]\(figures/(\w+)\.png\)$", re.MULTILINE)
LINK = re.compile(r"""(?:\]\(|src=")(?![a-z]+:|#)([^)"#\s]+)""")


@dataclass(frozen=True)
class Site:
    """A built site: its first page, what Sphinx complained about, and what is missing."""

    index: Path
    warnings: tuple[str, ...]


def build_site(notebooks_folder: str | Path, out: str | Path) -> Site:
    """Make the site of a folder of notebooks and the README beside the folder; replace the site in `out`, if any.

    Raises `HAELabError` if the extra [site] is missing, if `out` holds anything that this function did not write, or
    if Sphinx fails; then `out` is as it was.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    require(not missing, f"the site needs {', '.join(missing)}: install the extra, python -m pip install -e '.[site]'")
    paths, out = notebooks.find(notebooks_folder), Path(out).resolve()
    _require_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".hae-lab-site-", dir=out.parent) as name:
        source, built = Path(name, "source"), Path(name, "built")
        warnings = (*stage(paths, source), *_sphinx(source, built))
        _trim(built / "_static" / "mathjax")
        (built / MANIFEST).write_text("\n".join(_files(built)) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(Path(name, "old"))
        built.rename(out)
    return Site(out / "index.html", warnings)


def _require_replaceable(out: Path) -> None:
    """Raise `HAELabError` if a site in `out` would take the place of files that no site wrote."""
    if not out.exists():
        return
    require(out.is_dir(), f"{str(out)!r} is a file: name a folder")
    manifest = out / MANIFEST
    ours = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    foreign = sorted(set(_files(out)) - {MANIFEST, *ours})
    require(
        not foreign,
        f"{str(out)!r} holds files that this command did not write, such as {(foreign or [''])[0]!r}: "
        "name a new folder, or move them",
    )


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def stage(paths: list[Path], source: Path) -> list[str]:
    """Copy what Sphinx reads: README as the index, the notebooks, the files that they link to; add the API.

    Returns what is missing. The page that draws is a project's that has the lesson model.
    """
    folder = paths[0].parent
    project = folder.parent
    source.mkdir()
    (source / "conf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in CONF.items()), encoding="utf-8")
    (source / "_static").mkdir()
    (source / "_static" / "tables.css").write_text(TABLES, encoding="utf-8")
    readme = project / "README.md"
    text = with_sources(readme.read_text(encoding="utf-8") if readme.exists() else "# Notebooks\n")
    contents = _contents("Notebooks", [f"{folder.name}/{path.stem}" for path in paths])
    draws = denoiser.model_file(project).is_file()
    contents += _contents("Reference", ["explorer", *["denoiser"] * draws, "api/index"])
    (source / "index.md").write_text(f"{text}\n{contents}", encoding="utf-8")
    (source / "explorer.md").write_text(EXPLORER.format(page_html()), encoding="utf-8")
    (source / "api").mkdir()
    for name, page in api.pages().items():
        (source / "api" / f"{name}.md").write_text(page, encoding="utf-8")
    _copy_linked(text, project, project, source)
    for path in paths:
        notebook = notebooks.read(path)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                _copy_linked(cell.source, folder, project, source)
        notebook.metadata.setdefault("language_info", {"name": "python", "pygments_lexer": "ipython3"})  # colours
        notebook = with_explorer_links(with_hidden_solutions(notebook))
        notebooks.write(notebook, source / folder.name / path.name)
    missing = denoiser.stage(project, source) if draws else None
    return [missing] if missing else []


def with_sources(text: str) -> str:
    """Say below each picture of the registry, in a Markdown text, where it is from."""

    def line(match: re.Match[str]) -> str:
        return (
            f"{match[0]}\n<small>{provenance.of_figure(match[1]).line()}</small>" if match[1] in figures() else match[0]
        )

    return FIGURE.sub(line, text)


def _contents(caption: str, pages: list[str]) -> str:
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def _copy_linked(text: str, base: Path, project: Path, source: Path) -> None:
    """Copy what a Markdown text of the project links to, and what that links to; notebooks become pages elsewhere."""
    for target in LINK.findall(text):
        path = (base / target).resolve()
        if path.is_file() and path.suffix != ".ipynb" and path.is_relative_to(project.resolve()):
            copy = source / path.relative_to(project.resolve())
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            if path.suffix == ".md":
                _copy_linked(path.read_text(encoding="utf-8"), path.parent, project, source)


def with_hidden_solutions(notebook: NotebookNode) -> NotebookNode:
    """Mark the cells tagged `solution` so that the page shows them folded."""
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            if cell.cell_type == "code":
                cell.metadata["tags"] = [*cell.metadata["tags"], "hide-cell"]
            else:
                cell.source = f"<details><summary>Show the solution</summary>\n\n{cell.source}\n\n</details>"
    return notebook


def with_explorer_links(notebook: NotebookNode) -> NotebookNode:
    """Say below each cell that makes the explorer, a widget that needs a kernel, where the page that needs none is."""
    for place, cell in reversed(list(enumerate(notebook.cells))):
        if cell.cell_type == "code" and CALLS_EXPLORER.search(cell.source):
            notebook.cells.insert(place + 1, new_markdown_cell(EXPLORER_NOTE))
    return notebook


def _sphinx(source: Path, built: Path) -> tuple[str, ...]:
    log = source.parent / "warnings.txt"
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", source.parent / "doctrees", "-w", log]
    run = subprocess.run([*command, source, built], capture_output=True, text=True)
    if run.returncode:
        raise HAELabError(f"Sphinx could not build the site:\n{run.stderr.strip()}")
    return tuple(line.replace(f"{source}/", "") for line in log.read_text(encoding="utf-8").splitlines() if line)


def _trim(mathjax: Path) -> None:
    """Leave out of MathJax what no page loads: 24 MB become 2."""
    for path in sorted(mathjax.rglob("*"), reverse=True):
        name = path.relative_to(mathjax).as_posix()
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and not name.startswith(MATHJAX_KEPT):
            path.unlink()
