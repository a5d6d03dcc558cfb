"""Studies on a Dask cluster: a real scheduler and workers that were started in another folder."""

import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest
from study_trials import MARKS
from study_workers import Here, drive

from hae_lab import HAELabError
from hae_lab.study import Study, cluster
from hae_lab.study.store import Store

WITHOUT_PACKAGE = "import sys; sys.modules['hae_lab'] = None; from distributed.cli.dask_worker import main; main()"


@contextmanager
def process(*command: str, folder: Path) -> Iterator[None]:
    with (folder / "log").open("a") as log:
        running = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=log, stderr=log)
    try:
        yield
    finally:
        running.terminate()
        running.wait(120)


@contextmanager
def scheduler(folder: Path, *workers: tuple[str, ...]) -> Iterator[str]:
    """The address of a scheduler with these workers, each started in a folder of its own."""
    file = folder / "scheduler.json"
    with ExitStack() as stack:
        listen = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        stack.enter_context(process("-m", "distributed.cli.dask_scheduler", *listen, folder=folder))
        for number, command in enumerate(workers):
            place = folder / f"worker{number}"
            place.mkdir()
            options = ("--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard")
            stack.enter_context(process(*command, *options, folder=place))
        address = json.loads(_wait_for(file).read_text())["address"]
        if workers:
            with cluster.connect(address) as client:
                client.wait_for_workers(len(workers), timeout=300)
        yield address


def _wait_for(path: Path) -> Path:
    wait_until(path.exists)
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    worker = ("-m", "distributed.cli.dask_worker")
    with scheduler(tmp_path_factory.mktemp("cluster"), worker, worker) as address:
        yield address


@pytest.mark.slow
def test_results_equal_the_local_ones(address, tmp_path, capsys):
    fixed = {"steps": 3, "batch_size": 4, "data": "study_trials:images"}
    study = Study("both", {"variant": ["unet", "v2"]}, 2, "lesson16", fixed)
    there = study.run(tmp_path / "there.sqlite", backend="dask", address=address)
    printed = capsys.readouterr().out
    drive(study, tmp_path / "here.sqlite", Here())
    pd.testing.assert_frame_equal(there, study.results(tmp_path / "here.sqlite"), check_exact=True)
    assert "hae-lab" in printed
    assert printed.count("tcp://") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "python", "code"])
def test_a_worker_with_another_version_is_named(address, name, monkeypatch, tmp_path):
    here = cluster.ping() | {name: "0.0"}
    monkeypatch.setattr(cluster, "code_version", lambda: here["code"])
    monkeypatch.setattr(cluster, "versions", lambda: here)
    with pytest.raises(HAELabError, match=rf"worker tcp://\S+ differs from the driver: {name} \S+ \(here 0\.0\)"):
        Study("x", {"mlp_ratio": [4]}, preset="tiny").run(tmp_path / "s.sqlite", backend="dask", address=address)


@pytest.mark.slow
def test_a_worker_without_the_package_is_named(tmp_path):
    (tmp_path / "cluster").mkdir()
    with (
        scheduler(tmp_path / "cluster", ("-c", WITHOUT_PACKAGE, "--no-nanny")) as address,
        pytest.raises(HAELabError, match=r"worker tcp://\S+ cannot import hae_lab: install the same package there"),
    ):
        Study("x", {"mlp_ratio": [4]}, preset="tiny").run(tmp_path / "s.sqlite", backend="dask", address=address)


@pytest.mark.slow
def test_a_scheduler_without_workers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with (
        scheduler(tmp_path) as address,
        pytest.raises(HAELabError, match=rf"the scheduler at {address} has no workers"),
    ):
        Study("x", {"mlp_ratio": [4]}, preset="tiny").run(tmp_path / "s.sqlite", backend="dask", address=address)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(HAELabError, match=r"no Dask scheduler at 'tcp://127\.0\.0\.1:9'"):
        Study("x", {"mlp_ratio": [4]}, preset="tiny").run(
            tmp_path / "s.sqlite", backend="dask", address="tcp://127.0.0.1:9"
        )


def test_a_missing_dask_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "distributed" else found(name))
    with pytest.raises(HAELabError, match=r'pip install "hae-lab\[cluster\]"'):
        cluster.connect("tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_dead_worker_does_not_take_the_others_with_it(address, tmp_path, capsys):
    study = Study("troubled", {"mlp_ratio": [4]}, 5, "tiny", trial="study_trials:troubled")
    rows = study.run(tmp_path / "s.sqlite", backend="dask", address=address)
    assert rows["seed"].tolist() == [0, 3, 4]
    assert "2 of 5 runs failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_vanishes_and_another_that_comes_lose_no_run(tmp_path, monkeypatch, capsys):
    (marks := tmp_path / "marks").mkdir()
    monkeypatch.setenv(MARKS, str(marks))
    (cluster_folder := tmp_path / "cluster").mkdir()
    study = Study("moved", {"mlp_ratio": [4]}, 6, "tiny", trial="study_trials:slow")
    with ExitStack() as stack, scheduler(cluster_folder) as address:
        first = lone_worker(stack, address, cluster_folder / "first")
        with cluster.connect(address) as client:
            client.wait_for_workers(1, timeout=300)

        def move() -> None:
            """The only worker dies in the middle of a run and does not return; later another one comes."""
            wait_until(lambda: len(list(marks.iterdir())) >= 2)
            first.kill()
            first.wait()
            lone_worker(stack, address, cluster_folder / "second")

        moving = threading.Thread(target=move)
        moving.start()
        rows = study.run(tmp_path / "s.sqlite", backend="dask", address=address)
        moving.join()
    assert first.returncode == -signal.SIGKILL
    done = [path.name.split("-")[1:3] for path in marks.iterdir()]  # seed and process of each finished trial
    assert len({process for _, process in done}) == 2
    assert rows["seed"].tolist() == sorted(int(seed) for seed in {seed for seed, _ in done}) == list(range(6))
    with Store(tmp_path / "s.sqlite") as store:
        kept = store.select()
    assert {(row["status"], row["traceback"]) for row in kept.values()} == {("ok", None)}
    assert "failed" not in capsys.readouterr().out


def lone_worker(stack: ExitStack, address: str, folder: Path) -> subprocess.Popen:
    """A worker that nobody starts again when it dies; it ends with the stack."""
    folder.mkdir()
    options = ("--nthreads", "1", "--no-dashboard", "--no-nanny")
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, *options]
        running = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    stack.callback(running.wait, 120)
    stack.callback(running.terminate)
    return running


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
