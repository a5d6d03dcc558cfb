"""Studies run on this computer: nothing runs twice, and nothing that dies or fails takes the others with it."""

import json
import subprocess
from concurrent.futures import ALL_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from study_trials import MARKS
from study_workers import Here, command, drive, environment, has_kept, kill_when

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.study import Study
from hae_lab.study.task import attempt


@pytest.fixture
def marks(tmp_path, monkeypatch) -> Path:
    """A folder with a file for each trial that was run to its end."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv(MARKS, str(folder))
    return folder


def tiny(trial: str, seeds=2, **options) -> Study:
    grid = options.pop("grid", {"mlp_ratio": [0.25, 4]})
    return Study("tiny", grid, seeds, "tiny", trial=f"study_trials:{trial}", **options)


def statuses(study: Study, path: Path) -> list[str]:
    return study.log(path)["status"].tolist()


# the driver, with workers that are no processes


def test_finished_runs_are_not_repeated(tmp_path, marks):
    drive(tiny("quick"), tmp_path / "s.sqlite", Here())
    drive(tiny("quick", seeds=3), tmp_path / "s.sqlite", again := Here())
    assert again.sent == [2, 2]
    assert len(list(marks.iterdir())) == 6


def test_studies_share_their_runs(tmp_path):
    drive(tiny("quick"), tmp_path / "s.sqlite", Here())
    other = Study("other", {"variant": ["hae", "v2"]}, 1, "tiny", trial="study_trials:quick")
    drive(other, tmp_path / "s.sqlite", workers := Here())
    assert workers.sent == [0]  # v2 is new: it changes two more slots


def test_a_run_that_raises_fails_alone_and_is_retried_when_asked(tmp_path):
    study = tiny("troubled", seeds=2, grid={"mlp_ratio": [4]})
    path = tmp_path / "s.sqlite"
    drive(study, path, Here())
    assert statuses(study, path) == ["ok", "failed"]
    drive(study, path, again := Here())
    drive(study, path, retried := Here(), retry_failed=True)
    assert (again.sent, retried.sent) == ([], [1])


def test_a_run_that_kills_its_worker_is_blamed_when_it_is_alone(tmp_path):
    study = tiny("quick", seeds=4, grid={"mlp_ratio": [4]})
    drive(study, tmp_path / "s.sqlite", workers := Here(deadly={1: 9}))
    assert statuses(study, tmp_path / "s.sqlite") == ["ok", "failed", "ok", "ok"]
    assert workers.sent.count(1) == workers.restarts == 4  # twice beside others, twice alone
    assert workers.sent[-1] == 1
    assert "died 2 times with no other run beside it" in study.log(tmp_path / "s.sqlite")["traceback"][1]


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_a_run_whose_worker_was_killed_at_most_once_alone_still_ends_well(tmp_path, deaths):
    study = tiny("quick", seeds=3, grid={"mlp_ratio": [4]})
    drive(study, tmp_path / "s.sqlite", workers := Here(deadly={0: deaths}))
    assert statuses(study, tmp_path / "s.sqlite") == ["ok"] * 3
    assert workers.sent.count(0) == deaths + 1


class Pool(Here):
    """As a pool of two processes: the death of one loses what flies beside it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seats = []

    def submit(self, run, folder, parts):
        future = Future()
        self.sent.append(run.seed)
        self.seats.append((future, run, folder, parts))
        return future

    def land(self, futures, return_when=None):
        """What `concurrent.futures.wait` waits for."""
        deadly = any(self.deadly.get(run.seed, 0) > 0 for _, run, *_ in self.seats)
        for future, run, folder, parts in self.seats:
            if deadly:
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(attempt(run.trial, run.experiment, run.key, folder, parts))
        self.seats = []
        return wait(futures, return_when=return_when or ALL_COMPLETED)


