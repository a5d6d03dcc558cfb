"""A picture of the whole audit: how many readings of the document's sentences hold, chapter by chapter."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hae_lab.plots.base import PALETTE, chart, legend_outside, part_colours, titled_axes
from hae_lab.plots.catalogue import say
from hae_lab.study.statistics import require_columns

# the document's chapters: first line, and the name; claims made elsewhere have no line
CHAPTERS = (
    (1, "overview"), (7, "core ideas"), (22, "1 HAE"), (125, "2 HAE Lite"), (174, "3 HAE V2"), (232, "technical details"),
    (280, "strengths, weaknesses"), (299, "advice"),
)  # fmt: skip
ELSEWHERE = "made elsewhere"
VERDICT_COLOURS = {
    "holds": PALETTE[2],
    "nearly holds": PALETTE[8],
    "does not hold": PALETTE[3],
    "cannot tell": "#bdbdbd",
    "void": PALETTE[4],
}


@chart
def claims_overview(rows: pd.DataFrame, *, palette: Mapping[str, str] | None = None, ax: Axes | None = None) -> Figure:
    """A bar a chapter of the document: the readings of its sentences, by verdict.

    Rows: id, line, verdict; a row a reading.
    """
    counts = chapter_counts(rows)
    colours = {**part_colours(counts.columns, VERDICT_COLOURS), **(palette or {})}
    figure, own = titled_axes(_title(rows), ax)
    left = pd.Series(0, index=counts.index)
    for verdict in colours:
        if verdict not in counts:
            continue
        bars = own.barh(range(len(counts)), counts[verdict], left=left, color=colours[verdict], label=say(verdict))
        own.bar_label(bars, [str(count or "") for count in counts[verdict]], label_type="center", fontsize=11)
        left += counts[verdict]
    own.set_yticks(range(len(counts)), [say(chapter) for chapter in counts.index])
    own.invert_yaxis()
    own.xaxis.set_major_locator(MaxNLocator(integer=True))
    own.set_xlabel(say("readings of the document's sentences"))
    own.grid(axis="y", visible=False)
    legend_outside(figure, ax, "lower center", ncols=len(counts.columns))
    return figure


def chapter(line: object) -> str:
    """The chapter in which a line of the document stands; a claim without a line is made elsewhere."""
    if pd.isna(line):
        return ELSEWHERE
    return [name for first, name in CHAPTERS if first <= int(line)][-1]


def chapter_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings by chapter (rows, as the document has them) and verdict (columns, best first)."""
    require_columns(rows, "id", "line", "verdict")
    counts = pd.crosstab(rows["line"].map(chapter), rows["verdict"])
    order = [name for name in (*(name for _, name in CHAPTERS), ELSEWHERE) if name in counts.index]
    verdicts = [*VERDICT_COLOURS, *sorted(set(counts.columns) - set(VERDICT_COLOURS))]
    return counts.loc[order, [verdict for verdict in verdicts if verdict in counts.columns]]


def _title(rows: pd.DataFrame) -> str:
    return say(
        "{claims} claims of the document in {readings} readings: {hold} hold, {fail} do not",
        claims=rows["id"].nunique(),
        readings=len(rows),
        hold=(rows["verdict"] == "holds").sum(),
        fail=(rows["verdict"] == "does not hold").sum(),
    )
