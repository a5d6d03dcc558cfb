"""The clone of the repository: where the committed tables, studies and lesson models lie."""

from pathlib import Path

import pandas as pd

from hae_lab import tables
from hae_lab.checks import require

PACKAGE = Path(__file__).parents[2]  # the clone, where the package is installed in place


def root() -> Path:
    """The folder of the clone: the one that the package runs from, else the current one.

    Raises `HAELabError` where neither is a clone: the audit reads what is committed there.
    """
    here = [folder for folder in (PACKAGE, Path.cwd()) if all((folder / name).is_dir() for name in ("data", "studies"))]
    require(
        bool(here),
        f"the audit reads data/ and studies/ of a clone of the repository, and neither {str(PACKAGE)!r} nor "
        f"{str(Path.cwd())!r} is one: clone it, and run this in its folder",
    )
    return here[0]


def committed_path(name: str) -> Path:
    """Where a committed table lies."""
    return root() / "data" / f"{name}.csv"


def read_table(name: str) -> pd.DataFrame:
    """A committed table, made by `reproduce` or measured before. Raises `HAELabError` if there is none."""
    path = committed_path(name)
    require(
        path.exists(),
        f"no table at {str(path)!r}: `hae-lab reproduce` makes it; bench_* are made by `hae-lab bench`, study_* and "
        "lessons by `hae-lab reproduce --full`",
    )
    return tables.read(path)
