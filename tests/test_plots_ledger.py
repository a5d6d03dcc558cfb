"""The picture of the ledger: its bars are counts of readings, each in the colour of its verdict and its own section."""

from matplotlib.colors import to_hex

from hae_lab.audit.claims.base import BEYOND, CHAPTERS, OTHERS, PUBLISHED, SAID
from hae_lab.audit.clone import read_table
from hae_lab.audit.verdicts import FAILS, HOLDS, NEARLY, OPEN, VOID
from hae_lab.plots import ledger
from hae_lab.plots.base import PALETTE

NAMES = [  # the document's headings in English; what is counted apart comes last
    "overview", "core ideas", "1 HAE", "2 HAE Lite", "3 HAE V2", "technical details", "strengths, weaknesses", "advice",
    "more than it says", "the published code", "other sources",
]  # fmt: skip
COLOURS = {HOLDS: PALETTE[2], NEARLY: PALETTE[8], FAILS: PALETTE[3], OPEN: "#bdbdbd", VOID: PALETTE[4]}


def test_it_knows_the_chapters_and_verdicts_of_the_ledger():
    assert list(ledger.SECTIONS) == list(CHAPTERS.values())
    assert [ledger.DOCUMENT, *ledger.APART] == [SAID, BEYOND, PUBLISHED, OTHERS]
    assert set(ledger.VERDICT_COLOURS) == {HOLDS, NEARLY, FAILS, OPEN, VOID}


def test_bars_are_counts_of_readings():
    rows = read_table("claims")
    figure = ledger.claims_overview(rows)
    (ax,) = figure.axes
    widths = sorted(bar.get_width() for bars in ax.containers for bar in bars if bar.get_width())
    said, apart = rows[rows["asked_of"] == SAID], rows[rows["asked_of"] != SAID]
    counts = [*said.groupby(["section", "verdict"]).size(), *apart.groupby(["asked_of", "verdict"]).size()]
    assert widths == sorted(counts)
    assert sum(widths) == len(rows)
    names = [" ".join(tick.get_text().split()) for tick in ax.get_yticklabels()]
    assert names == NAMES
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith(f"Document: {said['id'].nunique()} claims, {len(said)} readings; ")
    assert f"{(said['verdict'] == 'holds').sum()} hold, {(said['verdict'] == 'does not hold').sum()} do not" in title


def test_a_verdict_that_nobody_knows_is_drawn_too():
    rows = read_table("claims").assign(verdict="perhaps")
    (ax,) = ledger.claims_overview(rows).axes
    assert ax.get_legend_handles_labels()[1] == ["perhaps"]


def test_each_bar_has_the_colour_of_its_verdict_and_stands_on_those_that_are_better():
    rows = read_table("claims")
    (ax,) = ledger.claims_overview(rows).axes
    bars_of = {container.get_label(): container for container in ax.containers}
    assert list(bars_of) == [verdict for verdict in COLOURS if verdict in set(rows["verdict"])]
    section = rows["section"].where(rows["asked_of"] == SAID, rows["asked_of"])
    for place, name in enumerate([*CHAPTERS.values(), BEYOND, PUBLISHED, OTHERS]):
        left = 0
        for verdict, container in bars_of.items():
            count = ((section == name) & (rows["verdict"] == verdict)).sum()
            bar = container[place]
            assert (bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) == (left, count, place)
            assert to_hex(bar.get_facecolor()) == COLOURS[verdict]
            left += count


def test_a_line_parts_the_chapters_from_what_is_counted_apart():
    rows = read_table("claims")
    (line,) = ledger.claims_overview(rows).axes[0].lines
    assert list(line.get_ydata()) == [len(CHAPTERS) - 0.5] * 2
    for part in (rows[rows["asked_of"] == SAID], rows[rows["asked_of"] != SAID]):  # nothing to part
        assert len(ledger.claims_overview(part).axes[0].lines) == 0
