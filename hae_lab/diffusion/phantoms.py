"""Drawing brain phantoms: layered shapes with known truth, in the greys of a T1-weighted slice, in plain numpy.

Ideas: the Shepp-Logan phantom (1974) and BrainWeb (Collins et al. 1998, https://doi.org/10.1109/42.712135). The unit of
length is half the picture's side, about 10 cm. `diffusion.data.phantoms` makes a dataset of them.
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

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


def draw_chunk(
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
    head, blob = draw_ranges(streams[0], ANATOMY, count), draw_ranges(streams[1], LESION, count)
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


def draw_ranges(generator: np.random.Generator, ranges: dict[str, tuple[float, float]], count: int) -> SimpleNamespace:
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
        fields[name] = smooth(knots[:, start : start + side**2].reshape(count, side, side), coords)
        start += side**2
    return SimpleNamespace(**fields)


def smooth(knots: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Cubic B-splines (..., n, n) at coordinates (n,) from -1 to 1 over knots (..., side, side), about as large."""
    side = knots.shape[-1]
    far = np.abs((coords[:, None] + 1) / 2 * (side - 3) + 1 - np.arange(side, dtype=np.float32))
    weights = np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.maximum(2 - far, 0) ** 3 / 6) / 0.479
    # einsum, since the threads of a matrix product cost more than they save here
    return np.einsum("...ih,jh->...ij", np.einsum("ig,...gh->...ih", weights, knots), weights)


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
