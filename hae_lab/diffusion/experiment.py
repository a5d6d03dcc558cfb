"""One run: which model, on which images, trained how, measured how. All of it is data that survives JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from torch.utils.data import Dataset

from hae_lab.config import HAEConfig
from hae_lab.diffusion.data import check_whole, digits, phantoms, split_dataset
from hae_lab.diffusion.training import Recipe, train
from hae_lab.errors import HAELabError, require, require_name

HELD_OUT = 256  # images


def _phantom_pair(size: int) -> tuple[Dataset, Dataset]:
    return phantoms(4000, size), phantoms(HELD_OUT, size, split="held-out")


def _digit_pair(size: int) -> tuple[Dataset, Dataset]:
    """The held-out fifth of the digits; 359 images."""
    return split_dataset(digits(size))


# name -> function of the image size that returns (train, held-out)
DATA: dict[str, Callable[[int], tuple[Dataset, Dataset]]] = {"phantoms": _phantom_pair, "digits": _digit_pair}


def load_data(name: str, size: int) -> tuple[Dataset, Dataset]:
    """(train, held-out) by name: one of `DATA`, or "module:function", called with the image size.

    Raises `HAELabError` for an unknown name or a function that cannot be imported.
    """
    if ":" not in name:
        require_name("data set", name, DATA)
        return DATA[name](size)
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)(size)
    except (ImportError, AttributeError) as error:
        raise HAELabError(f"data={name!r} names no function that can be imported here: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Model, data, recipe and seed of one run, and what to measure on it.

    `data` is a name for `load_data`; `samples` images are drawn at the end (0: none, and no sample metrics).
    """

    config: HAEConfig
    recipe: Recipe = field(default_factory=Recipe)
    data: str = "phantoms"
    seed: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, None)
        check_whole("samples", self.samples, 0, None)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        config, recipe = HAEConfig.from_json(json.dumps(values.pop("config"))), Recipe(**values.pop("recipe"))
        return cls(config=config, recipe=recipe, **values)


def run(experiment: Experiment, folder: str | Path | None = None, progress: bool = False) -> dict[str, Any]:
    """Train and measure; the metrics as plain numbers, the learning curve as a list under "curve".

    With a `folder`, a killed run continues where its last checkpoint was, and ends with the same numbers.
    """
    raise NotImplementedError
