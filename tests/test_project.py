"""What surrounds the code: environment.yml, citation, README, the gate."""

import ast
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hae_lab
from hae_lab.book import readme

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement.specifier for requirement in requirements}


def test_environment_lists_the_same_names_and_bounds():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *lines, pip = environment["dependencies"]
    conda = bounds(lines)
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert pip == {"pip": ["-e .[cluster,parquet,mri,zh,deploy]"]}
    assert conda.pop("pip") == SpecifierSet()
    python = conda.pop("python")
    assert any(spec.operator == ">=" and spec.version == "3.11" for spec in python)
    project = PYPROJECT["project"]
    wanted = bounds(project["dependencies"] + project["optional-dependencies"]["test"])
    assert wanted.pop("hae-lab") == SpecifierSet()  # its extras, which pip installs
    assert conda == {CONDA_NAMES.get(name, name): specifier for name, specifier in wanted.items()}


def test_every_dependency_says_why():
    text = (ROOT / "pyproject.toml").read_text()
    requirements = re.findall(r'^    "[a-z0-9-]+[<>=[].*$', text, re.MULTILINE)
    project = PYPROJECT["project"]
    assert len(requirements) == len(project["dependencies"]) + sum(map(len, project["optional-dependencies"].values()))
    assert [line for line in requirements if not re.search(r"#\s\S", line)] == []


def test_torch_is_pinned_for_ci_alone():
    assert (ROOT / ".ci" / "constraints.txt").read_text().split() == ["torch==2.13.0"]
    assert bounds(PYPROJECT["project"]["dependencies"])["torch"] == SpecifierSet(">=2.4,<3")


def test_the_ends_of_the_versions_are_tested_by_the_tools_of_the_extra_test():
    lines = (ROOT / ".ci" / "tests.in").read_text().splitlines()
    taken, extra = bounds(lines[1:]), bounds(PYPROJECT["project"]["optional-dependencies"]["test"])
    assert "pytest" in taken
    assert {name: extra[name] for name in taken} == taken


def test_citation_names_the_audited_works_and_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    cited = {(work["authors"][0]["family-names"], work["year"]) for work in citation["references"]}
    assert cited == {("Lu", 2024), ("Che", 2025), ("Dhariwal", 2021)}
    article = next(work for work in citation["references"] if work["type"] == "article")
    assert article["end"] - article["start"] + 1 == 13  # pages, by the authors' university's record
    assert citation["version"] == hae_lab.__version__ == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"] == "MIT"


def test_the_bibtex_entries_say_what_the_citation_file_says():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entries = re.findall(r"^@\w+\{\w+,\n(.*?)\n\}", (ROOT / "CITATION.bib").read_text(), re.DOTALL | re.MULTILINE)
    found = [dict(re.findall(r"^  (\w+) += \{(.*)\},$", entry, re.MULTILINE)) for entry in entries]
    found = [{name: re.sub(r"[{}\\]", "", value) for name, value in entry.items()} for entry in found]
    own, *works = found
    assert own["title"] == citation["title"]
    assert own["author"] == citation["authors"][0]["name"]
    assert (own["version"], own["license"]) == (citation["version"], citation["license"])
    assert f"Copyright (c) {own['year']} " in (ROOT / "LICENSE").read_text()
    assert len(works) == len(citation["references"])
    for entry, work in zip(works, citation["references"], strict=True):
        authors = [f"{author['family-names']}, {author['given-names']}" for author in work["authors"]]
        pages = f"{work['start']}--{work['end']}" if "start" in work else None
        assert entry["author"].split(" and ") == authors
        assert (entry["title"], entry["year"], entry.get("pages")) == (work["title"], str(work["year"]), pages)
        assert entry.get("doi") == work.get("doi")
        assert {entry.get("journal"), entry.get("booktitle")} == {work.get("journal"), work.get("collection-title")}


FRONT = ("README.md", "README.zh-CN.md")
EACH_FRONT = pytest.mark.parametrize("page", FRONT)


