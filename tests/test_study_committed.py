"""Nothing trained is lost: committed rows have the keys of their runs, count as done, and can be trained again."""

import math

import pandas as pd
import pytest
from study_workers import Here, drive

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit import clone
from hae_lab.audit.rerun import studies
from hae_lab.study import Study, committed
from hae_lab.tables import from_csv, read, to_csv, write


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_every_committed_row_has_the_key_of_its_run(study):
    rows = read(clone.root() / "data" / f"study_{study.name}.csv")
    assert rows.columns[-1] == "key"
    assert rows["key"].tolist() == [run.key for run in study.planned], (
        "what decides a result has changed: if `hae-lab study FILE --verify 3` finds the rows again, renew the keys by "
        "committed.with_keys; else `reproduce --full` trains them anew"
    )


@pytest.fixture
def small() -> Study:
    return Study("small", {"mlp_ratio": [0.25, 4]}, 2, "tiny", trial="study_trials:quick")


def test_adopted_rows_are_done_and_give_the_same_tables(tmp_path, small):
    drive(small, tmp_path / "a.sqlite", Here())
    for name, table in (("rows", small.results), ("curves", small.curves)):
        write(table(tmp_path / "a.sqlite"), tmp_path / f"{name}.csv")
    rows, curves = (read(tmp_path / f"{name}.csv") for name in ("rows", "curves"))
    assert committed.adopt(small, rows.iloc[1:], tmp_path / "b.sqlite", curves) == 3
    assert small.cost(tmp_path / "b.sqlite").todo == 1
    drive(small, tmp_path / "b.sqlite", workers := Here())
    assert workers.sent == [0]
    assert committed.adopt(small, rows, tmp_path / "b.sqlite", curves) == 0
    assert to_csv(small.results(tmp_path / "b.sqlite")) == (tmp_path / "rows.csv").read_text()
    assert to_csv(small.curves(tmp_path / "b.sqlite")) == (tmp_path / "curves.csv").read_text()


def test_rows_of_other_code_are_not_adopted(tmp_path, small):
    drive(small, tmp_path / "a.sqlite", Here())
    rows = small.results(tmp_path / "a.sqlite")
    assert committed.adopt(small, rows.assign(key="another"), tmp_path / "b.sqlite") == 0
    with pytest.raises(HAELabError, match="have no column 'key'"):
        committed.adopt(small, rows.drop(columns="key"), tmp_path / "b.sqlite")


def test_keys_are_put_on_rows_by_their_place(tmp_path, small):
    drive(small, tmp_path / "a.sqlite", Here())
    rows = small.results(tmp_path / "a.sqlite")
    shuffled = rows.assign(key="old").iloc[[2, 0, 3, 1]]
    named = committed.with_keys(small, shuffled)
    assert named["key"].tolist() == rows["key"].iloc[[2, 0, 3, 1]].tolist()
    with pytest.raises(HAELabError, match=r"small has no run \[\([^()]*, 7\)\]: "):  # the first of four
        committed.with_keys(small, rows.assign(seed=7))


def test_a_trained_table_is_verified(tmp_path, monkeypatch, capsys):
    (tmp_path / "few.toml").write_text(
        'name = "few"\npreset = "lesson16"\nseeds = 2\n[fixed]\nsteps = 2\nbatch_size = 4\n'
        'data = "study_trials:images"\n[grid]\nvariant = ["unet", "v2"]\n'
    )
    study = Study.from_toml(tmp_path / "few.toml", trust=True)
    drive(study, tmp_path / "a.sqlite", Here())
    rows = from_csv(to_csv(study.results(tmp_path / "a.sqlite")))

    class Local(Here):
        def __enter__(self):
            return self

        def __exit__(self, *rest):
            pass

    monkeypatch.setattr("hae_lab.study.runner.LocalWorkers", lambda workers: Local(slots=workers))
    monkeypatch.setattr("hae_lab.study.cost.estimated_seconds", lambda experiments: [1.0] * len(experiments))
    found = committed.verify(study, rows, 2)
    assert found.groupby(["cell", "seed"]).size().to_dict() == {("unet", 0): 5, ("v2", 1): 5}
    assert found["equal"].all()
    write(rows, tmp_path / "rows.csv")
    command = ["study", str(tmp_path / "few.toml"), "--trust", "--verify", "2", "--rows", str(tmp_path / "rows.csv")]
    assert main(command) == 0
    rows.loc[3, "loss_q2"] *= 1.0001
    wrong = committed.verify(study, rows, 2)
    assert wrong[~wrong["equal"]][["cell", "seed", "metric"]].to_numpy().tolist() == [["v2", 1, "loss_q2"]]
    write(rows, tmp_path / "rows.csv")
    assert main(command) == 0  # as another computer might have it
    assert "1 of 10 numbers differ in six digits, the most by 0.0001 of its value" in capsys.readouterr().out
    rows.loc[3, "loss_q2"] *= 1.01
    write(rows, tmp_path / "rows.csv")
    assert main(command) == 2
    assert "these are not the runs of" in capsys.readouterr().err


def test_what_a_table_does_not_keep_is_named_and_not_compared(tmp_path, monkeypatch, capsys):
    study = Study("short", {"mlp_ratio": [1, 2]}, preset="lesson16", fixed={"steps": 2})
    rows = pd.DataFrame(
        {"cell": [run.cell.label for run in study.planned], "data": "phantoms", "seed": 0, "macs_kept": 1}
    )
    measured = {"loss": 0.5, "mean_gap": 0.1, "spread": 0.9, "curve": []}
    monkeypatch.setattr(committed, "_retrained", lambda name, runs, workers: [(run, measured) for run in runs])
    found = committed.verify(study, rows.assign(loss=[0.5, 0.25]), 2).set_index(["cell", "metric"])
    assert found["equal"].dropna().to_dict() == {("mlp_ratio=1", "loss"): True, ("mlp_ratio=2", "loss"): False}
    assert found["relative_difference"].dropna().tolist() == [0.0, 1.0]
    missing = committed.verify(study, rows.assign(loss=0.5, spread=[0.9, None]), 2).set_index(["cell", "metric"])
    assert missing["relative_difference"]["mlp_ratio=2", "spread"] == math.inf  # kept for one run, not for the other
    with pytest.raises(HAELabError, match="the table of short keeps no metric"):
        committed.verify(study, rows, 2)

    write(rows.assign(loss=0.5), tmp_path / "rows.csv")
    (tmp_path / "short.toml").write_text(
        'name = "short"\npreset = "lesson16"\n[fixed]\nsteps = 2\n[grid]\nmlp_ratio = [1, 2]\n'
    )
    assert main(["study", str(tmp_path / "short.toml"), "--verify", "2", "--rows", str(tmp_path / "rows.csv")]) == 0
    printed = capsys.readouterr().out
    assert "does not keep them: mean_gap, spread\n0 of 2 numbers differ" in printed


def test_verifying_needs_rows_and_training(small):
    with pytest.raises(HAELabError, match="small trains nothing: its trial is study_trials:quick"):
        committed.verify(small, pd.DataFrame())
