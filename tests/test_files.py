"""Files are written whole or not at all, also where the disk is full; one writer at a time holds a place."""

import errno
import os
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

from hae_lab import HAELabError
from hae_lab.files import atomic_path, held, require_file, require_folder

FULL = """
import sys
from pathlib import Path
import pandas as pd
import hae_lab
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.training import Recipe, train
from hae_lab.models import save_checkpoint
from hae_lab.study.store import Store
from hae_lab.tables import write

quick = Recipe(steps=1, batch_size=2)
place, model = Path(sys.argv[1]), hae_lab.build("v2", "tiny", num_classes=None)
row = dict.fromkeys("key trial experiment data code parts".split(), "x" * 400_000)
row |= {"status": "failed", "seed": 1, "started": 0.0}
row |= dict.fromkeys("metrics traceback seconds host versions finished".split())
ways = {
    "safetensors": lambda: save_checkpoint(model, place / "model.safetensors"),
    "pt": lambda: save_checkpoint(model, place / "model.pt"),
    "table": lambda: write(pd.DataFrame({"x": ["y" * 400_000]}), place / "table.csv"),
    "store": lambda: Store(place / "s.sqlite").put(row),
    "run": lambda: train(model.config, phantoms(8, 16), quick, folder=place / "run", device="cpu"),
}
for name, way in ways.items():
    try:
        way()
    except hae_lab.HAELabError as error:
        print(name, error)
print(sorted(path.name for path in place.rglob("*") if path.is_file()))
"""


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small disk needs a mount namespace, which this computer does not allow")
    mount = 'mount -t tmpfs -o size=200k none "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *lines, left = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["safetensors", "pt", "table", "store", "run"]
    assert all("cannot" in line and ("No space left" in line or "disk is full" in line) for line in lines), lines
    assert set(literal_eval(left)) <= {"s.sqlite", "s.sqlite-journal"}


def test_what_a_library_says_of_a_full_disk_is_told_in_plain_words(tmp_path, monkeypatch):
    def fail(path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stream writer failed")

    with pytest.raises(RuntimeError, match="stream writer failed"):  # the disk is not to blame
        fail(tmp_path / "a.txt")
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 65_536, 65_536))
    with pytest.raises(RuntimeError, match="stream writer failed"):
        fail(tmp_path / "a.txt")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 65_535, 65_535))  # below 64 KiB
    with pytest.raises(HAELabError, match=r"cannot write '.*a\.txt': No space left on device"):
        fail(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_the_disk_refuses_is_told_and_what_it_does_not_is_not(tmp_path, number):
    with pytest.raises(HAELabError, match="cannot write"), atomic_path(tmp_path / "a.txt"):
        raise OSError(number, "refused")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        raise FileNotFoundError(errno.ENOENT, "another file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no such permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_permissions_of_a_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("whole")
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o7777 == mode


def test_places_are_checked_without_making_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    require_folder("new/deep")
    require_folder(".")
    require_file("new/rows.csv", [".csv"])
    for call in (
        lambda: require_folder("file"),
        lambda: require_folder("file/deep"),
        lambda: require_file("file/a.csv", [".csv"]),
    ):
        with pytest.raises(HAELabError, match=r"'.*file' is a file"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_which_nothing_may_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(HAELabError, match="nothing may be written in"):
        require_folder(tmp_path / "new")


def test_one_writer_holds_a_place_until_it_ends(tmp_path):
    script = (
        f"from hae_lab.files import held\nwith held({str(tmp_path / 'a')!r}, ''): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HAELabError, match=r"^taken$"), held(tmp_path / "a", "taken"):
            pass
        other.kill()
    with held(tmp_path / "a", "taken"):
        assert (tmp_path / "a.lock").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(HAELabError, match="cannot hold"), held(tmp_path / "file" / "a", "taken"):
        pass