@EACH_FRONT
def test_readme_blocks_are_up_to_date(page, tmp_path):
    text = (ROOT / page).read_text()
    copy = tmp_path / page
    copy.write_text(text)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "data").symlink_to(ROOT / "data")
    assert not readme.update(copy), "run `python -m hae_lab reproduce`"
    for_class = (ROOT / "notebooks" / "README.md").read_text()
    assert f"{readme.costs(ROOT / 'notebooks')}\n<!-- end -->" in for_class, "run `python -m hae_lab reproduce`"
    assert set(re.findall(r"<!-- generated: (\w+) -->", text + for_class)) == set(readme.BLOCKS)
    assert page in readme.PAGES


def test_both_front_pages_say_the_same():
    english, chinese = ((ROOT / page).read_text() for page in FRONT)
    parts = {
        "blocks": r"<!-- generated: (\w+) -->",
        "headings": r"^(##?) ",
        "links": r"\]\(([^)]+)\)",
        "works": r"doi ([\w./]+\w)",
        "commands": r"```bash\n(.*?)```",
        "code": r"^(\w[\w. ,]* = [^#\n]+|import .*)",
    }
    for what, pattern in parts.items():
        flags = re.MULTILINE | (re.DOTALL if what == "commands" else 0)
        found = [re.findall(pattern, text, flags) for text in (english, chinese)]
        assert found[0], what
        assert [each for each in found[0] if each not in FRONT] == [each for each in found[1] if each not in FRONT], (
            what
        )


def test_numbers_of_the_chinese_blocks_are_those_of_the_english():
    for block in ("finding", "variants", "presets", "advice"):
        english, chinese = (numbers_of(page, block) for page in FRONT)
        assert english == chinese or block == "advice", block
        assert chinese <= english


def numbers_of(page: str, block: str) -> set[str]:
    text = re.search(rf"generated: {block} -->(.*?)<!-- end", (ROOT / page).read_text(), re.DOTALL)[1]
    return set(re.findall(r"\d[\d,.]*\d|\d", text))


def test_the_plans_for_the_class_fill_their_time_and_name_what_is_there():
    text = (ROOT / "notebooks" / "README.md").read_text()
    short, long = text.split("## 90 minutes")[1].split("## Two days")
    assert sum(map(int, re.findall(r"^\| (\d+) \|", short, re.MULTILINE))) == 90
    days = re.findall(r"^\| ([12]), (\d+) \|", long.split("## As slides")[0], re.MULTILINE)
    minutes = {day: sum(int(length) for found, length in days if found == day) for day in "12"}
    assert all(4.5 * 60 <= total <= 5 * 60 for total in minutes.values()), minutes  # with breaks, a day
    for notebook in re.findall(r"\]\((\w+\.ipynb)\)", text):
        assert (ROOT / "notebooks" / notebook).exists(), notebook


@EACH_FRONT
def test_every_number_of_the_readme_table_is_in_data(page):
    text = re.search(r"generated: variants -->(.*?)<!-- end", (ROOT / page).read_text(), re.DOTALL)[1]
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE))
    table = pd.read_csv(ROOT / "data" / "parameter_table.csv").query("scope == 'whole model'")
    published = pd.read_csv(ROOT / "data" / "published_counts.csv").set_index("variant")
    assert set(rows) == {"unet", "hae", "lite", "v2"}
    for variant, cells in rows.items():
        mine = table[table["variant"] == variant]
        assert f"{mine.set_index('preset').loc['brats128', 'params']:,}" in cells
        assert f"{mine['percent_of_hae'].min():.1f} - {mine['percent_of_hae'].max():.1f} %" in cells
        if variant != "unet":
            assert f"{published.loc[variant, 'our_params']:,}" in cells


@EACH_FRONT
def test_readme_prose_types_no_result(page):
    text = (ROOT / page).read_text()
    prose = readme.PATTERN.sub("", text)
    allowed = {"100 %", "70 %", "40 %"}  # the claim itself
    numbers = re.findall(r"\d[\d.,]*\s?(?:%|M\b|million|x\b|ms\b)", prose)
    assert set(numbers) <= allowed


