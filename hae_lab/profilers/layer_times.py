"""Time by layer, forward and backward, against what this machine can do: a roofline.

Every module's own time is measured in one step: a clock is switched when a call of a module begins or ends, and when a
node of the autograd graph does, which belongs to the call that made it. What the switching costs is measured too, on
the same step without it, round by round. Beside each time stand the work and the bytes of `profilers.steps`, and the
speed of this machine in products of matrices, convolutions and copies, measured in the same run by the same clock.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab.checks import require, require_whole
from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.models.layers import AttentionBlock, Downsample, Upsample
from hae_lab.profilers.inputs import config_of, step_inputs
from hae_lab.profilers.steps import LOSS, Loss, Marks, Step, inference_step, mean_square, prepare, training_step
from hae_lab.profilers.timing import check_device, environment

Key = tuple[str, str]  # path, "forward" or "backward"
Seconds = dict[Key, float]
Classes = tuple[type[nn.Module], ...]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_ACTIVATIONS = (
    nn.SiLU, nn.ReLU, nn.ReLU6, nn.GELU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Hardswish, nn.Mish,
    nn.PReLU,
)  # fmt: skip
_RESAMPLING = (
    Downsample, Upsample, nn.Upsample, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
# kind of part -> its modules; attention owns all that is inside it
WHOLE_KINDS: dict[str, Classes] = {
    "sparse attention": (SparseMultiheadAttention,), "attention": (AttentionBlock, nn.MultiheadAttention),
}  # fmt: skip
KINDS: dict[str, Classes] = {
    "convolution": _CONVOLUTIONS, "linear": (nn.Linear, nn.Bilinear), "norm": _NORMS, "activation": _ACTIVATIONS,
    "resampling": _RESAMPLING,
}  # fmt: skip
MATRIX_SIDES = (256, 512, 1024)
CONVOLUTIONS = ((128, 64), (256, 64))  # channels, side of the map
COPIED_BYTES = 64 * 2**20


def time_by_layer(
    config_or_module: HAEConfig | nn.Module,
    *,
    batch: int = 1,
    inputs: Any = None,
    loss: Loss | None = None,
    backward: bool = True,
    repeats: int = 5,
    threads: int = 1,
    device: str = "cpu",
) -> pd.DataFrame:
    """A row for each module with time or work of its own, medians over the repeats; the longest first.

    Columns: path, module, kind (convolution, linear, sparse attention, ...), calls, forward_ms, backward_ms, ms and
    share_percent; macs (all that runs, the backward pass included), bytes_moved (inputs and outputs of its operators),
    flops_per_byte, gflops_per_second, roof_gflops_per_second (what the machine allows at that intensity),
    of_roof_percent; the machine's peak_gflops_per_second and gbytes_per_second; step_ms (the step without switching
    clocks) and overhead_percent (how much longer it takes with them); repeats, threads, clock, and the device.

    The loss, and what autograd does between nodes, is a row. `backward=False` times a forward pass without gradients.
    A config is built with seed 0. On a CPU the clock counts CPU time; on a GPU each switch waits for the device.
    Raises `HAELabError` for a model without weights (on meta), missing inputs, and a device that is not there.
    """
    check_device(device)
    repeats = require_whole("repeats", repeats, 1)
    model = build(config_or_module) if isinstance(config_or_module, HAEConfig) else config_or_module
    model, args, kwargs = prepare(model, batch, inputs)
    on_meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    require(
        not on_meta, f"{type(model).__name__} is on the meta device, where nothing takes time: build it on a real one"
    )
    step = (
        training_step(model, args, kwargs, loss=loss, optimizer=None)
        if backward
        else inference_step(model, args, kwargs)
    )
    arguments = _on_device(_real_inputs(model, args, batch) if inputs is None else args, kwargs, device)
    model = model.to(device)
    with _set_aside(model, threads):
        plain, timed = _measure(model, arguments, loss or mean_square, backward, repeats, device)
        gflops, gbytes = machine_limits(device)
    frame = _rows(step, timed).assign(peak_gflops_per_second=gflops, gbytes_per_second=gbytes)
    frame = _against_roof(frame)
    step_ms = 1000 * float(np.median(plain))
    switched = 1000 * float(np.median([sum(times.values()) for times in timed]))
    clock = "CPU time" if device == "cpu" else "wall time"
    frame = frame.assign(step_ms=step_ms, overhead_percent=100 * (switched / step_ms - 1), repeats=repeats)
    return frame.assign(threads=threads, clock=clock, **environment(device))


def machine_limits(device: str = "cpu", repeats: int = 5) -> tuple[float, float]:
    """GFLOP/s of the fastest of some products of matrices and 3 x 3 convolutions, GB/s of the better of copy and triad.

    In single precision. Both kinds of work, for their libraries may differ by a factor of two on one CPU.
    """
    clock = _clock(device)
    products = [2 * side**3 / _best(clock, repeats, _product(side, device)) for side in MATRIX_SIDES]
    convolutions = [
        2 * 9 * (channels * side) ** 2 / _best(clock, repeats, _convolution(channels, side, device))
        for channels, side in CONVOLUTIONS
    ]
    a, b, c = (torch.ones(COPIED_BYTES // 4, device=device) for _ in range(3))
    copied = 2 * COPIED_BYTES / _best(clock, repeats, lambda: c.copy_(a))
    triad = 3 * COPIED_BYTES / _best(clock, repeats, lambda: torch.add(a, b, alpha=2.0, out=c))
    return max(products + convolutions) / 1e9, max(copied, triad) / 1e9


def _product(side: int, device: str) -> Callable[[], Tensor]:
    matrix = torch.ones(side, side, device=device)
    return lambda: matrix @ matrix


def _convolution(channels: int, side: int, device: str) -> Callable[[], Tensor]:
    x, weight = torch.ones(1, channels, side, side, device=device), torch.ones(channels, channels, 3, 3, device=device)
    return lambda: F.conv2d(x, weight, padding=1)


def time_by_kind(frame: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds, share and work of each kind of part, the longest first; the work that it does in a second."""
    sums = frame.groupby("kind", as_index=False)[
        ["forward_ms", "backward_ms", "ms", "share_percent", "macs", "bytes_moved"]
    ].sum()
    sums["gflops_per_second"] = 2 * sums["macs"] / sums["ms"].where(sums["ms"] > 0) / 1e6
    return sums.sort_values("ms", ascending=False, ignore_index=True)


