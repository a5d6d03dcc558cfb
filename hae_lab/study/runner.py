"""The driver: hands runs to workers, keeps what they return, and survives the death of any of them."""

import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import psutil
from tqdm.auto import tqdm

from hae_lab.checks import require, require_name, require_whole
from hae_lab.study.cost import cost
from hae_lab.study.store import BEAT_SECONDS, Run, Store
from hae_lab.study.task import attempt, load_trial

SHARED_DEATHS = 2  # of its worker, beside other runs; the next time a run is alone, and the blame is its own


def run(
    name: str,
    runs: Iterable[Run],
    store: Store,
    workers: int = 2,
    backend: str = "local",
    address: str | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> None:
    """Bring the runs of a study to an end; print what failed and what another driver holds. See `Study.run`."""
    runs = sorted(runs, key=lambda run: run.seed)  # an unfinished study has as many runs of each cell
    require_whole("workers", workers, 1, None)
    for trial in {run.trial for run in runs}:
        load_trial(trial)
    known = store.select(run.key for run in runs)
    todo = [run for run in runs if store.held(known.get(run.key), retry_failed) is None]
    if todo:
        with open_workers(backend, min(workers, len(todo)), address) as opened:
            if progress:
                print(opened, cost(name, runs, store, opened.slots, retry_failed), sep="\n")
            with tqdm(total=len(todo), desc=name, unit="run", disable=not progress) as bar:
                Driver(opened, store, retry_failed).drive(todo, bar)
    for line in unfinished(name, runs, store):
        print(line)


def open_workers(backend: str, workers: int, address: str | None) -> "Workers":
    """The processes of this computer, or the workers of a Dask scheduler."""
    require_name("backend", backend, ("local", "dask"))
    if backend == "local":
        require(address is None, f'an address is for backend="dask", got {address!r} with backend="local"')
        return LocalWorkers(workers)
    from hae_lab.study.cluster import DaskWorkers

    return DaskWorkers(address)


def unfinished(name: str, runs: Sequence[Run], store: Store) -> list[str]:
    """A line for each failed run, with the last line of its traceback, and one for those that are still running."""
    rows = store.select(run.key for run in runs)
    status = {run: rows[run.key]["status"] for run in runs if run.key in rows}
    failed = [run for run in status if status[run] == "failed"]
    lines = [f"{name}: {len(failed)} of {len(runs)} runs failed"] if failed else []
    lines += [f"  {run}: {rows[run.key]['traceback'].strip().splitlines()[-1]}" for run in failed]
    running = sum(found == "running" for found in status.values())
    held = [f"{name}: {running} of {len(runs)} runs belong to another driver that is alive"] if running else []
    return lines + held


class Workers(Protocol):
    """Where runs happen: a context manager that ends with whatever still runs if an exception ends it."""

    shared_disk: bool  # whether checkpoints can lie beside the store

    @property
    def slots(self) -> int: ...  # runs at a time

    def submit(self, run: Run, folder: str | None) -> Future: ...

    def restart(self) -> None: ...  # after a `BrokenExecutor`


class LocalWorkers:
    """Processes of this computer, through joblib's loky. They end when the driver does."""

    shared_disk = True

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._executor = self._start()

    def __str__(self) -> str:
        return f"{self.slots} processes of this computer"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: type[BaseException] | None, *rest: object) -> None:
        self._executor.shutdown(kill_workers=exception is not None)

    def _start(self) -> Executor:
        from joblib.externals.loky import ProcessPoolExecutor

        return ProcessPoolExecutor(self.slots, initializer=_end_with, initargs=(os.getpid(),))

    def submit(self, run: Run, folder: str | None) -> Future:
        return self._executor.submit(attempt, run.trial, run.experiment, run.key, folder)

    def restart(self) -> None:
        self._executor.shutdown(kill_workers=True)
        self._executor = self._start()


def _end_with(driver: int) -> None:
    """End this process when the driver is gone: the next driver will take up its run."""

    def watch() -> None:
        while os.getppid() == driver and psutil.pid_exists(driver):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Driver:
    """Runs to do, runs in flight, and how often the worker of each has died."""

    workers: Workers
    store: Store
    retry_failed: bool = False
    waiting: deque[Run] = field(default_factory=deque)
    suspects: deque[Run] = field(default_factory=deque)
    flying: dict[Future, Run] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    claimed: set[str] = field(default_factory=set)

    def drive(self, runs: Iterable[Run], bar: tqdm) -> None:
        """Bring every run to an end, except those that somebody else holds; Ctrl-C gives back what is unfinished."""
        self.waiting.extend(runs)
        try:
            while self.waiting or self.suspects or self.flying:
                broken = not self._fill(bar)
                done, _ = wait(self.flying, BEAT_SECONDS, FIRST_COMPLETED)
                self.store.beat()
                if broken or any(map(_is_broken, done)):
                    done, _ = wait(self.flying)  # one dead process takes the whole pool with it
                    self.workers.restart()
                for future in done:
                    self._settle(self.flying.pop(future), future, bar)
        finally:
            self.store.release(self.claimed)

    def _fill(self, bar: tqdm) -> bool:
        """Submit what there is room for; False if the workers are broken."""
        while (self.waiting and len(self.flying) < self.workers.slots) or (self.suspects and not self.flying):
            queue = self.waiting or self.suspects
            run = queue.popleft()
            if self.store.claim(run, self.retry_failed):
                bar.update()
                continue
            self.claimed.add(run.key)
            folder = str(self.store.folder(run.key)) if self.workers.shared_disk else None
            try:
                self.flying[self.workers.submit(run, folder)] = run
            except BrokenExecutor:
                queue.appendleft(run)
                return False
        return True

    def _settle(self, run: Run, future: Future, bar: tqdm) -> None:
        """Keep the outcome of a run, or send it again if its worker died."""
        require(not future.cancelled(), "the scheduler went away; the same command continues the study")
        error = future.exception()
        if isinstance(error, BrokenExecutor | KeyboardInterrupt):
            self.deaths[run.key] += 1
            if self.deaths[run.key] <= SHARED_DEATHS:
                (self.waiting if self.deaths[run.key] < SHARED_DEATHS else self.suspects).append(run)
                return
            error = (
                f"its worker process died {self.deaths[run.key]} times, the last time with no other run beside it: "
                "out of memory, or ended from outside"
            )
        outcome = future.result() if error is None else _lost(str(error))
        self.store.finish(run.key, outcome)
        self.claimed.discard(run.key)
        if outcome["status"] == "ok":
            shutil.rmtree(self.store.folder(run.key), ignore_errors=True)
        bar.update()


def _is_broken(future: Future) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def _lost(reason: str) -> dict[str, Any]:
    """The outcome of a run whose worker could not return one."""
    return {"status": "failed", "metrics": None, "traceback": reason, "seconds": None, "host": None, "versions": None}
