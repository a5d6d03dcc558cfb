"""The picture of what all studies say together: every comparison of the variants."""

from collections.abc import Callable, Mapping

import pandas as pd
from matplotlib.lines import Line2D

from hae_lab.checks import require
from hae_lab.plots.base import PALETTE, SIZE, Chart, chart, legend_outside, new_chart, version_of
from hae_lab.plots.catalogue import say, say_list
from hae_lab.plots.verdicts import (
    Row,
    cell_name,
    cell_styles,
    in_percent,
    interval,
    short_ticks,
    winner_and_loser,
)
from hae_lab.presets import CONTROL, DOCUMENT
from hae_lab.study import statistics
from hae_lab.study.comparisons import NOT_FOUND
from hae_lab.study.equivalence import CANNOT_TELL, EQUAL

CELLS = (CONTROL, *DOCUMENT)
OPEN_MARK = PALETTE[7]
FRAME_IN, ROW_IN = 2.6, 0.17  # heights of what is around the rows, and of one


@chart
def quality_verdicts(rows: pd.DataFrame, metric: str = "loss", *, palette: Mapping[str, str] | None = None) -> Chart:
    """Every comparison of the variants: a panel for what is held equal, a row for data and pair.

    Rows: study, data, equal, metric, controls, and the columns of `statistics.paired_differences`.
    """
    statistics.require_columns(rows, "data", "equal", "metric", "controls", "first", "second", "verdict")
    of_variants = rows["first"].isin(CELLS) & rows["second"].isin(CELLS) & (rows["metric"] == metric)
    rows = rows[of_variants].sort_values("n_seeds", ascending=False, kind="stable")
    # a pair that two studies hold stands here once, with the more seeds
    rows = rows.drop_duplicates(["data", "equal", "first", "second"]).sort_index()
    require(len(rows) > 0, f"no comparison of the variants by {metric}")
    rows = rows.sort_values(["data", "second", "first"], key=_places(rows["data"]), kind="stable")
    names = rows.apply(_row_name, axis=1)
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    height = max(SIZE[1], FRAME_IN + ROW_IN * len(places))
    figure = new_chart(_verdicts_title(rows), (SIZE[0], height), least=SIZE[0])
    styles = cell_styles(CELLS, palette)
    panels = list(rows["equal"].unique())
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, equal in zip(axes, panels, strict=True):
        for name, row in zip(names, rows.to_dict("records"), strict=True):
            if row["equal"] == equal:
                interval(ax, places[name], in_percent(row), lying=True, capsize=2, **_mark(row, styles))
        ax.axvline(0, color="black", linewidth=1)
        ax.set_title(equal)
        short_ticks(ax.xaxis, 2)
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(list(places.values()), list(places))
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    note = "above: what is held equal; below: difference in % of the second, 95 % interval"
    legend_outside(figure, None, "lower center", handles=_legend(rows, styles), ncols=4, title=note)
    return figure


def _row_name(row: Row) -> str:
    return f"{row['data']}: {_short(row['first'])} − {_short(row['second'])}"


def _short(cell: str) -> str:
    return version_of(cell).removesuffix(" (control)")


def _places(data: pd.Series) -> Callable[[pd.Series], pd.Series]:
    """The key that sorts data sets as they come, and cells as in `CELLS`."""
    places = {name: place for place, name in enumerate([*CELLS, *data.unique()])}
    return lambda column: column.map(places)


def _mark(row: Row, styles: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    pair = winner_and_loser(row)
    if row["controls"] == NOT_FOUND:
        return {"color": OPEN_MARK, "marker": "x"}
    if pair is None:
        return {"color": OPEN_MARK, "marker": "o", "markerfacecolor": OPEN_MARK if row["verdict"] == EQUAL else "white"}
    return {"color": styles[pair[0]]["color"], "marker": styles[pair[0]]["marker"]}


def _legend(rows: pd.DataFrame, styles: Mapping[str, Mapping[str, str]]) -> list[Line2D]:
    better = {pair[0] for pair in map(winner_and_loser, rows.to_dict("records")) if pair is not None}
    winners = [cell for cell in CELLS if cell in better]
    marks = {say("{cell} better", cell=cell_name(cell)): dict(styles[cell]) for cell in winners}
    margins = sorted(set(rows["margin_percent"]))
    words = say_list([f"{margin:g}" for margin in margins])
    marks[say("equal within {words} %", words=words)] = {"color": OPEN_MARK, "marker": "o"}
    marks[CANNOT_TELL] = {"color": OPEN_MARK, "marker": "o", "markerfacecolor": "white"}
    if (rows["controls"] == NOT_FOUND).any():
        marks["void: controls not found"] = {"color": OPEN_MARK, "marker": "x"}
    return [Line2D([], [], linestyle="", label=label, **style) for label, style in marks.items()]


def _verdicts_title(rows: pd.DataFrame) -> str:
    """How many comparisons are decided, and how often hybrid blocks beat the control in each panel."""
    valid = rows[rows["controls"] != NOT_FOUND]
    decided = (valid["verdict"] != CANNOT_TELL).sum()
    start = say("{decided} of {all} comparisons are decided", decided=decided, all=len(rows))
    if len(valid) < len(rows):
        start += say(", {void} are void", void=len(rows) - len(valid))
    against = valid[valid[["first", "second"]].eq(CONTROL).any(axis=1)]
    told = [
        say("{beaten} of {all} at equal {equal}", beaten=_beaten(part), all=len(part), equal=say(equal))
        for equal, part in against.groupby("equal", sort=False)
    ]
    return start + say("; hybrids beat the U-Net in {told}", told=say_list(told)) if told else start


def _beaten(rows: pd.DataFrame) -> int:
    """How often the control is the worse of two."""
    pairs = map(winner_and_loser, rows.to_dict("records"))
    return sum(pair is not None and pair[1] == CONTROL for pair in pairs)
