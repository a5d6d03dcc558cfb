"""Figures in Chinese: words from the catalogue, a font that has them, and English left as it was."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter

import pytest
from matplotlib.text import Text

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit.clone import read_table
from hae_lab.audit.registry import figures
from hae_lab.audit.reproduce import draw
from hae_lab.diffusion.metrics import METRICS, metric_label, metric_title
from hae_lab.family import FIELDS
from hae_lab.plots import catalogue, ledger, page
from hae_lab.plots.catalogue import commas, say
from hae_lab.presets import PRESETS, VARIANTS
from hae_lab.rules import RULES

WORD = re.compile(r"[A-Za-z][\w-]+", re.ASCII)
CODE = re.compile(r"\w+ ?=\n?\S+")  # a field and its value
STAY = {  # names are the same in every language
    *"HAE Lite U-Net MSTB CNN MLP Transformer patch SDPA FlexAttention SiLU GELU GroupNorm LayerNorm Linear".split(),
    *"V2 v3 q1 q2 q3 q4".split(),
    *"C AUROC Holm Page Lu et al AMD EPYC CPU GFLOP GB ms".split(),
    *"digits twins phantoms scales mri".split(),  # data sets
    *"linear pooled concat mean".split(),  # what a slot holds
    *(*RULES, *FIELDS, *PRESETS, *VARIANTS),
}
PACKAGE = Path(page.__file__).parents[1]
SOURCES = sorted((PACKAGE / "plots").glob("*.py"))


def texts(figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def english_left(figure) -> set[str]:
    """The words of a figure that are neither Chinese nor a name."""
    return {word for text in texts(figure) for word in WORD.findall(CODE.sub("", text.replace("_\n", "_")))} - STAY


@pytest.mark.parametrize("name", figures())
def test_a_figure_in_chinese_has_no_english_left_and_a_glyph_for_every_letter(name):
    with catalogue.language("zh"):
        figure = draw(figures()[name])
    assert english_left(figure) == set()
    assert any("\u4e00" <= letter <= "\u9fff" for letter in figure.get_suptitle())
    assert len(figure.png()) > 1000  # a missing glyph is a warning, and warnings are errors here


@pytest.mark.parametrize(
    ("key", "left"), [("readings", {"readings"}), ("1 HAE", set()), ("core ideas", {"core", "ideas"})]
)
def test_a_word_that_the_catalogue_lacks_is_noticed(monkeypatch, key, left):
    entries = {english: chinese for english, chinese in catalogue.entries("zh").items() if english != key}
    monkeypatch.setattr(catalogue, "entries", lambda name: entries)
    with catalogue.language("zh"):
        assert english_left(draw(figures()["claims_overview"])) == left


# the texts that stand in the source, also those that the committed rows do not ask for


def texts_of(node: ast.AST, named: Mapping[str, list[ast.AST]]) -> Iterator[str]:
    """The strings that an argument may be: itself, a choice, or what was assigned to its name."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts_of(one, named), *texts_of(other, named))
        case ast.Tuple(elts=parts):
            yield from (text for part in parts for text in texts_of(part, named))
        case ast.Subscript(value=inner):
            yield from texts_of(inner, named)
        case ast.Name(id=name):
            rest = {other: nodes for other, nodes in named.items() if other != name}
            yield from (text for inner in named.get(name, ()) for text in texts_of(inner, rest))


