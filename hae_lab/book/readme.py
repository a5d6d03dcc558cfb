"""The generated blocks of the READMEs: every number comes from the same functions as data/.

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`. A page whose name ends in `.zh-CN.md` has them in
Chinese, by the catalogue of the figures.
"""

import html
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hae_lab import tables
from hae_lab.audit import parameter_tables
from hae_lab.audit.bench_attention import SHARED
from hae_lab.audit.claims.base import SAID, TIME
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.audit.seconds import FILE
from hae_lab.book import notebooks, report
from hae_lab.checks import require_name
from hae_lab.files import atomic_path
from hae_lab.plots.catalogue import current_language, language, say
from hae_lab.plots.ledger import APART
from hae_lab.presets import PRESETS, SLOTS, VARIANTS, config, variant_title
from hae_lab.profilers.params import parameter_formulas

PATTERN = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = ("README.md", "README.zh-CN.md", "notebooks/README.md")  # those with such blocks
PRESET = "brats128"
HEADLINES = ("parameters", "attention_90", "v2_efficiency", "quality_order", "heterogeneous")  # on the front page


def update(path: str | Path) -> bool:
    """Rewrite the generated blocks of a Markdown file in its folder; return whether anything changed."""
    path = Path(path)
    old = path.read_text(encoding="utf-8")
    with language("zh" if path.name.endswith(".zh-CN.md") else "en"):
        new = PATTERN.sub(lambda match: match[1] + _block(match[2], path.parent) + "\n" + match[3], old)
    if new != old:
        with atomic_path(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def _block(name: str, folder: Path) -> str:
    require_name("generated block", name, BLOCKS)
    return BLOCKS[name](folder)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; words of the header that the catalogue has are in the language of now."""
    header = [say(word) for word in header]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finding(folder: Path) -> str:
    """What the audit comes to, in the report's own words and numbers."""
    return report.plain(report.texts()[current_language()]["finding"])


def presets(folder: Path) -> str:
    """The presets: images, width and size of a model, and how long everything takes to make."""
    rows = []
    for name, preset in PRESETS.items():
        params = [f"{parameter_formulas(config(variant, name))['model']:,}" for variant in ("hae", "v2")]
        size = f"{preset['image_size']} x {preset['image_size']} x {preset['in_channels']}"
        rows.append([f"`{name}`", size, f"{preset['model_channels']}", *params])
    header = ["preset", "images", "width", f"{say('parameters')}, HAE", f"{say('parameters')}, V2"]
    return markdown_table(header, rows) + _seconds(folder)


def _seconds(folder: Path) -> str:
    """How long `reproduce` takes, if it was measured."""
    path = folder / "data" / f"{FILE}.csv"
    if not path.exists():
        return ""
    rows = tables.read(path)
    seconds = 10 * max(1, round(rows["seconds"].sum() / 10))
    line = say(
        "`reproduce` makes {tables} tables and {figures} figures in about {seconds} s of CPU time ({device}).",
        tables=(rows["output_kind"] == "table").sum(), figures=(rows["output_kind"] == "figure").sum(), seconds=seconds,
        device=rows["device_name"].iloc[0],
    )  # fmt: skip
    return f"\n\n{line}"


def escaped(title: str) -> str:
    """A title as it reads in a cell of a Markdown table, on a page too: none of it is markup."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(title, quote=False))


def variants(folder: Path) -> str:
    """The variant table: slots, parameters, the claim beside what we count."""
    table = parameter_tables.parameter_table()
    whole = table[(table["preset"] == PRESET) & (table["scope"] == "whole model")].set_index("variant")
    published = parameter_tables.published_counts().set_index("variant")
    spread = table[table["scope"] == "whole model"].groupby("variant")["percent_of_hae"].agg(["min", "max"])
    rows = []
    for name, variant in VARIANTS.items():
        model_config, claimed = config(name, PRESET), name in published.index
        low, high = spread.loc[name]
        rows.append(
            [f"`{name}`"]
            + [escaped(f"{getattr(model_config, slot)}") if variant.has_blocks else "-" for slot in SLOTS]
            + [f"{whole.loc[name, 'params']:,}", f"{low:.1f} - {high:.1f} %"]
            + [f"{published.loc[name, 'claim_percent']:.0f} %" if claimed else "-"]
            + [f"{published.loc[name, 'our_params']:,}" if claimed else "-"]
        )
    header = ["variant", *(f"`{slot}`" for slot in SLOTS), f"{say('parameters')}, `{PRESET}`"]
    header += ["of HAE, like for like (four presets)", "claimed", "published revision, rebuilt"]
    return markdown_table(header, rows) + _unmeasured(folder)


def _unmeasured(folder: Path) -> str:
    """A line that names the variants whose time is missing in the tables and figures, if there are some."""
    times = tables.read(folder / "data" / "variants_together.csv").query("quantity == 'time'").set_index("variant")
    missing = [
        escaped(variant_title(name)) for name in VARIANTS if name not in times.index or times["value"].isna()[name]
    ]
    line = say("Not measured: {missing}; `hae-lab bench model` does.", missing=", ".join(missing))
    return f"\n\n{line}" if missing else ""


def advice(folder: Path) -> str:
    """The document's advice on which variant to choose, beside what we counted and measured."""
    together = tables.read(folder / "data" / "variants_together.csv")
    percent = together.pivot(index="variant", columns="quantity", values="percent_of_hae")
    claims = tables.read(folder / "data" / "claims.csv")
    lite, v2 = percent.loc["lite"], percent.loc["v2"]
    rows = [
        [say("quality first (高质量生成)"), variant_title("hae"), _quality(claims)],
        [say("balance (平衡应用)"), variant_title("lite"), _cost("lite", lite)],
        [
            say("efficiency first (效率优先)"),
            variant_title("v2"),
            _cost("v2", v2) + say("; whether it is the fastest: {found}", found=_fastest(claims)),
        ],
        [
            say("start with V2, upgrade later (渐进式部署)"),
            say("V2, then Lite or HAE"),
            say("`hae_lab.transfer_weights` copies what two variants share and names what it could not"),
        ],
    ]
    return markdown_table(["if you want", "the document says", "what we found"], rows)


def _cost(variant: str, percent: pd.Series) -> str:
    return say(
        "{params:.0f} % of HAE's parameters (not {claim:.0f} %), {macs:.0f} % of its MACs",
        params=percent["parameters"], claim=CLAIM_PERCENT[variant], macs=percent["MACs"],
    )  # fmt: skip


def _fastest(claims: pd.DataFrame) -> str:
    """Whether V2's denoising step was the fastest, on each computer."""
    of_time = claims[(claims["id"] == "v2_efficiency") & (claims["kind"] == TIME) & (claims["way"] == SHARED)]
    found = [
        say(
            "{verdict} (one denoising step, {device}, {clock})",
            verdict=say(reading["verdict"]),
            device=reading["device_name"],
            clock=say(reading["clock"]),
        )
        for reading in of_time.to_dict("records")
    ]
    return "; ".join(found) or say("not measured")


def _quality(claims: pd.DataFrame) -> str:
    """Whether the promised order of quality was found, in one line."""
    readings = claims[claims["id"] == "quality_order"]
    (example,) = readings[readings["example"]].to_dict("records")
    return say(
        "whether it is the best: {verdict} ({reading}, {scope}); of {count} readings, {verdicts}",
        verdict=say(example["verdict"]), reading=example["reading"], scope=example["scope"], count=len(readings),
        verdicts=_verdicts(readings),
    )  # fmt: skip


def claims(folder: Path) -> str:
    """The main claims of the document, with the readings in which they hold and in which not."""
    ledger = tables.read(folder / "data" / "claims.csv")
    rows = []
    for claim in HEADLINES:
        readings = ledger[ledger["id"] == claim]
        (example,) = readings[readings["example"]].to_dict("records")
        if current_language() == "en":
            shown = f"{example['reading']}, {example['scope']}: {example['computed']}"
            said = f"{example['english']} (“{example['original']}”, {_place(example)})"
            rows.append([said, _verdicts(readings), shown])
        else:  # the document's own words; what was computed is told in English alone
            rows.append([f"{example['original']} ({_place(example)})", _verdicts(readings)])
    header = ["the document says", "of the readings it", "for example"]
    return markdown_table(header[: len(rows[0])], rows)


def _place(claim: Mapping[str, Any]) -> str:
    """Where a claim stands in the document; what others say is named by who says it."""
    places = str(claim["line"])
    return say("lines {places}" if "," in places else "line {places}", places=places) if places else claim["section"]


def _verdicts(readings: pd.DataFrame) -> str:
    """How often each verdict is found; what is not asked of the document's words is counted apart."""
    found = []
    for asked_of in (SAID, *APART):
        counts = readings.loc[readings["asked_of"] == asked_of, "verdict"].value_counts().items()
        told = ", ".join(say("{verdict} in {count}", verdict=say(verdict), count=count) for verdict, count in counts)
        if told:
            found.append(told if asked_of == SAID else f"{say(APART[asked_of])}: {told}")
    return "; ".join(found)


def notebook_list(folder: Path) -> str:
    """The notebooks in reading order, a line each."""
    return notebook_table(folder / "notebooks", link="notebooks/")


def notebook_table(folder: str | Path = ".", link: str = "") -> str:
    """A Markdown table of a folder's notebooks, from their first cells; `link` stands before each file name."""
    rows = [[f"[{name}]({link}{name}.ipynb)", lesson] for name, lesson in _lessons(folder).items()]
    return markdown_table(["notebook", "you will learn"], rows)


def notebook_lines(folder: str | Path = ".") -> str:
    """The same as a Markdown list."""
    return "\n".join(f"* [{name}]({name}.ipynb): {lesson}" for name, lesson in _lessons(folder).items())


def costs(folder: Path) -> str:
    """What each notebook of a folder needs and how long it takes, as its first cell says."""
    rows = []
    for path in notebooks.find(folder):
        first = notebooks.read(path).cells[0].source
        time, needs = (re.search(rf"^\| {key} \| (.+) \|$", first, re.MULTILINE)[1] for key in ("time", "you need"))
        reading, _, running = time.partition(", ")
        rows.append([f"[{path.stem}]({path.name})", reading, running.removesuffix(" to run"), needs])
    return markdown_table(["notebook", "to read", "to run", "you need"], rows)


def _lessons(folder: str | Path) -> dict[str, str]:
    """What each notebook teaches, by its name, in reading order."""
    lessons = {}
    for path in notebooks.find(folder):
        first = notebooks.read(path).cells[0].source
        lesson = re.search(r"\*\*You will learn\*\* (.+?)\n\n", first, re.DOTALL)[1]
        lessons[path.stem] = " ".join(lesson.split()) if say(path.stem) == path.stem else say(path.stem)
    return lessons


BLOCKS: dict[str, Callable[[Path], str]] = {
    "finding": finding,
    "presets": presets,
    "variants": variants,
    "advice": advice,
    "notebooks": notebook_list,
    "claims": claims,
    "costs": costs,
}
