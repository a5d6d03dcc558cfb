"""How well a model of healthy slices finds lesions of both signs in slices of the average brain it has never seen.

Brightness is right for one sign and wrong for the other: over all lesions its AUROC is 0.5.
"""

from functools import lru_cache

import torch
from torch.utils.data import Dataset

from hae_lab.checks import require
from hae_lab.diffusion.brains import AIR, CLASSES, KINDS, mri
from hae_lab.diffusion.data import ImageSet
from hae_lab.diffusion.quality import anomaly_maps, detection
from hae_lab.diffusion.sampling import STEPS
from hae_lab.diffusion.training import Recipe, Trained

COUNT = 96  # slices, a lesion in each
DRAWS, START = 2, 200
PASSES = COUNT * DRAWS * START * STEPS // Recipe.timesteps  # of images through the model


def mri_lesions(size: int, count: int = COUNT) -> ImageSet:
    """Held-out slices with a lesion each, of every kind: (count, 1, size, size), with their masks."""
    return mri(count, size, lesions=True, split="held-out")


@lru_cache(maxsize=1)  # AUROC and Dice are of the same maps
def mri_scores(trained: Trained, held_out: Dataset) -> dict[str, dict[str, float]]:
    """The "auroc" and "dice", inside the brain, of a model's absolute anomaly maps: for "all" and for each of `KINDS`.

    Raises `HAELabError` for held-out data that are not those of the data set `mri`, of which the model knows nothing.
    """
    size = trained.model.config.image_size
    first = mri(1, size, split="held-out").images
    known = torch.equal(held_out[0]["image"], first[0])
    require(
        known, "mri lesions are drawn into slices of `mri`, but the held-out images are none: leave this metric out"
    )
    ill = mri_lesions(size, COUNT)
    labels = None if trained.model.config.num_classes is None else torch.zeros(COUNT, dtype=torch.int64)
    maps = anomaly_maps(trained.model, ill.images, trained.recipe, start=START, draws=DRAWS, labels=labels)
    scores = {"all": detection(maps, ill.masks, ill.images > AIR)}
    for kind in KINDS:
        chosen = ill.labels == CLASSES.index(kind)
        scores[kind] = detection(maps[chosen], ill.masks[chosen], ill.images[chosen] > AIR)
    return scores