def said_in(function: ast.FunctionDef) -> set[str]:
    """What a function gives to `say`."""
    named: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                named.setdefault(name, []).append(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                for target, value in zip(names, values, strict=True):
                    named.setdefault(getattr(target, "id", ""), []).append(value)
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    said = [call.args[0] for call in calls if getattr(call.func, "id", "") == "say"]
    return {text for argument in said for text in texts_of(argument, named)}


def said(source: str) -> set[str]:
    return set().union(*(said_in(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)))


def test_every_text_that_the_source_says_has_an_entry():
    found = set().union(*(said(path.read_text(encoding="utf-8")) for path in SOURCES))
    assert len(found) > 150
    assert {
        "The two cells are equal within {margin} %",
        "{names} are surely beaten by one that costs no more ({costs})",
    } < found
    assert found - set(catalogue.entries("zh")) == set()


def test_a_text_is_found_wherever_it_comes_from():
    source = """
def title(many, count):
    one, other = "one {n}", "other"
    text = one if count else other
    texts = ("none", "some")
    return say("a" "b", n=1) + say(text) + say(texts[count]) + say("x" if many else "y")
"""
    assert said(source) == {"ab", "one {n}", "other", "none", "some", "x", "y"}


TABLES = {  # what figures write of their rows, as it stands there
    "gain_shares": ["cell"], "quality_differences": ["first", "second"], "v3": ["variant"],
    "hybrid_blocks": ["step", "operation"], "study_variants": ["cell"], "bench_attention_cpu": ["way"],
}  # fmt: skip


def test_no_entry_is_left_over():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    known = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for table, columns in TABLES.items():
        whole = set(read_table(table)[columns].to_numpy().ravel())
        parts = {part for text in whole for part in text.split(", ")}
        known |= whole | parts | {catalogue._without_numbers(text) for text in whole | parts}
    known |= {path.stem for path in (PACKAGE.parent / "notebooks").glob("*.ipynb")}
    known |= {text for name in METRICS for text in (metric_title(name), metric_label(name))}
    assert set(catalogue.entries("zh")) - known == set()


def test_every_metric_has_its_words():
    with catalogue.language("zh"):
        known = {text: say(text) for name in METRICS for text in (metric_title(name), metric_label(name))}
    assert [text for text, words in known.items() if words == text and text not in ("AUROC", "Dice", "MMD²")] == []


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


def test_numbers_of_a_table_keep_their_places():
    with catalogue.language("zh"):
        assert say("8 heads") == "8 个头"
        assert say("conv 3×3 256→64") == "卷积 3×3 256→64"
        assert say("3/4 of the width") == "3/4 的宽度"
        assert say("2.5 {unknown} 7") == "2.5 {unknown} 7"  # as a reader's own label
        assert say("") == ""
    assert say("8 heads") == "8 heads"


def test_lists_and_brackets_are_those_of_the_language():
    names = ["HAE", "U-Net (control)"]
    assert commas(names) == "HAE, U-Net (control)"
    with catalogue.language("zh"):
        assert commas(map(say, names)) == "HAE、U-Net（对照）"
        assert (
            say("{cell} better", cell=say("U-Net (control)")) == "U-Net（对照）更好"
        )  # no space beside a wide bracket


@page.chart
def a_chart_of_ones_own() -> page.Chart:
    figure = page.new_chart("readings")
    ax = figure.subplots()
    ax.set(xlim=(0, 2), ylim=(0, 2))
    ax.set_xticks([0, 1], ["holds", "of one's own"])
    ax.set_yticks([0, 1.5])
    return figure


def test_ticks_that_are_names_are_translated_and_numbers_left():
    with catalogue.language("zh"):
        figure = a_chart_of_ones_own()
    figure.png()  # ticks write themselves when they are drawn
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["成立", "of one's own"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.0", "1.5"]


def test_titles_break_at_commas_where_as_many_lines_allow_it():
    with catalogue.language("zh"):
        lines = page.wrapped("参数量为 HAE 的 22 %，用时为其 59 %；用时相同时好于 HAE", 5.4, 15).split("\n")
        even = page.wrapped("没有一格被代价不高于它的另一格确定胜过的时候", 4.4, 15).split("\n")
    assert lines == ["参数量为 HAE 的 22 %，用时为其 59 %；", "用时相同时好于 HAE"]
    assert len(even) == 2
    assert abs(len(even[0]) - len(even[1])) <= 1


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
