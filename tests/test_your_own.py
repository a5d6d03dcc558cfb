"""docs/your_own.md runs as it stands: its files are written, its code is executed, its commands are called."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from hae_lab import VARIANTS
from hae_lab.__main__ import main

PAGE = Path(__file__).parent.parent / "docs" / "your_own.md"
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
FEWER = {"train": ["--steps", "2", "--batch-size", "4"], "sample": ["--count", "2", "--steps", "5"]}


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(VARIANTS)
    yield tmp_path
    VARIANTS.clear()
    VARIANTS.update(known)


def call(line: str) -> int:
    """A command of the page; those that train, with fewer steps."""
    program, *arguments = shlex.split(line)
    assert program == "hae-lab"
    words = [word for word in arguments if word in FEWER]
    return main([*arguments, *(FEWER[words[0]] if words else ())])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'theirs.pt'")
def test_every_block_of_the_page_does_what_it_says(empty_folder, capsys):
    names: dict[str, object] = {"Path": Path}
    for language, source in BLOCKS:
        written = re.match(r"# file: (\S+)\n", source)
        if written:
            Path(written[1]).write_text(source)
        elif language == "python":
            exec(source, names)
        else:
            for line in source.strip().splitlines():
                assert call(line) == 0, capsys.readouterr().err
    assert {path.name for path in empty_folder.glob("*.py")} == set(re.findall(r"# file: (\S+)", PAGE.read_text()))
    assert all((empty_folder / name).exists() for name in ("squares.png", "runs/pictures/model.safetensors"))
    printed = capsys.readouterr().out
    assert "2 torch.Size([2, 1, 16, 16])" in printed
    assert "HAE V2, wider MLP" in (empty_folder / "my_variant.py").read_text()
    assert all((empty_folder / "runs" / "paper" / f"parameter_table.{kind}").exists() for kind in ("pdf", "tex", "csv"))
    assert (empty_folder / "pictures.pt2").exists()
    assert "v2_gated" in printed


def test_every_file_that_the_page_names_is_made_on_it():
    text = PAGE.read_text()
    made = set(re.findall(r"# file: (\S+)", text))
    assert set(re.findall(r"\bmy_\w+\.py\b", text)) == made
