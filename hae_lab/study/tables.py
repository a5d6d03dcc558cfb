"""The tables of a study: what its cells cost, what its runs found, and how they went."""

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hae_lab.checks import require
from hae_lab.files import atomic_path
from hae_lab.study.grid import Cell
from hae_lab.study.store import Run, Store

LOG = ["status", "seconds", "host", "started", "finished", "versions", "traceback", "code", "key"]


def static(cells: Iterable[Cell], progress: bool = False) -> pd.DataFrame:
    """See `Study.static`."""
    from hae_lab.profilers.formulas import static_counts

    bar = tqdm(cells, disable=not progress, unit="cell")
    return pd.DataFrame([_place(cell) | static_counts(cell.experiment.config) for cell in bar])


def results(name: str, runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.results`."""
    from hae_lab.profilers.formulas import static_counts

    rows = [
        {"study": name}
        | _place(run.cell)
        | {"seed": run.seed}
        | static_counts(run.cell.experiment.config)
        | {metric: value for metric, value in metrics.items() if metric != "curve"}
        for run, metrics in _finished(runs, store)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["study", "cell", "data", "seed"])


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and data set of `Study.results`: how many seeds, and the mean of each metric over them."""
    if results.empty:
        return results
    metrics = list(results.columns[results.columns.get_loc("macs_kept") + 1 :])
    groups = results.groupby(["cell", "data"], sort=False)
    means = groups[metrics].mean()
    means.insert(0, "seeds", groups.size())
    return means.reset_index()


def curves(runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.curves`."""
    rows = [
        {"cell": run.cell.label, "data": run.cell.experiment.data, "seed": run.seed, "step": step, "loss": loss}
        for run, metrics in _finished(runs, store)
        for step, loss in metrics.get("curve", [])
    ]
    return pd.DataFrame(rows, columns=["cell", "data", "seed", "step", "loss"])


def log(runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.runs`."""
    rows = [
        _place(run.cell) | {"seed": run.seed} | {name: row[name] for name in LOG} for run, row in _rows(runs, store)
    ]
    if not rows:
        return pd.DataFrame(columns=["cell", "data", "seed", *LOG])
    frame = pd.DataFrame(rows)
    return frame.assign(**{name: pd.to_datetime(frame[name], unit="s") for name in ("started", "finished")})


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table by its suffix, whole or not at all; a CSV with six significant digits, so that every
    computer writes the same.

    Raises `HAELabError` for a suffix other than .csv and .parquet, and for Parquet without pyarrow.
    """
    require(path.suffix in (".csv", ".parquet"), f"a table is written as .csv or .parquet, got {str(path)!r}")
    parquet = path.suffix == ".parquet"
    installed = not parquet or find_spec("pyarrow") is not None
    require(installed, 'Parquet needs pyarrow, which is not installed: pip install "hae-lab[parquet]"')
    with atomic_path(path) as temporary:
        if parquet:
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    return path


def _place(cell: Cell) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, tuple) else value for name, value in cell.values.items()}
    return {"cell": cell.label, "data": cell.experiment.data} | values


def _finished(runs: Iterable[Run], store: str | Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    for run, row in _rows(runs, store):
        if row["status"] == "ok":
            yield run, json.loads(row["metrics"])


def _rows(runs: Iterable[Run], store: str | Path) -> list[tuple[Run, dict[str, Any]]]:
    """Every run that the store knows, with its row."""
    runs = list(runs)
    with Store(store) as opened:
        rows = opened.select(run.key for run in runs)
    return [(run, rows[run.key]) for run in runs if run.key in rows]
