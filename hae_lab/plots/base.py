"""What every picture of the project shares: titles, legends, colours, bars and words.

One colour a variant everywhere, in the order of registration, apart from each other for colour-blind eyes too; sizes
and print are the matter of `plots.page`. Every figure takes tidy rows, then options by keyword; where they make sense:

    order    which variants (cells, mask rules) are drawn, and in which order; by default all of the rows
    palette  colours by name, which take the place of the project's
    ax       axes to draw into, whose figure is returned; by default a new figure of its own
    stats    what `hae_lab.study.statistics` found in the rows; by default the figure asks for it
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from hae_lab.checks import require, require_name
from hae_lab.plots.catalogue import commas as commas
from hae_lab.plots.catalogue import say as say
from hae_lab.plots.catalogue import say_list as say_list
from hae_lab.plots.page import SIZE as SIZE  # figure functions find here whatever they share
from hae_lab.plots.page import TEXT, broken_name, columns_that_fit, current_style, wrapped
from hae_lab.plots.page import Chart as Chart
from hae_lab.plots.page import chart as chart
from hae_lab.plots.page import new_chart as new_chart
from hae_lab.presets import DOCUMENT, VARIANTS, variant_title

PALETTE = sns.color_palette("colorblind").as_hex()
INK = "#222222"
CLAIM_COLOUR = INK  # what the document says; no variant is black
CONTROL_COLOUR = "#525252"  # seaborn's grey is V2's green to colour-blind eyes (tests/test_plots_colours.py)
# in the order of registration
VARIANT_CYCLE = [CONTROL_COLOUR, *(PALETTE[place] for place in (0, 1, 2, 9, 8, 4, 5, 6))]
REFERENCE = DOCUMENT[0]  # the variant that columns percent_of_hae measure against
DOCUMENT_PRESET = "brats128"  # the body that the document trains
_ASKED: ContextVar[frozenset[str]] = ContextVar("ASKED", default=frozenset())  # variants; none: all of them
COUNT_WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def titled_axes(title: str, ax: Axes | None = None, least: float = 0.0) -> tuple[Figure, Axes]:
    """One axes in a new figure, of a width from `least` inches of the talk, or the user's own, under the title."""
    if ax is None:
        figure = new_chart(title, least=least)
        return figure, figure.subplots()
    width = max(1.0, ax.get_window_extent().width / ax.figure.dpi)
    points = current_style().settings["axes.titlesize"]
    ax.set_title(wrapped(say(title), width, points, 0.605), fontweight="bold")
    return ax.figure, ax


def legend_outside(figure: Figure, ax: Axes | None, place: str, **options: Any) -> None:
    """A legend at the "right center" or "lower center" of our own figure, or of the user's axes `ax`."""
    if ax is None:
        if place == "right center" and current_style().is_narrow:
            place, options = "lower center", {"ncols": 3} | options
        write_legend(figure, loc=f"outside {place}", **options)
    elif place == "right center":
        write_legend(ax, loc="center left", bbox_to_anchor=(1, 0.5), **options)
    else:  # below the labels of the x axis: the pad is in font sizes
        write_legend(ax, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=5, **options)


def write_legend(owner: Figure | Axes, ncols: int = 1, **options: Any) -> Legend:
    """A legend of a figure or axes without a frame, in up to `ncols` columns: as many as its width has room for."""
    axes = owner.axes if isinstance(owner, Figure) else [owner]
    drawn = [label for ax in axes for label in ax.get_legend_handles_labels()[1]]
    labels = options.get("labels") or [handle.get_label() for handle in options.get("handles", ())] or drawn
    inches = max(1.0, owner.get_window_extent().width / axes[0].figure.dpi)
    columns = columns_that_fit(labels, ncols, inches, current_style().settings["legend.fontsize"])
    return owner.legend(ncols=columns, **{"frameon": False} | options)


def mark_claim(ax: Axes, x: Sequence[float], y: Sequence[float], **options: Any) -> None:
    """A short black line from point to point, which a white rim sets off from bars of any colour."""
    ax.plot(x, y, color="white", linewidth=7, solid_capstyle="butt")
    ax.plot(x, y, color=CLAIM_COLOUR, linewidth=4, solid_capstyle="butt", **options)


