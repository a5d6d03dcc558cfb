"""What a kept training state must be: whole to the bit, and of the parts that a run continues from."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from hae_lab.checks import HAELabError, require, require_number, require_whole

PARTS = ("model", "optimizer", "schedule", "ema")
PROGRESS = ("step", "seconds", "curve", "identity")
SHA256 = "sha256"  # of all other parts; a state of version 0.1.0 has none


def with_sha256(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with a hash of its contents, for `check_state`."""
    return {**state, SHA256: _sha256(state)}


def check_state(saved: Any) -> None:
    """Raise `HAELabError` for a state that lacks a part, has another one, or is not what was written."""
    found = sorted(map(str, saved)) if isinstance(saved, Mapping) else [type(saved).__name__]
    wanted = sorted((*PARTS, *PROGRESS))
    whole = set(found) - {SHA256} == set(wanted)
    require(whole, f"it holds {', '.join(found)}, a state holds {', '.join(wanted)}")
    if SHA256 in saved:
        contents = {name: saved[name] for name in saved if name != SHA256}
        require(_sha256(contents) == saved[SHA256], "it is not what was written: its contents have another hash")
    require_whole("its step", saved["step"], 0)
    require_number("its seconds", saved["seconds"], 0)
    curve = saved["curve"]
    points = isinstance(curve, list) and all(isinstance(point, dict) and "step" in point for point in curve)
    finite = points and all(isinstance(x, int | float) and isfinite(x) for point in curve for x in point.values())
    require(finite, "its curve is no list of steps with their numbers")


def check_shapes(saved: Mapping[str, Any], parameters: Sequence[Tensor], schedule: Mapping[str, Any]) -> None:
    """Raise `HAELabError` unless averages and moments are those of these parameters, and the schedule one like this.

    The loaders of torch and diffusers take others without a word.
    """
    shapes = [tuple(each.shape) for each in parameters]
    average = [tuple(each.shape) for each in saved["ema"]["shadow_params"]]
    require(average == shapes, f"its averages are of {len(average)} parameters of other shapes or number")
    moments = saved["optimizer"]["state"]
    # one that the loss does not reach has no moments
    require(set(moments) <= set(range(len(shapes))), f"its optimizer knows {len(moments)} parameters of {len(shapes)}")
    for place, known in moments.items():
        for name in ("exp_avg", "exp_avg_sq"):
            fits = tuple(known[name].shape) == shapes[place]
            require(fits, f"{name} of parameter {place} has shape {tuple(known[name].shape)}")
    lacks = sorted(set(schedule) ^ set(saved["schedule"]))
    require(not lacks, f"its schedule lacks or adds {', '.join(lacks)}")


def _sha256(state: Any) -> str:
    total = sha256()
    for piece in _pieces(state):
        total.update(piece)
    return total.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """A value as bytes: what is equal gives equal bytes, wherever its tensors lie."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)} ".encode()
        yield memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        yield f"map {len(value)} ".encode()
        for name, each in value.items():
            yield repr(name).encode()
            yield from _pieces(each)
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} {len(value)} ".encode()
        for each in value:
            yield from _pieces(each)
    elif isinstance(value, str | int | float | bool | None):
        yield f"{type(value).__name__} {value!r} ".encode()
    else:
        raise HAELabError(f"a state holds tensors, numbers, texts and lists of them, got a {type(value).__name__}")
