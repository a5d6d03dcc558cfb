"""Images that show each random bit in several places, so that the least possible denoising loss is known exactly.

A `Pattern` says which pixels are one cell and which cells show one bit. In `twins` every cell has a copy far away, and
a model that relates the two is half as unsure; in `scales` an object is there twice, at two grains. The losses that can
be reached with and without such relating are in `diffusion.bounds`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from hae_lab.checks import require, require_flag, require_name, require_seed, require_whole
from hae_lab.diffusion.data import SPLITS, ImageSet

PATTERN_VERSION = 1  # part of the data key: raise it with every change of the drawing
BACKGROUND = -1
CELL = 2  # pixels, side of a cell: in larger ones a bit is easily read without its copy
VALUE = 0.8


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which cell each pixel belongs to, and which bit its cell shows: both (size, size), `BACKGROUND` for neither.

    A bit is fair and shown as `value` or `-value`; the background is 0.
    """

    name: str
    cells: np.ndarray = field(repr=False)
    bits: np.ndarray = field(repr=False)
    value: float = VALUE

    @property
    def size(self) -> int:
        return len(self.cells)

    @cached_property
    def n_bits(self) -> int:
        return int(self.bits.max()) + 1

    def pixels(self, shared: bool) -> np.ndarray:
        """How many pixels show what a pixel shows: of its own cell, or with `shared` of all cells of its bit.

        (size, size), 0 in the background.
        """
        places = self.bits if shared else self.cells
        return np.append(np.bincount(places[places != BACKGROUND]), 0)[places]

    def draw(self, count: int, seed: int = 0, split: str = "train") -> ImageSet:
        """`count` images (count, 1, size, size); image i depends on (seed, split, i) alone."""
        count, seed = require_whole("count", count, 1, most=2**24), require_seed("seed", seed)
        require_name("split", split, SPLITS)
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
        shown = np.zeros((count, self.n_bits + 1), np.float32)  # the last is the background
        shown[:, :-1] = np.where(generator.random((count, self.n_bits)) < 0.5, self.value, -self.value)
        images = shown.take(self.bits, axis=1, mode="wrap")  # (count, size, size)
        key = f"{self.name} v{PATTERN_VERSION}: count={count} size={self.size} seed={seed} split={split}"
        return ImageSet(images=torch.from_numpy(images)[:, None], key=key)


def twins(size: int = 16, *, distance: int | None = None, mirrored: bool = False, below: bool = False) -> Pattern:
    """Cells of 2 x 2 pixels on the left half, repeated on the right half; with a `distance`, so many pixels further.

    A distance below half the size makes several such pairs side by side. `mirrored`: the copy is turned over, so that
    the distance of twins grows from one cell to nearly twice `distance`; `below`: the copy lies below.
    Raises `HAELabError` for a distance of no whole cells, and for a size that is no multiple of twice the distance.
    """
    size = require_whole("size", size, 2 * CELL, 256)
    distance = require_whole("distance", size // 2 if distance is None else distance, CELL)
    mirrored, below = require_flag("mirrored", mirrored), require_flag("below", below)
    fits = distance % CELL == 0 and size % (2 * distance) == 0
    require(fits, f"twins of {CELL} pixels, {distance} apart, need a size that is a multiple of {2 * distance}: {size}")
    side, step = size // CELL, distance // CELL  # in cells
    column = np.arange(side)
    place = column % (2 * step)  # within a pair of columns
    first = np.where(place < step, place, 2 * step - 1 - place if mirrored else place - step)
    bit = np.arange(side)[:, None] * side // 2 + column // (2 * step) * step + first  # (side, side)
    bits, cells = (_enlarge(part, CELL) for part in (bit, np.arange(side**2).reshape(side, side)))
    name = f"twins distance={distance} mirrored={mirrored} below={below}"
    return Pattern(name, cells.T if below else cells, bits.T if below else bits)


def scales(size: int = 32, *, fine: int = CELL) -> Pattern:
    """One object twice on grey: at the lower right in cells of `fine` pixels, on the left half twice as large.

    Raises `HAELabError` for a size that is no multiple of four times `fine`.
    """
    fine = require_whole("fine", fine, 1)
    size = require_whole("size", size, 4 * fine, 256)
    require(size % (4 * fine) == 0, f"cells of {fine} pixels need a size that is a multiple of {4 * fine}, got {size}")
    shape = size // fine // 2, size // fine // 4  # rows and columns of the object
    bit = np.arange(shape[0] * shape[1]).reshape(shape)
    bits, cells = np.full((size, size), BACKGROUND), np.full((size, size), BACKGROUND)
    large, small = np.s_[:, : size // 2], np.s_[size // 2 :, -size // 4 :]
    bits[large], bits[small] = _enlarge(bit, 2 * fine), _enlarge(bit, fine)
    cells[large], cells[small] = bits[large], bits[small] + bit.size
    return Pattern(f"scales fine={fine}", cells, bits)


def _enlarge(array: np.ndarray, times: int) -> np.ndarray:
    return array.repeat(times, 0).repeat(times, 1)


# by the names of the data sets
PATTERNS: dict[str, Callable[[int], Pattern]] = {
    "twins": twins,
    "twins_middle": lambda size: twins(size, distance=size // 4),
    "twins_near": lambda size: twins(size, distance=CELL),
    "twins_mirrored": lambda size: twins(size, mirrored=True),
    "twins_below": lambda size: twins(size, below=True),
    "scales": scales,
    "scales_coarse": lambda size: scales(size, fine=4),
}
