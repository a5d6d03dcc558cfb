"""Pictures of single concepts, for the notebooks that build by hand: numbers in cells, matrices, curves, flows."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from hae_lab.checks import require
from hae_lab.plots.base import CLAIM_COLOUR, PALETTE, Chart, chart, legend_outside, new_chart

CELLS = "Blues"  # of values from nothing upwards
SIGNED = "RdBu_r"  # of values around zero
HIDDEN = "#d9d9d9"  # what is not there: NaN
PATCH_COLOUR = PALETTE[1]


@chart
def number_grids(named: Mapping[str, np.ndarray], title: str, *, patch: int | None = None, digits: int = 0) -> Chart:
    """Matrices with every number written into its cell, side by side; outlined every `patch` cells.

    `named` (rows, columns) each, by the title above it; NaN is left grey and empty.
    """
    arrays = {name: _matrix(name, values) for name, values in named.items()}
    widths = [max(2, values.shape[1]) for values in arrays.values()]
    tallest = max(values.shape[0] for values in arrays.values())
    cell = min(0.62, 9.5 / sum(widths))
    figure = new_chart(title, (max(6.0, cell * sum(widths) + 1.2), max(2.2, cell * tallest + 1.2)))
    size = min(12.0, 26 * cell)
    for ax, (name, values) in zip(_row(figure, widths), arrays.items(), strict=True):
        _shade(ax, values)
        ax.set(title=name, xticks=[], yticks=[])
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = _share(values, value) > 0.6
                ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=size, color=_ink(dark))
        if patch and min(values.shape) >= patch:
            _outline_patches(ax, values.shape, patch)
    return figure


@chart
def matrices(
    named: Mapping[str, np.ndarray],
    title: str,
    *,
    split: int | None = None,
    axes: tuple[str, str] = ("keys", "queries"),
    mark: tuple[int, int] | None = None,
) -> Chart:
    """Matrices as shades, side by side, each on its own scale; a line after row and column `split`.

    `named` (rows, columns) each; values below zero turn the shades into blue and red; NaN is grey. `mark` is a
    (row, column) to outline. `axes` name the columns and the rows.
    """
    arrays = {name: _matrix(name, values) for name, values in named.items()}
    count = len(arrays)
    figure = new_chart(title, (min(11.0, 3.6 * count + 0.8), min(4.2, 9.0 / count + 1.6)))
    for ax, (name, values) in zip(_row(figure, [1] * count), arrays.items(), strict=True):
        _shade(ax, values)
        ax.set(title=name, xlabel=f"{axes[0]} →", xticks=[], yticks=[])
        if split:
            ax.axhline(split - 0.5, color=PATCH_COLOUR, linewidth=1)
            ax.axvline(split - 0.5, color=PATCH_COLOUR, linewidth=1)
        if mark:
            ax.add_patch(Rectangle((mark[1] - 0.5, mark[0] - 0.5), 1, 1, fill=False, color=CLAIM_COLOUR, linewidth=2))
    figure.axes[0].set_ylabel(f"← {axes[1]}")
    return figure


@chart
def rows(named: Mapping[str, np.ndarray], title: str, *, xlabel: str, split: int | None = None) -> Chart:
    """Rows of numbers as bars, one under the other on one x axis; bars from `split` on in another colour.

    `named` (n,) each. A value that is not finite is drawn as a mark below the axis: a key that is hidden.
    """
    figure = new_chart(title, (8.0, 1.5 * len(named) + 1.2))
    axes = figure.subplots(len(named), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, named.items(), strict=True):
        values = np.asarray(values, float)
        places, known = np.arange(len(values)), np.isfinite(values)
        colours = np.where(places >= (split or len(values)), PATCH_COLOUR, PALETTE[0])
        ax.bar(places[known], values[known], color=colours[known], width=0.9)
        low = min(0.0, values[known].min()) if known.any() else 0.0
        ax.plot(places[~known], np.full((~known).sum(), low), "|", color="#888888", markersize=5)
        ax.set_title(name, loc="left", fontsize=12)
        ax.grid(axis="x", visible=False)
    axes[-1].set_xlabel(xlabel)
    return figure


@chart
def bars(named: Mapping[str, float], title: str, *, xlabel: str, digits: int = 2) -> Chart:
    """A bar a number, from top to bottom, with its name at the left and its value at the end."""
    require(len(named) > 0, "bars need at least one number")
    figure = new_chart(title, (8.0, 0.6 * len(named) + 1.4))
    ax = figure.subplots()
    drawn = ax.barh(list(named), list(named.values()), color=PALETTE[0])
    ax.bar_label(drawn, fmt=f"%.{digits}f", padding=4)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    return figure


@chart
def curves(
    named: Mapping[str, np.ndarray],
    title: str,
    *,
    xlabel: str,
    ylabel: str,
    x: Sequence[float] | None = None,
    faint: Sequence[str] = (),
) -> Chart:
    """Lines over one x axis, each named at its end in its own colour; those in `faint` are grey and thin.

    `named` (n,) each, over `x` (n,), or over 0, 1, ... n - 1.
    """
    figure = new_chart(title, (8.0, 4.2))
    ax = figure.subplots()
    spare = iter(PALETTE)
    for name, values in named.items():
        values = np.asarray(values, float)
        places = np.arange(len(values)) if x is None else np.asarray(x, float)
        quiet = name in faint
        colour, width = ("#aaaaaa", 0.8) if quiet else (next(spare), 2.5)
        ax.plot(places, values, color=colour, linewidth=width, label=name, zorder=1 if quiet else 2)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    legend_outside(figure, None, "right center")
    return figure


@chart
def quarter_circle(signal: float, title: str) -> Chart:
    """Image and noise as two directions at right angles, the mixture between them, and v, along which it turns.

    `signal` is the share of the image's square in the mixture, alpha-bar, between 0 and 1.
    """
    require(0 < signal < 1, f"the signal's share lies between 0 and 1, got {signal}")
    figure = new_chart(title, (7.0, 5.25))
    ax = figure.subplots()
    turn = np.linspace(0, np.pi / 2, 100)
    ax.plot(np.cos(turn), np.sin(turn), color="#aaaaaa", linewidth=1)
    across, up = np.sqrt(signal), np.sqrt(1 - signal)
    arrows = {
        "$x_0$: the image": ((0, 0), (1, 0), PALETTE[0]),
        "$\\varepsilon$: the noise": ((0, 0), (0, 1), PALETTE[1]),
        "$x_t$: what the network sees": ((0, 0), (across, up), PALETTE[2]),
        "$v$: where $x_t$ goes as noise grows": ((across, up), (across - 0.5 * up, up + 0.5 * across), PALETTE[4]),
    }
    for name, (tail, tip, colour) in arrows.items():
        ax.annotate("", tip, tail, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2.5})
        ax.text(tip[0] + 0.03, tip[1] + 0.03, name, color=colour)
    ax.set(xlim=(-0.1, 1.5), ylim=(-0.1, 1.25), xticks=[0, across], yticks=[0, up], aspect="equal")
    ax.set_xticklabels(["0", "$\\sqrt{\\bar\\alpha_t}$"])
    ax.set_yticklabels(["0", "$\\sqrt{1-\\bar\\alpha_t}$"])
    return figure


@chart
def patch_axes(side: int, patch: int, title: str) -> Chart:
    """A map cut into patches with the four axes that a cut map has: patch row and column, and row and column inside.

    The numbers are those of the axes of (B, C, H/p, W/p, p, p).
    """
    require(side % patch == 0, f"patches of {patch} do not divide a map of side {side}")
    figure = new_chart(title, (7.0, 5.25))
    ax = figure.subplots()
    gap, count = 0.6, side // patch
    for row in range(count):
        for column in range(count):
            corner = column * (patch + gap), row * (patch + gap)
            for place in range(patch * patch):
                inside = corner[0] + place % patch, corner[1] + place // patch
                ax.add_patch(Rectangle(inside, 1, 1, facecolor="#eef4fa", edgecolor="#9db8d2"))
            ax.add_patch(Rectangle(corner, patch, patch, fill=False, color=PATCH_COLOUR, linewidth=2.5))
    whole, last = side + gap * (count - 1), (count - 1) * (patch + gap)
    _axis_arrow(ax, (-0.8, 0), (-0.8, whole), "axis 2:\npatch row", PATCH_COLOUR, (-1.0, whole / 2), "right")
    _axis_arrow(ax, (0, -0.8), (whole, -0.8), "axis 3: patch column", PATCH_COLOUR, (whole / 2, -1.2), "center")
    edge, inner = whole + 0.5, PALETTE[0]
    _axis_arrow(ax, (edge, last), (edge, whole), "axis 4:\nrow inside", inner, (edge + 0.3, last + patch / 2), "left")
    bottom = whole + 0.5
    _axis_arrow(ax, (last, bottom), (whole, bottom), "axis 5: column inside", inner, (whole, bottom + 0.8), "right")
    ax.set(xlim=(-4.2, whole + 4.2), ylim=(whole + 2.2, -2.2), aspect="equal")
    ax.axis("off")
    return figure


@chart
def flow(steps: Sequence[tuple[str, str]], title: str, *, columns: int = 4) -> Chart:
    """Steps in reading order, each a box with its name and the shape that leaves it; `columns` boxes a line."""
    require(len(steps) > 0, "a flow has at least one step")
    lines = -(-len(steps) // columns)
    figure = new_chart(title, (9.0, 1.35 * lines + 0.8))
    ax = figure.subplots()
    for number, (name, shape) in enumerate(steps):
        row, column = divmod(number, columns)
        corner = 2.4 * column, -1.3 * row
        box = FancyBboxPatch(corner, 1.9, 0.8, boxstyle="round,pad=0.04", facecolor="#eef4fa", edgecolor=PALETTE[0])
        ax.add_patch(box)
        ax.text(corner[0] + 0.95, corner[1] + 0.55, name, ha="center", va="center", fontsize=12)
        ax.text(corner[0] + 0.95, corner[1] + 0.2, shape, ha="center", va="center", fontsize=11, color=CLAIM_COLOUR)
        if column:
            tail = corner[0] - 0.45, corner[1] + 0.4
            ax.annotate("", (corner[0] - 0.05, tail[1]), tail, arrowprops={"arrowstyle": "-|>", "color": "#555555"})
    ax.set(xlim=(-0.2, 2.4 * min(columns, len(steps)) - 0.3), ylim=(-1.3 * lines + 0.45, 1.0))
    ax.axis("off")
    return figure


def _row(figure: Chart, widths: Sequence[float]) -> list[Axes]:
    return list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    require(values.ndim == 2, f"{name!r} is drawn as (rows, columns), got a shape of {values.shape}")
    return values


def _shade(ax: Axes, values: np.ndarray) -> None:
    ax.set_facecolor(HIDDEN)
    ax.grid(visible=False)
    low, high = _span(values)
    ax.imshow(values, cmap=SIGNED if low < 0 else CELLS, vmin=low, vmax=high, interpolation="nearest")


def _span(values: np.ndarray) -> tuple[float, float]:
    """The scale of the shades: around zero if something is below it."""
    known = values[np.isfinite(values)]
    strongest = float(np.abs(known).max()) if known.size else 1.0
    return (-strongest if known.size and known.min() < 0 else 0.0), strongest or 1.0


def _share(values: np.ndarray, value: float) -> float:
    """How strongly a value is shaded, 0 to 1."""
    return abs(value) / _span(values)[1]


def _ink(dark: bool) -> str:
    return "white" if dark else "black"


def _outline_patches(ax: Axes, shape: tuple[int, ...], patch: int) -> None:
    for row in range(0, shape[0], patch):
        for column in range(0, shape[1], patch):
            corner = column - 0.5, row - 0.5
            ax.add_patch(Rectangle(corner, patch, patch, fill=False, color=PATCH_COLOUR, linewidth=2.5))


def _axis_arrow(ax: Axes, tail: tuple, tip: tuple, name: str, colour: str, place: tuple, align: str) -> None:
    ax.annotate("", tip, tail, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
    ax.text(*place, name, color=colour, ha=align, va="center")