def test_a_run_beside_a_deadly_one_is_never_blamed(tmp_path, monkeypatch):
    study = tiny("quick", seeds=2, grid={"mlp_ratio": [4]})
    workers = Pool(deadly={0: 99})
    monkeypatch.setattr("hae_lab.study.runner.wait", workers.land)
    drive(study, tmp_path / "s.sqlite", workers)
    assert statuses(study, tmp_path / "s.sqlite") == ["failed", "ok"]
    assert workers.sent == [0, 1, 0, 1, 0, 1, 0]  # twice together, then each alone


def test_an_interrupt_leaves_what_is_finished_and_nothing_else(tmp_path):
    study = tiny("quick", seeds=3)
    with pytest.raises(KeyboardInterrupt):
        drive(study, tmp_path / "s.sqlite", Here(interrupt_at=3, slots=1))
    assert statuses(study, tmp_path / "s.sqlite") == ["ok"] * 3
    drive(study, tmp_path / "s.sqlite", Here())
    assert statuses(study, tmp_path / "s.sqlite") == ["ok"] * 6


def test_a_lost_scheduler_stops_the_study_and_frees_its_runs(tmp_path):
    class Lost(Here):
        def submit(self, run, folder, parts):
            future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    study = tiny("quick")
    with pytest.raises(HAELabError, match="the scheduler went away"):
        drive(study, tmp_path / "s.sqlite", Lost())
    assert statuses(study, tmp_path / "s.sqlite") == []


def test_the_folder_of_a_run_goes_when_it_is_finished(tmp_path):
    drive(tiny("troubled"), tmp_path / "s.sqlite", Here())
    left = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("s/*/experiment.json")]
    assert left == [1, 1]  # the failed ones


def test_a_folder_that_cannot_be_written_fails_its_run_alone(tmp_path):
    study = tiny("quick", seeds=2, grid={"mlp_ratio": [4]})
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / study.planned[0].key).write_text("in the way")
    drive(study, tmp_path / "s.sqlite", Here())
    assert statuses(study, tmp_path / "s.sqlite") == ["failed", "ok"]
    assert "cannot write" in study.log(tmp_path / "s.sqlite")["traceback"][0]


# a run


