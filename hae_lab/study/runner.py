"""The driver: hands runs to workers, keeps what they return, and survives the death of any of them."""

import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import psutil
from tqdm.auto import tqdm

from hae_lab.checks import require, require_name, require_whole
from hae_lab.parts import Parts, ship
from hae_lab.study.cost import cost
from hae_lab.study.store import Run, Store, is_done
from hae_lab.study.task import Outcome, attempt

SHARED_DEATHS = 2  # of its worker, beside other runs, any of which may be the cause: then a run has to go alone
MOST_WORKERS = max(16, 2 * (os.cpu_count() or 1))  # processes of this computer: more would only wait for each other
LONE_DEATHS = 2  # of its worker, alone: then the blame is its own; once may be an accident from outside


def bring_to_end(
    name: str,
    runs: Sequence[Run],
    store: Store,
    workers: int = 2,
    backend: str = "local",
    address: str | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> None:
    """Run what the store lacks, and print what failed. The caller holds the store. See `Study.run`."""
    runs = sorted(runs, key=lambda run: run.seed)  # an unfinished study has as many runs of each cell
    workers = checked_workers(workers, backend, address)
    known = store.select(run.key for run in runs)
    todo = [run for run in runs if not is_done(known.get(run.key), retry_failed)]
    if todo:
        shipped = ship(all_parts(todo))
        with open_workers(backend, min(workers, len(todo)), address) as opened:
            if progress:
                print(opened, cost(name, runs, store, opened.slots, retry_failed), sep="\n")
            with tqdm(total=len(todo), desc=name, unit="run", disable=not progress) as bar:
                Driver(opened, store, shipped).drive(todo, bar)
    for line in failures(name, runs, store):
        print(line)


def all_parts(runs: Iterable[Run]) -> Parts:
    """The parts of all runs, kind -> name -> part."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for kind, named in run.parts.items():
            found.setdefault(kind, {}).update(named)
    return found


def checked_workers(workers: int, backend: str = "local", address: str | None = None) -> int:
    """The number of workers. Raises `HAELabError` for one that no computer runs, and an unfit backend or address."""
    require_name("backend", backend, ("local", "dask"))
    require(address is None or backend == "dask", f'an address is for backend="dask", got {address!r} with "local"')
    if backend == "dask":
        from hae_lab.study.cluster import require_address

        require_address(address)
    return require_whole("workers", workers, 1, most=MOST_WORKERS)


def open_workers(backend: str, workers: int, address: str | None) -> "Workers":
    """The processes of this computer, or the workers of a Dask scheduler."""
    if backend == "local":
        return LocalWorkers(workers)
    from hae_lab.study.cluster import DaskWorkers

    return DaskWorkers(address)


def failures(name: str, runs: Sequence[Run], store: Store) -> list[str]:
    """How many runs failed, and a line for each with the last line of its traceback."""
    rows = store.select(run.key for run in runs)
    failed = [run for run in runs if run.key in rows and rows[run.key]["status"] == "failed"]
    lines = [f"{name}: {len(failed)} of {len(runs)} runs failed"] if failed else []
    return lines + [f"  {run}: {rows[run.key]['traceback'].strip().splitlines()[-1]}" for run in failed]


class Workers(Protocol):
    """Where runs happen: a context manager that ends with whatever still runs if an exception ends it."""

    @property
    def shared_disk(self) -> bool: ...  # whether checkpoints can lie beside the store

    @property
    def slots(self) -> int: ...  # runs at a time

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: Any) -> None: ...

    def submit(self, run: Run, folder: str | None, parts: bytes) -> Future[Outcome]: ...

    def restart(self) -> None: ...  # after a `BrokenExecutor`


class LocalWorkers:
    """Processes of this computer, through loky. They end when the driver does."""

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

    def _start(self) -> Any:
        from loky import ProcessPoolExecutor

        return ProcessPoolExecutor(self.slots, initializer=_end_with, initargs=(os.getpid(),))

    def submit(self, run: Run, folder: str | None, parts: bytes) -> Future[Outcome]:
        return self._executor.submit(attempt, run.trial, run.experiment, run.key, folder, parts)

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
class Flight:
    """A run at a worker: since when, and whether with no other beside it because it is suspected."""

    run: Run
    started: float
    alone: bool


@dataclass
class Driver:
    """Runs to do, runs in flight, and how often the worker of each has died.

    One dead process breaks the whole pool, and takes the runs beside it along. So a run whose worker died beside
    others is sent again, and the second time it waits until it can go alone; only what happens then is its own.
    """

    workers: Workers
    store: Store
    shipped: bytes = b""
    waiting: deque[Run] = field(default_factory=deque)
    suspects: deque[Run] = field(default_factory=deque)
    flying: dict[Future[Outcome], Flight] = field(default_factory=dict)
    shared_deaths: Counter[str] = field(default_factory=Counter)
    lone_deaths: Counter[str] = field(default_factory=Counter)

    def drive(self, runs: Iterable[Run], bar: "tqdm[Any]") -> None:
        """Bring every run to an end."""
        self.waiting.extend(runs)
        while self.waiting or self.suspects or self.flying:
            broken = not self._fill()
            done, _ = wait(self.flying, return_when=FIRST_COMPLETED)
            if broken or any(map(_is_broken, done)):
                done, _ = wait(self.flying)  # one dead process takes the whole pool with it
                self.workers.restart()
            for future in [each for each in self.flying if each in done]:  # in the order in which they were sent
                self._settle(self.flying.pop(future), future, bar)

    def _fill(self) -> bool:
        """Submit what there is room for; False if the workers are broken."""
        while (self.waiting and len(self.flying) < self.workers.slots) or (self.suspects and not self.flying):
            alone = not self.waiting
            queue = self.suspects if alone else self.waiting
            run = queue.popleft()
            folder = str(self.store.folder(run.key)) if self.workers.shared_disk else None
            try:
                future = self.workers.submit(run, folder, self.shipped)
            except BrokenExecutor:
                queue.appendleft(run)
                return False
            self.flying[future] = Flight(run, time.time(), alone)
        return True

    def _settle(self, flight: Flight, future: Future[Outcome], bar: "tqdm[Any]") -> None:
        """Keep the outcome of a run, or send it again if its worker died."""
        require(not future.cancelled(), "the scheduler went away; the same command continues the study")
        run, error = flight.run, future.exception()
        if isinstance(error, BrokenExecutor | KeyboardInterrupt):
            if self._may_try_again(flight):
                return
            outcome = _lost(
                f"its worker process died {self.lone_deaths[run.key]} times with no other run beside it: out of "
                "memory, or ended from outside"
            )
        else:
            outcome = future.result() if error is None else _lost(str(error))
        self.store.finish(run, outcome, flight.started)
        if outcome["status"] == "ok":
            shutil.rmtree(self.store.folder(run.key), ignore_errors=True)
        bar.update()

    def _may_try_again(self, flight: Flight) -> bool:
        """Queue a run whose worker died, unless the blame is its own."""
        key = flight.run.key
        deaths = self.lone_deaths if flight.alone else self.shared_deaths
        deaths[key] += 1
        if self.lone_deaths[key] >= LONE_DEATHS:
            return False
        (self.waiting if self.shared_deaths[key] < SHARED_DEATHS else self.suspects).append(flight.run)
        return True


def _is_broken(future: Future[Outcome]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def _lost(reason: str) -> Outcome:
    """The outcome of a run whose worker could not return one."""
    return {"status": "failed", "metrics": None, "traceback": reason, "seconds": None, "host": None, "versions": None}
