"""How a figure is set: for the projector ("talk") or for print ("paper"), in one place for every figure.

Figure functions draw in the sizes of the talk. For print a page of the asked width takes the place of theirs, and what
they measured in points is brought to the size of print: writing to 7 or 8 points, lines and marks in proportion.
"""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from PIL import Image

from hae_lab.checks import HAELabError, require, require_name, require_number
from hae_lab.plots.catalogue import current_language, fonts, say
from hae_lab.plots.greys import to_grey

SIZE = (8.0, 6.0)  # inches, of a figure for a 4:3 projector
LETTER, TEXT = 0.648, 0.58  # widths of a letter in font sizes: of bold writing, and of plain
FORMATS = ("png", "pdf", "svg")


class TooNarrow(HAELabError):
    """A picture cannot be read at the asked width."""


@dataclass(frozen=True)
class Style:
    """Width of the page in inches (None: each figure's own), size of print against the talk, and matplotlib's settings.

    `writing` is the smallest and the largest writing of print in points; (0, inf) leaves all as it is drawn.
    """

    name: str
    width: float | None
    scale: float
    writing: tuple[float, float]
    dpi: int
    settings: dict[str, Any] = field(hash=False, compare=False)
    grey: bool = False  # without colours, see `plots.greys`

    def canvas(self, size: tuple[float, float] = SIZE) -> tuple[float, float]:
        """The page in inches of the talk, in which figures are laid out: `size`, or as wide as print allows."""
        return size if self.width is None else (self.width / self.scale, size[1])

    @property
    def is_narrow(self) -> bool:
        """Whether a legend beside the axes would leave too little of them."""
        return self.canvas()[0] < 0.8 * SIZE[0]


def _settings(base: float, small: float, title: float, heading: float, line: float, dpi: int) -> dict[str, Any]:
    """matplotlib's settings: base, small, title and heading in points; `line` in proportion to matplotlib's own."""
    return {
        **sns.axes_style("whitegrid"),
        "font.size": base,
        "axes.titlesize": title,
        "axes.labelsize": base,
        "figure.titlesize": heading,
        "legend.fontsize": small,
        "xtick.labelsize": small,
        "ytick.labelsize": small,
        **{name: line * mpl.rcParamsDefault[name] for name in ("axes.linewidth", "grid.linewidth", "axes.labelpad")},
        **{name: line * mpl.rcParamsDefault[name] for name in ("axes.titlepad", "xtick.major.pad", "ytick.major.pad")},
        "savefig.dpi": dpi,
        "pdf.fonttype": 42,  # whole outlines, which journals ask for, and text that can be searched
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "hae_lab",
    }


ONE_COLUMN = 3.3  # inches, of most journals
TWO_COLUMNS = 6.9
PRINT = 7 / 11  # the smallest writing of print and of the talk, in points
STYLES = {
    "talk": Style("talk", None, 1.0, (0, float("inf")), 100, _settings(13, 12, 14, 15, 1, 100)),
    "paper": Style("paper", ONE_COLUMN, PRINT, (7, 8), 300, _settings(8, 7, 8, 8, PRINT, 300)),
}
_STYLE: ContextVar[Style] = ContextVar("style", default=STYLES["talk"])


def current_style() -> Style:
    """The style in which figures are drawn now, with the fonts of their language."""
    chosen = _STYLE.get()
    if not fonts():
        return chosen
    return replace(chosen, settings=chosen.settings | {"font.family": [*chosen.settings["font.family"], *fonts()]})


@contextmanager
def style(name: str, width: float | None = None, *, grey: bool = False) -> Iterator[Style]:
    """Draw the figures made inside the `with` in the style "talk" or "paper", for paper on a page `width` inches wide.

    With `grey` each colour becomes a grey that print keeps apart from the others (`plots.greys`). A figure keeps its
    style when it is shown or saved later. Raises `HAELabError` for an unknown style, a width of the talk, and widths
    outside 2 to 12; what cannot be read at a width raises `TooNarrow` when it is drawn.
    """
    require_name("style", name, STYLES)
    chosen = STYLES[name]
    if width is not None:
        require(chosen.width is not None, f"the figures of {name!r} have widths of their own, got {width!r}")
        chosen = replace(chosen, width=require_number("width in inches", width, 2, 12))
    chosen = replace(chosen, grey=grey)
    token = _STYLE.set(chosen)
    try:
        yield chosen
    finally:
        _STYLE.reset(token)


