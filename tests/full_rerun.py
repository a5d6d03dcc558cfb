"""`reproduce --full` on small studies and a small lesson model, in the current folder: a process to be killed."""

from pathlib import Path

import pandas as pd

from hae_lab import tables
from hae_lab.audit import clone, rerun
from hae_lab.diffusion.experiment import Experiment, run
from hae_lab.diffusion.training import WEIGHTS, Recipe
from hae_lab.presets import config

LESSON = Experiment(
    config=config("v2", "lesson16"),
    recipe=Recipe(steps=250, batch_size=4, warmup_steps=5),  # the state is kept every 100
    data="study_trials:images",
    evaluate_every=125,
)
WHERE = Path("runs")


def lesson(folder: Path, out: Path, workers: int) -> pd.DataFrame:
    """As `lessons.train_lessons`, of one model, in this process."""
    curve = run(LESSON, folder / "v2")["curve"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "v2.safetensors").write_bytes((folder / "v2" / WEIGHTS).read_bytes())
    return pd.DataFrame([{"variant": "v2", "step": step, "loss": loss} for step, loss in curve])


if __name__ == "__main__":
    clone.root = Path.cwd
    rerun.lessons_minutes = lambda workers: 1.0
    rerun.train_lessons = lesson
    rerun.SLOW_TABLES = {"slow": lambda: tables.read(Path("data/lessons.csv")).tail(1)}
    for line in rerun.rerun(Path(), WHERE / "store.sqlite"):
        print(line)
