"""Pictures of attention weights, laid over the image."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hae_lab.masks import TokenGrid
from hae_lab.plots.base import PALETTE, Chart, chart, legend_outside, new_chart, say

QUERY_COLOUR, REGIONAL_COLOUR, PIXELS_COLOUR = "#00d0ff", PALETTE[3], "#888888"
OPACITY = 0.75  # of the strongest weight over the image
GREY = 0.3  # of the image that the key lies over


@chart
def attention_heads(
    image: np.ndarray, weights: dict[str, np.ndarray], grid: TokenGrid, pixel: int, title: str
) -> Chart:
    """A row a mask rule, a column a head: where one pixel looks, as a warm layer over the grey image.

    Shapes: image (H, W); `weights` by rule name, (heads, n). Each picture is scaled by its own largest weight on a
    pixel, which the key beside them says; the weight that falls on regional tokens is written below it.
    """
    heads = len(next(iter(weights.values())))
    size = (1.3 * heads + 1.6, 1.75 * len(weights) + 1.4)
    figure = new_chart(title, size, least=0.8 * size[0])
    rows = figure.subplots(len(weights), heads, squeeze=False)
    for axes, (rule, of_heads) in zip(rows, weights.items(), strict=True):
        axes[0].set_ylabel(rule, fontsize=12)
        for ax, of_head in zip(axes, of_heads, strict=True):
            _overlay(ax, image, of_head, grid, pixel)
    for head, ax in enumerate(rows[0], start=1):
        ax.set_title(say("head {number}", number=head), fontsize=12)
    _key(figure, rows)
    return figure


def _overlay(ax: Axes, image: np.ndarray, weights: np.ndarray, grid: TokenGrid, pixel: int) -> None:
    extent = (-0.5, grid.width - 0.5, grid.height - 0.5, -0.5)
    ax.imshow(image, cmap="gray", extent=extent)
    on_pixels = weights[: grid.n_local].reshape(grid.height, grid.width)
    strength = on_pixels / max(on_pixels.max(), 1e-12)
    ax.imshow(strength, cmap="inferno", alpha=_opacity(strength), extent=extent, vmin=0, vmax=1)
    row, column = divmod(pixel, grid.width)
    ax.plot(column, row, "+", color=QUERY_COLOUR, markersize=9, markeredgewidth=2)
    ax.set_xticks([])
    ax.set_yticks([])
    regional = 100 * weights[grid.n_local :].sum()
    ax.set_xlabel(say("regional {percent:.0f} %", percent=regional), fontsize=11)
    for spine in ax.spines.values():
        spine.set_color(REGIONAL_COLOUR if regional > 50 else PIXELS_COLOUR)


def _opacity(strength: np.ndarray) -> np.ndarray:
    return OPACITY * np.sqrt(strength)


def _key(figure: Chart, rows: np.ndarray) -> None:
    """The colours of the layer as they look over a grey image, and what the cross and the frames are."""
    shades = ScalarMappable(cmap="inferno")
    shades.set_clim(0, 1)
    strength = np.linspace(0, 1, 128)
    share = _opacity(strength)[:, None]
    seen = share * shades.to_rgba(strength)[:, :3] + (1 - share) * GREY
    shades.set_cmap(ListedColormap(seen))
    bar = figure.colorbar(shades, ax=rows, aspect=30, pad=0.01, ticks=[0, 0.5, 1])
    bar.set_label("weight of a pixel, 1 = the head's largest")
    cross = Line2D([], [], color=QUERY_COLOUR, marker="+", linestyle="", markersize=9, markeredgewidth=2, label="query")
    frames = {REGIONAL_COLOUR: "more than half falls on regional tokens", PIXELS_COLOUR: "on pixels"}
    marks = [Patch(fill=False, edgecolor=colour, label=text) for colour, text in frames.items()]
    legend_outside(figure, None, "lower center", handles=[cross, *marks], ncols=3)
