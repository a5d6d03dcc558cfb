"""The report: every number in it stands in data/, it needs nothing else, and it prints on two sheets."""

import base64
import csv
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from urllib.parse import parse_qsl

import pytest
from browser import chromium_page, keep_picture

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit.registry import SLOW_TABLES, TABLES, figures
from hae_lab.book import provenance, report
from hae_lab.book.cited import Cited
from hae_lab.plots.catalogue import LANGUAGES

ROOT = Path(__file__).parent.parent
EACH = pytest.mark.parametrize("language", LANGUAGES)
# the document's own numbers: its 100 / 70 / 40 and the factors of its table; a map, a square, a share that was claimed
NOT_RESULTS = {"100", "70", "40", "4", "0.25", "64", "2", "1"}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {language: report.report_html(language) for language in LANGUAGES}


@dataclass
class Number:
    attributes: dict[str, str]
    text: str = ""


@dataclass
class Reader(HTMLParser):
    """What a page says: its numbers with their sources, and its other words, without the small lines of sources."""

    numbers: list[Number] = field(default_factory=list)
    words: str = ""
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("meta", "img", "br"):
            return
        self.inside.append("from" if ("class", "from") in attrs else tag)
        if tag == "data":
            self.numbers.append(Number(dict(attrs)))

    def handle_endtag(self, tag):
        self.inside.pop()

    def handle_data(self, data):
        if "data" in self.inside:
            self.numbers[-1].text += data
        elif not {"style", "from", "code"} & set(self.inside):
            self.words += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.inside == []
    return reader


def looked_up(attributes: dict[str, str]) -> list[str]:
    """The fields that a number rests on, by the csv module alone."""
    with (ROOT / "data" / f"{attributes['data-table']}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    where = parse_qsl(attributes["data-where"], keep_blank_values=True)
    chosen = [row for row in rows if all(row[column] == value for column, value in where)]
    first, _, second = attributes["data-column"].partition(" / ")
    return [str(100 * float(row[first]) / float(row[second])) if second else row[first] for row in chosen]


def computed(how: str, fields: list[str]) -> str:
    if how == "value":
        (only,) = fields
        return only
    if how in ("min", "max"):
        return str({"min": min, "max": max}[how](map(float, fields)))
    return str(len(fields if how == "count" else set(fields)))


def digits(text: str) -> str:
    return re.sub(r"[^\d.+\-e]", "", text.replace("−", "-"))


@EACH
def test_every_number_is_that_of_its_table(pages, language):
    found = read(pages[language]).numbers
    assert len(found) > 60
    for number in found:
        value = computed(number.attributes["data-how"], looked_up(number.attributes))
        if not re.search(r"^[+\-]?\d", value):
            assert number.text == value  # words, such as how a published model differs
            continue
        shown, factor = digits(number.text), 100 if number.attributes["data-column"] == "density" else 1
        places = len(shown.partition(".")[2])
        assert abs(float(shown) - factor * float(value)) <= 0.501 * 10**-places, number
        assert float(number.attributes["value"]) == pytest.approx(float(value))


@EACH
def test_there_is_no_other_number(pages, language):
    words = re.sub(r"brats128|cifar32|V2|Conv1x1|[1-9]\.[1-9]", " ", read(pages[language]).words)
    assert set(re.findall(r"\d[\d.,]*\d|\d", words)) <= NOT_RESULTS


def test_what_is_said_without_a_number_is_so():
    compared = report.read_table("quality_differences")
    of_loss = compared[(compared["metric"] == "loss") & (compared["equal"] == "time") & (compared["second"] == "unet")]
    blocks = of_loss[of_loss["first"].isin(["hae", "lite", "v2"])]
    assert len(blocks) > 0
    assert set(blocks["verdict"]) <= {"second better", "equal"}  # at equal time a plain U-Net does as well or better
    ledger = report.read_table("claims")
    assert "holds" not in set(ledger.loc[ledger["id"] == "quality_order", "verdict"])
    assert (report.read_table("what_it_would_take")["changes"] > report.numbers()["changes"].number() - 1).all()


def test_a_changed_table_changes_the_number():
    cited = report.numbers()["share_lite"]
    table = report.read_table("published_counts")
    assert cited.text() == "68.7 %"
    assert cited.text(lambda name: table.assign(our_percent=table["our_percent"] + 1)) == "69.7 %"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"table": "no_such", "column": "params"}, "no table at"),
        ({"table": "claims", "column": "verdicts"}, "did you mean 'verdict'"),
        ({"table": "claims", "column": "id", "how": "mean"}, "unknown way to take a number 'mean'"),
        ({"table": "claims", "column": "verdict"}, "one row was asked for"),
        ({"table": "claims", "column": "id", "where": {"cell": "hae"}}, "unknown column of claims 'cell'"),
    ],
)
def test_a_number_that_stands_nowhere_is_refused(entry, message):
    with pytest.raises(HAELabError, match=message):
        Cited(**entry).number()


