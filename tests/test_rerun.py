"""`reproduce --full`: says the cost, runs what is missing, writes whole studies only, and survives to be killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from study_trials import MARKS
from study_workers import environment, kill_when

from hae_lab import HAELabError
from hae_lab.audit import clone, rerun
from hae_lab.diffusion.training import STATE

TRIALS = Path(__file__).parent
STUDY = """
name = "{name}"
seeds = [{seeds}]
trial = "study_trials:{trial}"
[grid]
mlp_ratio = [1, 4]
"""


@pytest.fixture
def declare(monkeypatch, tmp_path):
    """Declare small studies in place of the committed ones."""
    monkeypatch.syspath_prepend(str(TRIALS))
    monkeypatch.setenv("PYTHONPATH", str(TRIALS))
    monkeypatch.setattr(clone, "root", lambda: tmp_path)
    monkeypatch.setattr(rerun, "lessons_minutes", lambda _: 3.0)
    monkeypatch.setattr(rerun, "train_lessons", lambda *_: pd.DataFrame([{"variant": "v2", "step": 1, "loss": 0.5}]))
    monkeypatch.setattr(rerun, "SLOW_TABLES", {"slow": lambda: pd.DataFrame([{"percent": 1.5}])})
    (tmp_path / "studies").mkdir()

    def write(name: str, seeds: str, trial: str) -> None:
        text = STUDY.format(name=name, seeds=seeds, trial=trial)
        (tmp_path / "studies" / f"{name}.toml").write_text(text)

    return write


def run(tmp_path) -> list[str]:
    return list(rerun.rerun(tmp_path, tmp_path / "runs" / "store.sqlite", workers=1))


def written(lines: list[str]) -> list[str]:
    return [Path(line).name for line in lines if line.endswith(".csv")]


def test_says_the_cost_and_writes_studies_curves_and_lessons(declare, tmp_path):
    declare("variants", "0, 1", "quick")
    declare("slots", "0", "quick")
    expected = ["study_slots.csv", "study_variants.csv", "study_variants_curves.csv", "lessons.csv", "slow.csv"]
    lines = run(tmp_path)
    assert written(lines) == expected
    assert lines[1].startswith("variants: 4 runs, 4 to do")
    assert lines[2:4] == [
        "lesson models: about 3 minutes, less what an earlier call has done",
        "together: about 3 minutes",
    ]
    first = (tmp_path / "data/study_variants.csv").read_bytes()
    lines = run(tmp_path)  # from the store
    assert written(lines) == expected
    assert lines[1] == "variants: 4 runs, 4 ok, 0 to do"
    assert (tmp_path / "data/study_variants.csv").read_bytes() == first


def test_an_unfinished_study_leaves_its_table_as_it_was(declare, tmp_path):
    declare("variants", "0, 1", "troubled")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/study_variants.csv").write_text("as it was\n")
    with pytest.raises(HAELabError, match="2 of 4 runs"):
        run(tmp_path)
    assert (tmp_path / "data/study_variants.csv").read_text() == "as it was\n"


def test_another_folder_is_refused(declare, tmp_path):
    declare("variants", "0", "quick")
    with pytest.raises(HAELabError, match="--full renews the tables of the clone"):
        list(rerun.rerun(tmp_path / "elsewhere", tmp_path / "store.sqlite"))


def test_without_studies_it_says_where_they_should_be(monkeypatch, tmp_path):
    monkeypatch.setattr(clone, "root", lambda: tmp_path)
    with pytest.raises(HAELabError, match="no study at"):
        rerun.studies()


def test_committed_rows_count_as_done_unless_all_is_to_be_fresh(declare, tmp_path):
    declare("slots", "0, 1", "quick")
    run(tmp_path)
    table = tmp_path / "data" / "study_slots.csv"
    before = table.read_bytes()
    again = list(rerun.rerun(tmp_path, tmp_path / "elsewhere" / "store.sqlite", workers=1))
    assert again[0] == "slots: 4 runs, 4 ok, 0 to do"
    assert table.read_bytes() == before
    fresh = list(rerun.rerun(tmp_path, tmp_path / "third" / "store.sqlite", workers=1, fresh=True))
    assert "4 to do" in fresh[0]
    assert table.read_bytes() == before


KILLED = """
name = "{name}"
seeds = {seeds}
trial = "study_trials:slow"
[grid]
mlp_ratio = [0.25, 4]
"""


@pytest.fixture
def small_clone(tmp_path) -> Callable[[str], Path]:
    """Folders with two small studies, for `full_rerun.py`."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        for part in ("studies", "data", "marks"):
            (folder / part).mkdir(parents=True)
        for study, seeds in (("slots", [0, 1, 2]), ("variants", [3, 4, 5])):
            (folder / "studies" / f"{study}.toml").write_text(KILLED.format(name=study, seeds=seeds))
        return folder

    return make


def full(folder: Path) -> subprocess.Popen:
    script = Path(__file__).parent / "full_rerun.py"
    variables = environment(**{MARKS: str(folder / "marks"), "OMP_NUM_THREADS": "1"})
    return subprocess.Popen([sys.executable, str(script)], cwd=folder, env=variables, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_in_a_study_and_in_a_lesson_it_ends_with_the_same_tables(small_clone):
    killed, straight = small_clone("killed"), small_clone("straight")
    marks = killed / "marks"
    kill_when(full(killed), lambda: len(os.listdir(marks)) >= 8)  # of 12: in the second study
    assert [path.name for path in (killed / "data").iterdir()] == ["study_slots.csv"]
    kill_when(full(killed), lambda: any(killed.glob(f"runs/lessons/*/v2/{STATE}")))
    assert not (killed / "data" / "lessons.csv").exists()
    for folder in (killed, straight):
        assert full(folder).wait(300) == 0
    tables = {path.relative_to(straight): path.read_bytes() for path in (straight / "data").rglob("*.*")}
    assert {path.relative_to(killed): path.read_bytes() for path in (killed / "data").rglob("*.*")} == tables
    assert len(tables) == 6  # two studies, curves of the variants, lessons and their model, the slow table
    repeated = len(os.listdir(marks)) - 12
    assert repeated <= 2  # what was running when it was killed
