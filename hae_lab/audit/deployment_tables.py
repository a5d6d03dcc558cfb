"""What it takes to draw an image on one core, from what `hae-lab bench deployment` measured."""

import pandas as pd

from hae_lab.audit.bench_deployment import EAGER, INT8, ONNX
from hae_lab.audit.measured import Measured, of_one_computer
from hae_lab.diffusion.sampling import STEPS

RANKED = (EAGER, ONNX)  # eight bits are another model
COLUMNS = [
    "preset", "variant", "mask_rule", "way", "ms_median", "sample_s", "images_per_second", "percent_of_hae_ms",
    "onnx_file_bytes", "int8_file_bytes", "percent_of_hae_file", "onnx_process_bytes", "torch_process_bytes",
    "device_name",
]  # fmt: skip


def deployment(measured: Measured) -> pd.DataFrame:
    """A row a model: its faster way in single precision, torch or onnxruntime, on one core, and what that takes.

    ms_median: a denoising step of one image; sample_s and images_per_second: of 25 such steps. Percent of HAE's in the
    same preset under the document's rule, each by its faster way. One computer.
    """
    rows = of_one_computer(measured.bench_deployment)
    steps = rows[rows["steps"] == 1]
    models = steps.groupby(["preset", "variant", "mask_rule"], sort=False)
    table = pd.DataFrame([_row(dict(zip(models.keys, name, strict=True)), group) for name, group in models])
    of_hae = table[table["variant"] == "hae"].set_index("preset")
    for name, percent in (("ms_median", "percent_of_hae_ms"), ("onnx_file_bytes", "percent_of_hae_file")):
        table[percent] = 100 * table[name] / table["preset"].map(of_hae[name])
    return table.assign(device_name=rows["device_name"].iloc[0])[COLUMNS]


def _row(name: dict[str, str], ways: pd.DataFrame) -> dict[str, object]:
    by_way = ways.set_index("way")
    way = by_way.loc[list(RANKED), "ms_median"].idxmin()
    sample_s = STEPS * by_way.loc[way, "ms_median"] / 1000
    return name | {
        "way": way,
        "ms_median": by_way.loc[way, "ms_median"],
        "sample_s": sample_s,
        "images_per_second": 1 / sample_s,
        "onnx_file_bytes": by_way.loc[ONNX, "file_bytes"],
        "int8_file_bytes": by_way.loc[INT8, "file_bytes"],
        "onnx_process_bytes": by_way.loc[ONNX, "process_bytes"],
        "torch_process_bytes": by_way.loc[EAGER, "process_bytes"],
    }
