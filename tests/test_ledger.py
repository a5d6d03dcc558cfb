"""The ledger as a whole: every sentence quoted as the document has it, every evidence there to be opened."""

import ast
import csv
import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from hae_lab import HAELabError
from hae_lab.__main__ import main
from hae_lab.audit import registry
from hae_lab.audit.claims import base, ledger, told
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import Measured

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT.parent / "shared" / "seed"  # where the document lies, if it is here
LINES = {int(line): text for line, text in json.loads((ROOT / "tests/data/document_lines.json").read_text()).items()}
STATEMENTS = list(csv.DictReader((ROOT / "tests/data/statements.csv").open(encoding="utf-8")))
COLUMNS = (
    "id line section original english reading scope claimed computed verdict notebook figure table test kind way "
    "device_name clock asked_of example"
).split()
KINDS = {
    base.PARAMETERS, base.MACS, base.TIME, base.MEMORY, base.REACH, base.MASK, base.STRUCTURE, base.EXPRESSION,
    base.QUALITY, base.INTERFACE, base.ADVICE,
}  # fmt: skip
ASKED = {base.SAID, base.BEYOND, base.PUBLISHED, base.OTHERS}
VERDICTS = {"holds", "nearly holds", "does not hold", "cannot tell", "void"}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return read_table("claims")


def without_marks(text: str) -> str:
    return text.replace("**", "")


# the tree


def test_the_committed_table_has_the_columns_and_claims_of_the_code(rows):
    assert list(rows.columns) == COLUMNS
    assert list(dict.fromkeys(rows["id"])) == list(ledger.claims())
    assert rows.duplicated(["id", "reading", "scope", "way", "device_name", "clock"]).sum() == 0


def test_no_two_claims_have_one_id():
    checks = [
        each.check for subject in ledger.SUBJECTS for each in vars(subject).values() if isinstance(each, base.Claim)
    ]
    assert len(checks) == len(set(checks)) == len({check.__name__ for check in checks}) == len(ledger.claims())


def test_every_field_that_must_be_is_filled(rows):
    required = [name for name in COLUMNS if name not in ("line", "figure", "way", "device_name", "clock")]
    assert (rows[required].astype(str) != "").all(axis=None)
    assert set(rows["kind"]) <= KINDS
    assert set(rows["verdict"]) <= VERDICTS
    assert set(rows["asked_of"]) == ASKED


def test_each_claim_has_one_example(rows):
    assert (rows.groupby("id")["example"].sum() == 1).all()


def test_claims_stand_in_the_order_of_the_document(rows):
    lines = [int(str(line).split(",")[0]) for line in rows["line"] if line]
    assert lines == sorted(lines)
    assert (rows["line"] == "").sum() == rows["line"].eq("")[::-1].cumprod().sum()  # what others say comes last


# the document's words


@pytest.mark.parametrize("claim", ledger.claims().values(), ids=lambda claim: claim.id)
def test_every_quote_is_on_its_line(claim):
    if claim.source:
        return
    for line, quote in claim.places.items():
        for part in quote.split(" … "):
            assert part in without_marks(LINES[line]), (line, part)


def test_lines_and_quotes_go_together(rows):
    of_document = rows[rows["line"] != ""].drop_duplicates("id")
    for row in of_document.itertuples():
        lines, quotes = str(row.line).split(", "), row.original.split(base.BETWEEN_PLACES)
        assert len(lines) == len(quotes)
        chapter = max(line for line in base.CHAPTERS if line <= int(lines[0]))
        assert row.section == base.CHAPTERS[chapter]


def test_chapters_are_the_documents():
    headings = {line: text.removeprefix("## ") for line, text in LINES.items() if text.startswith("## ")}
    assert headings == base.CHAPTERS


def test_the_copied_lines_are_the_documents():
    files = list(DOCUMENT.glob("*.txt"))
    if not files:
        pytest.skip("the document is not here")
    text = files[0].read_text(encoding="utf-8").splitlines()
    assert {line: text[line - 1] for line in LINES} == LINES
    assert [line + 1 for line, words in enumerate(text) if words.startswith("## ")] == list(base.CHAPTERS)


# evidence


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_evidence_can_be_opened(rows):
    tables = set(registry.TABLES) | set(registry.SLOW_TABLES) | {path.stem for path in (ROOT / "data").glob("*.csv")}
    for row in rows[["notebook", "figure", "table", "test"]].drop_duplicates().itertuples():
        assert (ROOT / "notebooks" / f"{row.notebook}.ipynb").exists(), row
        assert not row.figure or (ROOT / "figures" / f"{row.figure}.png").exists(), row
        assert row.table in tables, row
        assert (ROOT / "data" / f"{row.table}.csv").exists(), row
        file, _, name = row.test.partition("::")
        assert name in names_in(file), row


# one claim alone


