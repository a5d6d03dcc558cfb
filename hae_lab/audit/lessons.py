"""The trained models of the lessons: what they are, how they are made, where they lie."""

from pathlib import Path

import pandas as pd
from loky import ProcessPoolExecutor

from hae_lab.audit import clone
from hae_lab.checks import require, require_name
from hae_lab.diffusion.experiment import Experiment, run
from hae_lab.diffusion.training import WEIGHTS, Recipe
from hae_lab.models import HAEUNet, checkpoint_notes, load_checkpoint, save_checkpoint
from hae_lab.presets import DOCUMENT, config
from hae_lab.study.cost import estimated_seconds
from hae_lab.study.task import one_thread

LESSON_VARIANTS = DOCUMENT
# two classes, healthy and lesion; 32 pixels, so that the maps are large enough for a mask to matter
PRESET, CLASSES = "lesson32", 2
RECIPE = Recipe(steps=1500, batch_size=16, warmup_steps=100, decay="cosine")


def lesson(variant: str) -> Experiment:
    """The run that makes a variant's lesson model. Raises `HAELabError` for a variant that has none."""
    require_name("lesson model", variant, LESSON_VARIANTS)
    model_config = config(variant, PRESET, num_classes=CLASSES)
    return Experiment(config=model_config, recipe=RECIPE, data="lesions", evaluate_every=300)


def lesson_model(variant: str) -> HAEUNet:
    """The committed model of a variant, in eval mode: trained on phantoms of 32 pixels, labels 0 healthy and 1 lesion.

    Its weights are kept in half precision. Raises `HAELabError` if the file is missing.
    """
    path = checkpoint(folder(), variant)
    require(path.exists(), f"no lesson model at {str(path)!r}: `hae-lab reproduce --full` makes it")
    return load_checkpoint(path, lesson(variant).config)


def folder() -> Path:
    """Where the committed models lie."""
    return clone.root() / "data" / "checkpoints"


def checkpoint(folder: Path, variant: str) -> Path:
    return folder / f"{PRESET}_{variant}.safetensors"


def train_lessons(folder: Path, out: Path, workers: int = 2) -> pd.DataFrame:
    """Train the lesson models in `folder`, or continue there, and write their weights in half precision to `out`.

    Returns a row a point of each learning curve: variant, step, loss.
    """
    with ProcessPoolExecutor(workers) as pool:
        curves = list(pool.map(_train, LESSON_VARIANTS, [folder / variant for variant in LESSON_VARIANTS]))
    for variant in LESSON_VARIANTS:
        model = load_checkpoint(folder / variant / WEIGHTS, lesson(variant).config)
        save_checkpoint(model.half(), checkpoint(out, variant), checkpoint_notes(folder / variant / WEIGHTS))
    return pd.DataFrame([row for rows in curves for row in rows])


def lessons_minutes(workers: int = 2) -> float:
    """How long `train_lessons` takes from nothing, from a few timed training steps."""
    seconds = estimated_seconds([lesson(variant) for variant in LESSON_VARIANTS])
    return max(sum(seconds) / workers, *seconds) / 60


def _train(variant: str, folder: Path) -> list[dict[str, float]]:
    with one_thread():
        curve = run(lesson(variant), folder)["curve"]
    return [{"variant": variant, "step": step, "loss": loss} for step, loss in curve]
