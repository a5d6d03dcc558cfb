"""Mutation testing tested: its table holds what it claims, and its driver tells good tests from weak ones."""

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from mutants import TABLE, Mutant, read, report, summary, wilson, write
from mutation_suites import SUITES
from statsmodels.stats.proportion import proportion_confint

ROOT = Path(__file__).parent.parent
MUTANT = Mutant("rules", 40, 7, "band", "AddNot", "if a:", "if not a:", "survived", "")

# the committed table


def test_nine_in_ten_mutants_are_killed_and_each_survivor_says_why_it_may_live():
    mutants = read()
    assert sum(one.killed for one in mutants) >= 0.9 * len(mutants)
    assert [one for one in mutants if not one.killed and len(one.note) < 20] == []
    assert {one.outcome for one in mutants} <= {"killed", "timeout", "survived"}


def test_no_mutant_is_counted_twice_and_each_changes_its_line():
    mutants = read()
    assert max(Counter(one.place for one in mutants).values()) == 1
    assert all(one.before != one.after for one in mutants)


def test_the_report_is_what_the_table_says():
    assert (TABLE.parent / "mutants.md").read_text() == report(read()) + "\n"


@pytest.mark.parametrize("module", SUITES)
def test_every_module_and_test_file_of_the_suites_is_there(module):
    assert (ROOT / "hae_lab" / f"{module}.py").exists()
    for name in SUITES[module]:
        file, *test = name.split("::")
        source = (ROOT / "tests" / f"{file}.py").read_text()
        assert all(f"def {each}(" in source for each in test)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    mutants = [MUTANT, Mutant("checks", 9, 1, "", "ReplaceString", 'a = "x, y"', "a = 1", "killed", "a, b")]
    write(tmp_path / "mutants.csv", mutants)
    assert read(tmp_path / "mutants.csv") == sorted(mutants, key=lambda one: one.module)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (9, 10), (10, 10), (93, 104)])
def test_the_interval_is_that_of_statsmodels(hits, count):
    assert wilson(hits, count) == pytest.approx(proportion_confint(hits, count, method="wilson"), abs=1e-9)


def test_the_summary_adds_up():
    mutants = [
        MUTANT,
        replace(MUTANT, line=8, outcome="killed"),
        replace(MUTANT, module="checks", made=10, outcome="timeout"),
    ]
    lines = summary(mutants).splitlines()
    assert [line.split("|")[1:6] for line in lines[2:]] == [
        [" `checks` ", " 10 ", " 1 ", " 1 ", " 100 "],
        [" `rules` ", " 40 ", " 2 ", " 1 ", " 50 "],
        [" all ", " 50 ", " 3 ", " 2 ", " 67 "],
    ]


# the driver; it needs the extra `mutation`

SOURCE = '''"""A module with 3 < 4."""


def part(a: int | None, b: int) -> int | None:
    """Says 5 + 5."""
    return a + b if a > 2 else None
'''


@pytest.fixture
def driver():
    pytest.importorskip("cosmic_ray")
    import mutation

    return mutation


def test_places_are_code_and_neither_annotations_nor_docstrings(driver):
    found = driver.changes(SOURCE, strings=True)
    assert {change.start[0] for change in found} == {6}
    words = {SOURCE.splitlines()[5][change.start[1] : change.stop[1]].strip() for change in found}
    assert "2" in words
    assert any("+" in word for word in words)


def test_each_change_is_python_and_differs(driver):
    mutated = [change.apply(SOURCE) for change in driver.changes(SOURCE)]
    assert len(mutated) > 10
    assert SOURCE not in mutated
    assert all(ast.parse(source) for source in mutated)


def test_words_of_a_figure_are_changed_inside_their_quotes(driver):
    source = 'a = {"b": f"c {d} e"}\n'
    mutated = [one.apply(source) for one in driver.changes(source, strings=True) if one.operator == "ReplaceString"]
    assert mutated == ['a = {"bXX": f"c {d} e"}\n', 'a = {"b": f"c XX{d} e"}\n', 'a = {"b": f"c {d} eXX"}\n']


def test_the_seed_decides_and_a_larger_sample_begins_with_the_smaller(driver):
    made, few = driver.sample(SOURCE, 2, seed=3)
    again, more = driver.sample(SOURCE, 4, seed=3)
    assert made == again
    assert more[:2] == few
    assert len({change.start for change in more}) == 4


def test_what_is_no_python_is_not_drawn(driver):
    source = "def part(*, a):\n    return a * 2\n"
    assert not all(driver.is_python(one.apply(source)) for one in driver.changes(source))
    made, drawn = driver.sample(source, 10, seed=0)
    assert made > len(drawn) > 0
    assert all(driver.is_python(one.apply(source)) for one in drawn)


def test_the_function_around_a_line_is_found(driver):
    assert [driver.function_at(SOURCE, line) for line in (1, 6)] == ["", "part"]


RUN = """
import sys
sys.path.insert(0, {tests!r})
import mutation
from pathlib import Path
mutation.SUITES["toy"] = ("test_toy",)
for one in mutation.try_module(Path.cwd(), "toy", 3, 0):
    print("=", one.outcome, one.after)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("test", "survivors"), [("assert [part(2), part(3)] == [1, 9]", 0), ("part(1)", 3)])
def test_strong_tests_kill_and_weak_ones_do_not(driver, tmp_path, test, survivors):
    root = tmp_path / "project"
    for folder, name, text in (
        ("hae_lab", "__init__.py", ""),
        ("hae_lab", "toy.py", "def part(a):\n    return a * 3 if a > 2 else 1\n"),
        ("tests", "test_toy.py", f"from hae_lab.toy import part\n\n\ndef test_part():\n    {test}\n"),
    ):
        (root / folder).mkdir(exist_ok=True, parents=True)
        (root / folder / name).write_text(text)
    code = RUN.format(tests=str(ROOT / "tests"))
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    outcomes = [line.split()[1] for line in said.splitlines() if line.startswith("=")]
    assert outcomes.count("survived") == survivors, said
    assert (root / "hae_lab" / "toy.py").read_text().endswith("a * 3 if a > 2 else 1\n")
