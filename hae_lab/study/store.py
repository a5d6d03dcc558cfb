"""The store of runs: one SQLite file, a row a run, written by the driver alone.

A run is named by what decides its result: the experiment, its data and the code. So two studies share their runs, and
a changed model trains again.
"""

import ast
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import psutil

from hae_lab.checks import HAELabError
from hae_lab.parts import without_docstrings
from hae_lab.study.grid import Cell

PACKAGE = Path(__file__).parents[1]
SOURCES = ("family.py", "masks.py", "models", "diffusion")  # of the package: what decides a result
# parts by name: a run is named by the source of those that it uses, not by the others
REGISTRIES = ("models/slots.py", "diffusion/datasets.py", "diffusion/metrics.py")
BEAT_SECONDS = 30  # how often a driver says that it is alive ...
SILENT_SECONDS = 10 * BEAT_SECONDS  # ... and when it is taken for dead on another computer

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key        TEXT PRIMARY KEY,  -- sha256 of trial, experiment, data and code
    trial      TEXT NOT NULL,     -- module:function that runs it
    experiment TEXT NOT NULL,     -- canonical JSON
    seed       INTEGER NOT NULL,
    data       TEXT NOT NULL,     -- what names the data
    code       TEXT NOT NULL,     -- code_version()
    status     TEXT NOT NULL CHECK (status IN ('running', 'ok', 'failed')),
    metrics    TEXT,              -- JSON
    traceback  TEXT,
    seconds    REAL,
    host       TEXT,              -- where it ran
    versions   TEXT,              -- JSON: library -> version, there
    started    REAL NOT NULL,     -- seconds since 1970
    finished   REAL,
    driver     TEXT NOT NULL,     -- JSON: host, pid and start time of the process that claimed it
    beat       REAL NOT NULL      -- when the driver was last alive
)
"""
COLUMNS = tuple(line.split()[0] for line in SCHEMA.splitlines()[2:-1])


def canonical_json(text: str) -> str:
    """The same for equal values: sorted keys, no blanks, 4.0 as 4."""
    values = json.loads(text, parse_float=lambda digits: int(x) if (x := float(digits)).is_integer() else x)
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


@lru_cache
def code_version(package: Path = PACKAGE) -> str:
    """Hash of the sources that decide a result, without their comments and docstrings.

    Equal on all computers that run one minor version of Python.
    """
    total = sha256()
    for source in SOURCES:
        place = package / source
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = path.relative_to(package).as_posix()
            if name not in REGISTRIES:
                tree = without_docstrings(ast.parse(path.read_text(encoding="utf-8")))
                total.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return total.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Run:
    """A cell of a study at one seed, what runs it ("module:function"), and what names its data."""

    cell: Cell
    seed: int
    trial: str
    data: str

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    @cached_property
    def experiment(self) -> str:
        """Canonical JSON."""
        return canonical_json(replace(self.cell.experiment, seed=self.seed).to_json())

    @cached_property
    def key(self) -> str:
        """What names the run in the store."""
        parts = {"trial": self.trial, "experiment": self.experiment, "data": self.data, "code": code_version()}
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Store:
    """The rows of runs in one SQLite file, made if needed; a context manager.

    Raises `HAELabError` for a path that cannot be written or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(SCHEMA)
            self._connection.execute("BEGIN IMMEDIATE")  # fails now, not after the first run, if nothing can be written
            self._connection.execute("ROLLBACK")
            self.select()
        except (OSError, sqlite3.Error) as error:
            raise HAELabError(f"cannot keep runs in {str(path)!r}: {error}") from None
        self._driver = json.dumps(_this_process(), sort_keys=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def folder(self, key: str) -> Path:
        """Where a run keeps its checkpoints until it is finished."""
        return self.path.with_suffix("") / key

    def select(self, keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """key -> row, of these runs or of all, oldest first."""
        rows = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM runs ORDER BY started, key").fetchall()
        chosen = None if keys is None else set(keys)
        return {row["key"]: dict(row) for row in rows if chosen is None or row["key"] in chosen}

    def claim(self, run: Run, retry_failed: bool = False) -> str | None:
        """Take a run as this process's own, and return None; or else return why not: "ok", "failed" or "running".

        A run that a dead driver left behind, and one of this process, are free.
        """
        now = time.time()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            row = self._connection.execute("SELECT status, driver, beat FROM runs WHERE key = ?", (run.key,)).fetchone()
            held = self.held(row, retry_failed)
            if held is None:
                values = (run.key, run.trial, run.experiment, run.seed, run.data, code_version(), "running")
                self._connection.execute(
                    "INSERT OR REPLACE INTO runs (key, trial, experiment, seed, data, code, status, started, driver, "
                    "beat) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*values, now, self._driver, now),
                )
        finally:
            self._connection.execute("COMMIT")
        return held

    def held(self, row: Mapping[str, Any] | None, retry_failed: bool = False) -> str | None:
        """Why a row cannot be claimed, or None."""
        if row is None:
            return None
        if row["status"] == "running":
            return "running" if self._is_held_by_another(row) else None
        return None if row["status"] == "failed" and retry_failed else row["status"]

    def _is_held_by_another(self, row: Mapping[str, Any]) -> bool:
        driver = json.loads(row["driver"])
        if driver["host"] != socket.gethostname():
            return time.time() - row["beat"] < SILENT_SECONDS
        if row["driver"] == self._driver:
            return False
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(driver["pid"])
            same = abs(process.create_time() - driver["created"]) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        return False

    def finish(self, key: str, outcome: Mapping[str, Any]) -> None:
        """Keep what a run ended with: status, metrics, traceback, seconds, host, versions."""
        texts = {name: json.dumps(outcome[name], sort_keys=True) for name in ("metrics", "versions")}
        values = dict(outcome) | texts | {"finished": time.time()}
        changes = ", ".join(f"{name} = :{name}" for name in values)
        self._connection.execute(f"UPDATE runs SET {changes} WHERE key = :key", values | {"key": key})

    def beat(self) -> None:
        """Say that this driver is alive."""
        self._connection.execute(
            "UPDATE runs SET beat = ? WHERE status = 'running' AND driver = ?", (time.time(), self._driver)
        )

    def release(self, keys: Iterable[str]) -> None:
        """Give back runs that were claimed and not finished."""
        claimed = [(key, self._driver) for key in keys]
        self._connection.executemany("DELETE FROM runs WHERE status = 'running' AND key = ? AND driver = ?", claimed)


def _this_process() -> dict[str, Any]:
    process = psutil.Process(os.getpid())
    return {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time()}
