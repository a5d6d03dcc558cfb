"""Pictures of studies: what the seeds can tell about quality and its cost, and what they cannot.

Rows are tidy, one a run, as in `hae_lab.study.statistics`, which computes every interval, test and verdict.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hae_lab.checks import require
from hae_lab.plots.base import PALETTE, SIZE, Chart, chart, new_chart, say, say_list, span, titled_axes
from hae_lab.plots.verdicts import (
    KNOWN_WORSE,
    Row,
    Style,
    absent,
    cell_name,
    cell_styles,
    cells_legend,
    comparison_title,
    differing,
    in_order,
    in_percent,
    interval,
    lines,
    metric_axis,
    pair_names,
    pair_rows,
    seeds_legend,
    short_ticks,
    study_title,
    verdict_text,
    winner_and_loser,
)
from hae_lab.presets import CONTROL
from hae_lab.study import comparisons, orders, statistics
from hae_lab.study.equivalence import BETTER, EQUAL
from hae_lab.study.statistics import QUARTILES

CROWDED = 8  # more rows leave each of them one line of text


@chart
def forest(
    rows: pd.DataFrame,
    metric: str = "loss",
    *,
    stats: pd.DataFrame | None = None,
    baseline: str | None = None,
    lower_better: bool | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Paired differences with their 95 % intervals, the seeds behind them, and what they can tell.

    Rows: cell, seed, metric. `stats` is what `statistics.paired_differences` found in them: by default of every pair,
    or of every cell against a `baseline`. Controls that the rows hold come last: what is known to be worse, as a
    yardstick; the grey band is the margin within which two cells count as equal.
    """
    study, rows = rows, in_order(rows, order)
    if stats is None:
        stats = statistics.paired_differences(rows, metric, baseline, lower_better=lower_better)
    statistics.require_columns(stats, "first", "second", "mean_difference", "p_holm", "verdict")
    stats = stats[stats["first"].isin(rows["cell"]) & stats["second"].isin(rows["cell"])]
    require(len(stats) > 0, "no comparison to draw: stats has no pair of the cells of the rows")
    controls = comparisons.control_effects(study, metric, lower_better=lower_better)
    drawn = pd.concat([stats, controls.drop(columns=["data", "found"])], ignore_index=True) if len(controls) else stats
    title = study_title(comparison_title(stats, metric), study)
    figure, own = (
        titled_axes(title, ax) if ax is not None else _tall_axes(title, pair_names(drawn[["first", "second"]]))
    )
    _margin_band(own, drawn)
    _forest_rows(own, study, drawn, metric, cell_styles(stats["first"], palette))
    pair_rows(own, drawn[["first", "second"]])
    own.set_xlabel(say("difference in {metric}", metric=metric_axis(metric)))
    short_ticks(own.xaxis, 5)
    _percent_axis(own, drawn)
    note = say("verdicts after Holm; finds: with 80 % power, in % of the second's mean")
    worse = [Line2D([], [], color=KNOWN_WORSE, marker="D", linewidth=2, label="known to be worse")]
    seeds_legend(figure, lines(note, absent(rows["cell"], order)), PALETTE[7], ax, worse if len(controls) else ())
    return figure


def _tall_axes(title: str, names: Sequence[str]) -> tuple[Chart, Axes]:
    """One axes in a new figure, higher than usual if the names of its rows have many lines."""
    most = max(1 + name.count("\n") for name in names)
    least = SIZE[0] if len(names) > CROWDED else 0.0
    figure = new_chart(title, (SIZE[0], max(SIZE[1], 2 + len(names) * max(0.25, 0.14 * most))), least)
    return figure, figure.subplots()


def _forest_rows(ax: Axes, study: pd.DataFrame, drawn: pd.DataFrame, metric: str, styles: Mapping[str, Style]) -> None:
    """The seeds, the interval and the verdict of each comparison, in the order of `drawn`."""
    pairs = list(drawn[["first", "second"]].itertuples(index=False, name=None))
    seeds = statistics.seed_differences(study, pairs, metric).groupby(["first", "second"])["difference"]
    between = "\n" if len(pairs) <= CROWDED else say(", ")
    for place, row in enumerate(drawn.to_dict("records")):
        colour = styles[row["first"]]["color"] if row["first"] in styles else KNOWN_WORSE
        dots = seeds.get_group((row["first"], row["second"]))
        ax.scatter(dots, np.full(len(dots), place + 0.2), s=30, color=colour, alpha=0.8)
        mark = {} if row["first"] in styles else {"color": KNOWN_WORSE}
        interval(ax, place - 0.1, row, lying=True, **mark)
        ax.text(1.02, place, verdict_text(row, between), va="center", fontsize=11, transform=ax.get_yaxis_transform())


