"""The numbers of a run by name: what each is called, and which way is better; users may add their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hae_lab.parts import Registry


@dataclass(frozen=True)
class Metric:
    """A number that is measured on a trained model.

    `measure(trained, held_out)` gives it for runs that name it in `Experiment.metrics`; the metrics that every run has
    need none.
    """

    title: str
    higher_is_better: bool = False
    axis: str = ""  # its title with what it is a mean of; without it, the title
    measure: Callable[[Any, Any], float] | None = None

    @property
    def label(self) -> str:
        return self.axis or self.title


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "loss": Metric("held-out loss", axis="held-out loss (MSE of the noise)"),
        "swd": Metric("sliced Wasserstein distance"),
        "mmd": Metric("MMD²"),
        "auroc": Metric("AUROC", higher_is_better=True),
        "dice": Metric("Dice", higher_is_better=True),
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
