"""Trials that take no training, for the tests of studies: workers import them by name."""

import os
import signal
import time
from pathlib import Path

from hae_lab.diffusion.experiment import Experiment

MARKS = "STUDY_MARKS"  # names a folder in which each finished trial leaves a file


def quick(experiment: Experiment, folder: Path) -> dict:
    """Numbers that depend on the experiment alone."""
    loss = experiment.config.mlp_ratio / 7 + experiment.seed / 3
    _mark(experiment)
    return {"loss": loss, "loss_q1": 2 * loss, "curve": [[1, 2 * loss], [2, loss]]}


def slow(experiment: Experiment, folder: Path) -> dict:
    time.sleep(0.7)
    return quick(experiment, folder)


def bulky(experiment: Experiment, folder: Path) -> dict:
    """So many numbers that a few runs fill a small disk."""
    return quick(experiment, folder) | {"curve": [[step, 1 / step] for step in range(1, 3001)]}


def troubled(experiment: Experiment, folder: Path) -> dict:
    """Seed 1 raises, seed 2 kills its worker every time, seed 3 the first time; the others are well."""
    if experiment.seed == 1:
        raise ValueError("seed 1 will not do")
    attempts = len(list(folder.glob("attempt-*")))
    (folder / f"attempt-{attempts}").touch()
    if experiment.seed == 2 or (experiment.seed == 3 and attempts == 0):
        time.sleep(0.2)  # beside another run
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(experiment, folder)


def images(size: int):
    """Train and held-out data of a user."""
    from hae_lab.diffusion.data import phantoms

    return phantoms(40, size, seed=9), phantoms(8, size, seed=9, split="held-out")


def _mark(experiment: Experiment) -> None:
    if MARKS in os.environ:
        name = f"{experiment.config.mlp_ratio}-{experiment.seed}-{os.getpid()}-{time.time_ns()}"
        (Path(os.environ[MARKS]) / name).touch()
