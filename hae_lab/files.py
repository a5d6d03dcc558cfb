"""Writing files whole or not at all, and one writer at a time."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hae_lab.checks import HAELabError, require


@contextmanager
def atomic_path(path: str | Path, size_bytes: int = 0) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if the block succeeds and deleted if it fails.

    Makes the folder if needed. `size_bytes` is how much comes at least, for libraries that ask for it at once. Raises
    `HAELabError` if the folder cannot be written, and for a full disk.
    """
    path = Path(path)
    if path.is_dir():
        raise HAELabError(f"cannot write {str(path)!r}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # same suffix: writers choose the format by it
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise HAELabError(f"cannot write {str(path)!r}: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except HAELabError:
        raise
    except Exception as error:
        reason = _disk_trouble(error, path.parent, max(size_bytes, FULL_BYTES))
        if reason is None:
            raise
        raise HAELabError(f"cannot write {str(path)!r}: {reason}") from None
    finally:
        temporary.unlink(missing_ok=True)


def require_folder(path: str | Path) -> None:
    """Raise `HAELabError` now, not after the work, unless files could be written into this folder."""
    path = Path(path).absolute()
    known = next(each for each in (path, *path.parents) if each.exists())
    if not known.is_dir():
        raise HAELabError(f"cannot write into {str(path)!r}: {str(known)!r} is a file")
    if not os.access(known, os.W_OK | os.X_OK):
        raise HAELabError(f"cannot write into {str(path)!r}: nothing may be written in {str(known)!r}")


def require_file(path: str | Path, suffixes: Sequence[str]) -> None:
    """Raise `HAELabError` now, not after the work, unless a file of one of these endings could be written here."""
    path = Path(path)
    require(path.suffix in suffixes, f"{str(path)!r} ends in none of {', '.join(suffixes)}")
    require(not path.is_dir(), f"cannot write {str(path)!r}: it is a folder")
    require_folder(path.parent)


@contextmanager
def held(path: str | Path, taken: str) -> Iterator[None]:
    """Hold a place as its one writer, by a lock file beside it; the lock ends with the process, however that ends.

    Raises `HAELabError(taken)` at once if another process holds it, and if the lock cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock").acquire(timeout=0)
    except Timeout:
        raise HAELabError(taken) from None
    except OSError as error:
        raise HAELabError(f"cannot hold {str(path)!r}: {error.strerror or error}") from None
    with lock:
        yield


FULL_BYTES = 2**16  # a disk with less is full
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def _disk_trouble(error: Exception, folder: Path, needed_bytes: int) -> str | None:
    """Why the disk refused, in words, or None if it did not; libraries raise errors of their own for a full one."""
    if isinstance(error, OSError) and error.errno in DISK_TROUBLE:
        return error.strerror
    full = shutil.disk_usage(folder).free < needed_bytes
    return os.strerror(errno.ENOSPC) if full else None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
