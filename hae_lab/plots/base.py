"""What every picture of the project shares: style, colours, and a figure that shows itself in a notebook.

One colour a variant everywhere, from seaborn's colour-blind safe palette, in the order of registration; sizes suit a
4:3 projector. Every figure takes tidy rows, then options by keyword; where they make sense, these are

    order    which variants (cells, mask rules) are drawn, and in which order; by default all of the rows
    palette  colours by name, which take the place of the project's
    ax       axes to draw into, whose figure is returned; by default a new figure of its own
    stats    what `hae_lab.study.statistics` found in the rows; by default the figure asks for it
"""

import functools
import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hae_lab.checks import require, require_name
from hae_lab.presets import DOCUMENT, VARIANTS, variant_title

PALETTE = sns.color_palette("colorblind").as_hex()
CLAIM_COLOUR = PALETTE[3]
VARIANT_CYCLE = [PALETTE[place] for place in (7, 0, 1, 2, 4, 5, 6, 8, 9)]  # in the order of registration
REFERENCE = DOCUMENT[0]  # the variant that columns percent_of_hae measure against
COUNT_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
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


def chart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Draw in the project's style, whatever the user's own settings."""

    @functools.wraps(function)
    def styled(*args: Any, **options: Any) -> Any:
        with mpl.rc_context(STYLE):
            return function(*args, **options)

    return styled


def new_chart(title: str, size: tuple[float, float] = SIZE) -> Chart:
    """An empty figure under its title."""
    figure = Chart(figsize=size, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, int(7.4 * size[0]))), fontsize=15, fontweight="bold")
    return figure


def titled_axes(title: str, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """One axes in a new figure, or the user's own, under the title."""
    if ax is None:
        figure = new_chart(title)
        return figure, figure.subplots()
    width = ax.get_window_extent().width / ax.figure.dpi
    ax.set_title("\n".join(textwrap.wrap(title, max(20, int(8.5 * width)))), fontweight="bold")
    return ax.figure, ax


def legend_outside(figure: Figure, ax: Axes | None, place: str, **options: Any) -> None:
    """A legend at the "right center" or "lower center" of our own figure, or of the user's axes `ax`."""
    if ax is None:
        figure.legend(loc=f"outside {place}", frameon=False, **options)
    elif place == "right center":
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, **options)
    else:  # below the labels of the x axis: the pad is in font sizes
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, frameon=False, **options)


# variants


def variant_colours(names: Iterable[str] = (), palette: Mapping[str, str] | None = None) -> dict[str, str]:
    """Colour of each variant by order of registration; names that are no variants follow in their own order."""
    order = dict.fromkeys([*VARIANTS, *names])
    return {**dict(zip(order, cycle(VARIANT_CYCLE), strict=False)), **(palette or {})}


def variant_colour(name: str) -> str:
    """The colour of a variant in every figure."""
    return variant_colours([name])[name]


def short_title(name: str) -> str:
    """A version in a sentence that is about HAE: "Lite" for "HAE Lite"."""
    return variant_title(name).removeprefix(f"{variant_title(REFERENCE)} ")


def has_blocks(name: str) -> bool:
    """Whether a variant has hybrid blocks; a name that nobody registered may."""
    return name not in VARIANTS or VARIANTS[name].has_blocks


def ordered(names: Iterable[str], order: Sequence[str] | None = None) -> list[str]:
    """The names that are drawn: those of `order`, or the variants as they were registered, then all others."""
    names = list(dict.fromkeys(names))
    if order is None:
        return [*(name for name in VARIANTS if name in names), *(name for name in names if name not in VARIANTS)]
    return [name for name in dict.fromkeys(order) if name in names]


def measured(
    rows: pd.DataFrame, value: str, order: Sequence[str] | None = None, expected: Iterable[str] | None = None
) -> tuple[list[str], str]:
    """The variants of which the rows hold a `value`, in order, and a note that names the others; "" if there are none.

    The others are those of `order`, or all that are `expected` or in the rows: every variant, if left out.
    """
    shown = ordered(rows.loc[rows[value].notna(), "variant"], order)
    require(len(shown) > 0, f"no variant in the rows has a {value}; the rows are of {_listed_or_none(rows['variant'])}")
    wanted = order or [*(VARIANTS if expected is None else expected), *rows["variant"].unique()]
    return shown, missing_note(ordered(wanted), shown)


