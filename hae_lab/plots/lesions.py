"""Pictures of what trained models use and find: parts taken away, and lesions beside what needs no model."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hae_lab.checks import require
from hae_lab.plots.base import (
    CONTROL_COLOUR,
    SIZE,
    Chart,
    bar_places,
    bar_step,
    chart,
    legend_outside,
    names_or_nothing,
    new_chart,
    ordered,
    title_of,
    titled_axes,
    variant_colours,
)
from hae_lab.plots.catalogue import say, say_list
from hae_lab.presets import VARIANTS

CHANGES = {
    "tokens_swapped": "regional tokens of\nanother image",
    "mask_redrawn": "mask drawn anew",
    "itself_only": "each pixel sees\nitself only",
    "transformer_silenced": "Transformer branch\nsilenced",
    "cnn_silenced": "CNN branch silenced",
}
DETECTORS = {
    "brightness": "brightness",
    "depth": "depth in the head",
    "mean_head": "mean head",
    "similar_heads": "five nearest heads",
}
TASKS = {"equal": "isointense"}  # with grey matter
UNSEEN = 0.1  # percent of the loss: less is called no change


@chart
def what_a_model_needs(
    rows: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Chart:
    """How the held-out loss grows when a part is exchanged or silenced: a bar a variant, with its interval over images.

    Rows: variant, change, percent, percent_low, percent_high.
    """
    variants = ordered(rows["variant"], order)
    require(len(variants) > 0, f"no variant to draw: order is {order}, the rows are of {names_or_nothing(rows)}")
    changes = list(dict.fromkeys(rows["change"]))
    colours = variant_colours(variants, palette)
    figure, own = titled_axes(_uses_title(rows[rows["variant"].isin(variants)]), ax)
    places = bar_places(len(changes), len(variants))
    for variant, centres in zip(variants, places, strict=True):
        found = rows[rows["variant"] == variant].set_index("change").reindex(changes)
        arms = [found["percent"] - found["percent_low"], found["percent_high"] - found["percent"]]
        height = bar_step(len(variants))
        own.barh(centres, found["percent"], height, xerr=arms, color=colours[variant], label=title_of(variant))
        for centre, row in zip(centres, found.itertuples(), strict=True):
            text = f"{row.percent:+.1f} %" if abs(row.percent) >= UNSEEN else f"{round(row.percent, 2) + 0.0:+.2f} %"
            own.annotate(
                text, (max(row.percent_high, 0), centre), (6, 0), textcoords="offset points", va="center", fontsize=11
            )
    own.set_yticks(range(len(changes)), [CHANGES.get(change, change) for change in changes])
    own.invert_yaxis()
    own.set(
        xlabel="growth of the held-out loss in %",
        xlim=(min(0, 1.1 * rows["percent_low"].min()), 1.2 * rows["percent_high"].max()),
    )
    own.grid(axis="y", visible=False)
    legend_outside(figure, ax, "lower center", ncols=len(variants))
    return figure


def _uses_title(rows: pd.DataFrame) -> str:
    swapped = rows[rows["change"] == "tokens_swapped"]
    largest = rows.loc[rows["percent"].idxmax(), "change"]
    if len(swapped) and swapped["percent"].abs().max() < UNSEEN and largest == "cnn_silenced":
        return "Trained models lean on the CNN branch, and do not notice when regional tokens are another image's"
    return "How much the held-out loss grows when a part is taken from a trained model"


@chart
def lesions_found(
    rows: pd.DataFrame,
    *,
    heads: str = "",
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
) -> Chart:
    """AUROC inside the head of every detector, a panel a task: all pixels of the head, and lesions' places alone.

    Rows: task, detector, auroc, place_auroc. `heads` says in the title what they are; `order` names the detectors.
    """
    detectors = [name for name in (order or dict.fromkeys(rows["detector"])) if name in set(rows["detector"])]
    tasks = list(dict.fromkeys(rows["task"]))
    colours = dict.fromkeys(detectors, CONTROL_COLOUR) | variant_colours(_models(detectors), palette)
    title = _detection_title(rows)
    if heads:
        title = say("{title}, in {heads}", title=title, heads=say(heads))
    figure = new_chart(title, least=SIZE[0])
    panels = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for ax, task in zip(panels, tasks, strict=True):
        found = rows[rows["task"] == task].set_index("detector").reindex(detectors)
        for place, (name, row) in enumerate(found.iterrows()):
            ax.plot([row["auroc"], row["place_auroc"]], [place, place], color=colours[name], linewidth=1)
            ax.plot(row["auroc"], place, "o", color=colours[name], markersize=9)
            ax.plot(row["place_auroc"], place, "o", color=colours[name], markerfacecolor="white", markersize=9)
        ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
        ax.set(title=TASKS.get(task, task), xlabel="AUROC")
    panels[0].set_yticks(range(len(detectors)), [_detector_title(name) for name in detectors])
    panels[0].set(ylim=(len(detectors) - 0.5, -0.5), xlim=(0.4, 1), xticks=(0.5, 0.75, 1))
    marks = [("black", "against the rest of the head"), ("white", "against the same place without it")]
    handles = [
        Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor=face, markersize=9, label=label)
        for face, label in marks
    ]
    legend_outside(figure, None, "lower center", handles=handles, ncols=2)
    return figure


def _models(detectors: Sequence[str]) -> list[str]:
    return [name for name in detectors if name in VARIANTS]


def _detector_title(name: str) -> str:
    return title_of(name) if name in VARIANTS else DETECTORS.get(name, name)


def _detection_title(rows: pd.DataFrame) -> str:
    """Which tasks a model does best, by both scores, or that none is."""
    is_model = rows["detector"].isin(list(VARIANTS))
    best = [
        rows[chosen].groupby("task", sort=False)[["auroc", "place_auroc"]].max() for chosen in (is_model, ~is_model)
    ]
    wins = (best[0] > best[1]).all(axis=1)
    won = [TASKS.get(task, task) for task, win in wins.items() if win]
    if not won:
        return say("On no kind of lesions a model beats all that needs no model")
    return say("Only on {tasks} lesions a model beats all that needs no model", tasks=say_list(list(map(say, won))))
