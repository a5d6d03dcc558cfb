"""Tables as files: written whole or not at all, in one dialect of CSV that keeps the types of its columns.

The dialect: UTF-8, a comma, a line feed, six significant digits. A float always shows a point, an exponent or "inf", a
whole number never; a gap is an empty field. So whole numbers with gaps stay whole ("Int64"), text gaps stay "", and
what is read is what was written: a column that would come back as another type is refused.
"""

import math
import re
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api import types

from hae_lab.checks import HAELabError, require
from hae_lab.files import atomic_path

SUFFIXES = (".csv", ".parquet")
WHOLE = re.compile(r"[+-]?\d+")
FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?|[+-]?inf|nan")
TRUTH = {"True": True, "False": False}


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table by its suffix, whole or not at all; return the path.

    Raises `HAELabError` for a suffix other than .csv and .parquet, for Parquet without pyarrow, and for a column that
    CSV could not bring back as it is.
    """
    path = Path(path)
    require(path.suffix in SUFFIXES, f"a table is written as .csv or .parquet, got {str(path)!r}")
    if path.suffix == ".parquet":
        installed = find_spec("pyarrow") is not None
        require(installed, 'Parquet needs pyarrow, which is not installed: pip install "hae-lab[parquet]"')
        with atomic_path(path) as temporary:
            frame.to_parquet(temporary, index=False)
        return path
    text = to_csv(frame)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return path


def read(path: str | Path) -> pd.DataFrame:
    """The table in a .csv or .parquet file, with the types that it was written with.

    Raises `HAELabError` for a file that is missing or holds no table.
    """
    path = Path(path)
    require(path.suffix in SUFFIXES, f"a table is read from .csv or .parquet, got {str(path)!r}")
    require(path.is_file(), f"no such table: {str(path)!r}")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else from_csv(path.read_text(encoding="utf-8"))
    except (ValueError, ImportError, OSError) as error:
        raise HAELabError(f"{str(path)!r} holds no table: {error}") from None


def to_csv(frame: pd.DataFrame) -> str:
    """A table in the dialect above. Raises `HAELabError` for a column that would come back as another type."""
    texts = pd.DataFrame({name: frame[name].astype(object).map(_cell).astype(object) for name in frame.columns})
    text = texts.to_csv(index=False, lineterminator="\n")
    back = from_csv(text)
    for name in frame.columns:
        gaps = frame[name].isna() | (frame[name].astype(object) == "")
        asked, found = _kind(frame[name]), _kind(back[name])
        require(
            asked == found or bool(gaps.all()),
            f"column {name!r} holds {asked} and would be read as {found}, for example "
            f"{frame.loc[~gaps, name].iloc[0] if not gaps.all() else ''!r}: give it one unmistakable type",
        )
    return text


def from_csv(text: str) -> pd.DataFrame:
    """The table of a text in the dialect above."""
    raw = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, na_filter=False)
    return pd.DataFrame({name: _typed(raw[name]) for name in raw.columns})


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, str):
        return value
    if types.is_bool(value) or types.is_integer(value):
        return str(value)
    if types.is_float(value):
        return "" if math.isnan(value) else _float_text(float(value))
    return str(value)


def _float_text(value: float) -> str:
    text = f"{value:.6g}"
    return f"{text}.0" if WHOLE.fullmatch(text) else text


def _typed(column: pd.Series) -> pd.Series:
    filled = column[column != ""]
    gaps = len(filled) < len(column)
    if filled.empty:
        return column
    if filled.isin(list(TRUTH)).all() and not gaps:
        return column.map(TRUTH).astype(bool)
    if filled.map(lambda cell: WHOLE.fullmatch(cell) is not None).all():
        return column.replace("", None).astype("Int64") if gaps else column.astype("int64")
    if filled.map(lambda cell: FLOAT.fullmatch(cell) is not None).all():
        return column.replace("", "nan").astype("float64")
    return column


def _kind(column: pd.Series) -> str:
    if types.is_bool_dtype(column):
        return "truth values"
    if types.is_integer_dtype(column):
        return "whole numbers"
    return "floats" if types.is_float_dtype(column) else "text"
