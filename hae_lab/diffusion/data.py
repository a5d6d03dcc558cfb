"""Image sets: procedural brain phantoms, scikit-learn's digits, a folder, or any map-style dataset.

The contract: `len(dataset)` and `dataset[i] -> {"image": float32 (C, H, W) in [-1, 1], "label"?: int, "mask"?: bool
(1, H, W)}`. A torchvision or Hugging Face dataset meets it through `MappedDataset` and `to_image`.

Phantoms are layered shapes with known truth, as the Shepp-Logan phantom (1974) and BrainWeb (Collins et al. 1998,
https://doi.org/10.1109/42.712135) are, in the greys of a T1-weighted slice. What holds on them need not hold on MRI.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hae_lab.checks import HAELabError, is_number, require, require_name, require_number, require_seed, require_whole
from hae_lab.diffusion.phantoms import draw_chunk
from hae_lab.family import HAEConfig

PHANTOM_VERSION = 1  # part of the data key: raise it with every change of the drawing
SPLITS = ("train", "held-out")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet(Dataset):
    """Images in memory with what is known of each; a map-style dataset by the contract.

    images (N, C, H, W) float32 in [-1, 1]; labels (N,) int64; masks (N, 1, H, W) bool, True = lesion. `skipped` names
    the files that `folder` could not read. Raises `HAELabError` for anything else.
    """

    images: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    masks: Tensor | None = field(default=None, repr=False)
    key: str = ""  # what the data are, in words; `data_key` falls back on their bytes
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_tensor("images", self.images)
        shape = tuple(self.images.shape)
        require(len(shape) == 4 and shape[0] > 0, f"images are (N, C, H, W) with N above 0, got {shape}")
        _check_image("images", self.images)
        _check_array("labels", self.labels, torch.int64, shape[:1])
        _check_array("masks", self.masks, torch.bool, (shape[0], 1, *shape[2:]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        item: dict[str, Any] = {"image": self.images[index(place)]}
        if self.labels is not None:
            item["label"] = int(self.labels[place])
        if self.masks is not None:
            item["mask"] = self.masks[place]
        return item

    def select(self, places: Sequence[int], key: str = "") -> Self:
        """The images at `places`, in that order. Without a `key` their bytes are it.

        Raises `HAELabError` for places that no image has.
        """
        places = [require_whole("a place", place, 0, len(self) - 1) for place in places]
        parts = {
            name: value[places] for name in ("images", "labels", "masks") if (value := getattr(self, name)) is not None
        }
        return replace(self, **parts, key=key)


class MappedDataset(Dataset):
    """`function(item)` for every item of a map-style dataset, when it is asked for.

    For example `MappedDataset(CIFAR10(path), lambda pair: {"image": to_image(pair[0], 32), "label": pair[1]})`.
    """

    def __init__(self, dataset: Any, function: Callable[[Any], dict[str, Any]]) -> None:
        self.dataset, self.function = dataset, function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.function(self.dataset[place])


def phantoms(
    count: int,
    size: int = 16,
    seed: int = 0,
    *,
    lesions: bool | float = False,
    contrast: float = 1.0,
    noise: float = 0.03,
    bias: float = 0.05,
    split: str = "train",
) -> ImageSet:
    """Axial brain-like slices, (count, 1, size, size): background -1, labels 0 = healthy and 1 = lesion, lesion masks.

    `lesions` is the probability of a lesion (True: 1). Three knobs make the task harder: `contrast` scales how far a
    lesion brightens (at 1 it outshines all other tissue), `noise` is the standard deviation inside the head in the
    images' unit, `bias` that of the log of a smooth gain. Image i depends on (seed, split, i) alone: more images begin
    with the same ones, another size shows the same heads, and a head without its lesion differs inside the mask only.
    Raises `HAELabError` for a value out of range.
    """
    count, size, seed = (
        require_whole("count", count, 1, most=2**24),
        require_whole("size", size, 8, 256),
        require_seed("seed", seed),
    )
    knobs = {"lesions": lesions, "contrast": contrast, "noise": noise, "bias": bias}
    for name, value in knobs.items():
        number = isinstance(value, bool) or is_number(value)
        require(number and 0 <= value <= 1, f"{name} is a number from 0 to 1, got {value!r}")
    knobs = {name: float(value) for name, value in knobs.items()}  # those of numpy would compute in another precision
    require_name("split", split, SPLITS)
    streams = [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), part))) for part in range(4)
    ]
    images = np.empty((count, size, size), np.float32)
    masks = np.empty((count, size, size), bool)
    fine = size * max(2, math.ceil(48 / size))  # drawn finer, then averaged over each pixel
    chunk = max(1, 2**16 // fine**2)
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        # always a whole chunk: the last bits of a float may depend on how many are computed at once
        drawn, where = draw_chunk(streams, (chunk, size, fine), **knobs)
        images[part], masks[part] = drawn[: count - start], where[: count - start]
    masks = torch.from_numpy(masks)[:, None]
    return ImageSet(
        images=torch.from_numpy(images)[:, None],
        labels=masks.flatten(1).any(1).long(),
        masks=masks,
        classes=("healthy", "lesion"),
        key=f"phantoms v{PHANTOM_VERSION}: count={count} size={size} seed={seed} "
        + " ".join(f"{name}={value}" for name, value in (knobs | {"split": split}).items()),
    )


# digits and files


def digits(size: int = 16) -> ImageSet:
    """The 1,797 handwritten digits of scikit-learn, enlarged from 8 x 8: (1797, 1, size, size), labels 0-9.

    Source: UCI, Optical Recognition of Handwritten Digits. Raises `HAELabError` if scikit-learn is missing.
    """
    size = require_whole("size", size, 8, 256)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise HAELabError("digits come with scikit-learn, which is not installed: pip install scikit-learn") from None
    raw = load_digits()
    images = torch.from_numpy(raw.images).float()[:, None] / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    names = tuple(map(str, raw.target_names))
    return ImageSet(
        images=images, labels=torch.from_numpy(raw.target).long(), classes=names, key=f"digits: size={size}"
    )


def to_image(picture: Image.Image, size: int | None = None, channels: int = 1) -> Tensor:
    """A PIL picture as float32 (channels, H, W) in [-1, 1]; with `size` its middle square, resized.

    Grey of 8 or 16 bits, or RGB; transparency is dropped. Raises `HAELabError` for other channels or modes.
    """
    _check_form(size, channels)
    require(isinstance(picture, Image.Image), f"a PIL picture is needed, got a {type(picture).__name__}")
    require(picture.mode != "F", "a picture of mode 'F' has no known range: scale it to 0-255 and convert it to 'L'")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which PIL would clip
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        fits = low >= 0 and high < 2**16
        require(fits, f"a picture of mode 'I' holds values from 0 to 65,535, got {low} to {high}: scale it to them")
        picture = Image.fromarray(values.astype(np.float32) / 257)
    if picture.mode != "F" or channels == 3:
        picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 127.5 - 1).clamp(-1, 1)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def folder(
    path: str | Path, size: int | None = None, *, channels: int = 1, labels: bool = False, on_error: str = "raise"
) -> ImageSet:
    """Every picture below a folder, in the order of their paths: (N, channels, H, W), held in memory.

    `labels`: the first folder on a picture's path is its class, as in torchvision's ImageFolder. `on_error="skip"`
    leaves unreadable files out and names them in `skipped`. Raises `HAELabError` for a folder that is missing or holds
    no picture, for files that cannot be read, and for mixed sizes without `size`.
    """
    require_name("on_error", on_error, ("raise", "skip"))
    require(isinstance(path, str | Path), f"a folder is a path, got {path!r}")
    _check_form(size, channels)
    path = Path(path)
    require(path.is_dir(), f"no such folder: {str(path)!r}")
    files = pictures_below(path)
    require(bool(files), f"no picture below {str(path)!r}: looked for {' '.join(sorted(SUFFIXES))}")
    images: dict[str, Tensor] = {}
    broken: dict[str, str] = {}
    for file in files:
        name = file.relative_to(path).as_posix()
        try:
            with Image.open(file) as picture:
                images[name] = to_image(picture, size, channels)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            broken[name] = str(error).replace(str(file), name)
    hint = "repair or remove them, or pass on_error='skip'" if images else "none is left"
    names = _first(f"{name} ({error})" for name, error in broken.items())
    usable = not broken or (on_error == "skip" and bool(images))
    require(usable, f"{len(broken)} of {len(files)} pictures cannot be read ({hint}): {names}")
    _check_same_size(images)
    kinds, classes = _classes(images) if labels else (None, ())
    stacked = torch.stack(list(images.values()))
    return ImageSet(images=stacked, labels=kinds, classes=classes, skipped=tuple(broken))


def pictures_below(path: Path) -> list[Path]:
    """The files below a folder that end like pictures, in the order of their paths."""
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _check_form(size: int | None, channels: int) -> None:
    require(channels in (1, 3), f"channels is 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None:
        require_whole("size", size, 1)


def _check_same_size(images: dict[str, Tensor]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for name, image in images.items():
        first.setdefault(tuple(image.shape[1:]), name)
    examples = _first(f"{name} is {width} x {height}" for (height, width), name in first.items())
    require(len(first) == 1, f"the pictures have {len(first)} sizes ({examples}): pass size=, for example size=64")


def _classes(names: Iterable[str]) -> tuple[Tensor, tuple[str, ...]]:
    loose = [name for name in names if "/" not in name]
    require(not loose, f"labels=True takes the class from a picture's folder, but {_first(loose)} lie in none")
    kinds = [name.split("/")[0] for name in names]
    classes = sorted(set(kinds))
    return torch.tensor([classes.index(kind) for kind in kinds]), tuple(classes)


def _first(names: Iterable[str], count: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# any map-style dataset


def split_dataset(dataset: Any, held_out: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
    """(train, held-out): a random partition of any map-style dataset; the same seed gives the same one.

    Phantoms need none: `phantoms(..., split="held-out")` draws new heads. Raises `HAELabError` if a part is empty, for
    a share that is no number from 0 to 1, and for what is no map-style dataset.
    """
    seed, held_out = require_seed("seed", seed), require_number("held_out", held_out, 0, 1)
    check_sized(dataset)
    count = round(held_out * len(dataset))
    require(0 < count < len(dataset), f"held_out={held_out!r} of {len(dataset)} images leaves a part empty")
    order = np.random.default_rng(seed).permutation(len(dataset))
    parts = {"train": sorted(order[count:].tolist()), "held-out": sorted(order[:count].tolist())}
    if not isinstance(dataset, ImageSet):
        return Subset(dataset, parts["train"]), Subset(dataset, parts["held-out"])
    return tuple(
        dataset.select(places, f"{data_key(dataset)} split={name} held_out={held_out} split_seed={seed}")
        for name, places in parts.items()
    )


def data_key(dataset: Any) -> str:
    """A string that names the data: the dataset's own `key`, or else count and hash of every item's bytes.

    Raises `HAELabError` if an item changes from one reading to the next and there is no `key`.
    """
    key = getattr(dataset, "key", "")
    if isinstance(key, str) and key:
        return key
    check_dataset(dataset, limit=1)
    stable = _item_bytes(dataset[0]) == _item_bytes(dataset[0])
    require(stable, "item 0 changes from one reading to the next: give the dataset a `key` that names its recipe")
    total = sha256()
    for place in range(len(dataset)):
        total.update(sha256(_item_bytes(dataset[place])).digest())
    return f"{type(dataset).__name__}: count={len(dataset)} sha256={total.hexdigest()[:16]}"


def _item_bytes(item: Mapping[str, Any]) -> bytes:
    arrays = {name: np.asarray(item[name]) for name in ("image", "label", "mask") if name in item}
    return b"".join(f"{name} {array.shape} {array.dtype} ".encode() + array.tobytes() for name, array in arrays.items())


def check_sized(dataset: Any) -> None:
    """Raise `HAELabError` unless this is a map-style dataset with at least one item."""
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    require(sized, f"a dataset has len(dataset) and dataset[i]; {type(dataset).__name__} is a stream or no dataset")
    require(len(dataset) > 0, "the dataset is empty")


def check_dataset(dataset: Any, config: HAEConfig | None = None, limit: int = 256) -> None:
    """Raise `HAELabError` unless up to `limit` items, evenly spaced, keep the contract and fit `config`."""
    check_sized(dataset)
    first, lowest = None, math.inf
    for place in np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int).tolist():
        item = dataset[place]
        _check_item(place, item)
        kind = {"shape": tuple(item["image"].shape), "label": "label" in item, "mask": "mask" in item}
        first = first or kind
        require(kind == first, f"all items are alike, but item 0 has {first} and item {place} has {kind}")
        if config is not None:
            _check_fit(place, item, config)
        lowest = min(lowest, item["image"].min().item())
    require(lowest < 0, "no image has a value below 0, so the range looks like [0, 1]: take 2 * image - 1")


def check_batch(batch: Any, step: int) -> None:
    """Raise `HAELabError` unless the images of a step are what a network learns from: `check_dataset` sees but some."""
    _check_image(f"the images of step {step}", batch["image"])


def _check_item(place: int, item: Any) -> None:
    found = f"keys {sorted(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    right = 'a dictionary {"image": float32 (C, H, W) in [-1, 1], "label"?: int, "mask"?: bool}'
    is_item = isinstance(item, Mapping) and "image" in item
    require(is_item, f"item {place} is {right}, got {found}: wrap the dataset in MappedDataset")
    image, name = item["image"], f"the image of item {place}"
    _check_tensor(name, image)
    shape = tuple(image.shape)
    hint = ", which looks like (H, W, C): image.permute(2, 0, 1)" if shape[2:] in ((1,), (3,), (4,)) else ""
    require(len(shape) == 3 and shape[0] <= 4, f"{name} is (C, H, W) with at most 4 channels, got {shape}{hint}")
    _check_image(name, image)
    if "label" in item:
        label = item["label"]
        try:
            index(label)
        except TypeError:
            raise HAELabError(f"the label of item {place} is a whole number, got {label!r}") from None
    if "mask" in item:
        _check_tensor(f"the mask of item {place}", item["mask"])
        _check_array(f"the mask of item {place}", item["mask"], torch.bool, (1, *shape[1:]))


def _check_fit(place: int, item: Mapping[str, Any], config: HAEConfig) -> None:
    shape, right = tuple(item["image"].shape), (config.in_channels, config.image_size, config.image_size)
    require(
        shape == right,
        f"the image of item {place} is {shape}, but the config has in_channels={right[0]} and image_size={right[1]}: "
        f"resize the images to {right}, or change the config",
    )
    classes = config.num_classes
    if classes is not None:
        require("label" in item, f"the config has num_classes={classes}, but item {place} has no label")
        fits = -1 <= index(item["label"]) < classes
        right = f"num_classes={classes} allows 0 to {classes - 1}, and -1 for no label"
        require(fits, f"the label of item {place} is {item['label']}: {right}")


def _check_tensor(name: str, value: Any) -> None:
    hint = "to_image converts a picture" if isinstance(value, Image.Image) else "torch.as_tensor converts it"
    require(isinstance(value, Tensor), f"{name}: a torch tensor, got a {type(value).__name__}: {hint}")


def _check_image(name: str, image: Tensor) -> None:
    hint = "image / 127.5 - 1" if image.dtype == torch.uint8 else "image.float()"
    require(image.dtype == torch.float32, f"{name}: float32 in [-1, 1], got {image.dtype}: {hint}")
    require(image.numel() > 0, f"{name}: no pixel in {tuple(image.shape)}")
    require(bool(image.isfinite().all()), f"{name}: values in [-1, 1], but some are NaN or infinite")
    low, high = image.min().item(), image.max().item()
    right = "image / 127.5 - 1 maps 0-255 to it" if high > 2 else "clamp or rescale"
    require(low >= -1.0001 and high <= 1.0001, f"{name}: values in [-1, 1], got {low:.4g} to {high:.4g}: {right}")


def _check_array(name: str, array: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if array is not None:
        _check_tensor(name, array)
        got = (array.dtype, tuple(array.shape))
        require(got == (dtype, shape), f"{name}: {dtype} of shape {shape}, got {got[0]} of shape {got[1]}")
