"""The ledger in words: the tree of claims, and one claim with all that belongs to it."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from hae_lab.checks import require_name

FOLDERS = {"notebook": "notebooks/{}.ipynb", "figure": "figures/{}.png", "table": "data/{}.csv", "test": "tests/{}"}


def tree(rows: pd.DataFrame) -> str:
    """Chapters, claims with their lines, and how many readings come to which verdict; rows of `ledger.rows`."""
    width = rows["id"].str.len().max()
    lines = []
    for section, claims in rows.groupby("section", sort=False):
        lines += ["", str(section)]
        for name, readings in claims.groupby("id", sort=False):
            line = str(readings["line"].iloc[0])
            lines.append(f"  {name:{width}}  {line:15}  {_counts(readings['verdict'])}")
    lines += [""]
    for asked_of, readings in rows.groupby("asked_of", sort=False):
        counts = f"{readings['id'].nunique()} claims in {len(readings)} readings"
        lines.append(f"{asked_of}: {counts}: {_counts(readings['verdict'])}")
    return "\n".join(lines[1:])


def _counts(verdicts: pd.Series) -> str:
    return ", ".join(f"{verdict} {count}" for verdict, count in verdicts.value_counts().items())


def readings_of(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one claim. Raises `HAELabError` for an unknown id, with the nearest."""
    require_name("claim", name, dict.fromkeys(rows["id"]))
    return rows[rows["id"] == name].reset_index(drop=True)


def claim(rows: pd.DataFrame, function: str, seconds: float, committed: pd.DataFrame) -> str:
    """One claim: what is said where, each reading with its evidence, what judged, and whether data/ says the same."""
    first = rows.iloc[0]
    where = f"line {first['line']}" if first["line"] else first["section"]
    lines = [f"{first['id']} ({where})", f"  {first['original']}", f"  {first['english']}"]
    for row in rows.to_dict("records"):
        lines += ["", f"  {row['verdict']}: {row['computed']}, claimed: {row['claimed']}"]
        about = f"{row['reading']}; {row['scope']}; asked of: {row['asked_of']}"
        lines += [f"    {line}" for line in textwrap.wrap(about, 110)]
        lines += [f"    {'  '.join(_evidence(row))}"]
    same = "the same" if rows.astype(str).equals(committed.astype(str)) else "something else"
    lines += ["", f"judged by {function}, in {seconds:.1f} s; data/claims.csv says {same}"]
    return "\n".join(lines)


def _evidence(row: Mapping[str, Any]) -> Iterator[str]:
    yield from (path.format(row[kind]) for kind, path in FOLDERS.items() if row[kind])
