"""The tables of a study: what its cells cost, what its runs found, and how they went."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hae_lab.study.grid import Cell
from hae_lab.study.store import Run, Store, metrics_of

LOG = ["status", "seconds", "host", "started", "finished", "versions", "traceback", "code", "key"]


def static(cells: Iterable[Cell], progress: bool = False) -> pd.DataFrame:
    """See `Study.static`."""
    from hae_lab.profilers.formulas import static_counts

    bar = tqdm(cells, disable=not progress, unit="cell")
    return pd.DataFrame([_cell_columns(cell) | static_counts(cell.experiment.config) for cell in bar])


def results(study: str, declared: dict[str, Any], runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.results`; of these runs of the study of that name, with what it declares about all of its rows."""
    from hae_lab.profilers.formulas import static_counts

    rows = [
        {"study": study}
        | _role_columns(run.cell)
        | {"seed": run.seed}
        | declared
        | static_counts(run.cell.experiment.config)
        | {metric: value for metric, value in metrics.items() if metric != "curve"}
        | {"key": run.key}
        for run, metrics in _finished(runs, store)
    ]
    if not rows:
        return pd.DataFrame(columns=["study", "cell", "data", "seed", "key"])
    frame = pd.DataFrame(rows)
    # a later run may have more metrics, and a later cell a reference
    first = [name for name in ("study", "cell", "role", "reference") if name in frame.columns]
    return frame[[*first, *(name for name in frame.columns if name not in (*first, "key")), "key"]]


def metric_columns(results: pd.DataFrame) -> list[str]:
    """The columns of `Study.results` that hold metrics."""
    counts = [*results.columns].index("macs_kept")
    return [name for name in results.columns[counts + 1 :] if name != "key"]


def means(results: pd.DataFrame) -> pd.DataFrame:
    """A row a cell and data set of `Study.results`: how many seeds, and the mean of each metric over them."""
    if results.empty:
        return results
    groups = results.groupby(["cell", "data"], sort=False)
    found = groups[metric_columns(results)].mean()
    found.insert(0, "seeds", groups.size())
    return found.reset_index()


def curves(runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.curves`."""
    rows = [
        {"cell": run.cell.label, "data": run.cell.experiment.data, "seed": run.seed, "step": step, "loss": loss}
        for run, metrics in _finished(runs, store)
        for step, loss in metrics.get("curve", [])
    ]
    return pd.DataFrame(rows, columns=["cell", "data", "seed", "step", "loss"])


def log(runs: Iterable[Run], store: str | Path) -> pd.DataFrame:
    """See `Study.log`; it has the columns of the study also when no run has ended."""
    runs = list(runs)
    rows = [
        _cell_columns(run.cell) | {"seed": run.seed} | {name: row[name] for name in LOG}
        for run, row in _known(runs, store)
    ]
    varied = dict.fromkeys(name for run in runs for name in _cell_columns(run.cell))
    frame = pd.DataFrame(rows, columns=[*varied, "seed", *LOG])
    return frame.assign(**{name: pd.to_datetime(frame[name], unit="s") for name in ("started", "finished")})


def _role_columns(cell: Cell) -> dict[str, Any]:
    """The columns of a cell, with what it is for after its name."""
    columns = _cell_columns(cell)
    role = {"role": cell.role} | ({"reference": cell.reference} if cell.reference else {})
    return {"cell": columns.pop("cell")} | role | columns


def _cell_columns(cell: Cell) -> dict[str, Any]:
    values = {name: str(value) if isinstance(value, tuple) else value for name, value in cell.values.items()}
    return {"cell": cell.label, "data": cell.experiment.data} | values


def _finished(runs: Iterable[Run], store: str | Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    for run, row in _known(runs, store):
        if row["status"] == "ok":
            yield run, metrics_of(row)


def _known(runs: Iterable[Run], store: str | Path) -> list[tuple[Run, dict[str, Any]]]:
    """Every run that the store knows, with its row."""
    runs = list(runs)
    with Store(store) as opened:
        rows = opened.select(run.key for run in runs)
    return [(run, rows[run.key]) for run in runs if run.key in rows]
