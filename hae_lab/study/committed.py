"""Rows of a study that are kept in a table: named by their runs, taken for done, or trained again to be believed."""

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from hae_lab.checks import HAELabError, require, require_whole
from hae_lab.study import runner, tables
from hae_lab.study.declaration import STORE, Study
from hae_lab.study.store import Run, Store, metrics_of
from hae_lab.study.task import TRIAL

Place = tuple[str, str, int]  # cell, data, seed
ADOPTED: dict[str, Any] = {"status": "ok", "traceback": None, "seconds": None, "host": None, "versions": None}


def with_keys(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Study.results`, each with the key that its run has today.

    For maintainers, after a change of the code with which `verify` finds the rows again.
    Raises `HAELabError` for a row that is no run of the study.
    """
    keys = {_place(run): run.key for run in study.planned}
    places = [_row_place(row) for _, row in rows.iterrows()]
    strange = [place for place in places if place not in keys]
    require(not strange, f"{study.name} has no run {strange[:1]}: the rows are of another study")
    named = rows.drop(columns="key", errors="ignore")
    return named.assign(key=[keys[place] for place in places])


def adopt(study: Study, rows: pd.DataFrame, store: str | Path = STORE, curves: pd.DataFrame | None = None) -> int:
    """Take the rows of a table for done, where their key says that they are today's runs; how many were new.

    The store then holds their numbers with the digits of the table, and no seconds. `curves` are those of
    `Study.curves`. Raises `HAELabError` for rows without keys, and as `Study.run`.
    """
    require("key" in rows.columns, f"the rows of {study.name} have no column 'key': nobody knows what they are of")
    metrics = tables.metric_columns(rows)
    known = {row["key"]: row for _, row in rows.iterrows()}
    points: dict[Place, list[list[float]]] = {}
    for _, row in (pd.DataFrame() if curves is None else curves).iterrows():
        points.setdefault(_row_place(row), []).append([int(row["step"]), float(row["loss"])])
    count = 0
    with Store(store) as opened, opened.held():
        done = opened.select(run.key for run in study.planned)
        for run in study.planned:
            if run.key in known and run.key not in done:
                row = known[run.key]
                found: dict[str, Any] = {name: float(row[name]) for name in metrics if not _is_gap(row[name])}
                opened.finish(run, ADOPTED | {"metrics": found | {"curve": points.get(_place(run), [])}})
                count += 1
    return count


def verify(study: Study, rows: pd.DataFrame, count: int = 3, workers: int = 2) -> pd.DataFrame:
    """Train so many runs again, chosen evenly over the study, and compare them with the rows of a table.

    A row a run and metric: cell, data, seed, metric, kept, retrained, relative_difference, equal (in six significant
    digits; a gap for a metric that the table does not keep). The bits of a run repeat on one computer; another may
    differ in the last of these digits.
    Raises `HAELabError` for a table without metrics, and for a run that it lacks or that fails.
    """
    require(study.trial == TRIAL, f"{study.name} trains nothing: its trial is {study.trial}")
    looks = {len(study.planned_at(look)): look for look in range(study.looks, 0, -1)}
    planned = study.planned_at(looks.get(len(rows), study.looks))  # those of the look at which the study ended
    count = require_whole("the number of runs to verify", count, 1, len(planned))
    chosen = [planned[place] for place in np.linspace(0, len(planned) - 1, count).round().astype(int)]
    kept = {_row_place(row): row for _, row in rows.iterrows()}
    missing = [str(run) for run in chosen if _place(run) not in kept]
    require(not missing, f"the table of {study.name} has no row of {', '.join(missing)}")
    metrics = tables.metric_columns(rows)
    require(len(metrics) > 0, f"the table of {study.name} keeps no metric to compare; its columns: {list(rows)}")
    table = pd.DataFrame(
        [
            {"cell": run.cell.label, "data": run.cell.experiment.data, "seed": run.seed, "metric": name}
            | (_compared(kept[_place(run)][name], found.get(name)) if name in metrics else _not_kept(found[name]))
            for run, found in _retrained(study.name, chosen, workers)
            for name in dict.fromkeys([*metrics, *(name for name in found if name != "curve")])
        ]
    )
    return table.astype({"equal": "boolean"})


def _retrained(name: str, runs: Sequence[Run], workers: int) -> list[tuple[Run, dict[str, Any]]]:
    with TemporaryDirectory() as folder, Store(Path(folder) / "verify.sqlite") as store:
        runner.bring_to_end(name, runs, store, workers)
        rows = store.select()
        failed = [str(run) for run in runs if rows[run.key]["status"] == "failed"]
        if failed:
            raise HAELabError(f"{', '.join(failed)} cannot be trained again")
        return [(run, metrics_of(rows[run.key])) for run in runs]


def _compared(kept: Any, retrained: Any) -> dict[str, Any]:
    equal = (_is_gap(kept) and _is_gap(retrained)) or _digits(kept) == _digits(retrained)
    return {
        "kept": kept,
        "retrained": retrained,
        "relative_difference": 0.0 if equal else _relative_difference(kept, retrained),
        "equal": equal,
    }


def _not_kept(retrained: Any) -> dict[str, Any]:
    return {"kept": None, "retrained": retrained, "relative_difference": math.nan, "equal": None}


def _relative_difference(kept: Any, retrained: Any) -> float:
    """Their difference as a share of the kept value; infinite where one of them is missing."""
    if _is_gap(kept) or _is_gap(retrained):
        return math.inf
    return abs(float(retrained) - float(kept)) / max(abs(float(kept)), 1e-12)


def _digits(value: Any) -> str:
    return "" if _is_gap(value) else f"{float(value):.6g}"


def _is_gap(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _place(run: Run) -> Place:
    return run.cell.label, run.cell.experiment.data, run.seed


def _row_place(row: pd.Series) -> Place:
    return str(row["cell"]), str(row["data"]), int(row["seed"])