def kind_of(model: nn.Module, path: str) -> str:
    """The kind of part that a module is, or is inside of."""
    if path == LOSS:
        return "outside"
    names = path.split(".") if path else []
    around = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]
    for kind, classes in WHOLE_KINDS.items():
        if any(isinstance(module, classes) for module in around):
            return kind
    return next((kind for kind, classes in KINDS.items() if isinstance(around[-1], classes)), "other")


# the measurement


class Stopwatch:
    """Charges the time between two switches to the innermost of what is running."""

    def __init__(self, device: str) -> None:
        self.clock = _clock(device)
        self.charged: Seconds = defaultdict(float)
        self.running: list[Key] = []
        self.last = 0.0

    def push(self, key: Key) -> None:
        self._switch()
        self.running.append(key)

    def pop(self) -> None:
        self._switch()
        self.running.pop()

    def _switch(self) -> None:
        now = self.clock()
        if self.running:
            self.charged[self.running[-1]] += now - self.last
        self.last = now


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def _best(clock: Callable[[], float], repeats: int, run: Callable[[], object]) -> float:
    """Seconds of the fastest run; the first warms up."""
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        run()
        seconds.append(clock() - start)
    return max(min(seconds[1:]), 1e-9)


def _measure(
    model: nn.Module, arguments: Any, loss: Loss, backward: bool, repeats: int, device: str
) -> tuple[list[float], list[Seconds]]:
    """Seconds of plain steps, and of each module in steps with a stopwatch, round by round after one to warm up."""
    clock, plain, timed = _clock(device), [], []
    for _ in range(repeats + 1):
        start = clock()
        _plain_step(model, arguments, loss, backward)
        plain.append(clock() - start)
        timed.append(_timed_step(model, arguments, loss, backward, device))
    return plain[1:], timed[1:]


def _plain_step(model: nn.Module, arguments: Any, loss: Loss, backward: bool) -> None:
    args, kwargs = arguments
    with torch.set_grad_enabled(backward):
        output = model(*args, **kwargs)
        if backward:
            loss(output).backward()
    model.zero_grad(set_to_none=True)


def _timed_step(model: nn.Module, arguments: Any, loss: Loss, backward: bool, device: str) -> Seconds:
    args, kwargs = arguments
    watch, marks = Stopwatch(device), Marks(LOSS)
    phase = ["forward"]
    with _watched(model, watch, marks, phase), torch.set_grad_enabled(backward):
        watch.push((LOSS, "forward"))
        output = model(*args, **kwargs)
        if backward:
            scalar = loss(output)
            watch.pop()
            _watch_graph(model, scalar, watch, marks)
            phase[0] = "backward"
            watch.push((LOSS, "backward"))
            scalar.backward()
        watch.pop()
    model.zero_grad(set_to_none=True)
    return watch.charged


