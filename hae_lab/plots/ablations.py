"""Pictures of ablations: one slot of the hybrid block at a time, and one factor over all its levels.

Rows are tidy, one a run, as in `hae_lab.study.statistics`, which computes every interval, test and verdict.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from hae_lab.checks import require
from hae_lab.plots.base import (
    PALETTE,
    SIZE,
    Chart,
    chart,
    commas,
    name_ticks,
    new_chart,
    say,
    say_list,
    span,
    variant_colour,
)
from hae_lab.plots.compute import RULE_COLOURS
from hae_lab.plots.verdicts import (
    MEAN,
    SEED,
    cell_costs,
    cell_name,
    comparison_title,
    cost_axis,
    differing,
    in_percent,
    interval,
    level_name,
    lines,
    metric_axis,
    metric_words,
    seeds_legend,
    short_ticks,
    study_title,
    verdict_text,
    winner_and_loser,
)
from hae_lab.presets import CONTROL, DOCUMENT, SLOTS, VARIANTS, variant_title
from hae_lab.study import orders, statistics
from hae_lab.study.equivalence import CANNOT_TELL, EQUAL

WIDE = 8  # largest / smallest level from which a logarithmic axis serves better


@chart
def slot_ladder(
    rows: pd.DataFrame,
    metric: str = "loss",
    *,
    stats: pd.DataFrame | None = None,
    lower_better: bool | None = None,
) -> Chart:
    """From HAE over Lite to V2 one slot at a time, in quality and parameters, and each slot's main effect.

    Rows: the full grid of the slots (regions, mlp_ratio, fusion), one a cell of it and seed, with metric and params.
    `stats` is what `statistics.main_effects` found in them, from HAE's levels on.
    """
    statistics.require_columns(rows, *SLOTS, "seed", metric, "params")
    study, rows = rows, statistics.question(rows)
    # HAE's levels first: effects are measured from the level that comes first
    first = VARIANTS[DOCUMENT[0]]
    rows = rows.sort_values(list(SLOTS), key=lambda levels: levels != first[levels.name], kind="stable")
    effects = statistics.main_effects(rows, SLOTS, metric, lower_better=lower_better) if stats is None else stats
    figure = new_chart(study_title(_effects_title(effects, metric), study), least=SIZE[0])
    grid = figure.add_gridspec(2, 2, height_ratios=[3, 2], width_ratios=[5, 4])
    top = figure.add_subplot(grid[0, 0])
    gaps = _rungs(top, figure.add_subplot(grid[1, 0], sharex=top), rows, metric)
    _effects(figure.add_subplot(grid[:, 1]), effects)
    seeds_legend(figure, lines(say("verdicts after Holm; finds: with 80 % power"), gaps))
    return figure


def ladder() -> list[tuple[str, dict[str, Any]]]:
    """Label and slots of each rung: the variants, and what lies between them when one slot changes at a time."""
    first, *others = DOCUMENT
    slots = dict(VARIANTS[first])
    rungs = [(variant_title(first), dict(slots))]
    for variant in others:
        for slot in SLOTS:
            if slots[slot] != VARIANTS[variant][slot]:
                slots[slot] = VARIANTS[variant][slot]
                reached = f"\n= {variant_title(variant)}" if slots == dict(VARIANTS[variant]) else ""
                rungs.append((f"{slot}\n{slots[slot]}{reached}", dict(slots)))
    return rungs


def _rungs(top: Axes, bottom: Axes, rows: pd.DataFrame, metric: str) -> str:
    """Draw what the rows hold of the ladder; return a note that names the rungs they lack."""
    labels, steps = zip(*ladder(), strict=True)
    on_rung = [(rows[list(SLOTS)] == pd.Series(slots)).all(axis=1) for slots in steps]
    climbed = pd.concat([rows[chosen].assign(cell=rung) for rung, chosen in enumerate(on_rung)])
    for _, seed in climbed.groupby("seed"):
        top.plot(seed["cell"], seed[metric], color=SEED, marker="o", markersize=5, linewidth=1, alpha=0.6)
    for row in statistics.summary(climbed, metric).to_dict("records"):
        interval(top, row["cell"], row, centre="mean")
    costs = cell_costs(climbed, ["params"])
    params = costs["params"]
    divisor, label = cost_axis(params)
    bars = bottom.bar(costs["cell"], params / divisor, color=PALETTE[7])
    bottom.bar_label(bars, fmt="%.2f", fontsize=11, padding=2)
    bottom.set(ylabel=label.replace(" ", "\n"), ylim=(0, 1.25 * params.max() / divisor))
    bottom.set_xticks(range(len(labels)), labels, fontsize=10.5)
    top.set_ylabel(metric_words(metric))
    top.tick_params(labelbottom=False)
    for ax in (top, bottom):
        ax.grid(axis="x", visible=False)
    gaps = [" ".join(label.split()) for label, chosen in zip(labels, on_rung, strict=True) if not chosen.any()]
    return say("not measured: {names}", names=commas(gaps)) if gaps else ""


def _effects(ax: Axes, effects: pd.DataFrame) -> None:
    on_white = {"transform": ax.get_yaxis_transform(), "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
    for place, row in enumerate(effects.to_dict("records")):
        interval(ax, place, in_percent(row), lying=True)
        change = f"{row['factor']}: {level_name(row['second'])} → {level_name(row['first'])}"
        ax.text(0.02, place - 0.36, change, fontweight="bold", fontsize=12, **on_white)
        ax.text(0.02, place - 0.2, verdict_text(row, say(", ")), fontsize=11, **on_white)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(yticks=[], ylim=(len(effects) - 0.6, -0.6), xlabel="main effect, %", title="mean over the other slots")


def _effects_title(effects: pd.DataFrame, metric: str) -> str:
    seeds, words = span(effects["n_seeds"]), []
    for row in differing(effects):
        level, size = level_name((winner_and_loser(row) or ("",))[0]), abs(in_percent(row)["mean_difference"])
        words.append(say("{factor} = {level} is better by {size:.1f} %", factor=row["factor"], level=level, size=size))
    same = effects[effects["verdict"] == EQUAL]
    if len(same):
        one = "{factors} does not matter within {margin:g} %"
        text = one if len(same) == 1 else "{factors} do not matter within {margin:g} %"
        words.append(say(text, factors=say_list(list(same["factor"])), margin=same["margin_percent"].iloc[0]))
    rest, name = int((effects["verdict"] == CANNOT_TELL).sum()), metric_words(metric)
    if not words:
        text = "{seeds} seeds cannot tell an effect of any of the {rest} slots on {metric}"
        return say(text, seeds=seeds, rest=rest, metric=name)
    told = say("In {metric}, {words}", metric=name, words=say_list(words))
    if not rest:
        return say("{words} ({seeds} seeds)", words=told, seeds=seeds)
    text = (
        "{seeds} seeds cannot tell the other slot" if rest == 1 else "{seeds} seeds cannot tell the other {rest} slots"
    )
    return say("; ").join([told, say(text, seeds=seeds, rest=rest)])


@chart
def dose(
    rows: pd.DataFrame,
    metric: str = "loss",
    *,
    x: str = "mlp_ratio",
    cost: str = "params",
    control: str | None = CONTROL,
    stats: pd.DataFrame | None = None,
    lower_better: bool | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """Quality and cost over the levels of one factor, numbers or names, beside the control where it has rows.

    Rows: cell, seed, x, metric, cost. The title states Page's trend test of "the larger, the better" where the levels
    are three or more numbers, else the paired differences of all levels; `stats` is one of the two, if at hand.
    """
    statistics.require_columns(rows, "cell", "seed", x, metric, cost)
    study, rows = rows, statistics.question(rows)
    is_control = rows["cell"] == control
    require(not is_control.all(), f"no rows of {x}: all are the control {control!r}")
    nameless = rows.loc[~is_control & rows[x].isna(), "cell"].unique()
    require(len(nameless) == 0, f"{x} is missing in the cells {', '.join(map(str, nameless))}, which are no control")
    levels = _named_by_level(rows[~is_control], x)
    is_number = pd.api.types.is_numeric_dtype(levels[x])
    levels = levels.sort_values(x, kind="stable") if is_number else levels
    if stats is None:
        stats = _dose_statistics(levels, metric, lower_better, is_number)
    figure = new_chart(study_title(_dose_title(stats, x, metric), study))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[5, 2])
    places = _places(levels, x, is_number)
    if is_number and 0 < WIDE * levels[x].min() <= levels[x].max():
        top.set_xscale("log")
    _levels(top, levels, rows[is_control], places, metric, RULE_COLOURS | dict(palette or {}))
    _costs(bottom, levels, rows[is_control], places, cost)
    bottom.set_xlabel(x)
    name_ticks(bottom, places.values(), [name.replace("_", "_\n") for name in places])
    bottom.minorticks_off()
    seeds_legend(figure)
    return figure


def _named_by_level(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows with the levels of a factor for cells, in the references too."""
    levels = rows.assign(cell=rows[x].map(level_name))
    if "reference" in rows.columns:
        levels["reference"] = rows["reference"].map(dict(zip(rows["cell"], levels["cell"], strict=True)))
    return levels


