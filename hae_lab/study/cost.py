"""What a study will take before it starts: runs, and minutes by finished runs or by a few timed training steps."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from hae_lab.profilers.formulas import macs_formulas
from hae_lab.study.store import Run, Store
from hae_lab.study.task import TRIAL, one_thread

if TYPE_CHECKING:
    from hae_lab.diffusion.experiment import Experiment

MOST_TIMED = 6  # experiments; the others are interpolated by their MACs
TIMED_STEPS = 4
TIMED_IMAGES = 32
EVALUATION_PASSES = 4  # of a held-out image through the model, one a quarter of the chain
ANOMALY_PASSES = 5 * 4  # of an image with a lesion: steps and noises


@dataclass(frozen=True)
class Cost:
    """How many runs a study has, where they stand, and how many minutes the rest takes (None: unknown)."""

    name: str
    runs: int
    ok: int
    failed: int  # and not to be repeated
    running: int  # of another driver
    todo: int
    workers: int
    minutes: float | None
    basis: str

    def __str__(self) -> str:
        known = [f"{getattr(self, status)} {status}" for status in ("ok", "failed", "running") if getattr(self, status)]
        text = f"{self.name}: {self.runs} runs, {', '.join([*known, f'{self.todo} to do'])}"
        if not self.todo:
            return text
        takes = "for an unknown time" if self.minutes is None else f"about {self.minutes:.2g} minutes"
        return f"{text}: {takes} on {self.workers} workers ({self.basis})"


def cost(name: str, runs: Sequence[Run], store: Store, workers: int, retry_failed: bool = False) -> Cost:
    """What the runs will take on `workers`; times training steps of cells of which no run has finished yet."""
    rows = store.select(run.key for run in runs)
    held = {run: store.held(rows.get(run.key), retry_failed) for run in runs}
    counts = {status: list(held.values()).count(status) for status in ("ok", "failed", "running")}
    todo = [run for run in runs if held[run] is None]
    seconds, basis = _seconds(todo, _finished_seconds(runs, rows))
    minutes = None if seconds is None else max(sum(seconds) / workers, max(seconds, default=0)) / 60
    return Cost(name, len(runs), **counts, todo=len(todo), workers=workers, minutes=minutes, basis=basis)


def _finished_seconds(runs: Sequence[Run], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds of the finished runs of each cell."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run.key in rows and rows[run.key]["status"] == "ok":
            found.setdefault(str(run.cell), []).append(rows[run.key]["seconds"])
    return {cell: median(seconds) for cell, seconds in found.items()}


def _seconds(todo: Sequence[Run], finished: Mapping[str, float]) -> tuple[list[float] | None, str]:
    """Seconds of each run, None if there is nothing to go by, and in words what they come from."""
    fresh = {str(run.cell): run.cell.experiment for run in todo if str(run.cell) not in finished}
    if fresh and any(run.trial != TRIAL for run in todo):
        return None, "no run of some cells has finished"
    try:
        known = dict(finished) | dict(zip(fresh, estimated_seconds(list(fresh.values())), strict=True))
    except Exception as error:  # the run that cannot train will say so itself, beside those that can
        return None, f"no training step to time: {error}"
    return [known[str(run.cell)] for run in todo], "by timed steps" if fresh else "by finished runs"


def estimated_seconds(experiments: Sequence["Experiment"]) -> list[float]:
    """Seconds that each experiment will take on one thread here, from a few training steps of some of them."""
    from hae_lab.diffusion.datasets import load_data
    from hae_lab.diffusion.experiment import LESIONS

    if not experiments:
        return []
    work = [macs_formulas(each.config)[0] * each.recipe.batch_size for each in experiments]
    order = np.argsort(work, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, MOST_TIMED).round().astype(int))]
    with one_thread():
        timed = np.array([_time(experiments[place]) for place in chosen])
    step, image = (np.interp(work, np.take(work, chosen), column) for column in timed.T)
    seconds = []
    for place, each in enumerate(experiments):
        held_out = len(load_data(each.data, each.config.image_size)[1])
        evaluations = max(1, each.recipe.steps // each.evaluate_every)
        passes = evaluations * held_out * EVALUATION_PASSES + each.samples * each.sampling_steps
        passes += LESIONS * ANOMALY_PASSES * bool(each.samples and each.data == "phantoms")
        seconds.append(each.recipe.steps * step[place] + passes * image[place])
    return seconds


@lru_cache(maxsize=64)  # `reproduce --full` asks for all studies, and then each study for itself
def _time(experiment: "Experiment") -> tuple[float, float]:
    """Seconds of a training step, and of one held-out image on its way through the model."""
    from torch.utils.data import Subset

    from hae_lab.diffusion.datasets import load_data
    from hae_lab.diffusion.quality import denoising_loss
    from hae_lab.diffusion.training import train

    dataset, held_out = load_data(experiment.data, experiment.config.image_size)
    marks = []
    trained = train(
        experiment.config,
        dataset,
        replace(experiment.recipe, steps=TIMED_STEPS),
        evaluate=lambda model: marks.append(time.perf_counter()) or {},
        evaluate_every=1,
        device="cpu",
    )
    few = Subset(held_out, range(min(TIMED_IMAGES, len(held_out))))
    started = time.perf_counter()
    denoising_loss(trained.model, few, experiment.recipe)
    passes = len(few) * EVALUATION_PASSES
    return median(np.diff(marks)), (time.perf_counter() - started) / passes