class Chart(Figure):
    """A figure that shows itself in a notebook, without pyplot's global state."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.style = current_style()

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """The picture as PNG; the same rows give the same bytes on one computer."""
        drawn, packed = io.BytesIO(self._saved("png")), io.BytesIO()
        # a palette makes it a third of the size, which notebooks in git feel
        picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        inches = {} if self.style.width is None else {"dpi": (self.style.dpi, self.style.dpi)}
        picture.save(packed, "png", optimize=True, **inches)
        return packed.getvalue()

    def svg(self) -> bytes:
        """The picture as SVG with text as text; the same rows give the same bytes."""
        return self._saved("svg", metadata={"Date": None})

    def pdf(self) -> bytes:
        """The picture as PDF with its fonts embedded; the same rows give the same bytes."""
        return self._saved("pdf", metadata={"CreationDate": None})

    def picture(self, kind: str) -> bytes:
        """The picture as "png", "pdf" or "svg". Raises `HAELabError` for another format."""
        require_name("format", kind, FORMATS)
        return getattr(self, kind)()

    def _saved(self, kind: str, **options: Any) -> bytes:
        drawn = io.BytesIO()
        with mpl.rc_context(self.style.settings):
            self.savefig(drawn, format=kind, **options)
        return drawn.getvalue()


def chart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Draw in the project's style, whatever the user's own settings; bring a figure for print to its sizes."""

    @functools.wraps(function)
    def styled(*args: Any, **options: Any) -> Any:
        with mpl.rc_context(current_style().settings):
            figure = function(*args, **options)
            if current_language() != "en":
                _translate(figure)
            if current_style().grey and options.get("ax") is None:
                to_grey(figure, _drawn(figure))
            if isinstance(figure, Chart) and figure.style.width is not None and options.get("ax") is None:
                to_print(figure)
            return figure

    return styled


def _translate(figure: Figure) -> None:
    """Give every text of a figure that is a whole entry of the catalogue its words; templates have theirs already."""
    for axis in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]:
        if isinstance(axis.get_major_locator(), FixedLocator):  # ticks write themselves anew from what they were given
            names = [label.get_text() for label in axis.get_ticklabels()]
            if names != [say(name) for name in names]:
                axis.set_ticklabels([say(name) for name in names])
    for text in figure.findobj(Text):
        text.set_text(say(text.get_text()))


def new_chart(title: str, size: tuple[float, float] = SIZE, least: float = 0.0) -> Chart:
    """An empty figure under its title; `size` is in inches of the talk. Raises `TooNarrow` below `least` of them."""
    chosen = current_style()
    width, height = chosen.canvas(size)
    if width < 0.999 * least:
        raise TooNarrow(
            f"this picture needs {least * chosen.scale:.1f} in for writing of {chosen.writing[0]:g} points, "
            f"got a width of {chosen.width:g} in"
        )
    figure = Chart(figsize=(width * chosen.scale, height * chosen.scale), layout="constrained")
    heading = chosen.settings["figure.titlesize"]
    figure.suptitle(wrapped(say(title), figure.get_figwidth(), heading), fontsize=heading, fontweight="bold")
    return figure


def wrapped(text: str, inches: float, points: float, letter: float = LETTER) -> str:
    """Lines of a text that fit a width in inches; where it broke already, it stays broken, and "40 %" stays whole."""
    letters = max(10, int(72 * inches / (letter * points)))
    if current_language() == "zh":
        return "\n".join("\n".join(_even_lines(line, letters)) for line in text.split("\n"))
    whole = [line.replace(" %", "\0%") for line in text.split("\n")]
    broken = ["\n".join(textwrap.wrap(line, letters, break_long_words=False)) for line in whole]
    return "\n".join(broken).replace("\0", " ")


def _even_lines(line: str, letters: int) -> list[str]:
    """As few lines as a width allows, which end at commas where they can, and are else about as long as each other."""
    ways = [list(_wide_lines(line, width)) for width in range(letters, 9, -1)]
    fewest = [way for way in ways if len(way) == len(ways[0])]
    return max(reversed(fewest), key=lambda way: sum(part[-1] in "，。；：、" for part in way[:-1]))


