"""Colours of attention weights, for the explorer's grids."""

import numpy as np
from matplotlib import colormaps

from hae_lab.plots.masks import resample


def weight_colours(weights: dict[int, np.ndarray], image: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Attention weights as a warm layer, each scale by its own largest: patch size -> (rows, columns, 3) uint8.

    `weights` by patch size, 1 the pixels, (rows, columns) each; an image in [-1, 1] lies beneath, in grey.
    """
    height, width = weights[1].shape
    picture = np.full((height, width), -1.0) if image is None else image
    colours = {}
    for p, scale in weights.items():
        grey = (1 + np.clip(resample(picture, height // p, width // p), -1, 1)[..., None]) / 2
        strength = scale / max(float(scale.max()), 1e-12)
        warm, share = colormaps["inferno"](strength)[..., :3], 0.85 * np.sqrt(strength)[..., None]
        colours[p] = (255 * (share * warm + (1 - share) * grey)).round().astype(np.uint8)
    return colours
