"""Nothing trained is lost: old stores move to today's keys, and committed rows count as done."""

import json
import sqlite3
from hashlib import sha256

import pandas as pd
import pytest
from study_workers import Here, drive

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit import clone
from hae_lab.audit.rerun import studies
from hae_lab.rules import RULES
from hae_lab.study import Study, committed, migration
from hae_lab.study.store import Store, code_version
from hae_lab.tables import from_csv, read, to_csv, write

OLD_CODE = "3edd275abc97f38f"
OLD_KEYS = "3f2bb26bc90b40c0"  # of the keys of the 131 different runs that version 0.1.0 trained
NEW_FIELDS = {"config": ("mlp",), "experiment": ("metrics",)}  # since then


def old_experiment(text: str) -> str:
    """The JSON of an experiment as version 0.1.0 wrote it."""
    values = json.loads(text)
    for name in NEW_FIELDS["experiment"]:
        del values[name]
    for name in NEW_FIELDS["config"]:
        del values["config"][name]
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def old_key(run, code: str = OLD_CODE) -> str:
    named = {"trial": run.trial, "experiment": old_experiment(run.experiment), "data": run.data, "code": code}
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def planned() -> dict:
    return {study.name: study.planned for study in studies()}


def old_store(path, runs, code: str = OLD_CODE, **changes) -> None:
    """A store as version 0.1.0 left it, all runs "ok"."""
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE runs (key TEXT PRIMARY KEY, trial TEXT NOT NULL, experiment TEXT NOT NULL, seed INTEGER NOT "
            "NULL, data TEXT NOT NULL, code TEXT NOT NULL, status TEXT NOT NULL, metrics TEXT, traceback TEXT, "
            "seconds REAL, host TEXT, versions TEXT, started REAL NOT NULL, finished REAL, driver TEXT NOT NULL, "
            "beat REAL NOT NULL)"
        )
        for run in runs:
            row = {
                "key": old_key(run, code), "trial": run.trial, "experiment": old_experiment(run.experiment),
                "seed": run.seed, "data": run.data, "code": code, "status": "ok",
                "metrics": json.dumps({"loss": 0.5 + run.seed, "curve": [[1, 0.5]]}), "traceback": None,
                "seconds": 2.0, "host": "here", "versions": "{}", "started": 1.0, "finished": 3.0, "driver": "{}",
                "beat": 3.0,
            } | changes  # fmt: skip
            old.execute(f"INSERT INTO runs VALUES ({', '.join(f':{name}' for name in row)})", row)
    old.close()


# the table of equal computations


def test_the_equal_computation_is_todays():
    assert set(migration.EQUIVALENT.values()) == {migration.computation()}, (
        "the code, or a part that version 0.1.0 had, has changed: if `hae-lab study FILE --verify 3` finds equal bits "
        "for every study, raise EQUIVALENT and renew the keys with committed.with_keys; else the old runs train anew"
    )


def test_the_committed_runs_are_those_of_the_old_keys(planned):
    keys = sorted({old_key(run) for runs in planned.values() for run in runs})
    assert len(keys) == 131
    assert sha256("\n".join(keys).encode()).hexdigest()[:16] == OLD_KEYS


def test_every_committed_row_has_the_key_of_its_run(planned):
    for name, runs in planned.items():
        rows = read(clone.root() / "data" / f"study_{name}.csv")
        assert rows.columns[-1] == "key"
        assert rows["key"].tolist() == [run.key for run in runs]


# an old store


def test_an_old_store_moves_to_todays_keys(tmp_path, planned, capsys):
    runs = {run.key: run for study in planned.values() for run in study}
    old_store(tmp_path / "s.sqlite", {old_key(run): run for run in runs.values()}.values())
    folder = tmp_path / "s" / old_key(next(iter(runs.values())))
    folder.mkdir(parents=True)
    assert main(["migrate", "--store", str(tmp_path / "s.sqlite")]) == 0
    assert "0 runs of this version, 131 moved to it, 0 left" in capsys.readouterr().out
    with Store(tmp_path / "s.sqlite") as opened:
        rows = opened.select()
        assert opened.folder(next(iter(runs))).is_dir()
    assert not folder.exists()
    assert set(rows) == set(runs)
    for key, row in rows.items():
        assert (row["experiment"], row["code"], row["seconds"]) == (runs[key].experiment, code_version(), 2.0)
    again = migration.migrate(tmp_path / "s.sqlite")
    assert (again.current, again.moved, again.begun, again.left) == (131, 0, 0, ())
    for study in studies():
        assert len(study.results(tmp_path / "s.sqlite")) == len(study.planned)


def test_a_run_that_was_begun_continues_from_its_checkpoint(tmp_path, planned):
    (run,) = planned["samples"]
    old_store(tmp_path / "s.sqlite", [run], status="running")
    folder = tmp_path / "s" / old_key(run)
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(old_experiment(run.experiment) + "\n")
    (tmp_path / "s" / "another").mkdir()
    (tmp_path / "s" / "another" / "experiment.json").write_text(old_experiment(run.experiment))
    found = migration.migrate(tmp_path / "s.sqlite")
    assert (found.moved, found.begun, found.left) == (0, 1, ())
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted([run.key, "another"])


@pytest.mark.parametrize(
    ("code", "changes", "reason"),
    [
        ("0123456789abcdef", {}, "code 0123456789abcdef is not known to compute what today's does"),
        (OLD_CODE, {"trial": "study_trials:quick"}, "nobody knows the source of study_trials:quick then"),
    ],
)
def test_what_must_train_anew_is_said_and_left_as_it_is(code, changes, reason, tmp_path, planned):
    old_store(tmp_path / "s.sqlite", planned["samples"], code, **changes)
    with Store(tmp_path / "s.sqlite") as opened:
        before = opened.select()
    found = migration.migrate(tmp_path / "s.sqlite")
    assert (found.moved, len(found.left)) == (0, 1)
    assert f"must train anew: {reason}" in str(found)
    with Store(tmp_path / "s.sqlite") as opened:
        assert opened.select() == before


def test_a_changed_part_leaves_old_runs(tmp_path, planned, monkeypatch):
    old_store(tmp_path / "s.sqlite", planned["samples"])
    monkeypatch.setitem(RULES, "document", RULES["dense"])
    migration.computation.cache_clear()
    try:
        assert len(migration.migrate(tmp_path / "s.sqlite").left) == 1
    finally:
        migration.computation.cache_clear()


# rows of a table


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
    with pytest.raises(HAELabError, match="small has no run"):
        committed.with_keys(small, rows.assign(seed=7))


def test_a_trained_table_is_verified(tmp_path, monkeypatch, capsys):
    (tmp_path / "few.toml").write_text(
        'name = "few"\npreset = "lesson16"\nseeds = 2\n[fixed]\nsteps = 2\nbatch_size = 4\n'
        'data = "study_trials:images"\n[grid]\nvariant = ["unet", "v2"]\n'
    )
    study = Study.from_toml(tmp_path / "few.toml")
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
    command = ["study", str(tmp_path / "few.toml"), "--verify", "2", "--rows", str(tmp_path / "rows.csv")]
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


def test_verifying_needs_rows_and_training(small):
    with pytest.raises(HAELabError, match="small trains nothing: its trial is study_trials:quick"):
        committed.verify(small, pd.DataFrame())
