"""What was measured before: the tables of `hae-lab bench` and of the committed studies, by name, read when needed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from hae_lab.audit import clone
from hae_lab.audit.clone import read_table

T = TypeVar("T")
CURVES = ("variants", "digits", "twins")  # studies whose learning curves are kept


def _table(name: str) -> cached_property[pd.DataFrame]:
    return cached_property(lambda measured: measured.read(name))


@dataclass(frozen=True)
class Measured:
    """The measured tables as attributes, each read when it is first asked for; `read` gives a table by its file's name.

    Raises `HAELabError` for a table that is missing.
    """

    read: Callable[[str], pd.DataFrame] = read_table
    _made: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    bench_masks = _table("bench_masks_cpu")
    bench_attention = _table("bench_attention_cpu")
    bench_model = _table("bench_model_cpu")
    bench_training = _table("bench_training_cpu")
    bench_deployment = _table("bench_deployment_cpu")
    bench_v3 = _table("bench_v3_cpu")
    variants = _table("study_variants")
    slots = _table("study_slots")
    samples = _table("study_samples")

    def once(self, make: Callable[["Measured"], T]) -> T:
        """What a function makes of these measurements, made once and shared: do not change it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    @cached_property
    def studies(self) -> dict[str, pd.DataFrame]:
        """The rows of every committed study, by its name."""
        return {name: self.read(f"study_{name}") for name in study_names()}


def study_names() -> tuple[str, ...]:
    """The committed studies, in the order of their files."""
    found = (path.stem.removeprefix("study_") for path in sorted((clone.root() / "data").glob("study_*.csv")))
    return tuple(name for name in found if not name.endswith("_curves"))


def of_one_computer(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one computer; of several, that whose name comes first in the alphabet."""
    return rows[rows["device_name"] == rows["device_name"].min()]
