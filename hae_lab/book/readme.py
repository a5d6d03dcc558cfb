"""The generated blocks of README.md and notebooks/README.md: every number comes from the same functions as data/.

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from hae_lab import tables
from hae_lab.audit import parameter_tables
from hae_lab.audit.bench_attention import SHARED
from hae_lab.audit.claims.base import TIME
from hae_lab.audit.parameter_tables import CLAIM_PERCENT
from hae_lab.book import notebooks
from hae_lab.checks import require_name
from hae_lab.files import atomic_path
from hae_lab.presets import SLOTS, VARIANTS, config, variant_title

PATTERN = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PRESET = "brats128"
HEADLINES = (  # the claims that the front page shows
    "heterogeneous", "attention_90", "three_scales", "v2_efficiency", "bottleneck_75", "parameters", "quality_order",
    "interchangeable", "paper_90",
)  # fmt: skip


def update(path: str | Path) -> bool:
    """Rewrite the generated blocks of a Markdown file in its folder; return whether anything changed."""
    path = Path(path)
    old = path.read_text(encoding="utf-8")
    new = PATTERN.sub(lambda match: match[1] + _block(match[2], path.parent) + "\n" + match[3], old)
    if new != old:
        with atomic_path(path) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != old


def _block(name: str, folder: Path) -> str:
    require_name("generated block", name, BLOCKS)
    return BLOCKS[name](folder)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
            + [f"{getattr(model_config, slot)}" if variant.has_blocks else "-" for slot in SLOTS]
            + [f"{whole.loc[name, 'params']:,}", f"{low:.1f} - {high:.1f} %"]
            + [f"{published.loc[name, 'claim_percent']:.0f} %" if claimed else "-"]
            + [f"{published.loc[name, 'our_params']:,}" if claimed else "-"]
        )
    header = ["variant", *(f"`{slot}`" for slot in SLOTS), f"parameters, `{PRESET}`"]
    header += ["of HAE, like for like (four presets)", "claimed", "published revision, rebuilt"]
    return markdown_table(header, rows) + _unmeasured(folder)


def _unmeasured(folder: Path) -> str:
    """A line that names the variants whose time is missing in the tables and figures, if there are some."""
    times = tables.read(folder / "data" / "variants_together.csv").query("quantity == 'time'").set_index("variant")
    missing = [variant_title(name) for name in VARIANTS if name not in times.index or times["value"].isna()[name]]
    return f"\n\nNot measured: {', '.join(missing)}; `hae-lab bench model` does." if missing else ""


def advice(folder: Path) -> str:
    """The document's advice on which variant to choose, beside what we counted and measured."""
    together = tables.read(folder / "data" / "variants_together.csv")
    percent = together.pivot(index="variant", columns="quantity", values="percent_of_hae")
    claims = tables.read(folder / "data" / "claims.csv")
    lite, v2 = percent.loc["lite"], percent.loc["v2"]
    rows = [
        ["quality first (高质量生成)", variant_title("hae"), _quality(claims)],
        [
            "balance (平衡应用)",
            variant_title("lite"),
            f"{lite['parameters']:.0f} % of HAE's parameters (not {CLAIM_PERCENT['lite']:.0f} %), "
            f"{lite['MACs']:.0f} % of its MACs",
        ],
        [
            "efficiency first (效率优先)",
            variant_title("v2"),
            f"{v2['parameters']:.0f} % of HAE's parameters (not {CLAIM_PERCENT['v2']:.0f} %), "
            f"{v2['MACs']:.0f} % of its MACs; whether it is the fastest: {_fastest(claims)}",
        ],
        [
            "start with V2, upgrade later (渐进式部署)",
            "V2, then Lite or HAE",
            "`hae_lab.transfer_weights` copies what two variants share and names what it could not",
        ],
    ]
    return markdown_table(["if you want", "the document says", "what we found"], rows)


def _fastest(claims: pd.DataFrame) -> str:
    """Whether V2's denoising step was the fastest, on each computer."""
    of_time = claims[(claims["id"] == "v2_efficiency") & (claims["kind"] == TIME) & (claims["way"] == SHARED)]
    found = [
        f"{reading['verdict']} (one denoising step, {reading['device_name']}, {reading['clock']})"
        for reading in of_time.to_dict("records")
    ]
    return "; ".join(found) or "not measured"


def _quality(claims: pd.DataFrame) -> str:
    """Whether the promised order of quality was found, in one line."""
    readings = claims[claims["id"] == "quality_order"]
    (example,) = readings[readings["example"]].to_dict("records")
    return (
        f"whether it is the best: {example['verdict']} ({example['reading']}, {example['scope']}); of {len(readings)} "
        f"readings, {_verdicts(readings)}"
    )


def claims(folder: Path) -> str:
    """The main claims of the document, with the readings in which they hold and in which not."""
    ledger = tables.read(folder / "data" / "claims.csv")
    rows = []
    for claim in HEADLINES:
        readings = ledger[ledger["id"] == claim]
        (example,) = readings[readings["example"]].to_dict("records")
        says = f"{example['english']} ({_place(example)})"
        shown = f"{example['reading']}, {example['scope']}: {example['computed']}"
        rows.append([says, _verdicts(readings), shown])
    return markdown_table(["the document says", "of the readings it", "for example"], rows)


def _place(claim: Mapping[str, Any]) -> str:
    """Where a claim stands in the document; what others say is named by who says it."""
    places = str(claim["line"])
    return f"line{'s' * (',' in places)} {places}" if places else str(claim["section"])


def _verdicts(readings: pd.DataFrame) -> str:
    return ", ".join(f"{verdict} in {count}" for verdict, count in readings["verdict"].value_counts().items())


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
        lessons[path.stem] = " ".join(lesson.split())
    return lessons


BLOCKS: dict[str, Callable[[Path], str]] = {
    "variants": variants,
    "advice": advice,
    "notebooks": notebook_list,
    "claims": claims,
    "costs": costs,
}
