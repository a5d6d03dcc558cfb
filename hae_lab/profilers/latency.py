"""Time and memory, measured on this computer: repeats interleaved over what is compared, medians and ratios.

On a CPU the clock counts CPU seconds of the process, which other programs disturb little; on a GPU it counts wall time
between synchronisations.
"""

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hae_lab import masks
from hae_lab.errors import require_name
from hae_lab.files import atomic_path
from hae_lab.masks import TokenGrid
from hae_lab.profilers.baselines import document_mask_loop

Cases = Mapping[str, Callable[[], object]]


def interleaved(
    cases: Cases, *, repeats: int = 7, warmup: int = 1, threads: int = 1, device: str = "cpu"
) -> pd.DataFrame:
    """Run every case once per round, so that a disturbance hits all of them; a row a case.

    Columns: case, ms_median, ms_q1, ms_q3, repeats, threads, clock. The number of torch threads is restored.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for run in list(cases.values()) * warmup:
            run()
        seconds = [[_seconds(run, device) for run in cases.values()] for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads_before)
    q1, median, q3 = 1000 * np.quantile(np.array(seconds), [0.25, 0.5, 0.75], axis=0)
    clock = "CPU time" if device == "cpu" else "wall time"
    return pd.DataFrame(
        {"case": list(cases), "ms_median": median, "ms_q1": q1, "ms_q3": q3}
        | {"repeats": repeats, "threads": threads, "clock": clock}
    )


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def environment(device: str = "cpu") -> dict[str, str]:
    """What a measurement depends on: device, its name, system and versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": device,
        "device_name": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bench_masks(device: str = "cpu") -> pd.DataFrame:
    """Building the document's mask: its row loop against the index form, for square maps."""
    frames = []
    for side in (16, 32, 64):
        grid = TokenGrid(side, side)
        cases = {
            "document's row loop": lambda n=grid.n: document_mask_loop(n),
            "index form": lambda grid=grid: masks.document(grid, 0.9, 0),
        }
        rows = interleaved(cases, repeats=7 if side == 64 else 15)
        frames.append(rows.assign(map=f"{side}x{side}", n=grid.n, baseline="document's row loop"))
    return pd.concat(frames, ignore_index=True)


BENCHMARKS: dict[str, Callable[[str], pd.DataFrame]] = {"masks": bench_masks}


def bench(what: str, folder: str | Path = "data", device: str = "cpu") -> tuple[Path, pd.DataFrame]:
    """Measure and keep the rows in `folder`/latency_<device>.csv; return the path and the new rows.

    Rows of other benchmarks and of other devices stay as they are. `speed_up` is the baseline's median over the row's.
    Raises `HAELabError` for an unknown benchmark.
    """
    require_name("benchmark", what, BENCHMARKS)
    rows = BENCHMARKS[what](device)
    rows = _with_speed_up(rows).assign(benchmark=what, **environment(device))
    path = Path(folder) / f"latency_{device}.csv"
    _merge_rows(path, rows)
    return path, rows


def _with_speed_up(rows: pd.DataFrame) -> pd.DataFrame:
    keys = [name for name in ("map", "pass") if name in rows]
    medians = rows.set_index([*keys, "case"])["ms_median"]
    base = [medians[(*(row[key] for key in keys), row["baseline"])] for row in rows.to_dict("records")]
    return rows.assign(speed_up=np.array(base) / rows["ms_median"])


def _merge_rows(path: Path, rows: pd.DataFrame) -> None:
    if path.exists():
        old = pd.read_csv(path)
        measured_again = (old["benchmark"] == rows["benchmark"].iloc[0]) & (
            old["device_name"] == rows["device_name"].iloc[0]
        )
        rows = pd.concat([old[~measured_again], rows], ignore_index=True)
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.4g", lineterminator="\n")
