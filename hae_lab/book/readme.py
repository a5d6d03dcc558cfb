"""The generated blocks of README.md: every number there comes from the same functions as data/.

A block stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from hae_lab import plots
from hae_lab.audit import parameter_tables
from hae_lab.book import notebooks
from hae_lab.checks import require_name
from hae_lab.files import atomic_path
from hae_lab.presets import VARIANTS

PATTERN = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PRESET = "brats128"


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
    for variant, slots in VARIANTS.items():
        has_block = "regions" in slots
        claim = f"{published.loc[variant, 'claim_percent']:.0f} %" if has_block else "-"
        rebuilt = f"{published.loc[variant, 'our_params']:,}" if has_block else "-"
        low, high = spread.loc[variant]
        rows.append(
            [f"`{variant}`"]
            + [f"{slots[slot]}" if has_block else "-" for slot in ("regions", "mlp_ratio", "fusion")]
            + [f"{whole.loc[variant, 'params']:,}", f"{low:.1f} - {high:.1f} %", claim, rebuilt]
        )
    header = ["variant", "`regions`", "`mlp_ratio`", "`fusion`", f"parameters, `{PRESET}`"]
    header += ["of HAE, like for like (four presets)", "claimed", "published revision, rebuilt"]
    return markdown_table(header, rows)


def advice(folder: Path) -> str:
    """The document's advice on which variant to choose, beside what we counted and measured."""
    together = pd.read_csv(folder / "data" / "variants_together.csv")
    percent = together.pivot(index="variant", columns="quantity", values="percent_of_hae")
    readings = pd.read_csv(folder / "data" / "claims.csv").query("id == 'v2_efficiency'")
    of_time = readings[readings["scope"].str.startswith("time of one denoising step")].iloc[-1]
    lite, v2 = percent.loc["lite"], percent.loc["v2"]
    rows = [
        ["quality first (高质量生成)", plots.VARIANT_NAMES["hae"], _quality(folder)],
        [
            "balance (平衡应用)",
            plots.VARIANT_NAMES["lite"],
            f"{lite['parameters']:.0f} % of HAE's parameters (not 70 %), {lite['MACs']:.0f} % of its MACs",
        ],
        [
            "efficiency first (效率优先)",
            plots.VARIANT_NAMES["v2"],
            f"{v2['parameters']:.0f} % of HAE's parameters (not 40 %), {v2['MACs']:.0f} % of its MACs; whether it "
            f"is the fastest: {of_time['verdict']} (one denoising step, {of_time['evidence'].split(', ', 1)[1]})",
        ],
        [
            "start with V2, upgrade later (渐进式部署)",
            "V2, then Lite or HAE",
            "`hae_lab.transfer_weights` copies what two variants share and names what it could not",
        ],
    ]
    return markdown_table(["if you want", "the document says", "what we found"], rows)


def _quality(folder: Path) -> str:
    """Whether the promised order of quality was found, in one line."""
    readings = pd.read_csv(folder / "data" / "claims.csv").query("id == 'quality_order'")
    verdicts = [f"{verdict} in {count}" for verdict, count in readings["verdict"].value_counts().items()]
    first = readings.iloc[0]
    return (
        f"whether it is the best: {first['verdict']} ({first['scope']}); of {len(readings)} readings, "
        f"{', '.join(verdicts)}"
    )


def claims(folder: Path) -> str:
    """Each claim of the document, with the readings in which it holds and in which not."""
    rows = []
    for _, readings in pd.read_csv(folder / "data" / "claims.csv").groupby("id", sort=False):
        verdicts = readings["verdict"].value_counts()
        counts = ", ".join(f"{verdict} in {count}" for verdict, count in verdicts.items())
        first = readings.iloc[0]
        rows.append([f"{first['english']} ({first['section']})", counts, f"{first['scope']}: {first['computed']}"])
    return markdown_table(["the document says", "of the readings it", "for example"], rows)


def notebook_list(folder: Path) -> str:
    """The notebooks in reading order, a line each."""
    return notebook_table(folder / "notebooks", link="notebooks/")


def notebook_table(folder: str | Path = ".", link: str = "") -> str:
    """A Markdown table of a folder's notebooks, from their first cells; `link` stands before each file name."""
    rows = []
    for path in notebooks.find(folder):
        first = notebooks.read(path).cells[0].source
        lesson = re.search(r"\*\*You will learn\*\* (.+?)\n\n", first, re.DOTALL)[1]
        rows.append([f"[{path.stem}]({link}{path.name})", " ".join(lesson.split())])
    return markdown_table(["notebook", "you will learn"], rows)


BLOCKS: dict[str, Callable[[Path], str]] = {
    "variants": variants,
    "advice": advice,
    "notebooks": notebook_list,
    "claims": claims,
}
