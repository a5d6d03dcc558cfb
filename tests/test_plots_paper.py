"""Figures for paper: the asked width, writing of 7 to 8 points, fonts embedded, nothing cut off or over another."""

import io
import re
import zlib
from itertools import combinations

import numpy as np
import plot_rows
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from hae_lab import HAELabError, plots
from hae_lab.audit import registry, reproduce
from hae_lab.plots.page import columns_that_fit, wrapped

TWO_COLUMNS_ONLY = {
    "mask_rules", "hybrid_blocks", "slot_ladder", "attention_speed_up", "quality_verdicts", "quality_forest",
    "gain_shares", "gain_by_distance", "slot_ladder_phantoms", "lesions_found", "quality_forest_digits",
    "quality_forest_scales", "brain_lesions_found",
    *(f"unet_{name}" for name in plot_rows.FOUR),
}  # fmt: skip
TOUCH = 1.5  # points that writing may reach into the frame of other writing, which has room for accents


def written(figure: Figure) -> list[Text]:
    """Every text that is painted: ticks outside the limits of their axis are not."""
    inside = [child for ax in figure.axes for child in (ax, *ax.child_axes)]
    unpainted = set()
    for axis in [axis for ax in inside for axis in (ax.xaxis, ax.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low - slack <= tick.get_loc() <= high + slack:
                unpainted |= {id(tick.label1), id(tick.label2)}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if id(text) not in unpainted]


def placed_texts(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Every painted text with its corners left, bottom, right, top in points."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, points = canvas.get_renderer(), 72 / figure.dpi
    return [(text.get_text(), points * extents(text, renderer)) for text in written(figure)]


def extents(text: Text, renderer) -> np.ndarray:
    """Left, bottom, right, top of a text without the empty lines that push a name below its neighbours."""
    left, bottom, right, top = text.get_window_extent(renderer).extents
    words = text.get_text()
    empty = (len(words) - len(words.lstrip("\n"))) / (1 + words.count("\n"))
    return np.array([left, bottom, right, top - empty * (top - bottom)])


def overlapping(texts: list[tuple[str, np.ndarray]]) -> list[tuple[str, str]]:
    pairs = []
    for (one, a), (other, b) in combinations(texts, 2):
        depth = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        if (depth > TOUCH).all():
            pairs.append((one, other))
    return pairs


def check_page(figure: plots.Chart, width: float) -> None:
    texts = placed_texts(figure)
    page = 72 * figure.get_size_inches()
    assert figure.get_figwidth() == pytest.approx(width)
    assert texts
    cut = [words for words, box in texts if (box[:2] < -0.5).any() or (box[2:] > page + 0.5).any()]
    assert cut == []
    sizes = {text.get_fontsize() for text in written(figure)}
    assert 7 <= min(sizes) <= max(sizes) <= 8
    assert [words for words, _ in texts if "$" in words] == []  # formulas have smaller writing in them
    assert overlapping(texts) == []


@pytest.mark.parametrize("width", [3.3, 6.9])
@pytest.mark.parametrize("name", registry.figures())
def test_every_figure_of_the_paper_can_be_read_in_print(name, width):
    source = registry.figures()[name]
    with plots.style("paper", width):
        if width < 6 and name in TWO_COLUMNS_ONLY:
            with pytest.raises(
                plots.TooNarrow, match=r"needs \d\.\d in for writing of 7 points, got a width of 3.3 in"
            ):
                reproduce.draw(source)
            return
        figure = reproduce.draw(source)
    check_page(figure, width)


# files


@pytest.fixture(scope="module")
def printed() -> plots.Chart:
    with plots.style("paper", 3.4):
        return plots.macs_by_part(plot_rows.macs_by_part())


def test_a_pdf_has_the_width_and_whole_embedded_fonts(printed):
    pdf = printed.pdf()
    (box,) = re.findall(rb"/MediaBox \[([^\]]*)\]", pdf)
    assert float(box.split()[2]) == pytest.approx(72 * 3.4)
    kinds = re.findall(rb"/Subtype /(\w+)", pdf)
    assert kinds.count(b"CIDFontType2") == pdf.count(b"/FontFile2") > 0  # TrueType outlines in the file itself
    assert b"Type3" not in kinds
    packed = [part for part in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.S) if part[:1] == b"x"]
    streams = list(map(zlib.decompress, packed))
    sizes = {float(size) for stream in streams for size in re.findall(rb"/F\d+ ([\d.]+) Tf", stream)}
    assert 7 <= min(sizes) <= max(sizes) <= 8  # what the page says, besides what the figure asked for
    assert printed.pdf() == pdf


def test_an_svg_has_the_width_and_text_as_text(printed):
    svg = printed.svg().decode()
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) == pytest.approx(72 * 3.4)
    assert "as published" in re.sub("<[^>]*>", "", svg)
    sizes = {float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg)}
    assert 7 <= min(sizes) <= max(sizes) <= 8
    assert printed.svg().decode() == svg


def test_a_png_knows_its_size_in_print(printed):
    image = Image.open(io.BytesIO(printed.png()))
    assert image.size[0] == pytest.approx(300 * 3.4, abs=1)
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_other_formats_are_refused(printed):
    with pytest.raises(HAELabError, match="unknown format 'jpeg'"):
        printed.picture("jpeg")


