"""Figures in Chinese: words from the catalogue, a font that has them, and English left as it was."""

import re
from string import Formatter

import pytest

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit.claims.base import BEYOND, CHAPTERS, OTHERS, PUBLISHED, SAID
from hae_lab.audit.clone import read_table
from hae_lab.audit.registry import figures
from hae_lab.audit.reproduce import draw
from hae_lab.audit.verdicts import FAILS, HOLDS, NEARLY, OPEN, VOID
from hae_lab.plots import catalogue, ledger, page
from hae_lab.plots.catalogue import say

TRANSLATED = (  # every word of them; others have what they share
    "claims_overview", "quality_verdicts", "parameter_table", "published_counts", "feasibility", "slot_waterfall",
    "where_parameters_sit", "what_it_would_take", "variants_together",
)  # fmt: skip
NAMES = re.compile(r"[A-Za-z][A-Za-z-]+")
# names of models, parts, data, presets and people
LEFT = "HAE Lite U-Net control MSTB MLP CNN patch digits twins phantoms brats wide imagenet cifar Lu et al".split()
CODE = re.compile(r"\w+ ?=\n?\S+|→|\b(regions|fusion|mlp_ratio|placement|cnn_branch)\b")  # fields and their values


def texts(figure) -> list[str]:
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_figure_in_chinese_has_no_english_left(name):
    with catalogue.language("zh"):
        figure = draw(figures()[name])
    words = {word for text in texts(figure) for word in NAMES.findall(CODE.sub("", text.replace("_\n", "_")))}
    assert words - set(LEFT) == set()
    assert any("\u4e00" <= letter <= "\u9fff" for letter in figure.get_suptitle())


@pytest.mark.parametrize("name", TRANSLATED)
def test_every_letter_has_a_glyph(name):
    with catalogue.language("zh"):
        figure = draw(figures()[name])
    assert len(figure.png()) > 1000  # a missing glyph is a warning, and warnings are errors here


def test_numbers_are_the_same_in_both_languages():
    rows = read_table("claims")
    with catalogue.language("zh"):
        chinese = ledger._title(rows)
    assert sorted(re.findall(r"\d+", chinese)) == sorted(re.findall(r"\d+", ledger._title(rows)))


def test_every_entry_has_the_names_of_its_english():
    for english, chinese in catalogue.entries("zh").items():
        names = [{name for _, name, *_ in Formatter().parse(text) if name} for text in (english, chinese)]
        assert names[1] <= names[0], english  # details that are told in English alone may be left out


def test_what_the_catalogue_has_not_stays_english_and_english_is_untouched():
    assert say("holds") == "holds"
    with catalogue.language("zh"):
        assert say("holds") == "成立"
        assert say("{n} things that nobody translated", n=3) == "3 things that nobody translated"
        assert catalogue.chinese_font() in page.current_style().settings["font.family"]
    assert catalogue.current_language() == "en"
    assert catalogue.chinese_font() not in page.current_style().settings["font.family"]


def test_long_chinese_titles_break_and_keep_latin_words_whole():
    with catalogue.language("zh"):
        lines = page.wrapped("混合块胜过 U-Net：" * 8, 4, 15).split("\n")
    assert len(lines) > 2
    assert "".join(lines).count("U-Net") == 8
    assert max(sum(1 + (ord(letter) > 0x2FFF) for letter in line) for line in lines) <= 72 * 4 / (page.LETTER * 15) + 2


def draw_chinese() -> None:
    with catalogue.language("zh"):
        draw(figures()["claims_overview"])


def test_a_missing_font_is_named_with_the_ways_to_get_one(monkeypatch):
    monkeypatch.setattr(catalogue, "WHEEL", ("no_such_module", "font.ttf"))
    monkeypatch.setattr(catalogue, "FONTS", ("No Such Font",))
    catalogue.chinese_font.cache_clear()
    try:
        with pytest.raises(HAELabError, match=r"no font with Chinese, such as No Such Font.*'.\[zh\]'.*fonts-noto-cjk"):
            draw_chinese()
    finally:
        catalogue.chinese_font.cache_clear()


def test_unknown_language_is_named():
    with pytest.raises(HAELabError, match=r"unknown language 'cn': .*known are en, zh"):
        catalogue.language("cn").__enter__()


def test_reproduce_draws_them_apart_from_the_committed_ones(tmp_path, capsys):
    assert main(["reproduce", "--lang", "zh", "--only", "claims_overview", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["claims_overview.png"]
    assert main(["reproduce", "--lang", "zh", "--full", "--out", str(tmp_path)]) == 2
    assert "draw figures alone" in capsys.readouterr().err


# the picture of the ledger


def test_it_knows_the_chapters_and_verdicts_of_the_ledger():
    assert list(ledger.SECTIONS) == list(CHAPTERS.values())
    assert [ledger.DOCUMENT, *ledger.APART] == [SAID, BEYOND, PUBLISHED, OTHERS]
    assert set(ledger.VERDICT_COLOURS) == {HOLDS, NEARLY, FAILS, OPEN, VOID}


def test_bars_are_counts_of_readings():
    rows = read_table("claims")
    figure = draw(figures()["claims_overview"])
    (ax,) = figure.axes
    widths = sorted(bar.get_width() for bars in ax.containers for bar in bars if bar.get_width())
    said, apart = rows[rows["asked_of"] == SAID], rows[rows["asked_of"] != SAID]
    counts = [*said.groupby(["section", "verdict"]).size(), *apart.groupby(["asked_of", "verdict"]).size()]
    assert widths == sorted(counts)
    assert sum(widths) == len(rows)
    names = [" ".join(tick.get_text().split()) for tick in ax.get_yticklabels()]
    assert names == [*ledger.SECTIONS.values(), *ledger.APART.values()]  # what is counted apart comes last
    title = " ".join(figure.get_suptitle().split())
    assert title.startswith(f"Document: {said['id'].nunique()} claims, {len(said)} readings; ")
    assert f"{(said['verdict'] == 'holds').sum()} hold, {(said['verdict'] == 'does not hold').sum()} do not" in title


def test_a_verdict_that_nobody_knows_is_drawn_too():
    rows = read_table("claims").assign(verdict="perhaps")
    (ax,) = ledger.claims_overview(rows).axes
    assert ax.get_legend_handles_labels()[1] == ["perhaps"]