def test_an_attempt_has_one_thread_and_puts_it_back(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr("study_trials.quick", lambda experiment, folder: {"threads": torch.get_num_threads()})
    torch.set_num_threads(2)
    try:
        run = tiny("quick").planned[0]
        outcome = attempt(run.trial, run.experiment, run.key, str(tmp_path / "run"))
        assert (outcome["metrics"], torch.get_num_threads()) == ({"threads": 1}, 2)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("metrics", [None, {"loss": object()}])
def test_what_the_store_cannot_keep_fails_the_run(metrics, tmp_path, monkeypatch):
    monkeypatch.setattr("study_trials.quick", lambda experiment, folder: metrics)
    run = tiny("quick").planned[0]
    assert attempt(run.trial, run.experiment, run.key, str(tmp_path))["status"] == "failed"


@pytest.mark.parametrize("trial", ["study_trials:none", "no_such_module:run", "study_trials"])
def test_a_trial_that_cannot_be_imported_is_refused_before_anything_runs(trial, tmp_path):
    with pytest.raises(HAELabError, match="trial"):
        Study("x", {"mlp_ratio": [4]}, trial=trial, preset="tiny").run(tmp_path / "s.sqlite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is a whole number from 1, got 0"),
        ({"backend": "ray"}, "unknown backend 'ray'"),
        ({"address": "tcp://host:1"}, 'an address is for backend="dask"'),
        ({"backend": "dask"}, "needs the address of a scheduler"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    with pytest.raises(HAELabError, match=message):
        tiny("quick").run(tmp_path / "s.sqlite", **options)


# real processes


@pytest.mark.slow
def test_processes_that_raise_or_die_leave_the_others_alone(tmp_path, capsys):
    study = tiny("troubled", seeds=5, grid={"mlp_ratio": [4]})
    rows = study.run(tmp_path / "s.sqlite")
    assert rows["seed"].tolist() == [0, 3, 4]
    printed = capsys.readouterr().out
    assert "tiny: 5 runs, 5 to do" in printed
    assert "tiny: 2 of 5 runs failed" in printed
    assert "hae, seed 1: ValueError: seed 1 will not do" in printed
    assert "hae, seed 2: its worker process died 2 times with no other run beside it" in printed


TOML = """
name = "crash"
preset = "tiny"
seeds = 3
trial = "study_trials:slow"
[grid]
mlp_ratio = [0.25, 4]
"""


def start(file: Path, out: Path, marks: Path) -> subprocess.Popen:
    """`hae-lab study` in a process of its own; its trials mark that they ran."""
    variables = environment(**{MARKS: str(marks)})
    return subprocess.Popen(command(file, out), env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_driver_repeats_nothing_and_ends_with_the_same_tables(tmp_path, marks):
    file = tmp_path / "crash.toml"
    file.write_text(TOML)
    study, store = Study.from_toml(file, trust=True), tmp_path / "s.sqlite"
    # nobody goes on beside the next driver
    kill_when(start(file, tmp_path, marks), lambda: has_kept(study, store))
    before = study.log(store)
    assert set(before["status"]) == {"ok"}

    assert start(file, tmp_path, marks).wait(120) == 0
    finished = before[before["status"] == "ok"]
    for ratio, seed in finished[["mlp_ratio", "seed"]].itertuples(index=False):
        assert len(list(marks.glob(f"{ratio:g}-{seed}-*"))) == 1
    drive(study, tmp_path / "whole.sqlite", Here())
    study.export(tmp_path / "whole.sqlite", tmp_path / "whole.csv")
    assert (tmp_path / "crash.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
def test_real_training_gives_equal_tables_for_equal_seeds(tmp_path):
    fixed = {"steps": 3, "evaluate_every": 2, "batch_size": 4, "data": "study_trials:images"}
    study = Study("real", {"variant": ["unet", "v2"]}, 2, "lesson16", fixed)
    study.run(tmp_path / "a.sqlite", progress=False)
    drive(study, tmp_path / "b.sqlite", Here())
    for name in ("a", "b"):
        study.export(tmp_path / f"{name}.sqlite", tmp_path / f"{name}.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    rows = study.results(tmp_path / "a.sqlite")
    assert rows["loss"].is_unique
    assert study.curves(tmp_path / "a.sqlite")["step"].tolist() == [2, 3] * 4


# the command


def test_the_command_prints_cells_costs_and_results(tmp_path, capsys, monkeypatch):
    file, store = tmp_path / "crash.toml", tmp_path / "s.sqlite"
    file.write_text(TOML.replace("slow", "quick"))
    assert main(["study", str(file), "--trust", "--static"]) == 0
    assert "329905" in capsys.readouterr().out
    assert main(["study", str(file), "--trust", "--cost", "--store", str(store)]) == 0
    assert "crash: 6 runs, 6 to do" in capsys.readouterr().out
    drive(Study.from_toml(file, trust=True), store, Here())
    assert main(["study", str(file), "--trust", "--store", str(store), "--out", str(tmp_path / "out")]) == 0
    assert "mlp_ratio=0.25 phantoms      3" in capsys.readouterr().out
    assert len((tmp_path / "out" / "crash.csv").read_text().splitlines()) == 7
    assert len((tmp_path / "out" / "crash_curves.csv").read_text().splitlines()) == 13


def test_the_command_fails_if_runs_are_missing(tmp_path, capsys):
    file, store = tmp_path / "crash.toml", tmp_path / "s.sqlite"
    file.write_text(TOML.replace("slow", "troubled").replace("seeds = 3", "seeds = 2"))
    drive(Study.from_toml(file, trust=True), store, Here())
    assert main(["study", str(file), "--trust", "--store", str(store), "--out", str(tmp_path)]) == 2
    assert "2 of 4 runs of crash are missing" in capsys.readouterr().err
