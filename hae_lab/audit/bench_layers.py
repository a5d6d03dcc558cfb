"""What `hae-lab bench layers` measures: the time of each layer of V2, against what the computer can do."""

from itertools import product

import pandas as pd

from hae_lab.models import build
from hae_lab.presets import config
from hae_lab.profilers.layer_times import time_by_layer

VARIANT, PRESET, CHANNELS = "v2", "brats128", 64
RULES = ("document", "document_shared")
PASSES = ("forward", "forward + backward")
SMALL_PERCENT = 0.05  # of the time: what takes less and does no multiply-accumulates is summed up, a row a kind
OTHERS = "(others)"
SUMMED = ["calls", "forward_ms", "backward_ms", "ms", "share_percent", "macs", "bytes_moved"]
DROPPED = ["roof_gflops_per_second", "of_roof_percent"]  # follow from other columns


def bench_layers(device: str = "cpu", repeats: int = 5) -> pd.DataFrame:
    """A row a layer of V2 (`brats128` at 64 channels, one image), its own time and the roofline, under two mask rules.

    A denoising step without gradients, in eval mode, and a training step with its dropout. Each model is measured by
    itself, so layers are compared within a model, not models with each other.
    """
    frames = []
    for direction, rule in product(PASSES, RULES):
        model_config = config(VARIANT, PRESET, model_channels=CHANNELS, mask_rule=rule)
        backward = direction != "forward"
        model = build(model_config).train(backward)
        rows = time_by_layer(model, backward=backward, repeats=repeats, device=device).drop(columns=DROPPED)
        size = model_config.image_size
        frames.append(without_small(rows).assign(mask_rule=rule, map=f"{size}x{size}", **{"pass": direction}))
    return pd.concat(frames, ignore_index=True).assign(variant=VARIANT)


def without_small(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `time_by_layer`; small layers without MACs as one row a kind, so that columns sum to as much."""
    small = (rows["macs"] == 0) & (rows["share_percent"] < SMALL_PERCENT)
    sums = rows[small].groupby("kind", sort=False)[SUMMED].sum().reset_index()
    constants = rows.iloc[[0]][rows.columns.difference([*sums.columns, "path", "module", "flops_per_byte"])]
    others = sums.assign(path=OTHERS, module="").merge(constants.assign(gflops_per_second=0.0), how="cross")
    return pd.concat([rows[~small], others], ignore_index=True)[list(rows.columns)]
