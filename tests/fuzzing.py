"""What every fuzz test shares: how many cases, and what no case may leave behind."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings

from hae_lab import HAELabError

LONG = float(os.environ.get("HAE_LAB_FUZZ", "1"))  # times as many cases as in the gate; `.ci/full` asks for 6
CPU_SECONDS = 10  # a case that takes longer on the processor hangs, however busy the computer is


def cases(count: int) -> Callable[..., Any]:
    """So many cases, the same ones in every run."""
    return settings(
        max_examples=max(1, round(count * LONG)),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def global_state() -> list[Any]:
    numbers = np.random.get_state()  # noqa: NPY002 (the state that must not change)
    return [
        random.getstate(),
        (numbers[0], numbers[1].tobytes(), *numbers[2:]),
        torch.get_rng_state().numpy().tobytes(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        os.getcwd(),
    ]


@contextmanager
def leaves_nothing(folder: Path | None = None) -> Iterator[None]:
    """No global state changed, no hang, and no half-written file in the folder."""
    before, started = global_state(), time.process_time()
    yield
    assert time.process_time() - started < CPU_SECONDS
    assert global_state() == before
    if folder is not None:
        assert not list(folder.rglob(".*-*"))  # the temporary names of `files.atomic_path`


def refused(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether a call ends in a `HAELabError` that says something, with its text, and else what it returns."""
    try:
        return False, call()
    except HAELabError as error:
        reason = str(error)
    assert len(reason) > 10
    return True, reason


def guarded(test: Callable[..., None]) -> Callable[..., None]:
    """The test with `leaves_nothing` around each case."""

    @wraps(test)
    def checked(*arguments: Any, **named: Any) -> None:
        with leaves_nothing():
            test(*arguments, **named)

    return checked
