"""What the pictures of studies share: names and colours of cells, marks of intervals, and verdicts in words."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hae_lab.checks import require
from hae_lab.diffusion.metrics import metric_label, metric_title
from hae_lab.plots.base import (
    PALETTE,
    has_blocks,
    legend_outside,
    missing_note,
    ordered,
    say,
    say_list,
    span,
    variant_colours,
)
from hae_lab.plots.compute import RULE_COLOURS
from hae_lab.plots.page import current_style
from hae_lab.presets import VARIANTS, variant_title
from hae_lab.study import comparisons, statistics
from hae_lab.study.equivalence import BETTER, CANNOT_TELL, EQUAL

COSTS = {"params": "parameters", "macs": "MACs", "ms": "time"}
SCALES = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
MEAN, SEED = "#222222", PALETTE[9]  # where a mark stands for no cell
LONG_NAME = 36  # letters
KNOWN_WORSE = PALETTE[3]  # controls

Row = Mapping[str, Any]
Style = dict[str, Any]


# cells and numbers


def level_name(level: Any) -> str:
    """A level of a factor: a number without needless digits; a variant by its name."""
    return f"{level:g}" if isinstance(level, float) else variant_title(level)


def cell_name(cell: Any) -> str:
    """A cell of a study, or a level, in the language of now."""
    return say(level_name(cell))


def metric_words(metric: str) -> str:
    """The title of a metric in the language of now."""
    return say(metric_title(metric))


def metric_axis(metric: str) -> str:
    """What an axis that shows a metric says, in the language of now."""
    return say(metric_label(metric))


def in_order(rows: pd.DataFrame, order: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of the cells of `order`, cell by cell; by default of all cells, variants as they were registered first.

    Of the rows of a study, those of its question. Raises `HAELabError` for rows without a column cell, and if none of
    their cells is in `order`.
    """
    statistics.require_columns(rows, "cell")
    rows = statistics.question(rows)
    places = {cell: place for place, cell in enumerate(ordered(rows["cell"], order))}
    cells = ", ".join(map(str, rows["cell"].unique())) or "none"
    require(len(places) > 0, f"no cell to draw: order is {order}, the cells of the rows are {cells}")
    return rows[rows["cell"].isin(places)].sort_values("cell", key=lambda cells: cells.map(places), kind="stable")


def absent(cells: Iterable[str], order: Sequence[str] | None = None) -> str:
    """A note that names the variants which rows of variants lack, or what they lack of an order; "" for nothing.

    The control is a baseline and none of the versions: rows may do without.
    """
    cells = set(cells)
    versions = [name for name in VARIANTS if has_blocks(name)]
    of_variants = len(cells.intersection(versions)) > 1
    return missing_note(order if order is not None else versions if of_variants else (), cells)


def lines(*notes: str) -> str:
    """Notes below one another, without those that are empty."""
    return "\n".join(filter(None, notes))


def cell_styles(cells: Iterable[str], palette: Mapping[str, str] | None = None) -> dict[str, Style]:
    """Colour and marker of each cell: a variant and a mask rule have their own colour, others take what is left."""
    cells = list(dict.fromkeys(cells))
    known = variant_colours() | RULE_COLOURS | dict(palette or {})
    own = {cell: known[cell] for cell in cells if cell in known}
    spare = cycle([colour for colour in PALETTE if colour not in own.values()] or PALETTE)
    markers = cycle("osD^vXP*<>")
    return {cell: {"color": own.get(cell) or next(spare), "marker": next(markers)} for cell in cells}


def cost_axis(costs: pd.Series) -> tuple[float, str]:
    """Divisor of a cost, and the label of an axis that shows it divided."""
    name = say(COSTS.get(costs.name, costs.name))
    ones = "ms" if costs.name == "ms" else ""
    divisor, unit = next(((size, word) for size, word in SCALES if not ones and costs.max() >= size), (1, ones))
    return divisor, say("{name}, {unit}", name=name, unit=say(unit)) if unit else name


