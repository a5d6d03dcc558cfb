"""The benchmark harness: what it records and how it keeps rows. No test asserts on seconds."""

import pandas as pd
import pytest
import torch

from hae_lab import HAELabError
from hae_lab.profilers import latency
from hae_lab.profilers.baselines import document_mask_loop


def test_cases_are_interleaved_after_a_warm_up():
    calls = []
    rows = latency.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert rows["case"].tolist() == ["a", "b"]
    assert (rows["ms_q1"] <= rows["ms_median"]).all()
    assert (rows["ms_median"] <= rows["ms_q3"]).all()


def test_the_number_of_threads_is_restored_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        latency.interleaved({"fails": lambda: 1 / 0}, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.fixture
def quick(monkeypatch):
    def rows(device: str) -> pd.DataFrame:
        return pd.DataFrame({"case": ["slow", "fast"], "ms_median": [8.0, 2.0], "baseline": "slow", "map": "4x4"})

    monkeypatch.setitem(latency.BENCHMARKS, "masks", rows)


def test_speed_up_is_the_ratio_to_the_baseline_and_rows_name_their_device(quick, tmp_path):
    path, rows = latency.bench("masks", tmp_path)
    assert path == tmp_path / "latency_cpu.csv"
    assert rows["speed_up"].tolist() == [1.0, 4.0]
    assert {"device_name", "torch", "python", "system"} <= set(rows.columns)


def test_measuring_again_replaces_the_rows_of_this_device_alone(quick, tmp_path):
    path, _ = latency.bench("masks", tmp_path)
    pd.read_csv(path).assign(device_name="another computer").to_csv(path, index=False)
    latency.bench("masks", tmp_path)
    latency.bench("masks", tmp_path)
    kept = pd.read_csv(path)
    assert kept["device_name"].nunique() == 2
    assert len(kept) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_benchmark_is_named(tmp_path):
    with pytest.raises(HAELabError, match="unknown benchmark 'mask': did you mean 'masks'"):
        latency.bench("mask", tmp_path)


def test_the_baseline_loop_keeps_what_the_document_says():
    blocked = document_mask_loop(100, seed=3)
    keep = int(100 * (1 - 0.9))
    row = torch.arange(100)
    band = (row[:, None] - row).abs() <= keep // 2
    assert not blocked[band].any()
    outside = (~blocked & ~band).sum(1)
    assert outside.max() <= max(1, keep // 4)
    assert outside.sum() > 0
