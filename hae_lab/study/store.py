"""The store of runs: one SQLite file, a row a finished run, written by one driver at a time.

A run is named by what decides its result: the experiment, its data, the code and the parts that it uses. So two studies
share their runs, a changed model trains again, and a changed mask rule only what uses it.
"""

import ast
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from hae_lab.checks import HAELabError, require
from hae_lab.files import held
from hae_lab.parts import Parts
from hae_lab.sources import without_docstrings
from hae_lab.study.grid import Cell

PACKAGE = Path(__file__).parents[1]
SOURCES = ("family.py", "masks.py", "models", "diffusion")  # of the package: what decides a result
# parts by name: a run is named by the source of those that it uses, not by the others
REGISTRIES = ("models/slots.py", "diffusion/datasets.py", "diffusion/metrics.py")

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key        TEXT PRIMARY KEY,  -- sha256 of trial, experiment, data, code and parts
    trial      TEXT NOT NULL,     -- what runs it, by name
    experiment TEXT NOT NULL,     -- canonical JSON
    seed       INTEGER NOT NULL,
    data       TEXT NOT NULL,     -- what names the data
    code       TEXT NOT NULL,     -- code_version()
    parts      TEXT NOT NULL,     -- JSON: "kind name" -> hash of its source
    status     TEXT NOT NULL CHECK (status IN ('ok', 'failed')),
    metrics    TEXT,              -- JSON
    traceback  TEXT,
    seconds    REAL,
    host       TEXT,              -- where it ran
    versions   TEXT,              -- JSON: library -> version, there
    started    REAL NOT NULL,     -- seconds since 1970
    finished   REAL
)
"""
COLUMNS = tuple(line.split()[0] for line in SCHEMA.splitlines()[2:-1])
BEFORE_PARTS = tuple(name for name in COLUMNS if name != "parts")  # the columns that a store of version 0.1.0 has too


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


def run_key(trial: str, experiment: str, data: str, code: str, sources: Mapping[str, str]) -> str:
    """What names a run; `experiment` is canonical JSON."""
    named = {"trial": trial, "experiment": experiment, "data": data, "code": code, "parts": dict(sources)}
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Run:
    """A cell of a study at one seed, the name of what runs it, what names its data, and the parts that it uses.

    `sources` are the hashes of the parts' sources, by "kind name".
    """

    cell: Cell
    seed: int
    trial: str
    data: str
    parts: Parts
    sources: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"

    @cached_property
    def experiment(self) -> str:
        """Canonical JSON."""
        return canonical_json(replace(self.cell.experiment, seed=self.seed).to_json())

    @cached_property
    def key(self) -> str:
        """What names the run in the store."""
        return run_key(self.trial, self.experiment, self.data, code_version(), self.sources)


class Store:
    """The rows of finished runs in one SQLite file, made if needed; a context manager.

    A store of version 0.1.0 becomes one of today, with its "ok" and "failed" rows.
    Raises `HAELabError` for a path that cannot be written or holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        require(isinstance(path, str | Path), f"a store of runs is a path, got {path!r}")
        self.path = Path(path)
        folder = self.folder("")
        require(not folder.is_file(), f"the store {str(path)!r} needs the folder {str(folder)!r}, which is a file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            with self._transaction():  # fails now, not after the first run, if nothing can be written
                self._connection.execute(SCHEMA)
                self._upgrade()
            self.select()
        except (OSError, sqlite3.Error) as error:
            raise HAELabError(f"cannot keep runs in {str(path)!r}: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _upgrade(self) -> None:
        names = [row["name"] for row in self._connection.execute("PRAGMA table_info(runs)")]
        if "beat" not in names:
            return
        kept = ", ".join(BEFORE_PARTS)
        self._connection.execute("ALTER TABLE runs RENAME TO old_runs")
        self._connection.execute(SCHEMA)
        self._connection.execute(
            f"INSERT INTO runs ({kept}, parts) SELECT {kept}, '{{}}' FROM old_runs WHERE status IN ('ok', 'failed')"
        )
        self._connection.execute("DROP TABLE old_runs")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the store as its one driver; the lock ends with the process, however that ends.

        Raises `HAELabError` at once if another driver holds it.
        """
        reason = "another driver is running a study in it: wait for that, or take another store"
        with held(self.path, f"the store {str(self.path)!r} is taken: {reason}"):
            yield

    def folder(self, key: str) -> Path:
        """Where a run keeps its checkpoints until it is finished."""
        folder = self.path.with_suffix("") if self.path.suffix else self.path.with_name(f"{self.path.name}-runs")
        return folder / key

    def select(self, keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
        """key -> row, of these runs or of all, oldest first."""
        with self._readable():
            rows = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM runs ORDER BY started, key").fetchall()
        chosen = None if keys is None else set(keys)
        return {row["key"]: dict(row) for row in rows if chosen is None or row["key"] in chosen}

    def finish(self, run: Run, outcome: Mapping[str, Any], started: float | None = None) -> None:
        """Keep what a run ended with: status, metrics, traceback, seconds, host, versions."""
        texts = {name: json.dumps(outcome[name], sort_keys=True) for name in ("metrics", "versions")}
        named = {
            "key": run.key,
            "trial": run.trial,
            "experiment": run.experiment,
            "seed": run.seed,
            "data": run.data,
            "code": code_version(),
            "parts": json.dumps(dict(run.sources), sort_keys=True),
        }
        now = time.time()
        self.put(named | dict(outcome) | texts | {"started": now if started is None else started, "finished": now})

    def put(self, row: Mapping[str, Any]) -> None:
        """Write a whole row, in the place of one with its key."""
        places = ", ".join(f":{name}" for name in COLUMNS)
        insert = f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({places})"
        with self._readable():
            self._connection.execute(insert, dict(row))

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what SQLite says of a full disk, or of a file that is damaged, into a `HAELabError`."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise HAELabError(f"cannot keep runs in {str(self.path)!r}: {error}") from None


def metrics_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished run measured. Raises `HAELabError` for a row that another program has written over."""
    try:
        metrics = json.loads(row["metrics"])
        curve = [(int(step), float(loss)) for step, loss in metrics.get("curve", [])]
    except (TypeError, ValueError, AttributeError) as error:
        raise HAELabError(f"the metrics of run {row['key'][:16]} are damaged in the store: {error}") from None
    numbers = all(isinstance(value, int | float) for name, value in metrics.items() if name != "curve")
    require(numbers, f"the metrics of run {row['key'][:16]} are no numbers in the store: {row['metrics'][:200]}")
    return metrics | ({"curve": curve} if "curve" in metrics else {})


def is_done(row: Mapping[str, Any] | None, retry_failed: bool = False) -> bool:
    """Whether a run with this row need not be run."""
    return row is not None and not (retry_failed and row["status"] == "failed")
