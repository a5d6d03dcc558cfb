"""What the committed studies say: differences, the promised order, the slots, and the floor of real images.

Rows are those of `Study.results`; `ms_per_step` is the median time of a training step by variant.
"""

from collections.abc import Iterator

import pandas as pd

from hae_lab.audit.benchmarks import OUR_LOOP
from hae_lab.audit.measured import Measured, of_one_computer
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.quality import real_floor
from hae_lab.presets import DOCUMENT, SLOTS, VARIANTS
from hae_lab.study import comparisons, orders, statistics
from hae_lab.study.tables import metric_columns

SAMPLES = 256  # that the study of samples draws


def ms_per_step(bench_training: pd.DataFrame) -> pd.Series:
    """Median milliseconds of a training step by variant, on one computer of `hae-lab bench training`."""
    return step_times(bench_training)["ms_median"]


def step_times(bench_training: pd.DataFrame) -> pd.DataFrame:
    """The rows of our loop by variant, of one computer."""
    return of_one_computer(training_steps(bench_training)).set_index("variant")


def training_steps(bench_training: pd.DataFrame, preset: str = "lesson16") -> pd.DataFrame:
    """The rows of our loop, a variant and computer each; the others are those of a bare loop and of other presets."""
    return bench_training[(bench_training["way"] == OUR_LOOP) & (bench_training["preset"] == preset)]


def quality_differences(measured: Measured) -> pd.DataFrame:
    """Paired differences of every comparison that the studies declare, by study, data, what is held equal and metric.

    Holm within each of these. Of other metrics than the loss, the studies of variants alone. Columns: study, metric,
    and those of `comparisons.differences`.
    """
    parts = []
    for name, rows in measured.studies.items():
        if len(list(compared_families(rows))):
            for metric in _metrics(rows):
                found = comparisons.differences(rows, metric)
                parts.append(found.assign(study=name, metric=metric))
    found = pd.concat(parts, ignore_index=True)
    first = ["study", "data", "equal", "metric"]
    return found[[*first, *(column for column in found.columns if column not in first)]]


def compared_families(rows: pd.DataFrame) -> Iterator[comparisons.Family]:
    """The families of a study in which there is something to compare."""
    return (family for family in comparisons.families(rows) if family.rows["cell"].nunique() > 1)


def _metrics(rows: pd.DataFrame) -> list[str]:
    of_variants = rows["cell"].isin(VARIANTS).any()
    found = [name for name in metric_columns(rows) if name not in statistics.QUARTILES]
    return found if of_variants else ["loss"]


def quality_controls(measured: Measured) -> pd.DataFrame:
    """How much worse each study finds the controls that are known to be worse.

    Columns: study, and those of `comparisons.control_effects`.
    """
    effects = {name: comparisons.control_effects(rows) for name, rows in measured.studies.items()}
    named = [found.assign(study=name)[["study", *found.columns]] for name, found in effects.items()]
    # without the empty ones, whose columns have no types
    return pd.concat([found for found in named if len(found)] or named[:1], ignore_index=True)


def quality_order(measured: Measured) -> pd.DataFrame:
    """Page's test of the promised order HAE, Lite, V2 by the loss, and how often single seeds show it.

    Columns: study, data, equal, controls, and those of `orders.trend` and of `orders.order_in_single_seeds`.
    """
    frames = []
    for name, rows in measured.studies.items():
        for family in compared_families(rows):
            if set(DOCUMENT) <= set(family.rows["cell"]):
                tested = orders.trend(family.rows, DOCUMENT)
                single = orders.order_in_single_seeds(family.rows, DOCUMENT).drop(columns=["order", "n_seeds"])
                labels = {"study": name, "data": family.data, "equal": family.equal}
                labels["controls"] = comparisons.controls_found(rows, family.data)
                frames.append(pd.concat([pd.DataFrame([labels]), tested, single], axis=1))
    return pd.concat(frames, ignore_index=True)


def slot_effects(slots: pd.DataFrame) -> pd.DataFrame:
    """What each of the three slots does to the loss on each data set, averaged over the other two, paired by seed.

    Columns: data, controls (as of `comparisons.differences`), and those of `statistics.main_effects`, Holm within a
    data set. The values of a slot, `first` and `second`, are text: those of one slot are numbers, of the others words.
    """
    parts = []
    for data, here in slots.groupby("data", sort=False):
        found = statistics.main_effects(here, SLOTS).astype({"first": str, "second": str})
        labels = {"data": data, "controls": comparisons.controls_found(here)}
        parts.append(pd.DataFrame(labels, index=found.index).join(found))
    return pd.concat(parts, ignore_index=True)


def sample_floor(samples: pd.DataFrame) -> pd.DataFrame:
    """The distances of the drawn samples beside those of 2,000 random splits of real images into halves as large.

    Columns: metric, samples (what the model reaches), real_mean, and real_05 and real_95, percentiles over the splits:
    a distance should be below real_95, the spread between both. Rows: what the study has measured of these.
    """
    floor = real_floor(phantoms(2 * SAMPLES, 16, split="held-out").images)
    rows = []
    for metric in [name for name in floor if name in samples]:
        reached = samples[metric].item()  # the study is one run
        splits = pd.Series(floor[metric])
        rows.append((metric, reached, splits.mean(), splits.quantile(0.05), splits.quantile(0.95)))
    # a difference of near equals: further digits are those of the computer
    return pd.DataFrame(rows, columns=["metric", "samples", "real_mean", "real_05", "real_95"]).round(5)
