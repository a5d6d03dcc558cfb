"""What training needs of memory: what autograd saves, module by module, and the peaks, without allocating any of it.

A training step is followed on the meta device (`profilers.steps`), storage by storage, so views and shared tensors
count once. Bytes are those of tensors: what a library takes for itself inside an operator, such as oneDNN's copy of
what a convolution reads, is not seen.

On a CPU the resident memory of a process is about 1.3 times the peak here. Two thirds of the difference are holes that
freed tensors leave in the heap: if the C library gives each block back at once (glibc: MALLOC_MMAP_THRESHOLD_=65536 and
MALLOC_TRIM_THRESHOLD_=0), the factor is 1.13 (V2 of `brats128` at 32 channels: 393, then 322 MB, for 284). The rest
stays with oneDNN and without it; it is what convolutions take inside an operator, and whole pages.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from hae_lab.family import HAEConfig
from hae_lab.profilers.steps import LOSS, Loss, Optimizer, Step, inference_step, prepare, training_step

COLUMNS = [
    "path", "module", "calls", "params_bytes", "buffers_bytes", "gradients_bytes", "optimizer_bytes", "saved_bytes",
    "share_percent", "peak_bytes",
]  # fmt: skip


def training_memory(
    config_or_module: HAEConfig | nn.Module,
    *,
    batch: int = 1,
    inputs: Any = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = torch.optim.AdamW,
) -> pd.DataFrame:
    """A row for each module that holds something in training; every column of bytes sums to the model's.

    Columns: path, module, calls; params_bytes, buffers_bytes, gradients_bytes, optimizer_bytes (its state); saved_bytes
    (what autograd keeps from forward to backward, with the module that saved it first) and share_percent of it;
    peak_bytes (activations, gradients and temporary tensors that are there when the step holds most). The loss has a
    row of its own. Arguments are those of `steps.prepare` and `steps.training_step`, and so are the errors.
    """
    model, args, kwargs = prepare(config_or_module, batch, inputs)
    return memory_rows(training_step(model, args, kwargs, loss=loss, optimizer=optimizer))


def memory_totals(
    config_or_module: HAEConfig | nn.Module,
    *,
    batch: int = 1,
    inputs: Any = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = torch.optim.AdamW,
) -> pd.Series:
    """What a model needs at once, in bytes.

    params_bytes, buffers_bytes, inputs_bytes, gradients_bytes, optimizer_bytes, saved_bytes as in `training_memory`;
    forward_peak_bytes: activations of a forward pass without gradients, when it holds most; step_peak_bytes: what a
    training step takes when it holds most; training_peak_bytes: with parameters, buffers, inputs and optimizer state.
    """
    model, args, kwargs = prepare(config_or_module, batch, inputs)
    inference = inference_step(model, args, kwargs)
    return totals_of(training_step(model, args, kwargs, loss=loss, optimizer=optimizer, warm=False), inference)


def totals_of(step: Step, inference: Step) -> pd.Series:
    """The totals of a training step and of a forward pass that were followed."""
    totals = {
        "params_bytes": _bytes(step.model.parameters()),
        "buffers_bytes": _bytes(step.model.buffers()),
        "inputs_bytes": step.inputs_bytes,
        "optimizer_bytes": sum(step.optimizer_bytes.values()),
        "gradients_bytes": sum(step.gradients.values()),
        "saved_bytes": sum(storage.bytes for storage in step.kept()),
        "forward_peak_bytes": sum(storage.bytes for storage in inference.alive_at_peak()),
        "step_peak_bytes": sum(storage.bytes for storage in step.alive_at_peak()),
    }
    there = ("params_bytes", "buffers_bytes", "inputs_bytes", "optimizer_bytes", "step_peak_bytes")
    return pd.Series(totals | {"training_peak_bytes": sum(totals[name] for name in there)})


def memory_rows(step: Step) -> pd.DataFrame:
    """`training_memory` of a step that was followed."""
    columns = {
        "params_bytes": _owned(step.model.named_parameters()),
        "buffers_bytes": _owned(step.model.named_buffers()),
        "gradients_bytes": _by_owner(step.gradients),
        "optimizer_bytes": _by_owner(step.optimizer_bytes),
        "saved_bytes": _by_path(step.kept()),
        "peak_bytes": _by_path(step.alive_at_peak()),
    }
    calls = Counter(call.path for call in step.calls)
    kinds = {path: type(module).__name__ for path, module in step.model.named_modules()} | {LOSS: "loss"}
    rows = [
        {"path": path, "module": kind, "calls": calls[path]}
        | {name: sizes.get(path, 0) for name, sizes in columns.items()}
        for path, kind in kinds.items()
        if any(sizes.get(path) for sizes in columns.values())
    ]
    frame = pd.DataFrame(rows)
    frame["share_percent"] = 100 * frame["saved_bytes"] / max(1, frame["saved_bytes"].sum())
    return frame[COLUMNS]


def _owned(tensors: Iterator[tuple[str, Tensor]]) -> Counter[str]:
    return _by_owner({name: tensor.nbytes for name, tensor in tensors})


def _by_owner(sizes: dict[str, int]) -> Counter[str]:
    """Bytes by the name of a parameter -> bytes by the path of its module."""
    owners: Counter[str] = Counter()
    for name, size in sizes.items():
        owners[name.rpartition(".")[0]] += size
    return owners


def _by_path(storages: list[Any]) -> Counter[str]:
    paths: Counter[str] = Counter()
    for storage in storages:
        paths[storage.path] += storage.bytes
    return paths


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
