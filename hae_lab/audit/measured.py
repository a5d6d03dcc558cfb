"""What was measured before: the tables of `hae-lab bench` and of the committed studies, by name, read when needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from hae_lab.audit.clone import read_table

CURVES = ("variants", "digits")  # studies whose learning curves are kept


def _table(name: str) -> cached_property[pd.DataFrame]:
    return cached_property(lambda measured: measured.read(name))


@dataclass(frozen=True)
class Measured:
    """The measured tables as attributes, each read when it is first asked for; `read` gives a table by its file's name.

    Raises `HAELabError` for a table that is missing.
    """

    read: Callable[[str], pd.DataFrame] = read_table

    bench_masks = _table("bench_masks_cpu")
    bench_attention = _table("bench_attention_cpu")
    bench_model = _table("bench_model_cpu")
    bench_training = _table("bench_training_cpu")
    variants = _table("study_variants")
    variants_curves = _table("study_variants_curves")
    digits = _table("study_digits")
    digits_curves = _table("study_digits_curves")
    equal_parameters = _table("study_equal_parameters")
    slots = _table("study_slots")
    samples = _table("study_samples")


def of_one_computer(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one computer; of several, that whose name comes first in the alphabet."""
    return rows[rows["device_name"] == rows["device_name"].min()]
