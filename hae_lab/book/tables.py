"""Tables for reading: long ones are folded, so that a page stays a page."""

from dataclasses import dataclass
from html import escape

import pandas as pd

LONGEST = 8  # rows that a notebook shows openly


@dataclass(frozen=True)
class Folded:
    """A table that a notebook shows as its title, and whole at a click on it."""

    table: pd.DataFrame
    title: str

    def _repr_html_(self) -> str:
        return f"<details><summary>{escape(self.title)}</summary>\n{self.table.to_html()}\n</details>"
