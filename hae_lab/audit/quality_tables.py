"""What the committed studies say: differences, the promised order, the slots, and the floor of real images.

Rows are those of `Study.results`; `ms_per_step` is the median time of a training step by variant.
"""

from collections.abc import Iterator

import pandas as pd

from hae_lab.audit.benchmarks import OUR_LOOP
from hae_lab.audit.measured import Measured, of_one_computer
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.quality import real_floor
from hae_lab.presets import DOCUMENT, SLOTS
from hae_lab.study import statistics

SAMPLES = 256  # that the study of samples draws
WIDE_V2 = "v2, model_channels=20"  # the cell of the study of equal parameters


def ms_per_step(bench_training: pd.DataFrame) -> pd.Series:
    """Median milliseconds of a training step by variant, on one computer of `hae-lab bench training`."""
    return step_times(bench_training)["ms_median"]


def step_times(bench_training: pd.DataFrame) -> pd.DataFrame:
    """The rows of our loop by variant, of one computer."""
    return of_one_computer(training_steps(bench_training)).set_index("variant")


def training_steps(bench_training: pd.DataFrame) -> pd.DataFrame:
    """The rows of our loop, a variant and computer each; the others are those of a bare loop."""
    return bench_training[bench_training["way"] == OUR_LOOP]


def comparisons(measured: Measured) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(data, what is held equal, rows with cell, seed and loss) of every comparison of the variants."""
    speed = ms_per_step(measured.bench_training)
    for data, rows, curves in (
        ("phantoms", measured.variants, measured.variants_curves),
        ("digits", measured.digits, measured.digits_curves),
    ):
        yield data, "steps", rows
        # without the control, whose faster steps would set the time
        yield data, "compute time", statistics.at_equal_time(curves[curves["cell"].isin(DOCUMENT)], speed)
    wide = measured.equal_parameters
    yield "phantoms", "parameters", wide[wide["cell"].isin(["hae", WIDE_V2])]


def quality_differences(measured: Measured) -> pd.DataFrame:
    """Paired differences of every two variants, by data, by what is held equal and by metric; Holm within each.

    Columns: data, equal, metric, and those of `statistics.paired_differences`.
    """
    parts = [_differences(data, equal, "loss", rows) for data, equal, rows in comparisons(measured)]
    for data, rows, metrics in (
        ("phantoms", measured.variants, ("swd", "mmd", "auroc", "dice")),
        ("digits", measured.digits, ("swd", "mmd")),
    ):
        parts += [_differences(data, "steps", metric, rows) for metric in metrics]
    return pd.concat(parts, ignore_index=True)


def _differences(data: str, equal: str, metric: str, rows: pd.DataFrame) -> pd.DataFrame:
    found = statistics.paired_differences(rows, metric)
    found.insert(0, "data", data)
    found.insert(1, "equal", equal)
    found.insert(2, "metric", metric)
    return found


def quality_order(measured: Measured) -> pd.DataFrame:
    """Page's test of the promised order HAE, Lite, V2, and how often single seeds show it.

    Columns: data, equal, and those of `statistics.trend` and of `statistics.order_in_single_seeds`.
    """
    frames = []
    for data, equal, rows in comparisons(measured):
        if set(DOCUMENT) <= set(rows["cell"]):
            tested = statistics.trend(rows, DOCUMENT)
            single = statistics.order_in_single_seeds(rows, DOCUMENT).drop(columns=["order", "n_seeds"])
            found = pd.concat([pd.DataFrame(tested), pd.DataFrame(single)], axis=1)
            found.insert(0, "data", data)
            found.insert(1, "equal", equal)
            frames.append(found)
    return pd.concat(frames, ignore_index=True)


def slot_effects(slots: pd.DataFrame) -> pd.DataFrame:
    """What each of the three slots does to the loss, averaged over the other two, paired by seed.

    The values of a slot, `first` and `second`, are text: those of one slot are numbers, those of the others words.
    """
    return statistics.main_effects(slots, SLOTS).astype({"first": str, "second": str})


def sample_floor(samples: pd.DataFrame) -> pd.DataFrame:
    """The distances of the drawn samples beside those of 2,000 random splits of real images into halves as large.

    Columns: metric, samples (what the model reaches), real_mean, real_95 (95th percentile).
    """
    floor = real_floor(phantoms(2 * SAMPLES, 16, split="held-out").images)
    rows = []
    for metric in ("swd", "mmd"):
        reached = samples[metric].item()  # the study is one run
        splits = pd.Series(floor[metric])
        rows.append((metric, reached, splits.mean(), splits.quantile(0.95)))
    # a difference of near equals: further digits are those of the computer
    return pd.DataFrame(rows, columns=["metric", "samples", "real_mean", "real_95"]).round(5)
