"""The command line: quick help, clear errors, the parameter table printed."""

import os
import subprocess
import sys

import pytest

from hae_lab import HAELabError
from hae_lab.__main__ import main, parser
from hae_lab.audit import reproduce
from hae_lab.audit.clone import root
from hae_lab.audit.registry import figures

COMMANDS = (
    "reproduce", "audit", "train", "sample", "study", "search", "show", "profile", "notebooks", "site", "report",
    "bench", "export",
)  # fmt: skip
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
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: hae-lab") == 1 + len(COMMANDS)
    assert all(f"usage: hae-lab {command}" in done.stdout for command in COMMANDS)


COPIES = """
import sys
from hae_lab.__main__ import main

assert main(["notebooks", "--blank", "02", "--out", sys.argv[1]]) == 0
slow = {"torch", "pandas", "matplotlib", "scipy"} & set(sys.modules)
assert not slow, slow
"""


def test_copies_for_class_wait_for_no_library(tmp_path):
    done = subprocess.run([sys.executable, "-c", COPIES, str(tmp_path)], capture_output=True, text=True, cwd=root())
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["02_build_the_block.ipynb"]


def test_no_command_is_left_out_here():
    commands = next(action for action in parser()._actions if action.dest == "command")
    assert tuple(commands.choices) == COMMANDS


def test_list_names_tables_and_figures(capsys):
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    made, shown = printed.split("\nfigures\n")
    assert {"parameters", "parameter_table", "what_it_would_take"} <= set(made.split())
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines())  # each with words beside it
    assert lines["parameter_table"].startswith("Parameters of the variants in percent of HAE")
    assert set(lines) == set(figures())


def test_reproduce_only_writes_there_and_says_where(tmp_path, capsys):
    assert main(["reproduce", "--only", "impossibility", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "data" / "impossibility.csv").exists()
    assert str(tmp_path / "data") in capsys.readouterr().out


def test_reproduce_prints_the_table_and_the_verdict(tmp_path, capsys, monkeypatch):
    def made(out, only, progress, two_processes):
        in_two.append(two_processes)
        return [out / "data" / "made.csv"]

    in_two: list[bool] = []
    monkeypatch.setattr(reproduce, "reproduce", made)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert main(["reproduce", "--out", str(tmp_path)]) == 0
    assert main(["--plugin", "json", "reproduce", "--only", "slopes", "--out", str(tmp_path)]) == 0
    assert in_two == [True, False]  # a second process would not know the plugin
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
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_short_answer_that_nobody_reads_ends_quietly():
    command = f"sleep 0; {sys.executable} -m hae_lab reproduce --list | true"  # less than a pipe holds: told at the end
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_of_few_characters_shows_others_as_question_marks(encoding):
    says = "from hae_lab import __main__ as m; m.run_show = lambda options: print('2 × 3 ≤ 质量'); "
    command = [sys.executable, "-c", f"{says}raise SystemExit(m.main(['show', 'v2']))"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=600)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).strip() == ("2 × 3 ? ??" if encoding == "cp1252" else "2 ? 3 ? ??")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "v2", "--out", "rows.xlsx"], "'rows.xlsx' ends in none of .csv, .parquet, .html"),
        (["profile", "v2", "--out", "folder.csv"], "cannot write 'folder.csv': it is a folder"),
        (["profile", "v2", "--out", "file/rows.csv"], "/file' is a file"),
        (["sample", "runs/v2", "--out", "samples.jpg"], "'samples.jpg' ends in none of .png"),
        (["export", "v2", "--out", "v2.pt2"], "'v2.pt2' ends in none of .onnx"),
        (["export", "v2", "--out", "file/v2.onnx"], "/file' is a file"),
        (["bench", "model", "--out", "file"], "/file' is a file"),
        (["train", "v2", "--out", "file"], "/file' is a file"),
        (["study", "study.toml", "--out", "file/deeper"], "/file' is a file"),
        (["reproduce", "--out", "file"], "/file' is a file"),
        (["notebooks", "--blank", "--out", "file"], "/file' is a file"),
        (["site", "--out", "file"], "/file' is a file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(arguments, message, tmp_path, capsys, monkeypatch):
    def work(*options, **more):
        raise AssertionError("the work has begun")

    for name in ("hae_lab.profilers.report.profile", "hae_lab.audit.benchmarks.bench", "hae_lab.study.Study.run"):
        monkeypatch.setattr(name, work)
    monkeypatch.setattr("hae_lab.diffusion.experiment.run", work)
    monkeypatch.setattr("hae_lab.audit.reproduce.reproduce", work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "study.toml").write_text('name = "s"\npreset = "tiny"\ngrid = {variant = ["v2"]}\n')
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_runs_of_two_seeds_have_two_folders_and_a_taken_one_is_refused(tmp_path, capsys, monkeypatch):
    places = []

    def run(experiment, out, **options):
        places.append(out)
        if len(places) < 3:  # while it runs, a second one of the same seed begins
            assert main(["train", "v2", "--seed", str(experiment.seed)]) == 2
        raise HAELabError("that is enough")

    monkeypatch.setattr("hae_lab.diffusion.experiment.run", run)
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1"):
        assert main(["train", "v2", "--seed", seed]) == 2
        taken, enough = capsys.readouterr().err.splitlines()
        assert f"{str(places[-1])!r} is taken: another process trains there" in taken
        assert enough == "hae-lab: that is enough"
    assert len(set(places)) == len(places) == 2