def _places(levels: pd.DataFrame, x: str, is_number: bool) -> dict[str, float]:
    """Where each level stands: at its number, or one after the other."""
    cells = levels.drop_duplicates("cell")
    return dict(zip(cells["cell"], cells[x] if is_number else range(len(cells)), strict=True))


def _levels(
    ax: Axes,
    levels: pd.DataFrame,
    control: pd.DataFrame,
    places: Mapping[str, float],
    metric: str,
    colours: Mapping[str, str],
) -> None:
    for row in statistics.summary(levels, metric).to_dict("records"):
        interval(ax, places[row["cell"]], row, centre="mean", color=colours.get(row["cell"], MEAN))
    ax.scatter(levels["cell"].map(places), levels[metric], s=28, color=SEED, edgecolor="white", linewidth=0.5, zorder=4)
    ax.set_ylabel(metric_axis(metric))
    if len(control):
        row = statistics.summary(control, metric).iloc[0]
        colour = variant_colour(row["cell"]) if row["cell"] in VARIANTS else PALETTE[7]
        label = say("{cell}, 95 % interval", cell=cell_name(row["cell"]))
        ax.axhline(row["mean"], linestyle="--", color=colour, label=label)
        ax.axhspan(row["ci_low"], row["ci_high"], color=colour, alpha=0.2, linewidth=0)
        ax.legend(frameon=True)


