"""What a worker does: one run, in a process of its own. Importable, so that every backend can send it by name."""

import getpass
import platform
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hae_lab.checks import require, require_number, require_whole
from hae_lab.files import atomic_path
from hae_lab.parts import Registry, adopted

TRIAL = "hae_lab.diffusion.experiment:run"
LIBRARIES = ("torch", "numpy", "diffusers", "accelerate", "hae-lab")
_ONE_RUN = threading.Lock()  # training uses torch's global random state, so the threads of a process take turns

Trial = Callable[[Any, Path], dict[str, Any]]  # what runs an experiment in a folder, and returns metrics
Outcome = dict[str, Any]  # of a run: what `attempt` returns
TRIALS: Registry[Trial] = Registry("trial", {TRIAL: TRIAL})


def attempt(trial: str, experiment: str, key: str, folder: str | None = None, parts: bytes | None = None) -> Outcome:
    """Run one experiment, and return what to keep of it whatever happens.

    Keys: status ("ok" or "failed"), metrics, traceback, seconds, host, versions. Without a `folder` its checkpoints
    lie in the temporary folder of this computer. `parts` are what the driver shipped: the users' parts of the run.
    """
    with _ONE_RUN, one_thread():
        started = time.perf_counter()
        metrics, trace = None, None
        try:
            place = Path(folder) if folder else _scratch(key)
            import hae_lab.diffusion.experiment  # noqa: F401 (and with it every registry)

            with adopted(parts) if parts else nullcontext():
                metrics = _run_trial(trial, experiment, place)
            if not folder:
                shutil.rmtree(place, ignore_errors=True)
        except (Exception, SystemExit):  # whatever it is, the others go on, and the store names it
            trace = traceback.format_exc()
        seconds = time.perf_counter() - started
    return {
        "status": "failed" if trace else "ok",
        "metrics": metrics,
        "traceback": trace,
        "seconds": seconds,
        "host": socket.gethostname(),
        "versions": versions(),
    }


def _run_trial(trial: str, experiment: str, folder: Path) -> dict[str, Any]:
    from hae_lab.diffusion.experiment import Experiment

    # a folder that cannot be written shows now, not at the first checkpoint
    with atomic_path(folder / "experiment.json") as temporary:
        temporary.write_text(experiment + "\n", encoding="utf-8")
    metrics = TRIALS.find(trial)(Experiment.from_json(experiment), folder)
    return checked_metrics(trial, metrics)  # what the store could not keep fails here


def checked_metrics(trial: str, metrics: Any) -> dict[str, Any]:
    """What a trial returned, as plain numbers by name, and under "curve" a list of [step, loss].

    Raises `HAELabError` for anything else, and for a name that is a column of a study.
    """
    from hae_lab.diffusion.experiment import require_new_column

    named = isinstance(metrics, dict) and all(isinstance(name, str) and name for name in metrics)
    require(named, f"a trial returns a dictionary of metrics, {trial} returned {metrics!r}")
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        require_new_column(name, name)
        found[name] = _points(trial, value) if name == "curve" else require_number(f"metric {name!r} of {trial}", value)
    return found


def _points(trial: str, curve: Any) -> list[list[float]]:
    pairs = isinstance(curve, list | tuple) and all(
        isinstance(point, list | tuple) and len(point) == 2 for point in curve
    )
    require(pairs, f"the curve of {trial} is a list of [step, loss], got {curve!r}")
    return [[require_whole("a step", step, 0), require_number("a loss", loss)] for step, loss in curve]


def _scratch(key: str) -> Path:
    """The same on every attempt, so that a run continues where a killed worker of this computer left it."""
    return Path(tempfile.gettempdir()) / f"hae_lab-{getpass.getuser()}" / key


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for arithmetic: the workers fill the cores already."""
    from hae_lab.diffusion.process import threads

    with threads(1):
        yield


def versions() -> dict[str, str]:
    """Python's and the libraries' versions here; "missing" where there is none."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
