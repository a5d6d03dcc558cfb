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
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hae_lab.config import HAEConfig
from hae_lab.errors import HAELabError, require, require_name

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
        """The images at `places`, in that order. Without a `key` their bytes are it."""
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


# phantoms; the unit of length is half the picture's side, about 10 cm

ANATOMY = {  # lowest and highest value, drawn uniformly for each head
    "turn": (-0.22, 0.22), "shift_x": (-0.05, 0.05), "shift_y": (-0.04, 0.04),
    "width": (0.66, 0.78), "length": (0.83, 0.92), "egg": (0.02, 0.16), "boxy": (-0.02, 0.03), "lump": (0, 0.02),
    "lump_at": (0, math.tau), "scalp": (0.035, 0.06), "skull": (0.05, 0.075), "gap": (0.004, 0.03),
    "level": (0, 1),  # height of the slice: basal ganglia at 0, above the ventricles at 1
    "folds": (14, 19), "fold_at": (0, math.tau), "sulcus": (0.004, 0.018), "reach": (0.17, 0.26),
    "cortex": (0.032, 0.046), "bend": (-0.04, 0.04),
    "horn_y": (-0.06, 0.06), "horn_length": (0.28, 0.4), "horn_gap": (0.008, 0.03), "horn_spread": (0.08, 0.2),
    "horn_width": (0.035, 0.105), "lean": (-0.15, 0.15),
    "grey": (0.4, 0.47), "white": (0.64, 0.74), "fat": (0.6, 0.95),
}  # fmt: skip
LESION = {
    "present": (0, 1), "angle": (0, math.tau), "far": (0, 1), "size": (0.09, 0.25), "long": (0.8, 1.25),
    "tilt": (0, math.pi), "glow": (0.88, 1.0),
}  # fmt: skip
FIELDS = {"warp": 9, "depth": 9, "texture": 24, "fold": 20, "bias": 5}  # knots a side: more are finer
DEEP_GREY = [(0.11, -0.05, 0.085, 0.14, -0.2), (0.29, 0.08, 0.07, 0.17, 0.15), (0.145, 0.2, 0.05, 0.09, 0.3)]
FLUID, BONE = 0.10, 0.06
LEAST_SHARE = 0.25  # of a pixel that lesion must fill to be in its mask


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
    _check_whole("count", count, 1, None)
    _check_whole("size", size, 8, 256)
    _check_whole("seed", seed, 0, None)
    for name, value in (("lesions", lesions), ("contrast", contrast), ("noise", noise), ("bias", bias)):
        require(isinstance(value, int | float) and 0 <= value <= 1, f"{name} is a number from 0 to 1, got {value!r}")
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
        drawn, where = _draw_chunk(streams, (chunk, size, fine), float(lesions), contrast, noise, bias)
        images[part], masks[part] = drawn[: count - start], where[: count - start]
    masks = torch.from_numpy(masks)[:, None]
    return ImageSet(
        images=torch.from_numpy(images)[:, None],
        labels=masks.flatten(1).any(1).long(),
        masks=masks,
        classes=("healthy", "lesion"),
        key=f"phantoms v{PHANTOM_VERSION}: count={count} size={size} seed={seed} lesions={float(lesions)} "
        f"contrast={float(contrast)} noise={float(noise)} bias={float(bias)} split={split}",
    )


