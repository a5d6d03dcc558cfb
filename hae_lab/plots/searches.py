"""A picture of a model that a search chose: what it costs, and its loss beside that of HAE."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hae_lab.plots.base import (
    INK,
    PALETTE,
    Chart,
    chart,
    legend_outside,
    new_chart,
    say,
    say_list,
    span,
    title_of,
)
from hae_lab.plots.verdicts import interval, short_ticks
from hae_lab.study.equivalence import BETTER, CANNOT_TELL
from hae_lab.study.equivalence import EQUAL as EQUAL_WORD

COSTS = {
    "params_percent_of_hae": ("parameters", "o"),
    "macs_percent_of_hae": ("MACs", "s"),
    "training_percent_of_hae": ("time, training step", "D"),
    "denoising_percent_of_hae": ("time, denoising step", "^"),
}
EQUAL = {"steps": ("equal steps", "white"), "time": ("equal time", None)}
PROMISED_PERCENT = 40
WORDS = {
    BETTER[0]: "better than {name} on {data}",
    BETTER[1]: "worse than {name} on {data}",
    EQUAL_WORD: "equal to {name} on {data}",
    CANNOT_TELL: "not told from {name} on {data}",
}


@chart
def searched(costs: pd.DataFrame, quality: pd.DataFrame, name: str = "v3") -> Chart:
    """Left what each model costs in percent of HAE, right its loss against HAE's at equal steps and at equal time.

    Costs, a row a model: variant, and the columns of `COSTS`. Quality: variant, data, equal, against, percent,
    percent_low, percent_high, verdict; drawn are the rows against "hae". `name` is the model that the title is about.
    """
    models = list(costs["variant"])
    against = quality[quality["against"] == "hae"]
    data = list(against["data"].unique())
    figure = new_chart(_title(costs.set_index("variant").loc[name], quality[quality["variant"] == name], name))
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_costs(left, costs)
    colours = dict(zip(data, PALETTE, strict=False))
    _draw_quality(right, against, models, colours)
    left.set_yticks(range(len(models)), [title_of(model) for model in models])
    left.set_ylim(len(models) - 0.5, -0.5)
    left.grid(axis="y", visible=False)
    right.grid(axis="y", visible=False)
    legend_outside(figure, None, "lower center", handles=_marks(colours), ncols=4)
    return figure


def _draw_costs(ax: Axes, costs: pd.DataFrame) -> None:
    for place, row in enumerate(costs.to_dict("records")):
        for column, (_, marker) in COSTS.items():
            ax.plot(row[column], place, marker, color=INK, markersize=7, markerfacecolor="none")
    ax.axvline(PROMISED_PERCENT, color=INK, linestyle=":", linewidth=1)
    ax.set_xlim(0, None)
    ax.set_xlabel(say("cost, % of HAE\ndotted: {percent} %", percent=PROMISED_PERCENT))
    short_ticks(ax.xaxis, 5)


def _draw_quality(ax: Axes, rows: pd.DataFrame, models: list[str], colours: Mapping[str, str]) -> None:
    kinds = [(data, equal) for data in colours for equal in EQUAL]
    for row in rows.to_dict("records"):
        offset = 0.16 * (kinds.index((row["data"], row["equal"])) - (len(kinds) - 1) / 2)
        shown = {"mean": row["percent"], "ci_low": row["percent_low"], "ci_high": row["percent_high"]}
        colour = colours[row["data"]]
        fill = EQUAL[row["equal"]][1] or colour
        style = {"color": colour, "marker": "o", "markerfacecolor": fill, "markersize": 6, "linewidth": 1.5}
        interval(ax, models.index(row["variant"]) + offset, shown, centre="mean", lying=True, capsize=2, **style)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_xlabel("loss − HAE's, %\nmean, 95 % interval")
    short_ticks(ax.xaxis, 5)


def _marks(colours: Mapping[str, str]) -> list[Line2D]:
    costs = [
        Line2D([], [], linestyle="", marker=marker, color=INK, markerfacecolor="none", label=label)
        for label, marker in COSTS.values()
    ]
    quality = [
        Line2D([], [], linestyle="", marker="o", color=colour, markerfacecolor=fill or colour, label=names)
        for data, colour in colours.items()
        for label, fill in EQUAL.values()
        for names in [say(", ").join([data, say(label)])]
    ]
    return costs + quality


def _title(costs: pd.Series, quality: pd.DataFrame, name: str) -> str:
    """The costs of the model, and its verdicts against HAE at equal time."""
    at_time = quality[(quality["equal"] == "time") & (quality["against"] == "hae")]
    told = [
        say(WORDS[verdict], name=title_of("hae"), data=say_list(list(rows["data"])))
        for verdict, rows in at_time.groupby("verdict", sort=False)
    ]
    return say(
        "{name}: {params:.0f} % of HAE's parameters, {time:.0f} % of its time; after equal time {told} ({seeds} seeds)",
        name=title_of(name), params=costs["params_percent_of_hae"], time=costs["training_percent_of_hae"],
        told=say_list(told), seeds=span(at_time["n_seeds"]),
    )  # fmt: skip