def shape(language: str) -> list[tuple]:
    """The parts of each section, and the numbers in each."""
    kinds = ("figure", "tables", "rows", "items", "text")
    return [
        tuple((kind, sorted(placeholders(section[kind]))) for kind in kinds if kind in section)
        for section in report.texts()[language]["sections"]
    ]


def placeholders(part) -> list[str]:
    if isinstance(part, str):
        return [name for _, name, *_ in Formatter().parse(part) if name]
    return [name for each in part for name in placeholders(each)]


def test_both_languages_have_the_same_parts_and_numbers():
    english, chinese = (report.texts()[language] for language in LANGUAGES)
    assert shape("en") == shape("zh")
    assert english.keys() == chinese.keys()
    assert placeholders(english["lead"]) == placeholders(chinese["lead"])
    used = {name for language in LANGUAGES for name in placeholders([*_texts(report.texts()[language])])}
    assert used == set(report.numbers())


def _texts(part):
    if isinstance(part, str):
        yield part
        return
    for each in part.values() if isinstance(part, dict) else part:
        yield from _texts(each)


@EACH
def test_the_page_is_one_file_and_asks_for_nothing(pages, language):
    page = pages[language]
    attributes = read(page).attributes
    assert not re.search(r"<script|<link|@import|url\(|https?:", page)
    sources = [value for _, name, value in attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert len(page) < 400_000


def test_pictures_are_the_committed_figures(pages):
    pictures = re.findall(r"base64,([^\"]+)", pages["en"])
    names = [section["figure"] for section in report.texts()["en"]["sections"] if "figure" in section]
    assert "claims_overview" in names
    committed = [(ROOT / "figures" / f"{name}.png").read_bytes() for name in names]
    assert [base64.b64decode(picture) for picture in pictures] == committed


def test_words_are_escaped():
    assert report.filled("a < b & {n_claims}").startswith("a &lt; b &amp; <data ")
    with pytest.raises(HAELabError, match="unknown number of the report 'n_claim'"):
        report.filled("{n_claim}")


@EACH
def test_figures_and_tables_say_where_they_are_from(pages, language):
    page = pages[language]
    for section in report.texts()[language]["sections"]:
        lines = [provenance.of_table(table).line(language) for table in section.get("tables", [])]
        lines += [provenance.of_figure(section["figure"]).line(language)] if "figure" in section else []
        assert lines
        assert all(line in page for line in lines)


def test_provenance_names_files_and_functions_that_exist():
    for name in figures():
        found = provenance.of_figure(name)
        assert all((ROOT / "data" / f"{file}.csv").exists() for file in found.files)
        assert re.fullmatch(r"[a-z_.0-9]+[a-z_]\w*", found.function), found
    for name in {**TABLES, **SLOW_TABLES}:
        assert re.fullmatch(r"[a-z_.0-9]+[a-z_]\w*", provenance.of_table(name).function), name
    assert provenance.of_table("study_twins").function == ""


def test_seconds_are_told_only_where_they_were_measured_and_not_below_one():
    told = [provenance.Provenance(("a",), "b.c", seconds).line() for seconds in (None, 0.2, 12.0)]
    assert told == ["data/a.csv · b.c", "data/a.csv · b.c · under 1 s to make", "data/a.csv · b.c · 12 s to make"]
    assert provenance.Provenance((), "b.c", 0.2).line("zh") == "b.c · 生成用时不到 1 秒"


def test_the_command_writes_the_file_and_bad_requests_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "report_html", lambda name: f"<p>{name}</p>")
    assert main(["report", "--out", str(tmp_path / "r.html"), "--lang", "zh"]) == 0
    assert (tmp_path / "r.html").read_text() == "<p>zh</p>"
    assert main(["report", "--out", str(tmp_path / "r.pdf")]) == 2
    assert "the report is an .html file, got" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(HAELabError, match="unknown language 'cn'"):
        report.report_html("cn")


@pytest.mark.browser
@EACH
def test_it_prints_on_two_sheets_and_opens_without_a_network(pages, language, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(pages[language], encoding="utf-8")
    with chromium_page(offline=True) as (page, watched):
        page.goto(path.as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        keep_picture(page.locator("body"), f"report_{language}")
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) == 2
    sheet = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", printed)
    assert [round(float(points) / 72 * 25.4) for points in sheet.groups()] == [210, 297]
    assert watched.hosts() == set()
    assert watched.complaints == []
