"""The trained models of the lessons: what they are, how they are made, where they lie."""

from itertools import product
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

LESSON_VARIANTS, PRESET = DOCUMENT, "lesson32"
# what models are trained on, and what their configs have beside the preset: heads, healthy or with a lesion, of 32
# pixels, so that the maps are large enough for a mask to matter; healthy slices of the average brain
LESSONS: dict[str, dict[str, int]] = {"lesions": {"num_classes": 2}, "mri": {"image_size": 64}}
EVALUATE_EVERY = {"lesions": 300, "mri": 750}  # at 64 pixels an evaluation takes as long as 250 steps
RECIPE = Recipe(steps=1500, batch_size=16, warmup_steps=100, decay="cosine")


def lesson(variant: str, data: str = "lesions") -> Experiment:
    """The run that makes a variant's lesson model. Raises `HAELabError` for a variant or data without one."""
    require_name("lesson model", variant, LESSON_VARIANTS)
    require_name("data of a lesson model", data, LESSONS)
    model_config = config(variant, PRESET, **LESSONS[data])
    return Experiment(config=model_config, recipe=RECIPE, data=data, evaluate_every=EVALUATE_EVERY[data])


def lesson_model(variant: str, data: str = "lesions") -> HAEUNet:
    """The committed model of a variant, in eval mode: trained on phantoms of 32 pixels, labels 0 healthy and 1 lesion.

    `data` "mri": on healthy slices of one average brain, augmented, of 64 pixels, without labels. The weights are kept
    in half precision. Raises `HAELabError` if the file is missing.
    """
    path = checkpoint(folder(), variant, data)
    require(path.exists(), f"no lesson model at {str(path)!r}: `hae-lab reproduce --full` makes it")
    return load_checkpoint(path, lesson(variant, data).config)


def folder() -> Path:
    """Where the committed models lie."""
    return clone.root() / "data" / "checkpoints"


def checkpoint(folder: Path, variant: str, data: str = "lesions") -> Path:
    return folder / f"lesson{lesson(variant, data).config.image_size}_{variant}.safetensors"


def train_lessons(folder: Path, out: Path, workers: int = 2) -> pd.DataFrame:
    """Train the lesson models in `folder`, or continue there, and write their weights in half precision to `out`.

    Returns a row a point of each learning curve: data, variant, step, loss.
    """
    models = [(variant, data, folder / data / variant) for data, variant in product(LESSONS, LESSON_VARIANTS)]
    with ProcessPoolExecutor(workers) as pool:
        curves = list(pool.map(_train, *zip(*models, strict=True)))
    for variant, data, place in models:
        model = load_checkpoint(place / WEIGHTS, lesson(variant, data).config)
        save_checkpoint(model.half(), checkpoint(out, variant, data), checkpoint_notes(place / WEIGHTS))
    return pd.DataFrame([row for rows in curves for row in rows])


def lessons_minutes(workers: int = 2) -> float:
    """How long `train_lessons` takes from nothing, from a few timed training steps.

    Raises `HAELabError` where data are not to be had: for slices of the brain nilearn is needed.
    """
    seconds = estimated_seconds([lesson(variant, data) for data, variant in product(LESSONS, LESSON_VARIANTS)])
    return max(sum(seconds) / workers, *seconds) / 60


def _train(variant: str, data: str, folder: Path) -> list[dict[str, str | float]]:
    with one_thread():
        curve = run(lesson(variant, data), folder)["curve"]
    return [{"data": data, "variant": variant, "step": step, "loss": loss} for step, loss in curve]
