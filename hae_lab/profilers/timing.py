"""Time and memory, measured on this computer: repeats interleaved over what is compared, medians, quartiles, ratios.

On a CPU the clock counts CPU seconds of the process, which other programs disturb little; on a GPU it counts wall time
between synchronisations.
"""

import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.checks import require, require_name, require_whole
from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.profilers.inputs import config_of, step_inputs

Cases = Mapping[str, Callable[[], object]]


def interleaved(
    cases: Cases, *, repeats: int = 7, warmup: int = 1, threads: int = 1, device: str = "cpu"
) -> pd.DataFrame:
    """Run every case once a round, so that a disturbance hits all of them alike; a row a case.

    Columns: case, ms_median, ms_q1, ms_q3, repeats, threads, clock. The number of torch threads is restored.
    """
    return summary(rounds(cases, repeats=repeats, warmup=warmup, threads=threads, device=device), threads, device)


def rounds(cases: Cases, *, repeats: int = 15, warmup: int = 1, threads: int = 1, device: str = "cpu") -> pd.DataFrame:
    """The milliseconds behind `interleaved`: a row a round, a column a case."""
    require_whole("repeats", repeats, 1)
    require_whole("warmup", warmup, 0)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(require_whole("threads", threads, 1))
    try:
        for run in list(cases.values()) * warmup:
            run()
        seconds = [[_seconds(run, device) for run in cases.values()] for _ in range(repeats)]
    finally:
        torch.set_num_threads(threads_before)
    return pd.DataFrame(1000 * np.array(seconds), columns=list(cases))


def summary(ms: pd.DataFrame, threads: int = 1, device: str = "cpu") -> pd.DataFrame:
    """Medians and quartiles of `rounds`, as `interleaved` returns them."""
    q1, median, q3 = np.quantile(ms, [0.25, 0.5, 0.75], axis=0)
    clock = "CPU time" if device == "cpu" else "wall time"
    return pd.DataFrame(
        {"case": ms.columns, "ms_median": median, "ms_q1": q1, "ms_q3": q3}
        | {"repeats": len(ms), "threads": threads, "clock": clock}
    )


def speed_ups(ms: pd.DataFrame, baseline: str, name: str) -> dict[str, np.ndarray]:
    """The baseline's time over that of each case in the same round: median and quartiles, as columns of `summary`."""
    ratios = ms[[baseline]].to_numpy() / ms.to_numpy()
    q1, median, q3 = np.quantile(ratios, [0.25, 0.5, 0.75], axis=0)
    return {name: median, f"{name}_q1": q1, f"{name}_q3": q3}


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


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: object) -> int:
    """Memory that a case adds at its peak, in a process of its own; -1 where the system does not tell.

    `prepare(*arguments)` returns what to run; inputs, weights, masks and plans count too. It must be importable, and
    so must its arguments.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure_peak, args=(sender, prepare, arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"the process that measured {prepare.__name__}{arguments} died") from None
    finally:
        child.join()


def _measure_peak(
    sender: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    torch.ones(8, 8) @ torch.ones(8, 8)  # torch's own buffers do not count
    before = _reset_peak()
    prepare(*arguments)()
    sender.send(max(0, _peak() - before) if before >= 0 else -1)


def _reset_peak() -> int:
    """Start the peak of this process anew; return its memory now, in bytes, or -1."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return -1
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def check_device(device: str) -> None:
    """Raise `HAELabError` unless the device is known and there."""
    require_name("device", device, ("cpu", "cuda"))
    require(device == "cpu" or torch.cuda.is_available(), "no CUDA device is available here: take the device cpu")


def environment(device: str = "cpu") -> dict[str, str]:
    """What a measurement depends on: device, its name, system and versions."""
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
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


# one denoising step of models side by side


def latency(
    models: Mapping[str, HAEConfig | nn.Module],
    *,
    batch: int = 1,
    repeats: int = 7,
    threads: int = 1,
    device: str = "cpu",
) -> pd.DataFrame:
    """Time of one forward pass in eval mode, a row a model; repeats are interleaved over the models.

    Configs are built with seed 0; modules need an HAEConfig in `.config`, and stay in the mode they were in.
    Columns: case, ms_median, ms_q1, ms_q3, repeats, threads, clock, params, batch, and the device with its versions.
    Raises `HAELabError` for no models, a module without a config, or a device that is not there.
    """
    require(len(models) > 0, 'name at least one model, for example {"v2": hae_lab.config("v2", "lesson16")}')
    check_device(device)
    built = {name: build(model) if isinstance(model, HAEConfig) else model for name, model in models.items()}
    modes = {name: model.training for name, model in built.items()}
    try:
        cases = {
            name: partial(predict, model.eval().to(device), *step_inputs(config_of(model), batch, device))
            for name, model in built.items()
        }
        rows = interleaved(cases, repeats=repeats, threads=threads, device=device)
    finally:
        for name, model in built.items():
            model.train(modes[name])
    params = [sum(p.numel() for p in model.parameters()) for model in built.values()]
    return rows.assign(params=params, batch=batch, **environment(device))


def predict(model: nn.Module, x: Tensor, timesteps: Tensor) -> Tensor:
    """One forward pass without gradients."""
    with torch.no_grad():
        return model(x, timesteps)
