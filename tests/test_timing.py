"""Timing and memory: what the harness records. No test asserts on seconds."""

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


class Clock:
    """A clock that only runs while a case does, by as many seconds as told, the same ones in every repeat."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        return self.now

    perf_counter = process_time

    def case(self, *seconds: float):
        left = iter(seconds)

        def run() -> None:
            self.now += next(left)

        return run


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_milliseconds_are_those_of_the_clock(monkeypatch, device):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    # the first run of each is the warm-up, and does not count
    cases = {"skewed": clock.case(99, 0.010, 0.500, 0.020, 0.040, 0.030), "steady": clock.case(*[0.007] * 6)}
    rows = timing.interleaved(cases, repeats=5, warmup=1, device=device).set_index("case")
    # sorted: 10, 20, 30, 40, 500 ms
    assert rows.loc["skewed", ["ms_q1", "ms_median", "ms_q3"]].tolist() == pytest.approx([20, 30, 40])
    assert rows.loc["steady", ["ms_q1", "ms_median", "ms_q3"]].tolist() == pytest.approx([7, 7, 7])
    assert set(rows["clock"]) == {"CPU time" if device == "cpu" else "wall time"}
    assert set(rows["repeats"]) == {5}


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
