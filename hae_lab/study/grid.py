"""The cells of a study: what a grid of changes may name, the experiments it stands for, and what they are called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any

from hae_lab.checks import HAELabError, require, require_name
from hae_lab.family import FIELDS
from hae_lab.presets import config

if TYPE_CHECKING:
    from hae_lab.diffusion.experiment import Experiment

BASE = ("variant", "preset")
SPEAKING = (*BASE, "mask_rule")  # their values say by themselves what they are
MOST_CELLS = 10_000

Block = Mapping[str, Iterable[Any]]


@dataclass(frozen=True)
class Cell:
    """A point of the grid: its label, the value of every field that varies in the study, its experiment at seed 0.

    The label leaves `data` out: one model on two data sets is one label.
    """

    label: str
    values: Mapping[str, Any]
    experiment: "Experiment"

    def __str__(self) -> str:
        return f"{self.label} on {self.experiment.data}" if "data" in self.values else self.label


def cells(grid: Block | list[Block], fixed: Mapping[str, Any], preset: str) -> tuple[Cell, ...]:
    """The cells of a grid (a product of lists, or a list of such products), all with the changes in `fixed`.

    They change `hae` on the preset, unless they name another variant or preset. Raises `HAELabError` for an unknown
    field, a size of 0 or above `MOST_CELLS`, two equal cells, and, by its label, for a cell that no model or recipe
    could have.
    """
    from sklearn.model_selection import ParameterGrid

    blocks = _checked(grid, fixed)
    names = list(dict.fromkeys(name for block in blocks for name in block))
    points = [{name: point[name] for name in names if name in point} for point in ParameterGrid(blocks)]
    base = {"variant": "hae", "preset": preset, **fixed}
    experiments = [_experiment(base, point) for point in points]
    values = [_values(names, base | point, made) for point, made in zip(points, experiments, strict=True)]
    varying = [name for name in names if len({value[name] for value in values}) > 1]
    made: dict[Experiment, Cell] = {}
    for point, value, experiment in zip(points, values, experiments, strict=True):
        label = _label({name: value[name] for name in varying if name in point}) or (base | point)["variant"]
        cell = Cell(label, {name: value[name] for name in varying}, experiment)
        require(experiment not in made, f"the grid holds one experiment twice: {made.get(experiment)} and {cell}")
        made[experiment] = cell
    return tuple(made.values())


def _checked(grid: Block | list[Block], fixed: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    require(isinstance(fixed, Mapping), f"fixed is a dictionary of fields, got {fixed!r}")
    _require_fields(fixed)
    blocks = [_block(block, fixed) for block in (grid if isinstance(grid, list | tuple) else [grid])]
    size = sum(prod(map(len, block.values())) for block in blocks if block)
    require(
        size > 0, f"a grid of size 0: each field needs a value, for example {{'variant': ['hae', 'v2']}}; got {grid}"
    )
    require(size <= MOST_CELLS, f"a grid of {size:,} cells; the most is {MOST_CELLS:,}: split it into several studies")
    return blocks


def _block(block: Any, fixed: Mapping[str, Any]) -> dict[str, list[Any]]:
    require(isinstance(block, Mapping), f"a grid is a dictionary of lists, or a list of such, got {block!r}")
    _require_fields(block)
    both = [name for name in block if name in fixed]
    require(not both, f"{', '.join(both)} cannot be both in the grid and fixed")
    return {name: _listed(name, values) for name, values in block.items()}


def _listed(name: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist"):  # an array
        values = values.tolist()
    require(isinstance(values, list | tuple | range), f"the grid needs a list of values for {name}, got {values!r}")
    return list(values)


def _require_fields(names: Iterable[str]) -> None:
    from hae_lab.diffusion.training import RECIPE_FIELDS

    for name in names:
        require_name("study field", name, (*BASE, *FIELDS, *RECIPE_FIELDS, *_own_fields()))


def _own_fields() -> tuple[str, ...]:
    """The fields of an experiment beside its config, its recipe and its seed."""
    from hae_lab.diffusion.experiment import Experiment

    return tuple(field.name for field in fields(Experiment) if field.name not in ("config", "recipe", "seed"))


def _experiment(base: Mapping[str, Any], point: Mapping[str, Any]) -> "Experiment":
    from hae_lab.diffusion.datasets import DATA
    from hae_lab.diffusion.experiment import Experiment
    from hae_lab.diffusion.training import RECIPE_FIELDS, Recipe

    settings = {**base, **point}
    changes, recipe, own = (
        {name: settings[name] for name in names if name in settings} for names in (FIELDS, RECIPE_FIELDS, _own_fields())
    )
    try:
        if "data" in own:
            DATA.find(own["data"])
        model_config = config(settings["variant"], settings["preset"], **changes)
        return Experiment(config=model_config, recipe=Recipe(**recipe), **own)
    except HAELabError as error:
        raise HAELabError(f"cell {_label(point)}: {error}") from None


def _values(names: Iterable[str], settings: Mapping[str, Any], experiment: "Experiment") -> dict[str, Any]:
    """What each field is in a cell, whether the cell names it or not."""
    homes = (experiment.config, experiment.recipe, experiment)
    return {
        name: settings[name] if name in BASE else next(getattr(home, name) for home in homes if hasattr(home, name))
        for name in names
    }


def _label(values: Mapping[str, Any]) -> str:
    named = (f"{name}={value}" for name, value in values.items() if name != "data" and name not in SPEAKING)
    return ", ".join([*(str(values[name]) for name in SPEAKING if name in values), *named])
