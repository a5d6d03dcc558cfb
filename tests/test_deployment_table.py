"""What drawing an image takes, from measured rows that stand here by hand."""

import pandas as pd
import pytest

from hae_lab.audit.clone import read_table
from hae_lab.audit.deployment_tables import deployment
from hae_lab.audit.measured import Measured

WAYS = ("torch eager", "onnxruntime", "onnxruntime int8")


def rows_of(preset: str, variant: str, rule: str, ms: tuple[float, ...], device: str = "B") -> list[dict]:
    """A step and a sample in three ways; files of 10, 12 and 4 bytes, processes of 100, 50, 30, times the first ms."""
    return [
        {
            "preset": preset, "variant": variant, "mask_rule": rule, "way": way, "steps": steps, "device_name": device,
            "ms_median": steps * one, "file_bytes": file * ms[0], "process_bytes": process * ms[0],
        }
        for steps in (1, 25)
        for way, one, file, process in zip(WAYS, ms, (10, 12, 4), (100, 50, 30), strict=True)
    ]  # fmt: skip


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        *rows_of("small", "hae", "document", (10, 4, 1)),
        *rows_of("small", "v2", "document", (8, 2, 3)),
        *rows_of("large", "hae", "document", (100, 200, 300)),
        *rows_of("large", "v2", "document_shared", (90, 80, 70)),
        *rows_of("small", "hae", "document", (1, 1, 1), device="C"),
    ]
    found = deployment(Measured(read=lambda name: pd.DataFrame(rows)))
    return found.set_index(["preset", "variant"])


def test_the_faster_way_in_single_precision_counts(table):
    assert table["way"].to_dict() == {
        ("small", "hae"): "onnxruntime", ("small", "v2"): "onnxruntime",
        ("large", "hae"): "torch eager", ("large", "v2"): "onnxruntime",
    }  # fmt: skip
    assert table["ms_median"].tolist() == [4, 2, 100, 80]
    assert table["sample_s"].tolist() == [0.1, 0.05, 2.5, 2.0]
    assert table["images_per_second"].tolist() == pytest.approx([10, 20, 0.4, 0.5])


def test_percents_are_of_hae_in_the_same_preset(table):
    assert table["percent_of_hae_ms"].tolist() == [100, 50, 100, 80]
    assert table["percent_of_hae_file"].tolist() == [100, 80, 100, 90]


def test_bytes_are_those_of_their_way(table):
    assert table.loc[("small", "hae"), "onnx_file_bytes"] == 120
    assert table.loc[("small", "hae"), "int8_file_bytes"] == 40
    assert table.loc[("large", "v2"), ["onnx_process_bytes", "torch_process_bytes"]].tolist() == [4500, 9000]


def test_rows_are_of_one_computer(table):
    assert set(table["device_name"]) == {"B"}


def test_committed_samples_take_as_long_as_their_steps():
    """Of the small models whole samples were timed too: 25 steps, whose weights stay in the cache, and the sampler."""
    rows = read_table("bench_deployment_cpu").set_index(["preset", "variant", "mask_rule", "way", "device_name"])
    steps, samples = rows[rows["steps"] == 1]["ms_median"], rows[rows["steps"] == 25]["ms_median"]
    ratio = samples / (25 * steps.reindex(samples.index))
    assert len(ratio) >= 9
    assert ratio.between(0.7, 1.6).all()


def test_committed_exports_are_the_models():
    rows = read_table("bench_deployment_cpu")
    assert (rows.loc[rows["way"] == "onnxruntime", "largest_difference"] < 1e-3).all()
    trained = rows[rows["loss"].notna()].set_index("way")
    assert (trained.loc["onnxruntime", "loss_percent"].abs() < 0.01).all()
    assert (trained.loc["onnxruntime int8", "loss_percent"] > 0).all()
