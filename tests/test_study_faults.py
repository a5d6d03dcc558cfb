"""What computers do to a study: a full disk, one that cannot be written, signals, a clock that jumps, two drivers.

Nothing is lost but the runs in flight, and the same command ends with the same table.
"""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from study_trials import MARKS
from study_workers import Here, command, drive, environment, has_kept

from hae_lab import HAELabError
from hae_lab.study import Study
from hae_lab.study.store import Store

STUDY = """
name = "faults"
preset = "tiny"
seeds = 4
trial = "study_trials:{trial}"
[grid]
mlp_ratio = [0.25, 4]
"""


def declared(folder: Path, trial: str) -> Path:
    file = folder / "faults.toml"
    file.write_text(STUDY.format(trial=trial))
    return file


def whole_table(file: Path, folder: Path) -> bytes:
    """The table of the same study when nothing goes wrong."""
    study = Study.from_toml(file, trust=True)
    drive(study, folder / "whole.sqlite", Here())
    study.export(folder / "whole.sqlite", folder / "whole.csv")
    return (folder / "whole.csv").read_bytes()


def can_mount() -> bool:
    """Whether this user may mount a disk of memory in a name space of their own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="mounting a small disk needs user name spaces (unshare -rm)")


def in_own_mounts(script: str) -> subprocess.CompletedProcess:
    call = ["unshare", "-rm", "sh", "-c", script]
    return subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=300, check=False)


@mounts
@pytest.mark.slow
def test_a_disk_that_fills_up_stops_a_study_which_continues_when_there_is_room(tmp_path):
    file, disk = declared(tmp_path, "bulky"), tmp_path / "disk"
    disk.mkdir()
    run = " ".join(command(file, disk))
    ended = in_own_mounts(
        f"mount -t tmpfs -o size=400k tmpfs {disk}; {run} > {tmp_path}/first.txt 2>&1; echo first $?; "
        f"mount -o remount,size=20m {disk}; {run} > {tmp_path}/second.txt 2>&1; echo second $?; "
        f"cp {disk}/faults.csv {tmp_path}"
    )
    first, second = (tmp_path / "first.txt").read_text(), (tmp_path / "second.txt").read_text()
    assert ended.stdout.split() == ["first", "2", "second", "0"], first + second
    assert "Traceback" not in first
    assert "full" in first.splitlines()[-1] or "No space" in first.splitlines()[-1]
    assert (tmp_path / "faults.csv").read_bytes() == whole_table(file, tmp_path)


@mounts
def test_a_store_on_a_disk_that_cannot_be_written_is_one_line(tmp_path):
    file, disk = declared(tmp_path, "quick"), tmp_path / "disk"
    disk.mkdir()
    run = " ".join(command(file, disk))
    ended = in_own_mounts(f"mount -t tmpfs tmpfs {disk}; mount -o remount,ro {disk}; {run}; echo $?")
    assert ended.stdout.splitlines()[-1] == "2"
    assert "Traceback" not in ended.stderr
    assert str(disk) in ended.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_loses_nothing_that_was_finished(tmp_path, sent, status):
    file, marks = declared(tmp_path, "slow"), tmp_path / "marks"
    marks.mkdir()
    variables = environment(**{MARKS: str(marks)})
    study, store = Study.from_toml(file, trust=True), tmp_path / "s.sqlite"
    with (tmp_path / "said.txt").open("w") as said:
        first = subprocess.Popen(command(file, tmp_path), env=variables, stdout=said, stderr=said)
    while not has_kept(study, store):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(sent)
    assert first.wait(120) in (status, 128 + sent)
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    kept = study.log(store)
    assert set(kept["status"]) == {"ok"}

    subprocess.run(command(file, tmp_path), env=variables, capture_output=True, timeout=300, check=True)
    for ratio, seed in kept[["mlp_ratio", "seed"]].itertuples(index=False):
        assert len(list(marks.glob(f"{ratio:g}-{seed}-*"))) == 1  # none that was kept ran again
    assert (tmp_path / "faults.csv").read_bytes() == whole_table(file, tmp_path)


def test_a_clock_that_jumps_changes_no_result(tmp_path, monkeypatch):
    file, real = declared(tmp_path, "quick"), time.time
    jumps = iter([0, 86_400, -86_400 * 365, 3, 1e9] * 50)
    monkeypatch.setattr("hae_lab.study.runner.time.time", lambda: real() + next(jumps))
    study = Study.from_toml(file, trust=True)
    drive(study, tmp_path / "s.sqlite", Here())
    study.export(tmp_path / "s.sqlite", tmp_path / "jumped.csv")
    monkeypatch.undo()
    assert (tmp_path / "jumped.csv").read_bytes() == whole_table(file, tmp_path)


def test_a_second_driver_is_refused_and_the_first_goes_on(tmp_path):
    study = Study.from_toml(declared(tmp_path, "quick"), trust=True)
    with Store(tmp_path / "s.sqlite") as store, store.held():
        with pytest.raises(HAELabError, match=r"s\.sqlite"):
            study.run(tmp_path / "s.sqlite", progress=False)
        drive(study, tmp_path / "whole.sqlite", Here())
    before = study.log(tmp_path / "s.sqlite")
    assert before.empty
    drive(study, tmp_path / "s.sqlite", Here())
    after = study.log(tmp_path / "s.sqlite")
    assert set(after["status"]) == {"ok"}
    assert [*before.columns] == [*after.columns]
    assert "mlp_ratio" in after.columns
