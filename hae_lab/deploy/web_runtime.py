"""onnxruntime-web, the runtime that a page takes along: two files of an npm package, fetched once and kept.

No Python package has them, and at 14 MB they are not in this one. MIT licence, © Microsoft Corporation.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from hae_lab.checks import HAELabError, require
from hae_lab.files import atomic_path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SCRIPT, PROGRAM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    PROGRAM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
SECONDS = 300  # that fetching 33 MB may take


class WebRuntime(NamedTuple):
    script: bytes  # an ES module
    program: bytes  # its WebAssembly


def web_runtime(folder: Path | None = None) -> WebRuntime:
    """The two files, from a folder (default: this user's cache), fetched with npm if they are not there yet.

    Raises `HAELabError` if they can be had neither way, and for files that are not those of this version.
    """
    folder = folder or cache_folder()
    if not all((folder / name).is_file() for name in SHA256):
        _fetch(folder)
    found = {name: (folder / name).read_bytes() for name in SHA256}
    for name, right in SHA256.items():
        is_right = hashlib.sha256(found[name]).hexdigest() == right
        require(is_right, f"{str(folder / name)!r} is not the file of {PACKAGE} {VERSION}: delete it to fetch it again")
    return WebRuntime(found[SCRIPT], found[PROGRAM])


def cache_folder() -> Path:
    """Where the files are kept, outside of any project."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "hae-lab" / f"{PACKAGE}-{VERSION}"


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    by_hand = (
        f"put {SCRIPT} and {PROGRAM} of the npm package {PACKAGE} {VERSION} (its folder dist) into {str(folder)!r}"
    )
    require(npm is not None, f"a page needs {PACKAGE}: install Node.js, whose npm fetches it once, or {by_hand}")
    with tempfile.TemporaryDirectory() as name:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=name)
        except subprocess.TimeoutExpired:
            raise HAELabError(f"npm did not fetch {PACKAGE} {VERSION} within {SECONDS} s: {by_hand}") from None
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        require(done.returncode == 0, f"npm could not fetch {PACKAGE} {VERSION} ({' '.join(said[:1])}): {by_hand}")
        (archive,) = Path(name).glob("*.tgz")
        with tarfile.open(archive) as files:
            for wanted in SHA256:
                with atomic_path(folder / wanted) as temporary:
                    temporary.write_bytes(files.extractfile(f"package/dist/{wanted}").read())
