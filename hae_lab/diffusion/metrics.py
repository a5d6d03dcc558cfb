"""The numbers of a run by name: what each is called, and which way is better; users may add their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hae_lab.checks import require, require_number
from hae_lab.parts import Registry

Measure = Callable[[Any, Any], float]  # (trained, held_out)


@dataclass(frozen=True)
class Metric:
    """A number that is measured on a trained model.

    `measure(trained, held_out)`, from `training.Trained` and the held-out data, gives it for runs that name it in
    `Experiment.metrics`; the metrics that every run has need none.
    """

    title: str
    higher_is_better: bool = False
    axis: str = ""  # its title with what it is a mean of; without it, the title
    measure: Measure | None = None

    @property
    def label(self) -> str:
        return self.axis or self.title


@dataclass(frozen=True)
class OnLesions:
    """AUROC or Dice, inside the head, of a model's maps on the lesions of a task."""

    task: str
    number: str

    def __call__(self, trained: Any, held_out: Any) -> float:
        from hae_lab.diffusion.lesions import lesion_scores  # a figure asks for a title, and needs no torch for it

        return lesion_scores(trained, held_out, self.task)[self.number]


@dataclass(frozen=True)
class OnBrains:
    """AUROC or Dice, inside the brain, of a model's maps on lesions of both signs in slices of the average brain."""

    number: str

    def __call__(self, trained: Any, held_out: Any) -> float:
        from hae_lab.diffusion.brain_lesions import mri_scores

        return mri_scores(trained, held_out)["all"][self.number]


def _on_lesions() -> dict[str, Metric]:
    return {
        f"{task}_{number}": Metric(f"{title}, {task} lesions", True, measure=OnLesions(task, number))
        for task in ("dark", "foreign", "shuffled")
        for number, title in (("auroc", "AUROC"), ("dice", "Dice"))
    }


# a user's function alone is one too, with its name for a title
METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "loss": Metric("held-out loss", axis="held-out loss (MSE of the noise)"),
        "swd": Metric("sliced Wasserstein distance"),
        "mmd": Metric("MMD²"),
        "mean_gap": Metric("difference of mean images"),
        "mmd_matched": Metric("MMD² with the right mean and spread"),
        "auroc": Metric("AUROC", higher_is_better=True),
        "dice": Metric("Dice", higher_is_better=True),
        **_on_lesions(),
        "mri_auroc": Metric("AUROC, lesions of both signs in slices", True, measure=OnBrains("auroc")),
        "mri_dice": Metric("Dice, lesions of both signs in slices", True, measure=OnBrains("dice")),
    },
)


def metric_title(name: str) -> str:
    """The title of a metric; any other name is its own."""
    return METRICS[name].title if name in METRICS else name


def metric_label(name: str) -> str:
    """What an axis that shows a metric says; any other name is its own."""
    return METRICS[name].label if name in METRICS else name


def higher_is_better(name: str) -> bool:
    """Of a metric that nobody knows, lower is better."""
    return name in METRICS and METRICS[name].higher_is_better


def column_name(name: str) -> str:
    """The column of a metric: of "file.py:sharpness" it is "sharpness"."""
    return name.rpartition(":")[2]


def measure_of(name: str) -> Measure:
    """What measures a metric that an experiment names. Raises `HAELabError` if there is nothing."""
    found: Any = METRICS.find(name)
    measure = found.measure if isinstance(found, Metric) else found
    require(measure is not None, f"metric {name!r} is measured anyway, where it makes sense: leave it out of metrics")
    require(callable(measure), f"metric {name!r} is a function of (trained, held_out), got {measure!r}")
    return measure


def measured(name: str, trained: Any, held_out: Any) -> float:
    """A metric's value. Raises `HAELabError` for one that is no finite number."""
    value = measure_of(name)(trained, held_out)
    value = value.item() if hasattr(value, "item") else value  # of a tensor or array with one number
    return float(require_number(f"metric {name!r}", value))
