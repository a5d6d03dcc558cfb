"""What the committed studies say: differences, the promised order, the slots, and the floor of real images.

Rows are those of `Study.results`; `ms_per_step` is the median time of a training step by variant.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from hae_lab.audit.benchmarks import OUR_LOOP
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.datasets import HELD_OUT
from hae_lab.diffusion.quality import real_floor
from hae_lab.study import statistics

PROMISED = ("hae", "lite", "v2")  # the document's order of quality, best first
WIDE_V2 = "v2, model_channels=20"
Rows = Mapping[str, pd.DataFrame]


def ms_per_step(latency: pd.DataFrame) -> pd.Series:
    """Median milliseconds of a training step by variant, on the first computer of `hae-lab bench training`."""
    return step_times(latency)["ms_median"]


def step_times(latency: pd.DataFrame) -> pd.DataFrame:
    """The rows of our loop by variant, of the first computer that has some."""
    rows = training_steps(latency)
    return rows[rows["device_name"] == rows["device_name"].iloc[0]].set_index("variant")


def training_steps(latency: pd.DataFrame) -> pd.DataFrame:
    """The rows of our loop, a variant and computer each; the others are those of a bare loop."""
    return latency[(latency["benchmark"] == "training") & latency["case"].str.endswith(f", {OUR_LOOP}")]


def comparisons(studies: Rows) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(data, what is held equal, rows with cell, seed and loss) of every comparison of the variants.

    `studies` holds the rows of "variants", "digits", "equal_parameters", the learning curves of "variants_curves" and
    of "digits_curves", and "latency_cpu".
    """
    speed = ms_per_step(studies["latency_cpu"])
    for study, data in (("variants", "phantoms"), ("digits", "digits")):
        yield data, "steps", studies[study]
        curves = studies[f"{study}_curves"]  # without the control, whose faster steps would set the time
        yield data, "compute time", statistics.at_equal_time(curves[curves["cell"].isin(PROMISED)], speed)
    wide = studies["equal_parameters"]
    yield "phantoms", "parameters", wide[wide["cell"].isin(["hae", WIDE_V2])]


def quality_differences(studies: Rows) -> pd.DataFrame:
    """Paired differences of every two variants, by data, by what is held equal and by metric; Holm within each.

    Columns: data, equal, metric, and those of `statistics.paired_differences`.
    """
    parts = [_differences(data, equal, "loss", rows) for data, equal, rows in comparisons(studies)]
    for study, data, metrics in (
        ("variants", "phantoms", ("swd", "mmd", "auroc", "dice")),
        ("digits", "digits", ("swd", "mmd")),
    ):
        parts += [_differences(data, "steps", metric, studies[study]) for metric in metrics]
    return pd.concat(parts, ignore_index=True)


def _differences(data: str, equal: str, metric: str, rows: pd.DataFrame) -> pd.DataFrame:
    found = statistics.paired_differences(rows, metric)
    found.insert(0, "data", data)
    found.insert(1, "equal", equal)
    found.insert(2, "metric", metric)
    return found


def quality_order(studies: Rows) -> pd.DataFrame:
    """Page's test of the promised order HAE, Lite, V2, and how often single seeds show it.

    Columns: data, equal, and those of `statistics.trend` and of `statistics.order_in_single_seeds`.
    """
    frames = []
    for data, equal, rows in comparisons(studies):
        if set(PROMISED) <= set(rows["cell"]):
            tested = statistics.trend(rows, PROMISED)
            single = statistics.order_in_single_seeds(rows, PROMISED).drop(columns=["order", "n_seeds"])
            found = pd.concat([pd.DataFrame(tested), pd.DataFrame(single)], axis=1)
            found.insert(0, "data", data)
            found.insert(1, "equal", equal)
            frames.append(found)
    return pd.concat(frames, ignore_index=True)


def slot_effects(slots: pd.DataFrame) -> pd.DataFrame:
    """What each of the three slots does to the loss, averaged over the other two, paired by seed."""
    return statistics.main_effects(slots, ("regions", "mlp_ratio", "fusion"))


def sample_floor(samples: pd.DataFrame) -> pd.DataFrame:
    """The distances of the drawn samples beside those of 100 random splits of real images into halves as large.

    Columns: metric, samples (what the model reaches), real_mean, real_95 (95th percentile).
    """
    floor = real_floor(phantoms(2 * HELD_OUT, 16, split="held-out").images)
    rows = []
    for metric in ("swd", "mmd"):
        reached = samples[metric].iloc[0]
        splits = pd.Series(floor[metric])
        rows.append((metric, reached, splits.mean(), splits.quantile(0.95)))
    # a difference of near equals: further digits are those of the computer
    return pd.DataFrame(rows, columns=["metric", "samples", "real_mean", "real_95"]).round(5)