def test_one_claim_alone_is_what_the_table_has(rows):
    found = ledger.audit("paper_90", Measured())
    committed = rows[rows["id"] == "paper_90"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.rows, committed)
    path, line, name = re.fullmatch(r"(.+):(\d+) (\w+)", found.function).groups()
    assert (path, name) == ("hae_lab/audit/claims/attention.py", "paper_90")
    source = (ROOT / path).read_text().splitlines()[int(line) - 1 :]
    assert next(text for text in source if text.startswith("def ")).startswith("def paper_90(")
    assert found.seconds >= 0


def test_an_unknown_claim_is_refused_with_the_nearest():
    with pytest.raises(HAELabError, match="unknown claim 'atention_90': did you mean 'attention_90'"):
        ledger.audit("atention_90", Measured())


# in words


def test_the_tree_counts_what_the_table_has(rows):
    text = told.tree(rows)
    for section in rows["section"].unique():
        assert f"\n{section}\n" in f"\n{text}"
    for name, readings in rows.groupby("id"):
        (line,) = re.findall(rf"^  {name} .*$", text, re.MULTILINE)
        assert sum(map(int, re.findall(r"[a-z] (\d+)(?:,|$)", line))) == len(readings)
    for asked_of, readings in rows.groupby("asked_of"):
        counts = f"{asked_of}: {readings['id'].nunique()} claims in {len(readings)} readings: "
        assert sum(line.startswith(counts) for line in text.splitlines()) == 1


def test_a_claim_in_words_has_quote_verdicts_evidence_and_what_judges(rows):
    known = told.readings_of(rows, "paper_90")
    text = told.claim(known, "compute.py:1 paper_90", 0.25, known)
    for row in known.itertuples():
        assert f"{row.verdict}: {row.computed}" in text
        for path in (f"notebooks/{row.notebook}.ipynb", f"data/{row.table}.csv", f"tests/{row.test}"):
            assert path in text
    assert known["original"].iloc[0] in text
    assert text.endswith("judged by compute.py:1 paper_90, in 0.2 s; data/claims.csv says the same")
    other = known.assign(verdict="holds")
    assert told.claim(known, "", 0, other).endswith("data/claims.csv says something else")


def test_the_command_lists_computes_and_refuses(capsys):
    assert main(["audit"]) == 0
    assert capsys.readouterr().out == told.tree(read_table("claims")) + "\n"
    assert main(["audit", "paper_90"]) == 0
    assert "data/claims.csv says the same" in capsys.readouterr().out
    assert main(["audit", "papers_90"]) == 2
    assert "unknown claim 'papers_90': did you mean 'paper_90'?" in capsys.readouterr().err


def test_the_ledger_is_whole(rows):
    assert rows["id"].nunique() >= 70
    assert (rows["asked_of"] == base.SAID).sum() >= 200


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda each: f"{each['line']}: {each['statement']}")
def test_each_statement_that_a_second_reader_found_has_a_claim(statement):
    named = [ledger.claims()[name] for name in statement["claims"].split()]
    assert any(int(statement["line"]) in claim.places for claim in named)


def test_each_claim_of_the_document_is_on_the_second_readers_list():
    listed = {name for each in STATEMENTS for name in each["claims"].split()}
    assert listed == {claim.id for claim in ledger.claims().values() if not claim.source}


# whom a reading asks


def test_each_claim_of_the_document_is_asked_of_its_own_words(rows):
    asked = rows.groupby("id")["asked_of"].agg(set)
    for claim in ledger.claims().values():
        assert (base.OTHERS if claim.source else base.SAID) in asked[claim.id]
        assert not claim.source or asked[claim.id] == {base.OTHERS}


def test_an_example_asks_what_is_said(rows):
    assert set(rows.loc[rows["example"], "asked_of"]) == {base.SAID, base.OTHERS}


def test_the_published_code_is_named_where_it_is_asked(rows):
    assert (rows["scope"].str.contains("published revision") == (rows["asked_of"] == base.PUBLISHED)).all()


def test_a_threshold_that_the_document_has_not_is_named_as_ours(rows):
    ours = {
        "lite_far_fewer": 3, "encoder_local": 1, "stepwise": 1, "hae_costs": 4, "mobile_real_time": 2,
        "device_classes": 4, "lite_medium": 1, "near_diagonal": 4,
    }  # fmt: skip
    for claim, least in ours.items():
        readings = rows.loc[rows["id"] == claim, "reading"]
        assert readings.str.contains(r"\b(?:our|ours)\b").sum() >= least, claim


@pytest.mark.parametrize(("kind", "asked_of"), [(base.REACH, base.BEYOND), (base.MACS, base.SAID)])
def test_what_a_layer_comes_to_in_a_model_is_beyond_the_words(kind, asked_of):
    def check(measured):
        yield base.Finding("words", "model", "0 %", "does not hold", kind)
        yield base.Finding("words", "model", "0 %", "does not hold", kind, asked_of=base.PUBLISHED)

    made = base.claim({17: "提高效率"}, "", "", notebook="", table="", test="")(check)
    assert [each.asked_of for each in made.findings(Measured())] == [asked_of, base.PUBLISHED]
    others = base.claim({1: "words"}, "", "", notebook="", table="", test="", source="Others")(check)
    assert {each.asked_of for each in others.findings(Measured())} == {base.OTHERS}
