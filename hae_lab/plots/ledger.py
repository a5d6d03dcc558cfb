"""A picture of the whole audit: how many readings of the document's sentences hold, section by section."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hae_lab.plots.base import PALETTE, chart, legend_outside, part_colours, titled_axes
from hae_lab.plots.catalogue import say
from hae_lab.plots.page import TEXT, wrapped
from hae_lab.study.statistics import require_columns

# the document's headings and what they say, in its order
SECTIONS = {
    "概述": "overview",
    "核心设计理念": "core ideas",
    "1. HAE 原版 (HAEUNetModel)": "1 HAE",
    "2. HAE Lite (HAEUNetModelLite)": "2 HAE Lite",
    "3. HAE V2 (HAEUNetModelV2)": "3 HAE V2",
    "技术细节对比": "technical details",
    "性能特点总结": "strengths, weaknesses",
    "使用建议": "advice",
}
# what is counted apart, below the chapters
APART = {
    "beyond the document": "more than it says",
    "published code": "the published code",
    "other source": "other sources",
}
DOCUMENT = "document"  # asked of its own words
SMALLEST = 0.03  # of the longest bar: a part below it has no room for its number
VERDICT_COLOURS = {
    "holds": PALETTE[2],
    "nearly holds": PALETTE[8],
    "does not hold": PALETTE[3],
    "cannot tell": "#bdbdbd",
    "void": PALETTE[4],
}


@chart
def claims_overview(rows: pd.DataFrame, *, palette: Mapping[str, str] | None = None, ax: Axes | None = None) -> Figure:
    """A bar a section of the document: the readings of its words, by verdict; below, a bar for each other asked.

    Rows: id, section, asked_of, verdict; a row a reading.
    """
    counts = section_counts(rows)
    colours = {**part_colours(counts.columns, VERDICT_COLOURS), **(palette or {})}
    figure, own = titled_axes(_title(rows), ax)
    left = pd.Series(0, index=counts.index)
    for verdict in colours:
        if verdict not in counts:
            continue
        bars = own.barh(range(len(counts)), counts[verdict], left=left, color=colours[verdict], label=say(verdict))
        labels = [str(count) if count >= SMALLEST * counts.sum(axis=1).max() else "" for count in counts[verdict]]
        own.bar_label(bars, labels, label_type="center", fontsize=11)
        left += counts[verdict]
    named = SECTIONS | APART
    names = [wrapped(say(named.get(section, section)), 2.2, 12, TEXT) for section in counts.index]
    chapters = counts.index.isin(list(SECTIONS)).sum()
    if 0 < chapters < len(counts):
        own.axhline(chapters - 0.5, color="#888888", linewidth=0.8)
    own.set_yticks(range(len(counts)), names)
    own.invert_yaxis()
    own.xaxis.set_major_locator(MaxNLocator(integer=True))
    own.set_xlabel(say("readings"))
    own.grid(axis="y", visible=False)
    legend_outside(figure, ax, "lower center", ncols=len(counts.columns))
    return figure


def section_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Readings by section, then by who else is asked (rows), and verdict (columns, best first)."""
    require_columns(rows, "id", "section", "asked_of", "verdict")
    bars = rows["section"].where(rows["asked_of"] == DOCUMENT, rows["asked_of"])
    counts = pd.crosstab(bars, rows["verdict"])
    order = [name for name in dict.fromkeys([*SECTIONS, *APART, *bars]) if name in counts.index]
    verdicts = [*VERDICT_COLOURS, *sorted(set(counts.columns) - set(VERDICT_COLOURS))]
    return counts.loc[order, [verdict for verdict in verdicts if verdict in counts.columns]]


def _title(rows: pd.DataFrame) -> str:
    rows = rows[rows["asked_of"] == DOCUMENT]
    return say(
        "Document: {claims} claims, {readings} readings; {hold} hold, {fail} do not",
        claims=rows["id"].nunique(),
        readings=len(rows),
        hold=(rows["verdict"] == "holds").sum(),
        fail=(rows["verdict"] == "does not hold").sum(),
    )
