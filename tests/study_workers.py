"""Workers of a study that are no processes, for tests of its driver; and the command in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
from tqdm.auto import tqdm

from hae_lab.parts import ship
from hae_lab.study import Study
from hae_lab.study.runner import Driver, all_parts
from hae_lab.study.store import Store, is_done
from hae_lab.study.task import attempt


class Here:
    """Runs in this process, at once; a run whose seed is in `deadly` kills its "worker" so many times."""

    shared_disk = True

    def __init__(self, slots=2, deadly=None, interrupt_at=None):
        self.slots, self.deadly, self.interrupt_at = slots, dict(deadly or {}), interrupt_at
        self.sent, self.restarts, self.broken, self.flying = [], 0, False, []

    def submit(self, run, folder, parts):
        if self.broken:
            raise BrokenProcessPool
        if len(self.sent) == self.interrupt_at:
            raise KeyboardInterrupt
        self.sent.append(run.seed)
        future = Future()
        if self.deadly.get(run.seed, 0) > 0:
            self.deadly[run.seed] -= 1
            self.broken = True
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(attempt(run.trial, run.experiment, run.key, folder, parts))
        return future

    def restart(self):
        self.restarts += 1
        self.broken = False


def drive(study: Study, path: Path, workers: Here, retry_failed=False) -> None:
    with Store(path) as store, store.held(), tqdm(disable=True) as bar:
        known = store.select()
        todo = [run for run in study.planned if not is_done(known.get(run.key), retry_failed)]
        Driver(workers, store, ship(all_parts(todo))).drive(todo, bar)


def command(file: Path, out: Path) -> list[str]:
    """`hae-lab study` with its store and tables in a folder."""
    options = ["--trust", "--store", str(out / "s.sqlite"), "--out", str(out)]
    return [sys.executable, "-m", "hae_lab", "study", str(file), *options]


def environment(**more: str) -> dict[str, str]:
    """In which such a process finds the trials of the tests."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | more


def has_kept(study: Study, store: Path) -> bool:
    """Whether a run of the study is in its store: a trial that ended may not be there yet."""
    return store.exists() and not study.log(store).empty


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """SIGKILL at the moment when this is so; its workers end by themselves."""
    while not reached():
        assert process.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(workers, timeout=120)[1] == []
