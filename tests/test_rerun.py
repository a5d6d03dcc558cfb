"""`reproduce --full`: says the cost, runs what is missing, writes whole studies only."""

from pathlib import Path

import pandas as pd
import pytest

from hae_lab import HAELabError, rerun

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
    monkeypatch.setattr(rerun, "DECLARED", tmp_path / "studies")
    monkeypatch.setattr(rerun, "train_lessons", lambda *_: pd.DataFrame([{"variant": "v2", "step": 1, "loss": 0.5}]))
    (tmp_path / "studies").mkdir()

    def write(name: str, seeds: str, trial: str) -> None:
        text = STUDY.format(name=name, seeds=seeds, trial=trial)
        (tmp_path / "studies" / f"{name}.toml").write_text(text)

    return write


def run(tmp_path) -> list[str]:
    paths = rerun.rerun(tmp_path / "out", tmp_path / "runs" / "store.sqlite", workers=1)
    return [path.relative_to(tmp_path / "out" / "data").as_posix() for path in paths]


def test_says_the_cost_and_writes_studies_curves_and_lessons(declare, tmp_path, capsys):
    declare("variants", "0, 1", "quick")
    declare("slots", "0", "quick")
    expected = ["study_slots.csv", "study_variants.csv", "study_variants_curves.csv", "lessons.csv"]
    assert run(tmp_path) == expected
    assert "variants: 4 runs, 4 to do" in capsys.readouterr().out
    first = (tmp_path / "out/data/study_variants.csv").read_bytes()
    assert run(tmp_path) == expected  # from the store
    assert "variants: 4 runs, 4 ok, 0 to do" in capsys.readouterr().out
    assert (tmp_path / "out/data/study_variants.csv").read_bytes() == first


def test_an_unfinished_study_leaves_its_table_as_it_was(declare, tmp_path):
    declare("variants", "0, 1", "troubled")
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/study_variants.csv").write_text("as it was\n")
    with pytest.raises(HAELabError, match="2 of 4 runs"):
        run(tmp_path)
    assert (tmp_path / "out/data/study_variants.csv").read_text() == "as it was\n"


def test_without_studies_it_says_where_they_should_be(monkeypatch, tmp_path):
    monkeypatch.setattr(rerun, "DECLARED", tmp_path)
    with pytest.raises(HAELabError, match="no study at"):
        rerun.studies()