def _draw_chunk(
    streams: list[np.random.Generator],
    shape: tuple[int, int, int],
    lesions: float,
    contrast: float,
    noise: float,
    bias: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Images and masks, (count, size, size), from the next numbers of each stream. `shape`: count, size, fine."""
    count, size, fine = shape
    coords = ((np.arange(fine, dtype=np.float32) + 0.5) / fine) * 2 - 1
    head, blob = _draw_ranges(streams[0], ANATOMY, count), _draw_ranges(streams[1], LESION, count)
    fields = _draw_fields(streams[2], coords, count)
    _thicken(head, 2 / size)
    _place(head, coords)
    edge = max(2 / fine, 0.02)
    tissue, brain = _tissue(head, fields, edge, min(1, max(0, 2 - 32 / size)))
    gain = np.exp(bias * (fields.bias - fields.bias.mean((1, 2), keepdims=True)))
    image = _average(_mix(_shell(head, edge), tissue, brain) * gain * _step(head.inside, edge), size)
    share = np.where(blob.present < lesions, _average(_lesion(head, blob, fields, 2 / size) * brain, size), 0)
    mask = share >= LEAST_SHARE
    image += np.where(mask, contrast * share * np.maximum(blob.glow - image, 0), 0)
    grain = noise * streams[3].standard_normal(image.shape, np.float32)
    return np.clip(np.where(image > 0, 2 * image - 1 + grain, -1), -1, 1), mask


def _draw_ranges(generator: np.random.Generator, ranges: dict[str, tuple[float, float]], count: int) -> SimpleNamespace:
    """A (count, 1, 1) array for each range."""
    draws = generator.random((count, len(ranges)), np.float32).T[..., None, None]
    return SimpleNamespace(
        **{name: low + (high - low) * draw for (name, (low, high)), draw in zip(ranges.items(), draws, strict=True)}
    )


def _draw_fields(generator: np.random.Generator, coords: np.ndarray, count: int) -> SimpleNamespace:
    """Smooth random fields of about unit variance, each (count, fine, fine): cubic B-splines over random knots."""
    knots = generator.standard_normal((count, sum(side**2 for side in FIELDS.values())), np.float32)
    fields, start = {}, 0
    for name, side in FIELDS.items():
        far = np.abs((coords[:, None] + 1) / 2 * (side - 3) + 1 - np.arange(side, dtype=np.float32))
        weights = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.maximum(2 - far, 0) ** 3 / 6) / 0.479
        grid = knots[:, start : start + side**2].reshape(count, side, side)
        # einsum, since the threads of a matrix product cost more than they save here
        fields[name] = np.einsum("nih,jh->nij", np.einsum("ig,ngh->nih", weights, grid), weights)
        start += side**2
    return SimpleNamespace(**fields)


def _thicken(head: SimpleNamespace, pixel: float) -> None:
    """Keep what makes a head recognisable from falling between the pixels of a small picture."""
    head.scalp = np.maximum(head.scalp, min(0.65 * pixel, 0.082))
    head.skull = np.maximum(head.skull, min(0.75 * pixel, 0.094))
    head.horn_width = np.maximum(head.horn_width, min(0.6 * pixel, 0.075))


def _place(head: SimpleNamespace, coords: np.ndarray) -> None:
    """Add the head's own coordinates, y to the front, and the depth below its outline, all (count, fine, fine)."""
    x, y = coords - head.shift_x, -coords[:, None] - head.shift_y
    cos, sin = np.cos(head.turn), np.sin(head.turn)
    head.x, head.y = cos * x + sin * y, cos * y - sin * x
    head.radius, head.angle = np.hypot(x, y) + 1e-6, np.arctan2(head.y, head.x)
    ellipse = np.hypot(head.x / (head.width * (1 - head.egg * head.y)), head.y / head.length)
    bumps = head.boxy * np.cos(4 * head.angle) - head.lump * np.cos(3 * head.angle + head.lump_at)
    head.inside = head.radius / (ellipse * (1 + bumps)) - head.radius
    head.brain = head.inside - head.scalp - head.skull - head.gap
    head.middle = head.x - head.bend * (1 - (head.y / head.length) ** 2)
    head.side = np.abs(head.middle) * (1 + head.lean * np.sign(head.middle))
    head.low = np.clip(1.6 - 4 * head.level, 0, 1)  # 1: through the basal ganglia
    head.high = np.clip(4 * head.level - 2.8, 0, 1)  # 1: above the ventricles


def _shell(head: SimpleNamespace, edge: float) -> np.ndarray:
    """Scalp, skull and the fluid below it."""
    bone = _mix(head.fat, BONE, _step(head.inside - head.scalp, edge))
    return _mix(bone, FLUID, _step(head.inside - head.scalp - head.skull, edge))


def _tissue(
    head: SimpleNamespace, fields: SimpleNamespace, edge: float, detail: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grey and white matter with folds, deep grey matter and ventricles; and the share of brain in each pixel.

    The cortex lies at a fixed depth below the nearest surface: the outline, a fold, or one of two fissures.
    `detail` from 0 to 1 scales how far the folds reach in: those finer than a pixel would be noise.
    """
    wave = np.sin((np.round(head.folds) * head.angle + head.fold_at + 1.2 * fields.warp) / 2) + 0.35 * fields.fold
    reach = detail * np.clip(head.reach * (1 + 0.35 * fields.depth), 0.06, 0.28)
    fold = np.abs(wave) * 2 * head.radius / head.folds + 1.2 * np.maximum(head.brain - reach, 0)
    open_y, open_x = 0.36 * (1 - head.high), 1 - 0.6 * head.low  # the fissures stop here
    between = np.hypot(head.middle - 0.01 * fields.warp, np.maximum(open_y - np.abs(head.y - 0.02), 0))
    slope = 0.25 * np.maximum(np.abs(head.middle) - 0.4, 0)
    lateral = np.hypot(head.y - 0.12 + slope - 0.02 * fields.warp, np.maximum(open_x - np.abs(head.middle), 0))
    surface = np.minimum(np.minimum(head.brain, fold), np.minimum(between, lateral)) - head.sulcus
    white = _step(surface - head.cortex * (1 + 0.15 * fields.texture), 1.3 * edge)
    matter = _mix(head.grey, head.white, white * (1 - 0.75 * _deep_grey(head, edge))) + 0.022 * fields.texture
    return _mix(FLUID, matter, _step(surface, edge) * (1 - _ventricles(head, edge))), _step(head.brain, edge)


def _deep_grey(head: SimpleNamespace, edge: float) -> np.ndarray:
    """Thalamus, lentiform and caudate nucleus: tilted ellipses on both sides."""
    share = np.zeros_like(head.x)
    for x, y, half_x, half_y, tilt in DEEP_GREY:
        up = head.y - head.horn_y - y
        ellipse = np.hypot((head.side - x - tilt * up) / half_x, up / half_y)
        share = np.maximum(share, _step((1 - ellipse) * min(half_x, half_y), 1.5 * edge))
    return head.low * share


def _ventricles(head: SimpleNamespace, edge: float) -> np.ndarray:
    """Two crescents; in a low slice their middle closes and the third ventricle opens between them."""
    along = (head.y - head.horn_y) / head.horn_length
    closed = (1 - 1.3 * head.low * np.exp(-((along / 0.45) ** 2))) * (1 - head.high)
    half = head.horn_width * np.sqrt(np.maximum(1 - along**2, 0)) * closed
    curve = head.horn_gap + head.horn_width + head.horn_spread * np.maximum(0.67 * along, -1.05 * along) ** 2
    crescents = np.where(half > 0, _step(half - np.abs(head.side - curve), edge), 0)
    slit = np.hypot(head.side, np.maximum(np.abs(head.y - head.horn_y + 0.02) - 0.09, 0))
    third = np.where(head.low > 0.3, _step(0.004 + 0.35 * head.horn_width - slit, edge), 0)
    return np.maximum(crescents, third)


def _lesion(head: SimpleNamespace, blob: SimpleNamespace, fields: SimpleNamespace, pixel: float) -> np.ndarray:
    """The share of lesion in each pixel: an uneven ellipse with a soft edge, its centre well inside the brain."""
    far = 0.7 * np.sqrt(blob.far)  # evenly over the area
    x = head.x - far * (head.width - 0.17) * np.cos(blob.angle)
    y = head.y - far * (head.length - 0.17) * np.sin(blob.angle)
    cos, sin = np.cos(blob.tilt), np.sin(blob.tilt)
    ellipse = np.hypot((cos * x + sin * y) * blob.long, (cos * y - sin * x) / blob.long)
    uneven = 1 + np.clip(0.12 * fields.depth + 0.06 * fields.texture, -0.3, 0.2)
    return np.clip((1 - ellipse * uneven / np.maximum(blob.size, 1.4 * pixel)) / 0.35, 0, 1)


def _step(depth: np.ndarray, edge: float) -> np.ndarray:
    """0 outside, 1 inside, linear over a band of width `edge`."""
    return np.clip(depth / edge + 0.5, 0, 1)


def _mix(first: Any, second: Any, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share


def _average(array: np.ndarray, size: int) -> np.ndarray:
    """(N, fine, fine) -> (N, size, size)."""
    return array.reshape(len(array), size, array.shape[1] // size, size, -1).mean((2, 4))


# digits and files


def digits(size: int = 16) -> ImageSet:
    """The 1,797 handwritten digits of scikit-learn, enlarged from 8 x 8: (1797, 1, size, size), labels 0-9.

    Source: UCI, Optical Recognition of Handwritten Digits. Raises `HAELabError` if scikit-learn is missing.
    """
    _check_whole("size", size, 8, 256)
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
    require(picture.mode != "F", "a picture of mode 'F' has no known range: scale it to 0-255 and convert it to 'L'")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which PIL would clip
        picture = Image.fromarray(np.asarray(picture).astype(np.float32) / 257)
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
    _check_form(size, channels)
    path = Path(path)
    require(path.is_dir(), f"no such folder: {str(path)!r}")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
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


def _check_form(size: int | None, channels: int) -> None:
    require(channels in (1, 3), f"channels is 1 (grey) or 3 (RGB), got {channels!r}")
    if size is not None:
        _check_whole("size", size, 1, None)


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

    Phantoms need none: `phantoms(..., split="held-out")` draws new heads. Raises `HAELabError` if a part is empty.
    """
    _check_whole("seed", seed, 0, None)
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


def check_dataset(dataset: Any, config: HAEConfig | None = None, limit: int = 256) -> None:
    """Raise `HAELabError` unless up to `limit` items, evenly spaced, keep the contract and fit `config`."""
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    require(sized, f"a dataset has len(dataset) and dataset[i]; {type(dataset).__name__} is a stream or no dataset")
    require(len(dataset) > 0, "the dataset is empty")
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


def _check_item(place: int, item: Any) -> None:
    found = f"keys {sorted(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    right = 'a dictionary {"image": float32 (C, H, W) in [-1, 1], "label"?: int, "mask"?: bool}'
    is_item = isinstance(item, Mapping) and "image" in item
    require(is_item, f"item {place} is {right}, got {found}: wrap the dataset in MappedDataset")
    image, name = item["image"], f"the image of item {place}"
    require(isinstance(image, Tensor), f"{name} is a torch tensor, got a {type(image).__name__}: to_image converts")
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
        require(isinstance(item["mask"], Tensor), f"the mask of item {place} is a torch tensor of bool")
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


def _check_image(name: str, image: Tensor) -> None:
    hint = "image / 127.5 - 1" if image.dtype == torch.uint8 else "image.float()"
    require(image.dtype == torch.float32, f"{name}: float32 in [-1, 1], got {image.dtype}: {hint}")
    require(image.numel() > 0, f"{name}: no pixel in {tuple(image.shape)}")
    low, high = image.min().item(), image.max().item()
    right = "image / 127.5 - 1 maps 0-255 to it" if high > 2 else "clamp or rescale"
    inside = low >= -1.0001 and high <= 1.0001  # False for NaN
    require(inside, f"{name}: values in [-1, 1], got {low:.4g} to {high:.4g}: {right}")


def _check_array(name: str, array: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if array is not None:
        got = (array.dtype, tuple(array.shape))
        require(got == (dtype, shape), f"{name}: {dtype} of shape {shape}, got {got[0]} of shape {got[1]}")


def _check_whole(name: str, value: Any, low: int, high: int | None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
    limit = f"from {low}" + (f" to {high}" if high else "")
    require(whole and (high is None or value <= high), f"{name} is a whole number {limit}, got {value!r}")
