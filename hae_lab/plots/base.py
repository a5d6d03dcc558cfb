"""What every picture of the project shares: style, colours, and a figure that shows itself in a notebook.

One colour a variant everywhere, from seaborn's colour-blind safe palette; sizes suit a 4:3 projector.
"""

import functools
import io
import textwrap
from collections.abc import Callable, Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

PALETTE = sns.color_palette("colorblind").as_hex()
VARIANT_COLOURS = {"unet": PALETTE[7], "hae": PALETTE[0], "lite": PALETTE[1], "v2": PALETTE[2]}
VARIANT_NAMES = {"unet": "U-Net (control)", "hae": "HAE", "lite": "HAE Lite", "v2": "HAE V2"}
CLAIM_COLOUR = PALETTE[3]
SIZE = (8.0, 6.0)
STYLE = {
    **sns.axes_style("whitegrid"),
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "legend.fontsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "savefig.dpi": 100,
}


class Chart(Figure):
    """A figure that shows itself in a notebook, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """The picture as PNG; the same rows give the same bytes on one computer."""
        drawn, packed = io.BytesIO(), io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(drawn, format="png")
        # a palette makes it a third of the size, which notebooks in git feel
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
        return packed.getvalue()

    def svg(self) -> bytes:
        """The picture as SVG with text as text; the same rows give the same bytes."""
        drawn = io.BytesIO()
        with mpl.rc_context(STYLE | {"svg.hashsalt": "hae_lab", "svg.fonttype": "none"}):
            self.savefig(drawn, format="svg", metadata={"Date": None})
        return drawn.getvalue()


def chart(function: Callable[..., Chart]) -> Callable[..., Chart]:
    """Draw in the project's style, whatever the user's own settings."""

    @functools.wraps(function)
    def styled(*args, **options) -> Chart:
        with mpl.rc_context(STYLE):
            return function(*args, **options)

    return styled


def new_chart(title: str, size: tuple[float, float] = SIZE) -> Chart:
    figure = Chart(figsize=size, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, int(7.4 * size[0]))), fontsize=15, fontweight="bold")
    return figure


def grouped_bars(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """A bar a variant in each group, labelled with its height."""
    named = rows.assign(name=rows["variant"].map(VARIANT_NAMES))
    palette = {VARIANT_NAMES[variant]: colour for variant, colour in VARIANT_COLOURS.items()}
    sns.barplot(named, x=x, y=y, hue="name", palette=palette, hue_order=palette, saturation=1, ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.0f", fontsize=11)


def stacked_bars(
    figure: Chart, heights: pd.DataFrame, colours: Mapping[str, str], legend_title: str | None = None
) -> Axes:
    """A bar a variant (columns), stacked from parts (rows) in the order of `colours`, with its sum above."""
    ax = figure.subplots()
    bottom = np.zeros(len(VARIANT_NAMES))
    for part, colour in colours.items():
        height = heights.loc[part, list(VARIANT_NAMES)].to_numpy(float)
        ax.bar(list(VARIANT_NAMES.values()), height, bottom=bottom, color=colour, label=part)
        bottom += height
    for place, top in enumerate(bottom):
        ax.text(place, top + 0.01 * bottom.max(), f"{top:.1f}", ha="center")
    ax.set_ylim(0, 1.1 * bottom.max())
    ax.grid(axis="x", visible=False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, title=legend_title)
    return ax


def span(values: pd.Series) -> str:
    """Smallest to largest value in whole numbers, as words."""
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low}–{high}"
