"""Pictures of studies: quality against what it costs, parameters, MACs, time and steps.

Rows are tidy, one a run or a point of a curve, as in `hae_lab.study.statistics`, which computes every interval.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hae_lab.checks import require
from hae_lab.plots.base import Chart, chart, commas, new_chart, say, say_list, span
from hae_lab.plots.verdicts import (
    COSTS,
    Style,
    absent,
    cell_costs,
    cell_name,
    cell_styles,
    cells_legend,
    comparison_title,
    cost_axis,
    in_order,
    interval,
    lines,
    metric_axis,
    metric_words,
    short_ticks,
    study_title,
)
from hae_lab.study import statistics, tradeoffs


@chart
def pareto(
    rows: pd.DataFrame,
    metric: str = "loss",
    *,
    costs: Sequence[str] = ("params", "macs", "ms"),
    stats: pd.DataFrame | None = None,
    lower_better: bool | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """Quality (mean, 95 % interval) against each cost; hollow where another cell is as cheap and certainly better.

    Rows: cell, seed, metric, the costs; where they have <cost>_q1 and <cost>_q3, a bar joins them. A cost that is a gap
    is named below. `stats` is the `statistics.summary` of the rows.
    """
    study, rows = rows, in_order(rows, order)
    found = statistics.summary(rows, metric) if stats is None else stats
    cells = found.merge(cell_costs(rows, costs), on="cell")
    lower_better = statistics.lower_is_better(metric, lower_better)
    leads = {cost: tradeoffs.non_dominated(cells, cost, lower_better=lower_better) for cost in costs}
    figure = new_chart(study_title(_dominance_title(cells["cell"], leads), study))
    styles = cell_styles(cells["cell"], palette)
    for ax, cost in zip(figure.subplots(1, len(costs), sharey=True, squeeze=False)[0], costs, strict=True):
        divisor, label = cost_axis(cells[cost])
        for row, leading in zip(cells.to_dict("records"), leads[cost], strict=True):
            if np.isnan(row[cost]):
                continue
            style = styles[row["cell"]]
            fill = style["color"] if leading else "white"
            interval(ax, row[cost] / divisor, row, centre="mean", **style, markerfacecolor=fill)
            if f"{cost}_q1" in row:
                ax.hlines(row["mean"], row[f"{cost}_q1"] / divisor, row[f"{cost}_q3"] / divisor, style["color"])
        ax.set_xlabel(label)
        ax.margins(x=0.15)
        short_ticks(ax.xaxis, 4)
    figure.axes[0].set_ylabel(metric_axis(metric))
    note = say("hollow: another cell costs no more, and its interval is wholly better")
    cells_legend(figure, styles, lines(note, *_cost_gaps(cells, costs), absent(cells["cell"], order)))
    return figure


def _cost_gaps(cells: pd.DataFrame, costs: Sequence[str]) -> Iterator[str]:
    for cost in costs:
        gaps = [cell_name(cell) for cell in cells.loc[cells[cost].isna(), "cell"]]
        if gaps:
            yield say("{cost} not measured: {names}", cost=say(COSTS.get(cost, cost)), names=commas(gaps))


def _dominance_title(cells: pd.Series, leads: Mapping[str, pd.Series]) -> str:
    costs_of: dict[tuple[str, ...], list[str]] = {}
    for cost, leading in leads.items():
        costs_of.setdefault(tuple(map(cell_name, cells[~leading])), []).append(say(COSTS.get(cost, cost)))
    texts = (
        "No cell is surely beaten by one that costs no more ({costs})",
        "{names} is surely beaten by one that costs no more ({costs})",
        "{names} are surely beaten by one that costs no more ({costs})",
    )
    return say("; ").join(
        say(texts[min(len(names), 2)], names=say_list(names) if names else "", costs=commas(costs))
        for names, costs in costs_of.items()
    )


@chart
def learning_curves(
    rows: pd.DataFrame,
    ms_per_step: Mapping[str, float] | None = None,
    metric: str = "loss",
    *,
    stats: pd.DataFrame | None = None,
    lower_better: bool | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """Loss against steps and, with `ms_per_step`, against compute time: the mean of the seeds, their range as a band.

    Rows: cell, seed, step, metric; `ms_per_step` is the time of one training step of each cell, and a cell without one
    stands among the steps alone. One cell, or one seed, is drawn and not compared. `stats` is what
    `statistics.paired_differences` found at the last step that all runs have. Nothing is compared at equal time here:
    a learning rate that decays knows its last step, so that takes runs of that length.
    """
    rows = in_order(rows, order)
    statistics.require_columns(rows, "cell", "seed", "step", metric)
    step = _last_common_step(rows)
    is_compared = rows["cell"].nunique() > 1 and rows.groupby("cell")["seed"].nunique().min() > 1
    if stats is None and is_compared:
        stats = statistics.paired_differences(rows[rows["step"] == step], metric, lower_better=lower_better)
    styles = cell_styles(rows["cell"], palette)
    words = _alone(rows, step, metric) if stats is None else comparison_title(stats, metric)
    figure = new_chart(say("After {step:g} steps: {words}", step=step, words=words))
    axes = figure.subplots(1, 1 if ms_per_step is None else 2, sharey=True, squeeze=False)[0]
    _curves(axes[0], rows, "step", metric, styles)
    axes[0].set(xlabel="training steps", ylabel=metric_axis(metric), yscale="log")
    gap = "" if ms_per_step is None else _by_time(axes[1], rows, ms_per_step, metric, styles)
    short_ticks(axes[0].yaxis, 7)
    axes[0].minorticks_off()
    if stats is not None:
        axes[0].axvline(step, color="black", linestyle=":")
    seeds = span(rows.groupby("cell")["seed"].nunique() if stats is None else stats["n_seeds"])
    text = "mean and range of {seeds} seeds; dotted: compared there"
    note = say("mean and range of {seeds} seeds" if stats is None else text, seeds=seeds)
    cells_legend(figure, styles, lines(note, _still_falling(rows, step, metric), gap, absent(rows["cell"], order)))
    return figure


def _alone(rows: pd.DataFrame, step: float, metric: str) -> str:
    """The means where there is nothing to compare: of one cell, or of single seeds."""
    means = rows[rows["step"] == step].groupby("cell", sort=False)[metric].mean()
    values = say_list([f"{cell_name(cell)} {value:.3g}" for cell, value in means.items()])
    return say("{what} in {metric}", what=values, metric=metric_words(metric))


def _by_time(
    ax: Axes, rows: pd.DataFrame, ms_per_step: Mapping[str, float], metric: str, styles: Mapping[str, Style]
) -> str:
    """The curves over seconds; return a note that names cells without a time."""
    ax.figure.get_layout_engine().set(wspace=0.06)  # the last tick of the one keeps off the first of the other
    is_timed = rows["cell"].map(dict(ms_per_step)).gt(0)
    timed = tradeoffs.with_seconds(rows[is_timed] if is_timed.any() else rows, ms_per_step, metric)
    _curves(ax, timed, "seconds", metric, styles)
    ax.set_xlabel("compute time, s")
    untimed = commas(cell_name(cell) for cell in styles if cell not in set(timed["cell"]))
    return say("{cost} not measured: {names}", cost=say(COSTS["ms"]), names=untimed) if untimed else ""


def _still_falling(rows: pd.DataFrame, step: float, metric: str) -> str:
    """How far the mean of each cell fell over the last quarter of the steps; "" for a curve without such a point."""
    means = rows.groupby(["step", "cell"])[metric].mean().unstack()
    earlier = means.index[means.index <= 0.75 * step]
    if len(earlier) == 0:
        return ""
    fallen = 100 * (1 - means.loc[step] / means.loc[earlier.max()])
    text = "since step {step:g} it fell by {least:.1f} to {most:.1f} %"
    return say(text, step=earlier.max(), least=fallen.min(), most=fallen.max())


def _last_common_step(rows: pd.DataFrame) -> float:
    runs = rows.groupby("step").size()
    common = runs.index[runs == len(rows[["cell", "seed"]].drop_duplicates())]
    require(len(common) > 0, f"the curves have no step in common; their steps are {list(runs.index)}")
    return common.max()


def _curves(ax: Axes, rows: pd.DataFrame, column: str, metric: str, styles: Mapping[str, Style]) -> None:
    for cell, curve in rows.groupby("cell", sort=False):
        seeds = curve.groupby(column)[metric].agg(["mean", "min", "max"])
        ax.plot(seeds.index, seeds["mean"], markersize=5, **styles[cell])
        ax.fill_between(seeds.index, seeds["min"], seeds["max"], color=styles[cell]["color"], alpha=0.2, linewidth=0)