@contextmanager
def _watched(model: nn.Module, watch: Stopwatch, marks: Marks[str], phase: list[str]) -> Iterator[None]:
    """Switch the stopwatch at each call of a module, by hooks that are removed in any case."""
    handles = []
    outer = [LOSS]

    def enter(path: str) -> None:
        outer.append(path)
        marks.add(path)
        watch.push((path, phase[0]))

    def leave() -> None:
        watch.pop()
        outer.pop()
        marks.add(outer[-1])

    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: enter(path)))
            handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_graph(model: nn.Module, scalar: Tensor, watch: Stopwatch, marks: Marks[str]) -> None:
    """Switch the stopwatch at each node of a graph; the hooks die with it."""
    owners = {id(parameter): name.rpartition(".")[0] for name, parameter in model.named_parameters()}
    for node in _nodes(scalar.grad_fn):
        path = owners.get(id(node.variable), LOSS) if hasattr(node, "variable") else marks.owner(node)
        node.register_prehook(lambda grads, key=(path, "backward"): watch.push(key))
        node.register_hook(lambda *_: watch.pop())


def _nodes(first: Any) -> Iterable[Any]:
    seen, waiting = {first}, [first]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                waiting.append(node)
    return seen


@contextmanager
def _set_aside(model: nn.Module, threads: int) -> Iterator[None]:
    """Put back what steps change: gradients, buffers, the global random state, the number of threads."""
    before = torch.get_num_threads()
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            model.zero_grad(set_to_none=True)
            yield
    finally:
        torch.set_num_threads(before)
        for parameter, grad in grads:
            parameter.grad = grad
        for buffer, kept in buffers:
            buffer.copy_(kept)


def _real_inputs(model: nn.Module, args: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """A denoising step's arguments with values; labels are all 0."""
    labels = [torch.zeros(batch, dtype=torch.int64) for _ in args[2:]]
    return (*step_inputs(config_of(model), batch, "cpu"), *labels)


def _on_device(args: Any, kwargs: Any, device: str) -> Any:
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        require(not value.is_meta, "the inputs are on the meta device, where nothing takes time: give real tensors")
        return value.to(device)

    return torch.utils._pytree.tree_map(move, (tuple(args), dict(kwargs)))


# the rows


def _rows(step: Step, timed: list[Seconds]) -> pd.DataFrame:
    kinds = {path: type(module).__name__ for path, module in step.model.named_modules()} | {LOSS: "loss and autograd"}
    calls, macs, moved = Counter[str](), Counter[str](), Counter[str]()
    for call in step.calls:
        calls[call.path] += 1
        macs[call.path] += sum(call.macs_by.values())
        moved[call.path] += sum(call.bytes_by.values())
    rows = []
    for path, kind in kinds.items():
        forward, backward = (
            1000 * float(np.median([times.get((path, phase), 0.0) for times in timed]))
            for phase in ("forward", "backward")
        )
        place = {"path": path, "module": kind, "kind": kind_of(step.model, path), "calls": calls[path]}
        times = {"forward_ms": forward, "backward_ms": backward, "ms": forward + backward}
        rows.append(place | times | {"macs": macs[path], "bytes_moved": moved[path]})
    frame = pd.DataFrame(rows)
    frame = frame[(frame["ms"] > 0) | (frame["macs"] > 0)]
    frame.insert(7, "share_percent", 100 * frame["ms"] / frame["ms"].sum())
    return frame.sort_values("ms", ascending=False, ignore_index=True)


def _against_roof(frame: pd.DataFrame) -> pd.DataFrame:
    """Work a second beside what the machine's arithmetic and its memory allow."""
    flops = 2 * frame["macs"]
    intensity = flops / frame["bytes_moved"].where(frame["bytes_moved"] > 0)
    reached = flops / frame["ms"].where(frame["ms"] > 0) / 1e6
    roof = (intensity * frame["gbytes_per_second"]).clip(upper=frame["peak_gflops_per_second"])
    return frame.assign(
        flops_per_byte=intensity,
        gflops_per_second=reached,
        roof_gflops_per_second=roof,
        of_roof_percent=100 * reached / roof.where(roof > 0),
    )
