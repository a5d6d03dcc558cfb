"""Tables as files: what is read is what was written, types and gaps included; what could not be is refused."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hae_lab import HAELabError, tables

HOUSE = Path(tables.__file__).parent
MIXED = pd.DataFrame(
    {
        "text": ["plain", 'a "b", c', "two\nlines", "规则"],
        "text_gaps": ["", None, "x", ""],
        "whole": [0, -7, 2**53 + 1, 12],
        "whole_gaps": pd.array([1, None, 3, None], dtype="Int64"),
        "float": [1.0, -0.5, 1e-9, 123456.7],
        "float_gaps": [float("nan"), 112.0, float("inf"), -float("inf")],
        "single": np.array([0.1, 1e30, 0.0, -0.0], "float32"),
        "truth": [True, False, False, True],
        "truth_gaps": pd.array([True, None, False, None], dtype="boolean"),
        "nothing": [None, None, None, None],
    }
)
EXPECTED = """\
text,text_gaps,whole,whole_gaps,float,float_gaps,single,truth,truth_gaps,nothing
plain,,0,1,1.0,,0.1,True,True,
"a ""b"", c",,-7,,-0.5,112.0,1e+30,False,,
"two
lines",x,9007199254740993,3,1e-09,inf,0.0,False,False,
规则,,12,,123457.0,-inf,-0.0,True,,
"""


def test_the_dialect_by_hand(tmp_path):
    path = tables.write(MIXED, tmp_path / "mixed.csv")
    assert path.read_bytes().decode("utf-8") == EXPECTED


def test_types_and_gaps_come_back(tmp_path):
    back = tables.read(tables.write(MIXED, tmp_path / "mixed.csv"))
    assert {name: str(back[name].dtype) for name in back if "text" not in name and name != "nothing"} == {
        "whole": "int64", "whole_gaps": "Int64", "float": "float64", "float_gaps": "float64", "single": "float64",
        "truth": "bool", "truth_gaps": "boolean",
    }  # fmt: skip
    assert back["text"].tolist() == ["plain", 'a "b", c', "two\nlines", "规则"]
    assert back["text_gaps"].tolist() == ["", "", "x", ""]
    assert back["whole"].tolist() == [0, -7, 9007199254740993, 12]
    assert back["whole_gaps"].isna().tolist() == [False, True, False, True]
    assert back["whole_gaps"].dropna().tolist() == [1, 3]
    assert back["float"].tolist() == [1.0, -0.5, 1e-9, 123457.0]
    assert back["float_gaps"].isna().tolist() == [True, False, False, False]
    assert back["float_gaps"].tolist()[1:] == [112.0, float("inf"), -float("inf")]
    assert back["truth"].tolist() == [True, False, False, True]
    assert back["truth_gaps"].isna().tolist() == [False, True, False, True]
    assert back["nothing"].tolist() == [""] * 4


def test_a_second_round_writes_the_same_text():
    assert tables.to_csv(tables.from_csv(EXPECTED)) == EXPECTED


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    back = tables.read(tables.write(pd.DataFrame({"a": [], "b": []}), tmp_path / "empty.csv"))
    assert list(back.columns) == ["a", "b"]
    assert len(back) == 0


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("x\n4\n0.25\n", "float64", [4.0, 0.25]),  # as other programs write floats
        ("x\n1e3\n", "float64", [1000.0]),
        ("x\n.5\n2.\n", "float64", [0.5, 2.0]),
        ('x\n""\nnan\n', "text", ["", "nan"]),
        ("x\n3.11.7\n", "text", ["3.11.7"]),
        ("x\n\n5\n", "Int64", [pd.NA, 5]),  # a gap in a table of one column is an empty line
        ("x\r\n7\r\n", "int64", [7]),
        ("x\nTrue\ntrue\n", "text", ["True", "true"]),
        ("x\n٣\n", "text", ["٣"]),  # a digit, but not one of ours
    ],
)
def test_what_a_text_is_read_as(text, dtype, values):
    column = tables.from_csv(text)["x"]
    assert str(column.dtype) in ((dtype,) if dtype != "text" else ("str", "object"))
    assert [value is pd.NA or value for value in column] == [value is pd.NA or value for value in values]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["8", "4"], "column 'x' holds text and would be read as whole numbers, for example '8'"),
        (["007", ""], "holds text and would be read as whole numbers, for example '007'"),
        (["2.10"], "holds text and would be read as floats"),
        (["4", "0.25"], "holds text and would be read as floats"),
        (["inf"], "holds text and would be read as floats"),
        (["True", "False"], "holds text and would be read as truth values"),
        ([True, None], "holds bool and would be read as truth values"),
        ([1, "a"], "holds int and would be read as text"),
        ([(1, 2)], "holds tuple and would be read as text"),
        ([datetime(2025, 8, 7)], r"holds datetime64\[.*\] and would be read as text"),
        (pd.Categorical(["a", "b"]), "holds category and would be read as text"),
        ([2**64 - 1], "holds whole numbers and would be read as a number too large for 64 bits"),
        (["a\rb", "c\x00d"], "column 'x' holds characters that CSV cannot bring back"),
    ],
)
def test_a_column_that_would_come_back_as_another_is_refused(column, message, tmp_path):
    dtype = object if isinstance(column, list) and type(column[0]) in (bool, int) and len(column) > 1 else None
    with pytest.raises(HAELabError, match=message):
        tables.write(pd.DataFrame({"x": pd.Series(column, dtype=dtype)}), tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", ""], [1]])
def test_columns_need_names_of_their_own(names, tmp_path):
    with pytest.raises(HAELabError, match="each with a name of its own"):
        tables.write(pd.DataFrame([[0] * len(names)], columns=names), tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_cannot_be_written_leaves_the_old_one(suffix, tmp_path):
    path = tables.write(pd.DataFrame({"x": [1]}), tmp_path / f"t{suffix}")
    before = path.read_bytes()
    with pytest.raises(HAELabError):
        tables.write(pd.DataFrame({"x": [1, "a"]}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_keeps_types_and_every_digit(tmp_path):
    frame = MIXED[["text", "whole_gaps", "truth"]].assign(exact=[1 / 3, 2 / 3, 1e-300, 5.0])
    back = tables.read(tables.write(frame, tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(back, frame)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(HAELabError, match=r"hae-lab\[parquet\]"):
        tables.write(pd.DataFrame({"x": [1]}), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, "no such table"),
        ("t.txt", b"x\n1\n", r"read from \.csv or \.parquet"),
        ("t.csv", b"", "holds no table"),
        ("t.csv", b"a,b\n1\n2,3,4\n", "holds no table"),
        ("t.csv", b"x\n\xff\xfe\n", "holds no table"),
        ("t.csv", b"x\n99999999999999999999\n", "holds no table"),
        ("t.parquet", b"no parquet", "holds no table"),
    ],
)
def test_what_is_no_table_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HAELabError, match=message):
        tables.read(tmp_path / name)


def test_another_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(HAELabError, match=r"written as \.csv or \.parquet"):
        tables.write(pd.DataFrame({"x": [1]}), tmp_path / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(lambda word: f"{word}§")
FLOATS = st.floats(allow_nan=False, width=64)
GAP = st.none()
COLUMNS = st.integers(1, 6).flatmap(
    lambda n: st.fixed_dictionaries(
        {
            "text": st.lists(WORDS | st.just(""), min_size=n, max_size=n),
            "whole": st.lists(st.integers(-(2**63), 2**63 - 1) | GAP, min_size=n, max_size=n),
            "float": st.lists(FLOATS | GAP, min_size=n, max_size=n),
            "truth": st.lists(st.booleans() | GAP, min_size=n, max_size=n),
        }
    )
)
DTYPES = {"text": object, "whole": "Int64", "float": "float64", "truth": "boolean"}


@settings(max_examples=150, deadline=None)
@given(COLUMNS)
def test_any_table_comes_back(columns):
    frame = pd.DataFrame({name: pd.Series(values, dtype=DTYPES[name]) for name, values in columns.items()})
    back = tables.from_csv(tables.to_csv(frame))
    for name, values in columns.items():
        for value, found in zip(values, back[name], strict=True):
            if value is None:
                assert pd.isna(found) or found == ""
            elif name == "float":
                assert found == pytest.approx(value, rel=5.01e-6, abs=0) or found == value
            else:
                assert found == value


def test_no_other_module_reads_or_writes_csv():
    """Tables have one reader and one writer."""
    words = ("read_csv", ".to_csv(", "to_parquet", "read_parquet")
    texts = {path.relative_to(HOUSE).as_posix(): path.read_text(encoding="utf-8") for path in HOUSE.rglob("*.py")}
    found = sorted(name for name, text in texts.items() if any(word in text for word in words))
    assert found == ["tables.py"]


def test_a_table_for_a_paper_reads_as_the_rows_do():
    columns = {"what_%": ["a_b & c", "", "~^\\"], "params": pd.array([1234567, None, 12], dtype="Int64")}
    frame = pd.DataFrame(columns | {"share": [72.91694, 0.5, float("nan")], "done": [True, False, True]})
    assert tables.to_latex(frame).splitlines() == [
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        r"what\_\% & params & share & done \\",
        r"\midrule",
        r"a\_b \& c & 1,234,567 & 72.9169 & True \\",
        r" &  & 0.5 & False \\",
        r"\textasciitilde{}\textasciicircum{}\textbackslash{} & 12 &  & True \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
