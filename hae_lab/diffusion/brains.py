"""Semi-real brain slices: the ICBM 152 average brain, warped and re-lit, with synthetic lesions whose masks are known.

One average brain, augmented: 152 heads in one, so that folds are blurred and no individual is there; what varies is
drawn. It comes with the wheel of nilearn, at 1 mm, with maps of grey and white matter; nothing is downloaded here.
Sources: Fonov et al. 2011, https://doi.org/10.1016/j.neuroimage.2010.07.033; Mazziotta et al. 2001,
https://doi.org/10.1098/rstb.2001.0915.
"""

import math
from functools import lru_cache
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from hae_lab.checks import HAELabError, require, require_name, require_number, require_seed, require_whole
from hae_lab.diffusion.data import SPLITS, ImageSet
from hae_lab.diffusion.phantoms import draw_ranges, smooth

MRI_VERSION = 1  # part of the data key: raise it with every change of the drawing
CREDIT = "One average brain (ICBM 152, Fonov et al. 2011), augmented; lesions are synthetic."
LICENCE = (
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill "
    "University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose "
    "and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and "
    "McGill University make no representations about the suitability of this software for any purpose. It is provided "
    '"as is" without express or implied warranty. The authors are not responsible for any data loss, equipment damage, '
    "property loss, or injury to subjects or patients resulting from the use or misuse of this software package."
)
KINDS = ("dark", "equal", "bright")  # hypointense; isointense with grey matter, in white; hyperintense
CLASSES = ("healthy", *KINDS)

AIR = -1.0  # exactly
FIELD_MM = 216  # side of the picture
HELD_OUT_EVERY = 5  # of this many slices one is held out
DARK, LIGHT = 0.17, 0.9  # grey value of the template that becomes black, and how much of the rest is kept
SLICE = {  # lowest and highest value, drawn uniformly for each picture
    "place": (0, 1), "turn": (-0.2, 0.2), "width": (0.93, 1.07), "length": (0.93, 1.07), "shear": (-0.06, 0.06),
    "shift_x": (-5, 5), "shift_y": (-5, 5),  # mm
    "grey": (0.9, 1.1), "white": (0.95, 1.08), "gamma": (-0.2, 0.2),
}  # fmt: skip
LESION = {
    "present": (0, 1), "kind": (0, 1), "place": (0, 1), "diameter": (8, 22),  # mm
    "long": (0.75, 1.3), "tilt": (0, math.pi), "value": (0.93, 1.07),
}  # fmt: skip
WARP_MM, WARP_KNOTS = 2.5, 9  # standard deviation; 36 mm from knot to knot: with closer ones heads look crumpled
BIAS_KNOTS, EDGE_KNOTS = 5, 20
GREY, WHITE = (LIGHT * (value - DARK) for value in (0.65, 0.87))  # the template's medians in pure tissue
LESION_VALUES = np.array([0.45 * GREY, GREY, 1.25 * WHITE], np.float32)
LEAST_SHARE = 0.25  # of a pixel that lesion must fill to be in its mask
CHUNK = 64  # pictures


def mri(
    count: int,
    size: int = 64,
    seed: int = 0,
    *,
    lesions: bool | float = False,
    kinds: tuple[str, ...] = KINDS,
    noise: float = 0.03,
    bias: float = 0.12,
    split: str = "train",
) -> ImageSet:
    """Axial T1-weighted slices without skull, (count, 1, size, size): air -1, labels of `CLASSES`, lesion masks.

    `lesions` is the probability of a lesion (True: 1), of one of `kinds`. In the grey values from 0 to 1, white matter
    being about 0.65, `noise` is the standard deviation before the magnitude is taken; `bias` is that of the log of a
    smooth gain. The held-out split shows every fifth slice, which training never sees, though it sees those 1 mm away,
    in warps of its own. Image i depends on (seed, split, i) alone; without its lesion it differs inside the mask only.
    Raises `HAELabError` for a value out of range, and if nilearn is missing.
    """
    count, seed = require_whole("count", count, 1, most=2**24), require_seed("seed", seed)
    size = require_whole("size", size, 32, 128)
    knobs = {"lesions": float(lesions) if isinstance(lesions, bool) else lesions, "noise": noise, "bias": bias}
    knobs = {name: float(require_number(name, value, 0, 1)) for name, value in knobs.items()}
    require(len(kinds) > 0, "kinds is one or more kinds of lesion, got none")
    for kind in kinds:
        require_name("kind of lesion", kind, KINDS)
    require_name("split", split, SPLITS)
    tissue = _slices(size, split)
    streams = [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), part))) for part in range(4)
    ]
    chosen = np.array([KINDS.index(name) for name in kinds])
    # always whole chunks, so that more pictures begin with the same ones
    chunks = [_draw_chunk(streams, tissue, size, chosen, **knobs) for _ in range(0, count, CHUNK)]
    images, masks, labels = (torch.from_numpy(np.concatenate(parts)[:count]) for parts in zip(*chunks, strict=True))
    return ImageSet(
        images=images[:, None],
        masks=masks[:, None],
        labels=labels,
        classes=CLASSES,
        key=f"mri v{MRI_VERSION}: count={count} size={size} seed={seed} "
        + " ".join(f"{name}={value}" for name, value in (knobs | {"kinds": "+".join(kinds), "split": split}).items()),
    )


# the template


def template_is_here() -> bool:
    """Whether nilearn, which brings the template, is installed."""
    return find_spec("nilearn") is not None


