"""The plans for a class: they name notebooks and sections that exist, and their minutes add up."""

import re
from pathlib import Path

import pytest

from hae_lab.book import notebooks

FOLDER = Path(__file__).parent.parent / "notebooks"
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
PATHS = {path.stem[:2]: path for path in notebooks.find(FOLDER)}
PLAN = r"^(?:## |\*\*)(90 minutes|Day one|Day two)(.*?)(?=^\*\*Day|\Z)"
PLANS = dict(re.findall(PLAN, TEXT, re.MULTILINE | re.DOTALL))
TIME = r"^\| time \| (\d+) minutes to .*, under (.*) to run \|$"


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in a text that begin with a number or a link, cell by cell."""
    lines = re.findall(r"^\| (?:\d|\[).*\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def sections(name: str) -> list[str]:
    cells = notebooks.read(PATHS[name]).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"^## (\d+)\.", text, re.MULTILINE)


def test_costs_are_those_that_the_notebooks_name():
    found = {re.match(r"\[(\d\d) ", row[0])[1]: row for row in rows(TEXT) if row[0].startswith("[")}
    assert list(found) == list(PATHS)
    for name, (link, read, run, _) in found.items():
        assert link.endswith(f"({PATHS[name].name})")
        time = re.search(TIME, notebooks.read(PATHS[name]).cells[0].source, re.MULTILINE)
        assert (read, run) == (time[1], time[2].replace("1 minute", "60 s"))


def test_previous_notebooks_come_before():
    for row in rows(TEXT):
        if row[0].startswith("[") and row[3] != "-":
            assert row[3] < row[0][1:3]


@pytest.mark.parametrize(("title", "hours"), [("90 minutes", 1.5), ("Day one", 5.5), ("Day two", 5.5)])
def test_minutes_add_up(title, hours):
    plan = rows(PLANS[title].split("\n## ")[0])
    assert len(plan) >= 6
    assert abs(sum(int(row[0]) for row in plan) / 60 - hours) < 0.2


def test_named_sections_exist():
    named = re.findall(r"\b(0\d),? sections? (\d+)(?: (?:to|and) (\d+))?", TEXT)
    assert len(named) > 8
    for name, first, last in named:
        assert {first, last or first} <= set(sections(name))


def test_commands_are_those_of_the_tool():
    assert "python -m hae_lab notebooks --blank --out class" in TEXT
    talks = {path.stem[:2] for path in PATHS.values() if notebooks.read(path).metadata["hae_lab"].get("slides")}
    assert talks == {"03", "04", "05"}