# style


def test_lines_and_marks_shrink_in_proportion():
    rows = plot_rows.macs_by_part()
    talk = plots.macs_by_part(rows)
    with plots.style("paper", 6.9):
        paper = plots.macs_by_part(rows)
    pairs = list(zip(talk.axes[0].lines, paper.axes[0].lines, strict=True))
    assert len(pairs) == 4
    for large, small in pairs:
        assert small.get_markersize() == pytest.approx(7 / 11 * large.get_markersize())
    marks = [[mark.get_markersize() for mark in figure.legends[0].findobj(Line2D)] for figure in (talk, paper)]
    assert marks[1] == pytest.approx(7 / 11 * np.array(marks[0]))


def test_a_figure_keeps_its_style_and_the_talk_is_as_it_was():
    rows = plot_rows.feasibility()
    before = plots.feasibility(rows).png()
    with plots.style("paper") as chosen:
        figure = plots.feasibility(rows)
        assert chosen.width == 3.3
    assert figure.style.name == "paper"
    assert figure.get_figwidth() == pytest.approx(3.3)
    assert Image.open(io.BytesIO(figure.png())).size[0] == 990
    assert plots.feasibility(rows).png() == before


def test_a_style_ends_with_its_block_even_after_an_error():
    with pytest.raises(ZeroDivisionError), plots.style("paper"):
        raise ZeroDivisionError
    assert plots.feasibility(plot_rows.feasibility()).style.name == "talk"


def test_a_users_own_page_is_left_alone():
    page = Figure(figsize=(8, 4))
    ax = page.subplots()
    note = page.text(0.1, 0.1, "mine", fontsize=20)
    (line,) = ax.plot([0, 1], [0, 1], linewidth=5)
    with plots.style("paper"):
        assert plots.feasibility(plot_rows.feasibility(), ax=ax) is page
    assert (note.get_fontsize(), line.get_linewidth(), page.get_figwidth()) == (20, 5, 8)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("poster", None, "unknown style 'poster'"),
        ("talk", 3.3, "the figures of 'talk' have widths of their own, got 3.3"),
        ("paper", 1.0, "width in inches"),
        ("paper", float("nan"), "width in inches"),
    ],
)
def test_styles_that_cannot_be(name, width, message):
    with pytest.raises(HAELabError, match=message), plots.style(name, width):
        pass


def test_lines_break_to_the_width_and_percentages_stay_whole():
    assert wrapped("of these 70 % and 40 %", 1.0, 10, 0.58).split("\n") == ["of these", "70 % and", "40 %"]
    assert wrapped("one\ntwo", 9, 10) == "one\ntwo"


def test_a_legend_has_the_columns_that_fit():
    labels = ["ten letters"] * 4
    one = 10 / 72 * (0.58 * 11 + 2.8)
    assert columns_that_fit(labels, 4, 100, 10) == 4
    assert columns_that_fit(labels, 3, 100, 10) == 3
    assert columns_that_fit(labels, 4, 1.04 * (2 * one + 20 / 72), 10) == 2
    assert columns_that_fit(labels, 4, one, 10) == 1


# files of `reproduce`


def test_figures_in_another_style_are_written_elsewhere(tmp_path):
    paths, left_out = reproduce.print_figures(tmp_path, ["feasibility"], width=3.3, formats=("pdf", "svg"))
    assert [path.name for path in paths] == ["feasibility.pdf", "feasibility.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {"feasibility.pdf", "feasibility.svg"}
    assert left_out == []
    again, _ = reproduce.print_figures(tmp_path / "again", ["feasibility"], width=3.3)
    assert again[0].read_bytes() == paths[0].read_bytes()


def test_without_a_width_a_figure_takes_two_columns_where_it_must(tmp_path):
    paths, _ = reproduce.print_figures(tmp_path, ["feasibility", "hybrid_blocks"], formats=("svg",))
    widths = [float(re.search(r'width="([\d.]+)pt"', path.read_text())[1]) / 72 for path in paths]
    assert widths == pytest.approx([3.3, 6.9])


def test_what_does_not_fit_is_named_or_refused(tmp_path, monkeypatch):
    sources = {name: registry.figures()[name] for name in ("feasibility", "hybrid_blocks")}
    monkeypatch.setattr(reproduce, "figures", lambda: sources)
    paths, left_out = reproduce.print_figures(tmp_path, width=3.3)
    assert [path.name for path in paths] == ["feasibility.pdf"]
    assert len(left_out) == 1
    assert left_out[0].startswith("hybrid_blocks: this picture needs 6.9 in")
    with pytest.raises(plots.TooNarrow, match=r"needs 6.9 in"):
        reproduce.print_figures(tmp_path, ["hybrid_blocks"], width=3.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["feasability"]}, "unknown figure 'feasability': did you mean 'feasibility'"),
        ({"only": ["impossibility"]}, "unknown figure 'impossibility'"),  # a table, which has no style
        ({"formats": ["gif"]}, "unknown format 'gif'"),
    ],
)
def test_what_cannot_be_printed_is_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(HAELabError, match=message):
        reproduce.print_figures(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
