"""Timing and memory: what the harness records. No test asserts on seconds."""

from functools import partial

import numpy as np
import pytest
import torch

from hae_lab import HAELabError
from hae_lab.profilers import timing


def test_cases_are_interleaved_after_a_warm_up():
    calls = []
    rows = timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert rows["case"].tolist() == ["a", "b"]
    assert (rows["ms_q1"] <= rows["ms_median"]).all()
    assert (rows["ms_median"] <= rows["ms_q3"]).all()


def test_milliseconds_are_the_quartiles_of_what_the_clock_says(monkeypatch):
    """A clock that only the cases move: five rounds after one to warm up, out of order."""
    now = [0.0]
    seconds = {"skewed": iter([9.9, 0.004, 0.001, 0.010, 0.002, 0.003]), "steady": iter([9.9, *[0.1] * 5])}

    def case(name):
        now[0] += next(seconds[name])

    monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
    rows = timing.interleaved({name: partial(case, name) for name in seconds}, repeats=5).set_index("case")
    assert rows.loc["skewed", ["ms_q1", "ms_median", "ms_q3"]].tolist() == pytest.approx([2, 3, 4])
    assert rows.loc["steady", ["ms_q1", "ms_median", "ms_q3"]].tolist() == pytest.approx([100, 100, 100])
    assert rows["clock"].tolist() == ["CPU time"] * 2


@pytest.mark.parametrize("name", ["repeats", "threads"])
def test_counts_that_measure_nothing_are_refused(name):
    with pytest.raises(HAELabError, match=f"{name} is a whole number from 1, got 0"):
        timing.interleaved({"a": lambda: None}, **{name: 0})


def test_the_number_of_threads_is_restored_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        timing.interleaved({"fails": lambda: 1 / 0}, threads=before + 1)
    assert torch.get_num_threads() == before


def allocate(megabytes: int):
    return lambda: np.ones(megabytes * 2**20, np.uint8)


def fail():
    raise ZeroDivisionError


def test_peak_memory_is_that_of_the_case_alone():
    if timing.peak_bytes(allocate, 1) == -1:
        pytest.skip("this system does not tell the peak memory of a process")
    small, large = timing.peak_bytes(allocate, 20), timing.peak_bytes(allocate, 120)
    assert large - small == pytest.approx(100 * 2**20, rel=0.1)


def test_a_case_that_dies_is_named(capfd):
    with pytest.raises(RuntimeError, match=r"fail\(\) died"):
        timing.peak_bytes(fail)


def test_environment_names_device_system_and_versions():
    environment = timing.environment()
    assert environment["device"] == "cpu"
    assert environment["torch"] == torch.__version__
    assert all(environment.values())