def cell_costs(rows: pd.DataFrame, costs: Sequence[str]) -> pd.DataFrame:
    """A row a cell: cell, its costs, and their quartiles <cost>_q1 and <cost>_q3 where the rows have them.

    Raises `HAELabError` for a cost that differs between the seeds of a cell.
    """
    statistics.require_columns(rows, "cell", *costs)
    columns = [name for cost in costs for name in (cost, f"{cost}_q1", f"{cost}_q3") if name in rows.columns]
    differ = rows.groupby("cell", sort=False)[columns].nunique(dropna=False).ne(1).any(axis=1)
    cells = ", ".join(map(str, differ.index[differ]))
    require(not cells, f"{', '.join(columns)} must be one number a cell, but differ between the seeds of {cells}")
    return rows.drop_duplicates("cell")[["cell", *columns]]


def in_percent(row: Row) -> Row:
    """A difference and its interval in percent of the second's mean."""
    scale = 100 / abs(row["mean_second"])
    return row | {name: scale * row[name] for name in ("mean_difference", "ci_low", "ci_high")}


# words


def winner_and_loser(row: Row) -> tuple[Any, Any] | None:
    """The two cells, or levels, of a comparison in which one is better."""
    if row["verdict"] not in BETTER:
        return None
    pair = row["first"], row["second"]
    return pair if row["verdict"] == BETTER[0] else pair[::-1]


def differing(differences: pd.DataFrame) -> list[Row]:
    """The comparisons in which one is better."""
    return differences[differences["verdict"].isin(BETTER)].to_dict("records")


def study_title(title: str, rows: pd.DataFrame) -> str:
    """A title of a figure of a study's rows: of which data, and void if the study does not find its controls."""
    data = list(rows["data"].unique()) if "data" in rows else []
    title = say("{data}: {title}", data=data[0], title=title) if len(data) == 1 else title
    void = comparisons.controls_found(rows) == comparisons.NOT_FOUND
    return say("Void, for a control that is known to be worse was not found: {title}", title=title) if void else title


def comparison_title(differences: pd.DataFrame, metric: str) -> str:
    """What paired differences tell, and how much they leave open."""
    count, seeds, name = len(differences), span(differences["n_seeds"]), metric_words(metric)
    told, equal = differing(differences), int((differences["verdict"] == EQUAL).sum())
    parts = []
    if len(told) > 2:
        parts.append(say("{told} of {count} pairs differ in {metric}", told=len(told), count=count, metric=name))
    elif told:
        parts.append(say("{what} in {metric}", what=say_list(list(map(_win, told))), metric=name))
    if equal:
        words = _equal_words(differences, equal)
        parts.append(words if told else say("{what} in {metric}", what=words, metric=name))
    rest = count - len(told) - equal
    if not rest:
        return say("{words} ({seeds} seeds)", words=say("; ").join(parts), seeds=seeds)
    if not parts:
        text = (
            "{seeds} seeds cannot tell the two cells apart by {metric}"
            if count == 1
            else "{seeds} seeds cannot tell any of {count} pairs apart by {metric}"
        )
        return say(text, seeds=seeds, count=count, metric=name)
    text = (
        "{seeds} seeds cannot tell the other pair apart"
        if rest == 1
        else "{seeds} seeds cannot tell the other {rest} pairs apart"
    )
    return say("; ").join([*parts, say(text, seeds=seeds, rest=rest)])


def _win(row: Row) -> str:
    winner, loser = map(cell_name, winner_and_loser(row) or ())
    return say("{winner} beats {loser}", winner=winner, loser=loser)


def _equal_words(differences: pd.DataFrame, equal: int) -> str:
    count, margin = len(differences), f"{differences.iloc[0]['margin_percent']:g}"
    if equal < count:
        one = "{equal} of {count} pairs is equal within {margin} %"
        text = one if equal == 1 else "{equal} of {count} pairs are equal within {margin} %"
    else:
        one = "The two cells are equal within {margin} %"
        text = one if count == 1 else "All {count} pairs are equal within {margin} %"
    return say(text, equal=equal, count=count, margin=margin)