def name_ticks(ax: Axes, places: Iterable[float], names: Iterable[str]) -> None:
    """Names at places of the x axis; on a narrow page they break, or take turns above and below, to leave room."""
    places, names, chosen = list(places), list(names), current_style()
    room = 0.85 * ax.figure.get_figwidth() / max(1, len(places))  # the axes have most of the page
    points = chosen.settings["xtick.labelsize"]
    if chosen.is_narrow:
        names = [broken_name(name, room, points) for name in names]
        longest = max((len(line) for name in names for line in name.split("\n")), default=0)
        if TEXT * points * longest > 72 * room:
            lines = 1 + max(name.count("\n") for name in names[::2])
            names[1::2] = ["\n" * lines + name for name in names[1::2]]
    ax.set_xticks(places, names)


# variants


def variant_colours(names: Iterable[str] = (), palette: Mapping[str, str] | None = None) -> dict[str, str]:
    """Colour of each variant by order of registration; names that are no variants follow in their own order."""
    order = dict.fromkeys([*VARIANTS, *names])
    return {**dict(zip(order, cycle(VARIANT_CYCLE), strict=False)), **(palette or {})}


def variant_colour(name: str) -> str:
    """The colour of a variant in every figure."""
    return variant_colours([name])[name]


def title_of(name: str) -> str:
    """The title of a variant in the language of now; any other name is its own, unless the catalogue has it."""
    return say(variant_title(name))


def version_of(name: str) -> str:
    """A variant's title without the family's: "Lite" for "HAE Lite"."""
    return variant_title(name).removeprefix(f"{variant_title(REFERENCE)} ")


def short_title(name: str) -> str:
    """A version in a sentence that is about HAE, in the language of now."""
    return say(version_of(name))


def has_blocks(name: str) -> bool:
    """Whether a variant has hybrid blocks; a name that nobody registered may."""
    return name not in VARIANTS or VARIANTS[name].has_blocks


def subject_of(shown: Sequence[str]) -> str:
    """The variant that a sentence is about: HAE, or else the first that has hybrid blocks, or else the first."""
    return REFERENCE if REFERENCE in shown else next(filter(has_blocks, shown), shown[0])


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
    require(len(shown) > 0, f"no variant in the rows has a {value}; the rows are of {names_or_nothing(rows)}")
    wanted = order or [*(VARIANTS if expected is None else expected), *rows["variant"].unique()]
    return shown, missing_note(ordered(wanted), shown)


@contextmanager
def only(variants: Iterable[str]) -> Iterator[None]:
    """In figures drawn inside the `with`, other variants are not asked for: no note says that they are missing."""
    token = _ASKED.set(frozenset(variants))
    try:
        yield
    finally:
        _ASKED.reset(token)


def missing_note(wanted: Iterable[str], shown: Iterable[str], text: str = "not measured: {names}") -> str:
    """Names what is wanted and not shown, in a text of the catalogue, or "" if there is nothing to name."""
    shown, asked = list(shown), _ASKED.get()
    gaps = [title_of(name) for name in wanted if name not in shown and (not asked or name in asked)]
    return say(text, names=commas(gaps)) if gaps else ""


def names_or_nothing(rows: pd.DataFrame) -> str:
    """The variants of the rows, for a message."""
    return ", ".join(map(str, rows["variant"].unique())) or "nothing"


def write_note(ax: Axes, note: str) -> None:
    """Add a line below the label of the x axis."""
    if note:
        ax.set_xlabel("\n".join(filter(None, [ax.get_xlabel(), note])))


def of_preset(rows: pd.DataFrame, preset: str | None = None) -> pd.DataFrame:
    """The rows of one preset: the document's, or else the first. Raises `HAELabError` if there are none."""
    known = list(rows["preset"].unique())
    if preset is None and DOCUMENT_PRESET not in known:
        preset = next(iter(known), None)
    preset = preset or DOCUMENT_PRESET
    require_name("preset", preset, known)
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
    ax.get_legend().remove()  # it stands where figures want it
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.0f", fontsize=11)
    groups = list(named[x].unique())
    name_ticks(ax, range(len(groups)), groups)


def stacked_bars(ax: Axes, heights: pd.DataFrame, colours: Mapping[str, str]) -> None:
    """A bar a variant (columns), stacked from parts (rows) in the order of `colours`, with its sum above."""
    names = [title_of(variant) for variant in heights.columns]
    bottom = np.zeros(len(names))
    for part, colour in colours.items():
        height = heights.loc[part].to_numpy(float)
        ax.bar(range(len(names)), height, bottom=bottom, color=colour, label=part)
        bottom += height
    for place, top in enumerate(bottom):
        ax.text(place, top + 0.01 * bottom.max(), f"{top:.1f}", ha="center")
    name_ticks(ax, range(len(names)), names)
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
