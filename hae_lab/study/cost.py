"""What a study will take before it starts: runs, and minutes by finished runs or by a few timed training steps."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hae_lab.checks import require_whole
from hae_lab.profilers.formulas import macs_formulas
from hae_lab.study.store import Run, Store, is_done
from hae_lab.study.task import TRIAL, one_thread

if TYPE_CHECKING:
    from hae_lab.diffusion.experiment import Experiment

MOST_TIMED = 6  # experiments; the others are interpolated by their MACs
TIMED_STEPS = 4
TIMED_IMAGES = 32
EVALUATION_PASSES = 4  # of a held-out image through the model, one a quarter of the chain


@dataclass(frozen=True)
class Cost:
    """How many runs a study has, where they stand, and how many minutes the rest takes (None: unknown)."""

    name: str
    runs: int
    ok: int
    failed: int  # and not to be repeated
    todo: int
    workers: int
    minutes: float | None
    basis: str

    def __str__(self) -> str:
        known = [f"{getattr(self, status)} {status}" for status in ("ok", "failed") if getattr(self, status)]
        text = f"{self.name}: {self.runs} runs, {', '.join([*known, f'{self.todo} to do'])}"
        if not self.todo:
            return text
        takes = "for an unknown time" if self.minutes is None else f"about {self.minutes:.2g} minutes"
        return f"{text}: {takes} on {self.workers} workers ({self.basis})"


def cost(name: str, runs: Sequence[Run], store: Store, workers: int, retry_failed: bool = False) -> Cost:
    """What the runs will take on `workers`; times training steps of cells of which no run has finished yet."""
    workers = require_whole("workers", workers, 1)
    rows = store.select(run.key for run in runs)
    todo = [run for run in runs if not is_done(rows.get(run.key), retry_failed)]
    ended = Counter(rows[run.key]["status"] for run in runs if is_done(rows.get(run.key), retry_failed))
    seconds, basis = _seconds(todo, _finished_seconds(runs, rows))
    minutes = None if seconds is None else max(sum(seconds) / workers, max(seconds, default=0)) / 60
    return Cost(name, len(runs), ended["ok"], ended["failed"], len(todo), workers, minutes, basis)


def _finished_seconds(runs: Sequence[Run], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median seconds of the finished runs of each cell, of those that were not adopted from a table."""
    found: dict[str, list[float]] = {}
    for run in runs:
        row = rows.get(run.key)
        if row is not None and row["status"] == "ok" and row["seconds"] is not None:
            found.setdefault(str(run.cell), []).append(row["seconds"])
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
        held_out = len(cast(Sized, load_data(each.data, each.config.image_size)[1]))
        seconds.append(each.recipe.steps * step[place] + passes(each, held_out) * image[place])
    return seconds


def passes(experiment: "Experiment", held_out: int) -> int:
    """How many images go through the model beside the training: at its evaluations, as samples, in anomaly maps."""
    from hae_lab.diffusion import brain_lesions, lesions
    from hae_lab.diffusion.metrics import METRICS, OnBrains, OnLesions

    evaluations = -(-experiment.recipe.steps // experiment.evaluate_every)  # the last step always has one
    found = evaluations * held_out * EVALUATION_PASSES + experiment.samples * experiment.sampling_steps
    measures = [getattr(METRICS.find(name), "measure", None) for name in experiment.metrics]
    tasks = {measure.task for measure in measures if isinstance(measure, OnLesions)}  # AUROC and Dice share their maps
    on_brains = any(isinstance(measure, OnBrains) for measure in measures)
    return found + len(tasks) * lesions.PASSES + on_brains * brain_lesions.PASSES


@lru_cache(maxsize=64)  # `reproduce --full` asks for all studies, and then each study for itself
def _time(experiment: "Experiment") -> tuple[float, float]:
    """Seconds of a training step, and of one held-out image on its way through the model."""
    from torch.utils.data import Subset

    from hae_lab.diffusion.datasets import load_data
    from hae_lab.diffusion.quality import denoising_loss
    from hae_lab.diffusion.training import train

    dataset, held_out = load_data(experiment.data, experiment.config.image_size)
    marks: list[float] = []

    def mark(model: Any) -> dict[str, float]:
        marks.append(time.perf_counter())
        return {}

    trained = train(
        experiment.config,
        dataset,
        replace(experiment.recipe, steps=TIMED_STEPS),
        evaluate=mark,
        evaluate_every=1,
        device="cpu",
    )
    few = Subset(held_out, range(min(TIMED_IMAGES, len(cast(Sized, held_out)))))
    started = time.perf_counter()
    denoising_loss(trained.model, few, experiment.recipe)
    return float(median(np.diff(marks))), (time.perf_counter() - started) / (len(few) * EVALUATION_PASSES)
