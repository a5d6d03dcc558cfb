"""The report: what the audit found on one page that needs nothing else, two sheets of A4 when it is printed.

What it says stands in `report.toml`, in each language; its numbers are read from data/ and say so (`cited`).
"""

import base64
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from string import Formatter
from typing import Any

from hae_lab.audit.clone import read_table
from hae_lab.audit.registry import figures
from hae_lab.audit.reproduce import draw
from hae_lab.book import provenance
from hae_lab.book.cited import Cited
from hae_lab.checks import require, require_name
from hae_lab.files import atomic_path
from hae_lab.plots.catalogue import LANGUAGES, language

TEXTS = Path(__file__).with_name("report.toml")
COMMAND = "python -m hae_lab reproduce"
CODES = {"en": "en", "zh": "zh-CN"}
STYLE = """\
@page { size: A4; margin: 11mm 14mm; }
* { box-sizing: border-box; }
body { max-width: 182mm; margin: 8mm auto; padding: 0 4mm; color: #222;
  font: 9.4pt/1.38 system-ui, "Noto Sans SC", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 17pt; margin: 0 0 1mm; }
h2 { font-size: 11.5pt; margin: 3.2mm 0 1mm; break-after: avoid; }
p, ul { margin: 0.8mm 0; }
ul { padding-left: 5mm; }
section { break-inside: avoid; }
table { border-collapse: collapse; width: 100%; font-size: 8.6pt; }
th, td { text-align: left; padding: 0.5mm 2mm 0.5mm 0; border-bottom: 1px solid #ccc; vertical-align: bottom; }
figure { margin: 0; text-align: center; }
img { width: 100%; max-width: 126mm; height: auto; }
.from { color: #666; font-size: 7pt; line-height: 1.25; margin: 0.4mm 0 0; text-align: left; overflow-wrap: anywhere; }
data { white-space: nowrap; }
@media print { body { margin: 0; padding: 0; max-width: none; } }
"""


@cache
def texts() -> dict[str, Any]:
    """What `report.toml` holds: numbers, and a table a language."""
    return tomllib.loads(TEXTS.read_text(encoding="utf-8"))


@cache
def numbers() -> dict[str, Cited]:
    """The numbers of the report by the names that its texts use."""
    return {name: Cited(**entry) for name, entry in texts()["numbers"].items()}


def write_report(path: str | Path, name: str = "en") -> Path:
    """Write the report in a language as one HTML file, whole or not at all; return its path.

    Raises `HAELabError` for another ending or language, outside a clone, and where no font can draw the language.
    """
    path = Path(path)
    require(path.suffix == ".html", f"the report is an .html file, got {str(path)!r}")
    page = report_html(name)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def report_html(name: str = "en") -> str:
    """The report in a language as a page: style, text, tables and pictures in one."""
    require_name("language", name, LANGUAGES)
    words = texts()[name]
    with language(name):
        sections = "\n".join(_section(section, name) for section in words["sections"])
    return (
        f'<!doctype html>\n<html lang="{CODES[name]}">\n<head><meta charset="utf-8">'
        f"<title>{escape(words['title'])}</title>\n<style>\n{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(words['title'])}</h1>\n<p>{filled(words['lead'])}</p>\n{sections}\n"
        f"<p>{filled(words['command'])}<code>{COMMAND}</code></p>\n</body>\n</html>\n"
    )


def _section(section: dict[str, Any], name: str) -> str:
    """Heading, figure, table, items and text, those that there are, each with the line that says where it is from."""
    parts = [f"<h2>{escape(section['heading'])}</h2>"]
    if "figure" in section:
        parts.append(_figure(section["figure"], name))
    if "rows" in section:
        parts.append(_table(section["header"], section["rows"]))
    if "items" in section:
        parts.append("<ul>" + "".join(f"<li>{filled(item)}</li>" for item in section["items"]) + "</ul>")
    parts += [f"<p>{filled(text)}</p>" for text in section.get("text", [])]
    if "tables" in section:
        parts.append(_from("; ".join(provenance.of_table(table).line(name) for table in section["tables"])))
    return f"<section>{''.join(parts)}</section>"


def _figure(figure: str, name: str) -> str:
    drawn = draw(figures()[figure])
    picture = base64.b64encode(drawn.png()).decode("ascii")
    title = escape(" ".join(drawn.get_suptitle().split()))
    line = _from(provenance.of_figure(figure).line(name))
    return f'<figure><img alt="{title}" src="data:image/png;base64,{picture}">{line}</figure>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{filled(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _from(line: str) -> str:
    return f'<p class="from">{escape(line)}</p>'


def plain(template: str) -> str:
    """A text of the report as plain text."""
    return template.format(**{name: number.text() for name, number in numbers().items() if f"{{{name}}}" in template})


def filled(template: str) -> str:
    """A text of the report as HTML: its words escaped, its `{names}` the numbers with their sources."""
    parts = []
    for words, number, *_ in Formatter().parse(template):
        parts.append(escape(words))
        if number is not None:
            require_name("number of the report", number, numbers())
            parts.append(numbers()[number].html(read_table))
    return "".join(parts)
