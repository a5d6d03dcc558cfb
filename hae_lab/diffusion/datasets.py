"""Data sets by name, each a function of the image size that returns (train, held-out); users may add their own."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from hae_lab.checks import HAELabError, require, require_whole
from hae_lab.diffusion.brains import mri
from hae_lab.diffusion.data import ImageSet, check_sized, digits, folder, phantoms, pictures_below, split_dataset
from hae_lab.diffusion.patterns import PATTERNS
from hae_lab.family import HAEConfig
from hae_lab.masks import in_own_thread
from hae_lab.parts import Registry

HELD_OUT = 2048  # images: with 256 their choice moves a difference between models as much as the training seeds do
PATTERNS_TRAIN = 16384  # images, of 32 bits or more: half a million bits to learn by heart, and few epochs to do it in

Pair = tuple[Dataset, Dataset]


def phantom_pair(size: int) -> Pair:
    """Healthy heads."""
    return phantoms(4000, size), phantoms(HELD_OUT, size, split="held-out")


def lesion_pair(size: int) -> Pair:
    """Half of the heads have a lesion: label 1."""
    return phantoms(4000, size, lesions=0.5), phantoms(HELD_OUT, size, lesions=0.5, split="held-out")


def digit_pair(size: int) -> Pair:
    """The held-out fifth of the digits; 359 images."""
    return split_dataset(digits(size))


def mri_pair(size: int) -> Pair:
    """Healthy slices of one average brain, augmented; held out are other slices in other warps."""
    return mri(4000, size), mri(HELD_OUT, size, split="held-out")


def pattern_pair(name: str, size: int) -> Pair:
    """Images of one of `PATTERNS`, whose least losses are in `diffusion.bounds`."""
    pattern = PATTERNS[name](size)
    return pattern.draw(PATTERNS_TRAIN), pattern.draw(HELD_OUT, split="held-out")


def folder_pair(path: str, size: int) -> Pair:
    """The pictures below a folder, each its middle square; a random fifth is held out.

    Grey unless some picture has a colour; labels where every picture lies in one of several folders.
    """
    kinds = {file.relative_to(path).parts[:-1][:1] for file in pictures_below(Path(path))}
    pictures = folder(path, size, channels=3, labels=len(kinds) > 1 and () not in kinds)
    is_grey = bool((pictures.images == pictures.images[:, :1]).all())
    grey = folder(path, size, labels=pictures.labels is not None) if is_grey else pictures  # 16 bits are kept in grey
    return split_dataset(grey)


class DataSets(Registry[Callable[[int], Pair]]):
    """Data sets by name; the path of a folder is one, too."""

    def find(self, name: str) -> Callable[[int], Pair]:
        if isinstance(name, str) and name not in self and name not in self.lent and is_folder(name):
            return partial(folder_pair, name)
        return super().find(name)


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder with pictures. Raises `HAELabError` for a path that leads nowhere."""
    is_path = "/" in name and ":" not in name
    require(not is_path or Path(name).is_dir(), f"no such folder: {name!r}")
    return name != "" and Path(name).is_dir()


DATA = DataSets(
    "data set",
    {
        "phantoms": phantom_pair,
        "lesions": lesion_pair,
        "digits": digit_pair,
        "mri": mri_pair,
        **{name: partial(pattern_pair, name) for name in PATTERNS},
    },
)


def load_data(name: str, size: int) -> Pair:
    """(train, held-out) by name: one of `DATA`, the path of a folder with pictures, or "module:function" or
    "file.py:function", called with the image size.

    Raises `HAELabError` for an unknown name, a function that cannot be imported, and one that returns anything else.
    """
    require(isinstance(name, str), f"a data set is named by a text, got {name!r}")
    size = require_whole("size", size, 1, most=2**16)
    load = DATA.find(name)
    require(callable(load), f"data set {name!r} is a function of the image size, got {load!r}")
    if isinstance(load, partial) and load.func is folder_pair:
        return load(size)  # read again, for pictures come and go
    pair, versions = _loaded(load, size)
    if _versions(pair) != versions:  # somebody wrote into the images that all share
        _loaded.cache_clear()
        pair, _ = _loaded(load, size)
    return pair


@lru_cache(maxsize=4)  # a worker trains many models on the same images
def _loaded(load: Callable[[int], Pair], size: int) -> tuple[Pair, tuple[int, ...]]:
    """The data sets, and the versions of their tensors."""
    pair = _called(load, size)
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    name = getattr(load, "__name__", load)
    require(is_pair, f"{name} returns (train, held-out), two data sets, got {pair!r}")
    for part in pair:
        check_sized(part)
    return (pair[0], pair[1]), _versions(pair)


def _called(load: Callable[[int], Pair], size: int) -> Any:
    try:
        return in_own_thread(load, size)
    except HAELabError:
        raise
    except Exception as error:  # a user's function may raise anything
        name = getattr(load, "__name__", load)
        raise HAELabError(f"{name} gives no data at size {size}: {type(error).__name__}: {error}") from error


def _versions(pair: Pair) -> tuple[int, ...]:
    """How often each tensor of a pair of image sets was written to, by torch's own count."""
    sets = [part for part in pair if isinstance(part, ImageSet)]
    tensors = [each for part in sets for each in (part.images, part.labels, part.masks) if each is not None]
    return tuple(tensor._version for tensor in tensors)


def require_fit(name: str, config: HAEConfig) -> None:
    """Raise `HAELabError` unless the images of a data set are what a model takes; the message says what would be."""
    item = load_data(name, config.image_size)[0][0]
    channels, classes = item["image"].shape[0], config.num_classes
    needs = f"this model takes images of {config.in_channels} channels, {config.image_size} x {config.image_size}"
    needs += "" if classes is None else f", with labels below {classes}"
    right = "name a function of your own that returns such images (docs/your_own.md), or change the model"
    change = f"in_channels={channels} and out_channels={channels}"
    require(channels == config.in_channels, f"{needs}; those of {name!r} have {channels}: {right}, {change}")
    labelled = classes is None or "label" in item
    require(labelled, f"{needs}; those of {name!r} have no label: {right}, num_classes=none")
