"""Pictures without colours: each colour becomes a grey of its own, far enough from the others for print.

Colours of one brightness, as those that colour-blind eyes tell apart may be, are one grey on paper. So they keep their
order by brightness and are spread evenly; a picture of more colours than greys can be told apart is refused.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from hae_lab.checks import require

MOST = 5  # greys that print keeps apart
DARKEST, LIGHTEST = 0.2, 0.72  # between ink and the lines of the grid
INK, PAPER = 0.15, 0.99  # what is darker or lighter is writing or background
BRIGHTNESS = (0.2126, 0.7152, 0.0722)  # of red, green and blue, ITU-R BT.709
# what an artist has a colour of
PARTS = {
    Line2D: ("color", "markerfacecolor", "markeredgecolor"),
    Patch: ("facecolor", "edgecolor"),
    Collection: ("facecolor", "edgecolor"),
    Text: ("color",),
}
Colour = tuple[float, ...]  # red, green and blue from 0 to 1


def to_grey(figure: Figure, drawn: Iterable[Artist]) -> None:
    """Give what was `drawn` into a figure, and its writing, greys in the place of colours.

    Raises `HAELabError` for more than `MOST` colours that have to be told apart, and for a picture of pixels.
    """
    drawn = list(drawn)
    coloured = [ax for ax in figure.axes if ax.images or any(each.get_array() is not None for each in ax.collections)]
    require(not coloured, "colours of pixels say how much: this picture cannot be drawn in grey")
    found = {
        colour for artist in filter(_is_seen, drawn) for part in _parts(artist) for colour in _opaque(artist, part)
    }
    told_apart = sorted((each for each in found if INK < brightness(each) < PAPER), key=lambda c: (brightness(c), c))
    many = f"{len(told_apart)} colours, and print keeps {MOST} greys apart: ask for fewer variants, or for colours"
    require(len(told_apart) <= MOST, many)
    greys = dict(zip(told_apart, np.linspace(DARKEST, LIGHTEST, len(told_apart)), strict=True))
    for artist in [*drawn, *figure.findobj(Text)]:
        for part in _parts(artist):
            _repaint(artist, part, greys)


def brightness(colour: Colour) -> float:
    """How light a colour looks, from 0 to 1."""
    return float(np.dot(BRIGHTNESS, colour))


def _is_seen(artist: Artist) -> bool:
    """Whether anything is drawn at all: not the frame of a legend without one, not an error bar of one value."""
    if isinstance(artist, Line2D):
        return bool(np.isfinite(np.asarray(artist.get_xydata(), float)).all(axis=1).any())
    return artist.get_visible()


def _parts(artist: Artist) -> tuple[str, ...]:
    """What this artist has a colour of; of a line without marks the line alone."""
    if isinstance(artist, Line2D) and artist.get_marker() in ("None", "", " ", None):
        return ("color",)
    return next((parts for kind, parts in PARTS.items() if isinstance(artist, kind)), ())


def _colours(artist: Artist, part: str) -> list[tuple[Colour, float]]:
    """The colours of a part and how opaque they are; none where it follows another part."""
    value = getattr(artist, f"get_{part}")()
    values = value if isinstance(artist, Collection) else [value]
    return [(rgba[:3], rgba[3]) for rgba in map(to_rgba, values) if not isinstance(value, str) or value != "auto"]


def _opaque(artist: Artist, part: str) -> list[Colour]:
    return [colour for colour, alpha in _colours(artist, part) if alpha > 0]


def _repaint(artist: Artist, part: str, greys: dict[Colour, float]) -> None:
    new = [(*[greys.get(colour, brightness(colour))] * 3, alpha) for colour, alpha in _colours(artist, part)]
    if new:
        getattr(artist, f"set_{part}")(new if isinstance(artist, Collection) else new[0])