def _margin_band(ax: Axes, differences: pd.DataFrame) -> None:
    margin = differences["margin_percent"].iloc[0] * _one_percent(differences)
    ax.axvspan(-margin, margin, color="black", alpha=0.08, linewidth=0)


def _one_percent(differences: pd.DataFrame) -> float:
    return differences["mean_second"].abs().mean() / 100


def _percent_axis(ax: Axes, differences: pd.DataFrame) -> None:
    unit = _one_percent(differences)
    seconds = differences["second"].unique()
    top = ax.secondary_xaxis("top", functions=(lambda value: value / unit, lambda percent: percent * unit))
    top.set_xlabel(say("% of {name}", name=cell_name(seconds[0]) if len(seconds) == 1 else say("the mean")))


@chart
def loss_by_quartile(
    rows: pd.DataFrame,
    *,
    baseline: str | None = None,
    stats: pd.DataFrame | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Loss in each quartile of the timestep, as difference to a baseline in percent of its mean, with 95 % intervals.

    Rows: cell, seed, loss_q1 (least noise) to loss_q4. In percent, since the quartiles differ by orders of magnitude.
    `stats` is what `statistics.quartile_differences` found in the rows. The baseline need not stand in `order`; it is
    the control, or else the first cell that is drawn.
    """
    baseline = baseline or _baseline(rows, order)
    study, rows = rows, in_order(rows, None if order is None else [baseline, *order])
    found = statistics.quartile_differences(rows, baseline) if stats is None else stats
    found = found[found["first"].isin(rows["cell"])]
    figure, own = titled_axes(study_title(_quartile_title(found, baseline), study), ax)
    cells = list(found["first"].unique())
    styles = cell_styles([baseline, *cells], palette)
    for quartile, metric in enumerate(QUARTILES):
        seeds = statistics.seed_differences(rows, [(cell, baseline) for cell in cells], metric)
        for row in found[found["metric"] == metric].to_dict("records"):
            place = quartile + 0.75 * ((cells.index(row["first"]) + 0.5) / len(cells) - 0.5)
            dots = 100 * seeds.loc[seeds["first"] == row["first"], "difference"] / row["mean_second"]
            style = styles[row["first"]]
            own.scatter(np.full(len(dots), place + 0.05), dots, s=18, color=style["color"], alpha=0.6)
            interval(own, place - 0.02, in_percent(row), **style)
    own.axhline(0, color="black", linewidth=1)
    means = found.drop_duplicates("metric").set_index("metric")["mean_second"]
    names = [f"q{number}\n{means[metric]:.2g}" for number, metric in enumerate(QUARTILES, 1)]
    own.set_xticks(range(len(QUARTILES)), names)
    text = "quartile of the timestep, q1 = least noise; below, the loss of {cell}"
    own.set_xlabel(say(text, cell=cell_name(baseline)))
    own.set_ylabel(say("held-out loss against {cell}, %", cell=cell_name(baseline)))
    own.grid(axis="x", visible=False)
    note = say("small: one seed of {seeds}; large: mean, 95 % interval", seeds=span(found["n_seeds"]))
    note = lines(note, absent(rows["cell"], order))
    cells_legend(figure, {cell: styles[cell] for cell in cells}, note, ax)
    return figure


def _baseline(rows: pd.DataFrame, order: Sequence[str] | None) -> str:
    """What others are compared with unless someone says it: the control where the rows have it."""
    return CONTROL if CONTROL in set(rows["cell"]) else in_order(rows, order)["cell"].iloc[0]


def _quartile_title(found: pd.DataFrame, baseline: str) -> str:
    seeds, told, same = span(found["n_seeds"]), pd.DataFrame(differing(found)), int((found["verdict"] == EQUAL).sum())
    rest, name = len(found) - len(told) - same, cell_name(baseline)
    if told.empty and not same:
        text = "{seeds} seeds cannot tell any cell from {cell} in any quartile of the timestep"
        return say(text, seeds=seeds, cell=name)
    words = []
    for (verdict, cell), part in told.groupby(["verdict", "first"], sort=False) if len(told) else ():
        quartiles = say_list([f"q{1 + QUARTILES.index(metric)}" for metric in part["metric"]])
        text = "{cell} beats it in {quartiles}" if verdict == BETTER[0] else "{cell} loses to it in {quartiles}"
        words.append(say(text, cell=cell_name(cell), quartiles=quartiles))
    if same:
        margin = found.iloc[0]["margin_percent"]
        text = "{same} of {count} equal it within {margin:g} %"
        words.append(say(text, same=same, count=len(found), margin=margin))
    against = say("Against {cell}: {words}", cell=name, words=say(", ").join(words))
    if rest:
        return say("; ").join([against, say("{seeds} seeds cannot tell the rest", seeds=seeds)])
    return say("{words} ({seeds} seeds)", words=against, seeds=seeds)


@chart
def conclusions(
    rows: pd.DataFrame,
    metric: str = "loss",
    *,
    counts: Sequence[int] = (1, 3, 10),
    promised: Sequence[str] = (),
    stats: pd.DataFrame | None = None,
    lower_better: bool | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """What one would have concluded with 1, 3 and 10 seeds: a panel a number of seeds, coloured by the winner.

    Rows: cell, seed, metric. `stats` is what `orders.conclusions_by_seeds` found in them. An order of cells that
    was `promised`, best first, is counted in the single seeds.
    """
    study, rows = rows, in_order(rows, order)
    found = (
        orders.conclusions_by_seeds(rows, counts, metric=metric, lower_better=lower_better) if stats is None else stats
    )
    statistics.require_columns(found, "n_seeds", "group", "first", "second", "mean_second", "conclusion")
    figure = new_chart(study_title(_conclusion_title(found), study))
    counts = sorted(found["n_seeds"].unique())
    pairs = found[["first", "second"]].drop_duplicates()
    styles = cell_styles(found[["second", "first"]].to_numpy().ravel(), palette)
    colours = {cell: {"color": style["color"], "marker": "o"} for cell, style in styles.items()}
    rows_of = {pair: place for place, pair in enumerate(pairs.itertuples(index=False, name=None))}
    axes = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
    for ax, count in zip(axes, counts, strict=True):
        part = found[found["n_seeds"] == count]
        pair_rows(ax, pairs)
        for row in part.to_dict("records"):
            shift = (row["group"] + 0.5) / part["group"].nunique() - 0.5
            _conclusion(ax, rows_of[row["first"], row["second"]] + 0.8 * shift, in_percent(row), colours)
        ax.set_title(say("{count} seed" if count == 1 else "{count} seeds", count=count))
        short_ticks(ax.xaxis, 3)
    axes[len(axes) // 2].set_xlabel("difference in % of the second")
    note = say("colour: the winner; hollow: cannot tell; grey: equal within the margin; lines: 95 % intervals")
    promise = _order_text(rows, promised, metric, lower_better) if promised else ""
    cells_legend(figure, colours, lines(note, absent(rows["cell"], order), promise))
    return figure


def _conclusion(ax: Axes, place: float, row: Row, colours: Mapping[str, Style]) -> None:
    pair = winner_and_loser(row | {"verdict": row["conclusion"]})
    grey = {
        "color": PALETTE[7],
        "marker": "o",
        "markerfacecolor": PALETTE[7] if row["conclusion"] == EQUAL else "white",
    }
    style = grey if pair is None else colours[pair[0]]
    if np.isnan(row["ci_low"]):
        ax.plot(row["mean_difference"], place, markersize=6, **style)
    else:
        interval(ax, place, row, lying=True, capsize=2, **style | {"markersize": 6})


def _conclusion_title(found: pd.DataFrame) -> str:
    few, many = found["n_seeds"].min(), found["n_seeds"].max()
    told = found[found["conclusion"].isin(BETTER)]
    kinds = told.groupby(["n_seeds", "first", "second"])["conclusion"].nunique()
    torn, apart = (kinds.reindex([few], level="n_seeds") > 1).sum(), len(kinds.reindex([many], level="n_seeds"))
    count = len(found[["first", "second"]].drop_duplicates())
    same = int(((found["n_seeds"] == many) & (found["conclusion"] == EQUAL)).sum())
    start = say(
        "Single seeds contradict each other on {torn} of {count} pairs"
        if few == 1
        else "Groups of {few} seeds contradict each other on {torn} of {count} pairs",
        few=few, torn=torn, count=count,
    )  # fmt: skip
    text = "{many} seeds tell {apart} of them apart" if apart else "{many} seeds tell none of them apart"
    equal = say(" and find {same} equal within the margin", same=same) if same else ""
    return say("; ").join([start, say(text, many=many, apart=apart) + equal])


def _order_text(rows: pd.DataFrame, promised: Sequence[str], metric: str, lower_better: bool | None) -> str:
    row = orders.order_in_single_seeds(rows, promised, metric, lower_better=lower_better).iloc[0]
    return say(
        "{order}: in {right} of {seeds} single seeds, {percent:.0f} %, where chance alone gives {chance:.0f} %",
        order=" < ".join(map(cell_name, promised)), right=row["n_in_order"], seeds=row["n_seeds"],
        percent=row["percent_in_order"], chance=row["percent_by_chance"],
    )  # fmt: skip
