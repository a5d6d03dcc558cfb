"""How long each table and figure takes to make: measured when it is asked for, since no two runs agree on a time."""

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hae_lab import tables
from hae_lab.audit.registry import TABLES, figures
from hae_lab.audit.reproduce import draw
from hae_lab.profilers.timing import environment

FILE = "seconds"


def measure(out: str | Path = ".", progress: bool = False) -> Path:
    """Make everything once and keep the CPU seconds of each in `out`/data/seconds.csv; return its path."""
    work: list[tuple[str, str, Callable[[], Any]]] = [(name, "table", make) for name, make in TABLES.items()]
    work += [(name, "figure", lambda source=source: draw(source).png()) for name, source in figures().items()]
    rows = []
    for name, kind, run in tqdm(work, disable=not progress, unit="file"):
        start = process_time()
        run()
        rows.append({"output": name, "output_kind": kind, "seconds": float(f"{process_time() - start:.2g}")})
    where = environment("cpu")
    frame = pd.DataFrame(rows).assign(clock="CPU time", **{key: where[key] for key in ("device_name", "torch")})
    return tables.write(frame, Path(out) / "data" / f"{FILE}.csv")