def missing_note(wanted: Iterable[str], shown: Iterable[str], state: str = "not measured") -> str:
    """Names what is wanted and not shown, or "" if there is nothing to name."""
    shown = list(shown)
    gaps = [variant_title(name) for name in wanted if name not in shown]
    return f"{state}: {', '.join(gaps)}" if gaps else ""


def _listed_or_none(names: pd.Series) -> str:
    return ", ".join(map(str, names.unique())) or "nothing"


def write_note(ax: Axes, note: str) -> None:
    """Add a line below the label of the x axis."""
    if note:
        ax.set_xlabel("\n".join(filter(None, [ax.get_xlabel(), note])))


def of_preset(rows: pd.DataFrame, preset: str) -> pd.DataFrame:
    """The rows of one preset. Raises `HAELabError` if there are none."""
    require_name("preset", preset, rows["preset"].unique())
    return rows[rows["preset"] == preset]


# bars


def bar_places(groups: int, bars: int) -> np.ndarray:
    """Centres (bars, groups) of bars side by side that share 0.8 of the space from group to group."""
    return np.arange(groups) + bar_step(bars) * (np.arange(bars)[:, None] - (bars - 1) / 2)


def bar_step(bars: int) -> float:
    return 0.8 / bars


def grouped_bars(ax: Axes, rows: pd.DataFrame, x: str, y: str, colours: Mapping[str, str]) -> None:
    """A bar a variant of `colours` in each group, labelled with its height."""
    named = rows[rows["variant"].isin(list(colours)) & rows[y].notna()]
    named = named.assign(name=named["variant"].map(variant_title))
    palette = {variant_title(variant): colour for variant, colour in colours.items()}
    sns.barplot(named, x=x, y=y, hue="name", palette=palette, hue_order=palette, saturation=1, ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.0f", fontsize=11)


def stacked_bars(ax: Axes, heights: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """A bar a variant (columns), stacked from parts (rows) in the order of `colours`, with its sum above."""
    names = [variant_title(variant) for variant in heights.columns]
    bottom = np.zeros(len(names))
    for part, colour in colours.items():
        height = heights.loc[part].to_numpy(float)
        ax.bar(names, height, bottom=bottom, color=colour, label=part)
        bottom += height
    for place, top in enumerate(bottom):
        ax.text(place, top + 0.01 * bottom.max(), f"{top:.1f}", ha="center")
    ax.set_ylim(0, 1.1 * bottom.max())
    ax.grid(axis="x", visible=False)


def reversed_legend(ax: Axes) -> dict[str, list]:
    """The entries of a legend from top to bottom, as the parts of a bar stand."""
    handles, labels = ax.get_legend_handles_labels()
    return {"handles": handles[::-1], "labels": labels[::-1]}


def part_colours(parts: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Colours of the parts in the order of `known`; parts that nobody knows follow with what is left of the palette."""
    parts = list(parts)
    spare = cycle([colour for colour in PALETTE if colour not in known.values()] or PALETTE)
    return {part: colour for part, colour in known.items() if part in parts} | {
        part: next(spare) for part in parts if part not in known
    }


# words


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count_word(count: int) -> str:
    return COUNT_WORDS[count] if count < len(COUNT_WORDS) else str(count)


def short(count: int, digits: int = 2, space: str = "") -> str:
    """A count in thousands or millions with that many digits, or all those before the point: 7478016 -> "7.5M"."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{max(0, digits - len(str(int(value))))}f}{space}{unit}"
    return str(count)


def span(values: pd.Series) -> str:
    """Smallest to largest value in whole numbers, as words."""
    low, high = f"{values.min():.0f}", f"{values.max():.0f}"
    return low if low == high else f"{low}–{high}"