@pytest.mark.parametrize(
    "page",
    [
        *FRONT,
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "hae_lab/README.md",
        "data/README.md",
        "notebooks/README.md",
        "docs/your_own.md",
    ],
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text())
    assert targets or page in ("hae_lab/README.md", "data/README.md", "docs/your_own.md")
    assert [target for target in targets if not (path.parent / target).exists()] == []


@EACH_FRONT
def test_the_front_page_leads_to_the_others(page):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    pages = {"CONTRIBUTING.md", "CHANGELOG.md", "hae_lab/README.md", "data/README.md", "notebooks/README.md"}
    assert pages | {"CITATION.cff"} <= set(targets)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("source", [source for page in FRONT for source in python_blocks(page)])
def test_every_name_that_the_readme_imports_or_calls_exists(source):
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), found)  # our own page
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    known = [call for call in calls if ast.unparse(call).split(".")[0] in found]
    assert known
    assert all(callable(eval(ast.unparse(call), found)) for call in known)


def test_the_changelog_leads_from_old_names_to_ones_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{hae_lab.__version__}]" in text
    rows = re.findall(r"^ *\| `hae_lab[.](.+?) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) > 15
    for _, new in rows:
        first, *others = re.findall(r"`([\w.]+)`", new)
        names = [first, *(name if "." in name else f"{first.rpartition('.')[0]}.{name}" for name in others)]
        assert all(exists(name) for name in names), new


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    head, _, last = name.rpartition(".")
    return (is_package(head) and find_spec(name) is not None) or hasattr(import_module(head), last)


def is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def test_what_to_touch_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (an? .+?) \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    kinds = {"variant", "mask rule", "slot part", "metric", "data set", "claim", "table or figure", "notebook"}
    assert {kind.split(" ", 1)[1] for kind, *_ in rows} == kinds | {"exercise", "benchmark", "preset"}
    for _, touched, complaining in rows:
        files = [path for path in re.findall(r"`([\w/]+\.(?:py|md|ipynb))`", touched) if "NN" not in path]
        assert all((ROOT / "hae_lab" / path).exists() or (ROOT / path).exists() for path in files), files
        tests = re.findall(r"`(test_\w+\.py)`", complaining)
        assert tests
        assert all((ROOT / "tests" / test).exists() for test in tests)


def test_hooks_before_a_commit_are_what_ci_asks():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert repo["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in repo["hooks"] if hook["language"] == "system"}
    assert set(entries) == {"ruff-check", "ruff-format", "mypy", "notebooks"}
    gate = (ROOT / ".ci" / "run").read_text()
    assert all(f"\n{command}" in gate for command in ("ruff check", "ruff format --check", "mypy"))
    tests = (ROOT / "tests" / "test_notebooks.py").read_text()
    chosen = re.search(r'-k "(.+)"', entries["notebooks"])[1].split(" or ")
    assert all(re.search(rf"^def test_\w*{name}", tests, re.MULTILINE) for name in chosen)


def test_the_gate_asks_for_tables_figures_and_types_in_its_order():
    gate = (ROOT / ".ci" / "run").read_text()
    steps = [
        "\nrun_readme reproduce\n",
        "git diff --exit-code --stat -- data figures README.md",
        "\nrun_readme test\n",
        "\nruff check .",
        "\nmypy\n",
        "--nbmake",
    ]
    places = [gate.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    "command",
    [
        "python -m pip install -e . && python -m hae_lab reproduce",
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
@EACH_FRONT
def test_readme_holds_the_two_commands_word_for_word(page, command):
    assert f"\n{command}\n" in (ROOT / page).read_text()


def test_the_first_screen_of_the_readme_is_the_finding_the_picture_and_the_commands():
    first = (ROOT / "README.md").read_text().split("\n## ")[0]
    places = [
        first.find(part) for part in ("generated: finding", "figures/claims_overview.png", "ci: reproduce", "ci: test")
    ]
    assert -1 not in places
    assert places == sorted(places)
    assert first.count("\n") < 30