def within(row: Row) -> str:
    """The verdict "equal" in words."""
    return say("equal within {words} %", words=f"{row['margin_percent']:g}")


def verdict_text(row: Row, between: str) -> str:
    """The verdict of one comparison, and how closely it is bounded, or what it would find with 80 % power."""
    pair = winner_and_loser(row)
    if row["verdict"] == EQUAL:
        bound = f"{row['equal_within_percent']:.2g}"
        return within(row) + between + say("apart ≤ {percent} %", percent=bound)
    least = 100 * row["minimum_detectable_difference"] / abs(row["mean_second"])
    return _told(row, pair) + between + say("finds ≥ {percent} %", percent=f"{least:.1f}")


def _told(row: Row, pair: tuple[Any, Any] | None) -> str:
    """A verdict that is not "equal", by the name of the winner where that is short."""
    if pair is None:
        only_holm = row["ci_low"] > 0 or row["ci_high"] < 0
        return say("cannot tell (Holm)" if only_holm else CANNOT_TELL)
    short = len(cell_name(pair[0])) <= LONG_NAME / 3
    return say("{cell} better", cell=cell_name(pair[0])) if short else say(row["verdict"])


# marks


def interval(
    ax: Axes, place: float, row: Row, *, centre: str = "mean_difference", lying: bool = False, **style
) -> None:
    """A mean with its interval: upright at x = `place`, or lying at y = `place`."""
    value = row[centre]
    arms = [[value - row["ci_low"]], [row["ci_high"] - value]]
    style = {"capsize": 4, "linewidth": 2, "markersize": 8, "zorder": 3, "color": MEAN, "marker": "D"} | style
    if lying:
        ax.errorbar(value, place, xerr=arms, **style)
    else:
        ax.errorbar(place, value, yerr=arms, **style)


def short_ticks(axis: Axis, count: int) -> None:
    """At most `count` steps between ticks, fewer on a narrow page, and no needless digits."""
    count = min(count, 3) if current_style().is_narrow else count
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def pair_names(pairs: pd.DataFrame) -> list[str]:
    """The two cells of each pair (columns first, second); what is too long for the side of a page breaks."""
    names = [f"{cell_name(first)} − {cell_name(second)}" for first, second in pairs.to_numpy(object)]
    return [name if len(name) <= LONG_NAME else "\n".join(textwrap.wrap(name, 0.75 * LONG_NAME)) for name in names]


def pair_rows(ax: Axes, pairs: pd.DataFrame) -> None:
    """A row of the axes for each pair (columns first, second), from the top, around a line at zero."""
    names = pair_names(pairs)
    ax.set_yticks(range(len(names)), names, fontsize=None if max(map(len, names)) <= LONG_NAME else 9)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color="black", linewidth=1)


def seeds_legend(
    figure: Figure, note: str = "", seed_colour: str = SEED, ax: Axes | None = None, more: Sequence[Any] = ()
) -> None:
    """What the small and the large marks are, and `more`; inside the user's `ax`, if there is one."""
    dot = Line2D([], [], color=seed_colour, marker="o", linestyle="", label="one seed")
    bar = Line2D([], [], color=MEAN, marker="D", linewidth=2, label="mean, 95 % interval")
    _legend(figure, [dot, bar, *more], note, ax)


def cells_legend(figure: Figure, styles: Mapping[str, Style], note: str, ax: Axes | None = None) -> None:
    """The mark of each cell; inside the user's `ax`, if there is one."""
    marks = [Line2D([], [], linestyle="", label=cell_name(cell), **style) for cell, style in styles.items()]
    _legend(figure, marks, note, ax)


def _legend(figure: Figure, marks: list[Line2D], note: str, ax: Axes | None) -> None:
    options = {"title_fontsize": 11, "alignment": "center", "ncols": min(4, len(marks))}
    legend_outside(figure, ax, "lower center", handles=marks, title=note, **options)
