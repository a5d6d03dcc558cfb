"""Numbers that say where they stand: a table of data/, a column, and the rows; as text and as a piece of a page.

A page gives each as `<data>` with its source in attributes, so that a reader who rests on a number sees the table, and
a test finds it there again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from hae_lab.audit.clone import read_table
from hae_lab.checks import require, require_name


def _only(values: pd.Series) -> Any:
    require(len(values) == 1, f"one row was asked for, {len(values)} fit")
    return values.iloc[0]


HOW: dict[str, Callable[[pd.Series], Any]] = {
    "value": _only,
    "min": lambda values: values.min(),
    "max": lambda values: values.max(),
    "count": len,
    "distinct": lambda values: values.nunique(),
}


@dataclass(frozen=True)
class Cited:
    """One number: `how` is applied to a `column` of the rows that are equal to `where`.

    A column "a / b" is the first in percent of the second. `form` is a format of Python, `unit` follows the number.
    """

    table: str
    column: str
    how: str = "value"
    form: str = ""
    unit: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)

    def number(self, read: Callable[[str], pd.DataFrame] = read_table) -> Any:
        """The number itself. Raises `HAELabError` for names that the table has not, and where one row is asked for."""
        require_name("way to take a number", self.how, HOW)
        rows = read(self.table)
        for column, value in self.where.items():
            require_name(f"column of {self.table}", column, rows.columns)
            rows = rows[rows[column] == value]
        first, _, second = self.column.partition(" / ")
        for column in filter(None, (first, second)):
            require_name(f"column of {self.table}", column, rows.columns)
        return HOW[self.how](100 * rows[first] / rows[second] if second else rows[first])

    def text(self, read: Callable[[str], pd.DataFrame] = read_table) -> str:
        """The number as it is read, with a true minus."""
        text = f"{self.number(read):{self.form}}{self.unit}"
        return text.replace("-", "−").replace("%", " %").replace("  %", " %")

    def html(self, read: Callable[[str], pd.DataFrame] = read_table) -> str:
        """The number as a piece of a page."""
        rows = ", ".join(f"{column} = {value}" for column, value in self.where.items())
        source = f"data/{self.table}.csv: {self.how} of {self.column}" + (f" where {rows}" if rows else "")
        kept = {"value": self.number(read), "data-table": self.table, "data-column": self.column, "data-how": self.how}
        kept |= {"data-where": urlencode(self.where), "title": source}
        attributes = " ".join(f'{name}="{escape(str(value))}"' for name, value in kept.items())
        return f"<data {attributes}>{escape(self.text(read))}</data>"