def _costs(ax: Axes, levels: pd.DataFrame, control: pd.DataFrame, places: dict[str, float], cost: str) -> None:
    cells = cell_costs(pd.concat([levels, control]), [cost])
    divisor, label = cost_axis(cells[cost])
    own = cells[cells["cell"].isin(places)]
    ax.plot(own["cell"].map(places), own[cost] / divisor, "o:", color=MEAN, markersize=8)
    for value in cells.loc[~cells["cell"].isin(places), cost]:
        ax.axhline(value / divisor, linestyle="--", color=PALETTE[7])
    ax.set(ylabel=label.replace(" ", "\n"), ylim=(0, 1.25 * cells[cost].max() / divisor))
    short_ticks(ax.yaxis, 4)


def _dose_statistics(levels: pd.DataFrame, metric: str, lower_better: bool | None, is_number: bool) -> pd.DataFrame:
    """Page's trend test, best expected for the largest number, or the paired differences of names."""
    names = list(levels["cell"].unique())
    if is_number and len(names) >= 3:
        return orders.trend(levels, names[::-1], metric, lower_better=lower_better)
    return statistics.paired_differences(levels, metric, lower_better=lower_better)


def _dose_title(stats: pd.DataFrame, x: str, metric: str) -> str:
    if "p_opposite" not in stats:
        return comparison_title(stats, metric)
    found = stats.iloc[0]
    if found["verdict"] == CANNOT_TELL:
        text = "{seeds} seeds show no trend of {metric} with {factor} (Page's test)"
        return say(text, seeds=found["n_seeds"], metric=metric_words(metric), factor=x)
    larger = found["verdict"] == "holds"
    return say(
        "The larger {factor}, the better the {metric} (Page's test, p = {p:.2g}, {seeds} seeds)"
        if larger
        else "The smaller {factor}, the better the {metric} (Page's test, p = {p:.2g}, {seeds} seeds)",
        factor=x, metric=metric_words(metric), p=found["p_value" if larger else "p_opposite"], seeds=found["n_seeds"],
    )  # fmt: skip
