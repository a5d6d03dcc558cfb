"""Masks and plans are real whatever traced first: an eager model gives the same numbers after any tracer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tracer_child import CASES, TRACERS

CHILD = Path(__file__).with_name("tracer_child.py")


def cold_run(tracer: str, path: Path) -> dict[str, list[torch.Tensor]]:
    """What the models of a new process give after the tracer."""
    done = subprocess.run([sys.executable, CHILD, tracer, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> dict[str, list[torch.Tensor]]:
    """The same of a process in which nothing traced."""
    return cold_run("nothing", tmp_path_factory.mktemp("tracers") / "nothing.pt")


@pytest.mark.slow
@pytest.mark.parametrize("tracer", TRACERS)
def test_eager_models_are_right_after(tracer, untouched, tmp_path):
    after = cold_run(tracer, tmp_path / "after.pt")
    assert set(after) == set(CASES)
    for rule, tensors in untouched.items():
        assert float(tensors[0].abs().max()) > 0.1
        for found, right in zip(after[rule], tensors, strict=True):
            assert torch.equal(found, right), rule
