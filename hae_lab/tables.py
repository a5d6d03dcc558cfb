"""Tables as files: written whole or not at all, in one dialect of CSV that keeps the types of its columns.

The dialect: UTF-8, a comma, a line feed, six significant digits. A float always shows a point, an exponent or "inf", a
whole number never; a gap is an empty field. So whole numbers with gaps stay whole ("Int64"), text gaps stay "", and
what is read is what was written: a column that would come back as another type is refused. Only a column that holds
nothing but gaps comes back as text. In tables of other programs, which are read too, a whole number may be a float.
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
WHOLE = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
TRUTH = {"True": True, "False": False}


def write(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table by its suffix, whole or not at all, without its index; return the path.

    Raises `HAELabError` for a suffix other than .csv and .parquet, for Parquet without pyarrow, and for a column that
    the file could not bring back as it is.
    """
    path = Path(path)
    require(path.suffix in SUFFIXES, f"a table is written as .csv or .parquet, got {str(path)!r}")
    _check_names(frame)
    if path.suffix == ".parquet":
        return _write_parquet(frame, path)
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
        return pd.read_parquet(path) if path.suffix == ".parquet" else from_csv(path.read_bytes().decode("utf-8"))
    except (ValueError, OverflowError, ImportError, OSError) as error:
        raise HAELabError(f"{str(path)!r} holds no table: {error}") from None


def to_csv(frame: pd.DataFrame) -> str:
    """A table in the dialect above. Raises `HAELabError` for a column that would come back as another type."""
    _check_names(frame)
    texts = pd.DataFrame({name: [_cell(value) for value in frame[name].astype(object)] for name in frame}, dtype=str)
    text = texts.to_csv(index=False, lineterminator="\n")
    broken = "holds characters that CSV cannot bring back: leave out control characters"
    try:
        cells = _cells(text)
    except pd.errors.ParserError:
        raise HAELabError(f"the table {broken}") from None
    for name in frame.columns:
        kept = list(cells[name]) == list(texts[name])
        require(kept, f"column {name!r} {broken}")
        _check_type(frame[name], texts[name])
    return text


def from_csv(text: str) -> pd.DataFrame:
    """The table of a text in the dialect above. Raises `ValueError` or `OverflowError` for a text that is none."""
    cells = _cells(text)
    return pd.DataFrame({name: _typed(cells[name]) for name in cells})


def to_latex(frame: pd.DataFrame) -> str:
    """A table for a paper, in the environment tabular with the rules of the package booktabs.

    Numbers have the digits of the dialect and stand at the right, whole ones in groups of three.
    """
    numeric = [types.is_numeric_dtype(frame[name]) and not types.is_bool_dtype(frame[name]) for name in frame]
    whole = [types.is_integer_dtype(frame[name]) for name in frame]
    rows = [
        [
            f"{value:,}" if is_whole and not pd.isna(value) else _escaped(_cell(value))
            for value, is_whole in zip(row, whole, strict=True)
        ]
        for row in frame.astype(object).itertuples(index=False)
    ]
    head = [_escaped(str(name)) for name in frame]
    lines = [" & ".join(cells) + r" \\" for cells in (head, *rows)]
    sides = "".join("r" if is_number else "l" for is_number in numeric)
    rules = (rf"\begin{{tabular}}{{{sides}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule")
    return "\n".join((*rules, r"\end{tabular}", ""))


def _escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def _write_parquet(frame: pd.DataFrame, path: Path) -> Path:
    installed = find_spec("pyarrow") is not None
    require(installed, 'Parquet needs pyarrow, which is not installed: pip install "hae-lab[parquet]"')
    with atomic_path(path) as temporary:
        try:
            frame.to_parquet(temporary, index=False)
        except (ValueError, TypeError) as error:
            raise HAELabError(f"{str(path)!r} cannot hold this table: {error}") from None
    return path


def _check_names(frame: pd.DataFrame) -> None:
    names = list(frame.columns)
    named = len(names) == len(set(names)) > 0 and all(isinstance(name, str) and name for name in names)
    require(named, f"a table has one or more columns, each with a name of its own, got {names}")
    strange = [name for name in names if CONTROL.search(name)]
    require(not strange, f"names of columns hold no control characters, got {strange}")


def _check_type(column: pd.Series, texts: pd.Series) -> None:
    filled = texts != ""
    if not filled.any():
        return
    asked, example = _kind(column), texts[filled].iloc[0]
    try:
        found = _kind(_typed(texts))
    except OverflowError:
        found = "a number too large for 64 bits"
    require(
        asked == found,
        f"column {column.name!r} holds {asked} and would be read as {found}, for example {example!r}: "
        "give it one unmistakable type",
    )


def _cells(text: str) -> pd.DataFrame:
    """Every cell as it stands."""
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False, na_filter=False, skip_blank_lines=False)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if types.is_float(value):
        return "" if math.isnan(value) else _float_text(float(value))
    return str(value)


def _float_text(value: float) -> str:
    text = f"{value:.6g}"
    return f"{text}.0" if WHOLE.fullmatch(text) else text


def _typed(cells: pd.Series) -> pd.Series:
    filled = cells[cells != ""]
    gaps = len(filled) < len(cells)
    if filled.empty:
        return cells
    if filled.isin(list(TRUTH)).all():
        return cells.map(TRUTH).astype("boolean" if gaps else "bool")
    if all(WHOLE.fullmatch(cell) for cell in filled):
        numbers = [None if cell == "" else int(cell) for cell in cells]
        return pd.Series(numbers, cells.index, dtype="Int64" if gaps else "int64")
    if all(NUMBER.fullmatch(cell) for cell in filled):
        return cells.replace("", "nan").astype("float64")
    return cells


def _kind(column: pd.Series) -> str:
    """What a column holds, in words."""
    if types.is_bool_dtype(column.dtype):
        return "truth values"
    if types.is_integer_dtype(column.dtype):
        return "whole numbers"
    if types.is_float_dtype(column.dtype):
        return "floats"
    if not (types.is_object_dtype(column.dtype) or types.is_string_dtype(column.dtype)):
        return str(column.dtype)
    others = sorted({type(value).__name__ for value in column.dropna() if not isinstance(value, str)})
    return " and ".join(others) or "text"