@lru_cache(maxsize=1)
def _template() -> np.ndarray:
    """T1 in [0, 1], grey and white matter's share: (slices, 3, 233, 197), front up, 1 mm; the larger slices only."""
    try:
        from nilearn import datasets
    except ImportError:
        message = "mri comes with nilearn, which is not installed: python -m pip install -e '.[mri]'"
        raise HAELabError(message) from None
    loads = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    volumes = np.stack([np.asarray(load(resolution=1).dataobj, np.float32) for load in loads])  # (3, x, y, z)
    area = (volumes[0] > 0).sum((0, 1))
    return volumes[..., area > area.max() / 2].transpose(3, 0, 2, 1)[:, :, ::-1]


@lru_cache(maxsize=4)
def _slices(size: int, split: str) -> np.ndarray:
    """The slices of a split, blurred as far as pixels of a picture of that size ask for: (slices, 3, 233, 197)."""
    from scipy.ndimage import gaussian_filter

    held_out = np.arange(len(_template())) % HELD_OUT_EVERY == HELD_OUT_EVERY // 2
    chosen = _template()[held_out if split == "held-out" else ~held_out]
    return gaussian_filter(chosen, (0, 0, *2 * [0.4 * FIELD_MM / size]))


# one chunk


def _draw_chunk(
    streams: list[np.random.Generator],
    slices: np.ndarray,
    size: int,
    kinds: np.ndarray,
    lesions: float,
    noise: float,
    bias: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images and masks (CHUNK, size, size) and labels (CHUNK,) from the next numbers of each stream."""
    coords = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    draw, blob = draw_ranges(streams[0], SLICE, CHUNK), draw_ranges(streams[1], LESION, CHUNK)
    warp, gain, edge = _fields(streams[2], coords)
    air, grey, white, image = _tissue(draw, _sampled(draw, slices, coords, warp))
    kind = kinds[(blob.kind * len(kinds)).astype(int)]  # (CHUNK, 1, 1)
    share = _lesion(blob, np.where(kind == KINDS.index("equal"), white, grey + white), edge, coords) * (1 - air)
    mask = (share >= LEAST_SHARE) & (blob.present < lesions)
    value = LESION_VALUES[kind] * np.where(kind == KINDS.index("bright"), draw.white, draw.grey) * blob.value
    image = np.where(mask, image + share * (value - image), image)
    image = np.exp(bias * (gain - gain.mean((1, 2), keepdims=True))) * image ** np.exp(draw.gamma)
    real, other = noise * streams[3].standard_normal((2, *image.shape), np.float32)
    magnitude = np.hypot(image + real, other)  # the noise of MRI is Rician
    shown = np.where(air < 0.5, np.clip(2 * magnitude - 1, -1, 1), AIR).astype(np.float32)
    return shown, mask, np.where(mask.any((1, 2)), kind.reshape(-1) + 1, 0)


def _fields(generator: np.random.Generator, coords: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth random fields of unit variance: warp (CHUNK, 2, n, n), gain and a lesion's edge (CHUNK, n, n) each."""
    warp, gain, edge = (
        generator.standard_normal((CHUNK, *shape), np.float32)
        for shape in ((2, WARP_KNOTS, WARP_KNOTS), (BIAS_KNOTS, BIAS_KNOTS), (EDGE_KNOTS, EDGE_KNOTS))
    )
    return smooth(warp, coords), smooth(gain, coords), smooth(edge, coords)


def _sampled(draw: SimpleNamespace, slices: np.ndarray, coords: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """T1, grey and white matter where the pixels lie in the template after turn, scale, shear, shift and warp.

    (CHUNK, 3, n, n)
    """
    x, y = coords * FIELD_MM / 2, coords[:, None] * FIELD_MM / 2  # mm
    cos, sin = np.cos(draw.turn), np.sin(draw.turn)
    across = (cos * x + sin * y) * draw.width + draw.shear * y + draw.shift_x + WARP_MM * warp[:, 0]
    along = (cos * y - sin * x) * draw.length + draw.shift_y + WARP_MM * warp[:, 1]
    height, width = slices.shape[2:]
    grid = np.stack([across / (width / 2), along / (height / 2)], -1)  # (CHUNK, n, n, 2)
    chosen = slices[(draw.place.reshape(-1) * len(slices)).astype(int)]
    return F.grid_sample(torch.from_numpy(chosen), torch.from_numpy(grid), align_corners=False).numpy()


def _tissue(draw: SimpleNamespace, sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Share of air, grey and white matter, and the picture in light of this draw, (CHUNK, n, n) each."""
    template, grey, white = sampled.swapaxes(0, 1)
    air = np.clip(1 - template / DARK, 0, 1)  # no tissue of the template is darker
    light = np.maximum(LIGHT * (template - DARK), 0.02)
    return air, grey, white, light * (1 + grey * (draw.grey - 1) + white * (draw.white - 1))


def _lesion(blob: SimpleNamespace, tissue: np.ndarray, edge: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """The share of lesion in each pixel, (CHUNK, n, n): an uneven ellipse about a place well inside the tissue."""
    inner = F.max_pool2d(-torch.from_numpy(tissue), 3, 1, 1).numpy() ** 4  # the least of a pixel and its neighbours
    total = inner.reshape(CHUNK, -1).cumsum(1)
    place = (total < blob.place.reshape(-1, 1) * total[:, -1:]).sum(1)
    row, column = np.divmod(np.minimum(place, len(coords) ** 2 - 1), len(coords))
    x, y = (coords - coords[column][:, None, None]), (coords[:, None] - coords[row][:, None, None])
    cos, sin = np.cos(blob.tilt), np.sin(blob.tilt)
    ellipse = np.hypot((cos * x + sin * y) * blob.long, (cos * y - sin * x) / blob.long) * FIELD_MM / 2
    radius, pixel = blob.diameter / 2, FIELD_MM / len(coords)
    uneven = 1 + np.clip(0.15 * edge, -0.3, 0.3)
    return np.clip((radius - ellipse * uneven) / pixel + 0.5, 0, 1)
