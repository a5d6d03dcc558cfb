"""Pictures of attention weights, laid over the image."""

import numpy as np
from matplotlib.axes import Axes

from hae_lab.masks import TokenGrid
from hae_lab.plots.base import CLAIM_COLOUR, Chart, chart, new_chart


@chart
def attention_heads(
    image: np.ndarray, weights: dict[str, np.ndarray], grid: TokenGrid, pixel: int, title: str
) -> Chart:
    """A row a mask rule, a column a head: where one pixel looks, as a warm layer over the grey image.

    Shapes: image (H, W); `weights` by rule name, (heads, n). Each picture is scaled by its own largest weight on a
    pixel; the weight that falls on regional tokens is written below it.
    """
    heads = len(next(iter(weights.values())))
    figure = new_chart(title, size=(1.3 * heads + 1.2, 1.75 * len(weights) + 1.0))
    rows = figure.subplots(len(weights), heads, squeeze=False)
    for axes, (rule, of_heads) in zip(rows, weights.items(), strict=True):
        axes[0].set_ylabel(rule, fontsize=12)
        for ax, of_head in zip(axes, of_heads, strict=True):
            _overlay(ax, image, of_head, grid, pixel)
    for head, ax in enumerate(rows[0], start=1):
        ax.set_title(f"head {head}", fontsize=12)
    return figure


def _overlay(ax: Axes, image: np.ndarray, weights: np.ndarray, grid: TokenGrid, pixel: int) -> None:
    extent = (-0.5, grid.width - 0.5, grid.height - 0.5, -0.5)
    ax.imshow(image, cmap="gray", extent=extent)
    on_pixels = weights[: grid.n_local].reshape(grid.height, grid.width)
    strength = on_pixels / max(on_pixels.max(), 1e-12)
    ax.imshow(strength, cmap="inferno", alpha=0.75 * np.sqrt(strength), extent=extent, vmin=0, vmax=1)
    row, column = divmod(pixel, grid.width)
    ax.plot(column, row, "+", color="#00d0ff", markersize=9, markeredgewidth=2)
    ax.set_xticks([])
    ax.set_yticks([])
    regional = 100 * weights[grid.n_local :].sum()
    ax.set_xlabel(f"regional {regional:.0f} %", fontsize=10)
    for spine in ax.spines.values():
        spine.set_color(CLAIM_COLOUR if regional > 50 else "#888888")
