"""Lesions with known truth, drawn into healthy heads, and how well a model that knows healthy heads finds them.

A task says what a lesion looks like: brighter or darker tissue, the tissue of another head, or the head's own pixels
in another order. All have the same heads and masks, so that tasks differ in the looks of the lesion alone. What is
found is scored inside the head: outside there is nothing to mistake, and the empty rest flatters every detector.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hae_lab.checks import require, require_name
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.phantoms import FLUID, LESION
from hae_lab.diffusion.quality import anomaly_maps, detection
from hae_lab.diffusion.sampling import STEPS
from hae_lab.diffusion.training import Recipe, Trained

AIR = -1.0
GLOW = 2 * sum(LESION["glow"]) / 2 - 1  # of a bright lesion, in the images' unit
DARK = 2 * FLUID - 1
SHARE = 0.5  # how far a lesion's grey is on its way to these

COUNT = 128  # images that a study scores a model on
DRAWS, START = 2, 200
PASSES = COUNT * DRAWS * START * STEPS // Recipe.timesteps  # of images through the model, a task
# the map that suits each task, of those a study can measure; bright lesions are found by their brightness alone
SIGNS = {"dark": "dark", "foreign": "absolute", "shuffled": "absolute"}

Draw = Callable[[Tensor, Tensor, np.random.Generator], Tensor]  # (healthy images, masks, generator) -> images


def inside_head(images: Tensor) -> Tensor:
    """Where the head is: (N, C, H, W) -> (N, 1, H, W) bool, the pixels that are not air."""
    return (images > AIR).any(1, keepdim=True)


# tasks


def bright(images: Tensor, masks: Tensor, generator: np.random.Generator) -> Tensor:
    return torch.where(masks, images + SHARE * (GLOW - images).clamp_min(0), images)


def dark(images: Tensor, masks: Tensor, generator: np.random.Generator) -> Tensor:
    return torch.where(masks, images + SHARE * (DARK - images), images)


def foreign(images: Tensor, masks: Tensor, generator: np.random.Generator) -> Tensor:
    """The same place of another head: of the following images the first whose head reaches as far as the mask."""
    count = len(images)
    missed = masks.flatten(1).float() @ (~inside_head(images)).flatten(1).float().T  # (N, N) pixels beyond a head
    following = (torch.arange(count)[:, None] + torch.arange(1, count)) % count  # (N, N - 1)
    covers = missed.gather(1, following) == 0
    require(bool(covers.any(1).all()), f"none of {count} heads reaches as far as a mask: take more images")
    return torch.where(masks, images[following[range(count), covers.int().argmax(1)]], images)


def shuffled(images: Tensor, masks: Tensor, generator: np.random.Generator) -> Tensor:
    """The same greys in another order."""
    found = images.clone()
    for image, mask in zip(found, masks[:, 0], strict=True):
        pixels = image[:, mask]  # (C, pixels)
        image[:, mask] = pixels[:, generator.permutation(pixels.shape[1])]
    return found


TASKS: dict[str, Draw] = {draw.__name__: draw for draw in (bright, dark, foreign, shuffled)}


def lesion_task(task: str, count: int, size: int, *, seed: int = 0, split: str = "held-out") -> ImageSet:
    """Phantoms with a lesion each: (count, 1, size, size), with their masks. One seed and split is one set of heads.

    Raises `HAELabError` for an unknown task.
    """
    require_name("lesion task", task, TASKS)
    healthy = phantoms(count, size, seed, split=split)
    masks = phantoms(count, size, seed, split=split, lesions=True).masks
    assert masks is not None
    images = TASKS[task](healthy.images, masks, np.random.default_rng((seed, list(TASKS).index(task))))
    return ImageSet(images=images, masks=masks, key=f"{healthy.key} task={task}")


# what a study measures


@lru_cache(maxsize=len(SIGNS))  # AUROC and Dice are of the same maps
def lesion_scores(trained: Trained, held_out: Dataset, task: str) -> dict[str, float]:
    """The "auroc" and "dice", inside the head, of a model trained on healthy phantoms; a task of `SIGNS`.

    Raises `HAELabError` for held-out data that are no phantoms.
    """
    require_name("lesion task of a study", task, SIGNS)
    config = trained.model.config
    first = phantoms(16, config.image_size, split="held-out").images
    known = any(torch.equal(held_out[place]["image"], first[place]) for place in range(min(16, len(held_out))))  # type: ignore[arg-type]
    require(known, f"{task} lesions are drawn into phantoms, and the held-out images are none: leave this metric out")
    ill = lesion_task(task, COUNT, config.image_size)
    labels = None if config.num_classes is None else torch.zeros(COUNT, dtype=torch.int64)
    maps = anomaly_maps(
        trained.model, ill.images, trained.recipe, sign=SIGNS[task], start=START, draws=DRAWS, labels=labels
    )
    return detection(maps, ill.masks, inside_head(ill.images))