def _wide_lines(line: str, letters: int) -> Iterator[str]:
    """Lines of a Chinese text, whose letters take the room of two and may stand at any end, Latin words stay whole."""
    room, current = letters, ""
    for piece in re.findall(r"（?(?:[\x21-\u2fff]+(?: %| [=×−] [\x21-\u2fff]+)* ?|.)", line):
        width = letters_wide(piece)
        if current and width > room and piece[0] not in "，。；：、）%":
            yield current.rstrip()
            room, current = letters, ""
        room, current = room - width, current + piece
    yield current


def letters_wide(text: str) -> int:
    """The width of a line in Latin letters: Chinese letters take the room of two."""
    return sum(1 + (ord(letter) > 0x2FFF) for letter in text)


def broken_name(name: str, inches: float, points: float) -> str:
    """A name in code that fits a width in inches: it may break after "_" and "=", too."""
    parts = wrapped(name.replace("_", "_ ").replace("=", "= "), inches, points, TEXT)
    return parts.replace("_ ", "_").replace("= ", "=")


def columns_that_fit(labels: Sequence[str], most: int, inches: float, points: float) -> int:
    """How many columns of a legend, `most` at the most, a width has room for; labels fill column by column."""
    for columns in range(min(most, len(labels)), 1, -1):
        per_column = np.array_split([max(map(letters_wide, label.split("\n"))) for label in labels], columns)
        letters = sum(max(column) for column in per_column)
        # a handle with its pad is 2.8 wide, the space between columns 2, both in font sizes, as matplotlib has them
        if points / 72 * (0.58 * letters + 2.8 * columns + 2 * (columns - 1)) <= 0.97 * inches:
            return columns
    return 1


# from the sizes of the talk to those of print


def to_print(figure: Chart) -> None:
    """Bring what was drawn in points of the talk to the points of the figure's style, and fit it to the page."""
    scale = figure.style.scale
    for text in figure.findobj(Text):
        text.set_fontsize(_size_in_print(text.get_fontsize(), figure.style))
    for artist in _drawn(figure):
        _scale(artist, scale)
    for legend in _legends(figure):
        title, room = legend.get_title(), (legend.axes or figure).bbox.width / figure.dpi
        title.set(text=wrapped(title.get_text(), room, title.get_fontsize(), TEXT), multialignment="center")
    for ax in figure.axes:
        ax.set_xlabel(wrapped(ax.get_xlabel(), _share(ax) * figure.get_figwidth(), ax.xaxis.label.get_fontsize(), TEXT))


def _share(ax: Axes) -> float:
    """The part of the page's width that an axes and its margin have."""
    place = ax.get_subplotspec()
    return 1.0 if place is None else len(place.colspan) / place.get_gridspec().ncols


def _size_in_print(points: float, chosen: Style) -> float:
    smallest, largest = chosen.writing
    return points if smallest <= points <= largest else min(max(points * chosen.scale, smallest), largest)


def _drawn(figure: Figure) -> Iterator[Artist]:
    """Marks, lines and areas that figure functions drew, also those in legends; ticks and grids have settings."""
    for ax in figure.axes:
        yield from (*ax.lines, *ax.patches, *ax.collections)
    for legend in _legends(figure):
        yield from legend.findobj(lambda artist: isinstance(artist, Line2D | Patch | Collection))


def _legends(figure: Figure) -> list[Legend]:
    return [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]


def _scale(artist: Artist, scale: float) -> None:
    if isinstance(artist, Line2D):
        artist.set(linewidth=scale * artist.get_linewidth(), markersize=scale * artist.get_markersize())
        artist.set_markeredgewidth(scale * artist.get_markeredgewidth())
    elif isinstance(artist, Patch):
        artist.set_linewidth(scale * artist.get_linewidth())
        if isinstance(artist, FancyArrowPatch):
            artist.set_mutation_scale(scale * artist.get_mutation_scale())
    elif isinstance(artist, Collection):
        artist.set_linewidth([scale * width for width in artist.get_linewidth()])
        if isinstance(artist, PathCollection):
            artist.set_sizes([scale**2 * size for size in artist.get_sizes()])
