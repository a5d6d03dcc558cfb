"""The command line: quick help, clear errors, the parameter table printed."""

import subprocess
import sys

import pytest

from hae_lab.__main__ import main, parser
from hae_lab.audit import reproduce

COMMANDS = ("reproduce", "audit", "train", "study", "show", "profile", "notebooks", "site", "report", "bench")
HELP = f"""
import sys
from contextlib import suppress
from hae_lab.__main__ import main

for command in ([], *([each] for each in {COMMANDS})):
    with suppress(SystemExit):
        main([*command, "--help"])
slow = {{"torch", "pandas", "matplotlib", "scipy"}} & set(sys.modules)
assert not slow, slow
"""


def test_help_of_every_command_waits_for_no_library():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: hae-lab") == 1 + len(COMMANDS)
    assert all(f"usage: hae-lab {command}" in done.stdout for command in COMMANDS)


def test_no_command_is_left_out_here():
    commands = next(action for action in parser()._actions if action.dest == "command")
    assert tuple(commands.choices) == COMMANDS


def test_list_names_tables_and_figures(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert {"parameters", "parameter_table", "what_it_would_take"} <= set(capsys.readouterr().out.split())


def test_reproduce_only_writes_there_and_says_where(tmp_path, capsys):
    assert main(["reproduce", "--only", "impossibility", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "data" / "impossibility.csv").exists()
    assert str(tmp_path / "data") in capsys.readouterr().out


def test_reproduce_prints_the_table_and_the_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "reproduce", lambda out, only, progress: [out / "data" / "made.csv"])
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Parameters in percent of HAE" in printed
    assert "683,777,028" in printed


def test_show_prints_the_tree_with_shapes_and_counts(capsys):
    assert main(["show", "lite", "--preset", "lesson16"]) == 0
    printed = capsys.readouterr().out
    assert "shared_patch_embed" in printed
    assert "[1, 32, 8, 8]" in printed
    assert "Total params: 387,873" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "lit"], "unknown variant 'lit': did you mean 'lite'"),
        (["show", "lite", "--preset", "brats"], "unknown preset 'brats': did you mean 'brats128'"),
        (["reproduce", "--only", "parametertable"], "did you mean 'parameter_table'"),
        (["notebooks", "--refresh", "99"], "no notebook '99'"),
        (["bench", "modle"], "unknown benchmark 'modle': did you mean 'model'"),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    command = f"{sys.executable} -m hae_lab show hae | head -c 1"  # 80 kB, more than a pipe holds
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
