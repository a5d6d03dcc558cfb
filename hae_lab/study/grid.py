"""The cells of a study: what a grid of changes may name, the experiments it stands for, and what they are called.

Ordinary cells are the question. Cells at equal cost answer it once more with another length or width, and controls are
cells that are known to be worse than a reference: a study that does not find them could not have found anything.
"""

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from math import prod
from operator import index
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from hae_lab.checks import HAELabError, is_whole, plain, require, require_name, require_seed
from hae_lab.family import FIELDS
from hae_lab.presets import config

if TYPE_CHECKING:
    from hae_lab.diffusion.experiment import Experiment

BASE = ("variant", "preset")
SPEAKING = (*BASE, "mask_rule")  # their values say by themselves what they are
MOST_CELLS, MOST_SEEDS = 10_000, 100_000
FORMAT = re.compile(r"[<>^+ ,]?\d{0,2}(\.\d{1,2})?[a-zA-Z%]?")  # of a number in a label, as ".2f"
MARGIN_PERCENT = 2.0  # the smallest effect of interest of a study that declares none
QUESTION, CONTROL, EQUAL_COST = "question", "control", "equal "  # then what is equal
COSTS = ("MACs", "time", "parameters")  # that a block can hold equal
WORDS = ("label", "seeds", "equal", "reference")  # of a block, about its cells
CONTROL_WORDS = ("seeds", "reference")

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A point of the grid: its label, the value of every field that varies in the study, its experiment at seed 0.

    The label leaves `data` out: one model on two data sets is one label. `role` is "question", "control" or, as "equal
    MACs", what is held equal; `reference` is the cell that a control is worse than, whose cost is met, or, in the
    question, the only one that this cell is compared with. `seeds` are its own, if it has some.
    """

    label: str
    values: Mapping[str, Any]
    experiment: "Experiment"
    role: str = QUESTION
    reference: str = ""
    seeds: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.label} on {self.experiment.data}" if "data" in self.values else self.label


@dataclass(frozen=True)
class Point:
    """A cell before its experiment is made: the fields that it names, and the words of its block."""

    fields: Mapping[str, Any]
    label: str = ""  # may hold fields in braces
    role: str = QUESTION
    reference: str = ""
    seeds: tuple[int, ...] | None = None


def cells(
    grid: Block | list[Block],
    fixed: Mapping[str, Any],
    preset: str,
    controls: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Cell, ...]:
    """The cells of a grid (a product of lists, or a list of such products), all with the changes in `fixed`.

    They change `hae` on the preset, unless they name another variant or preset. The `controls`, by name, come last:
    each is its reference's cell, on all of its data sets, with some fields changed. Raises `HAELabError` for an unknown
    field, a size of 0 or above `MOST_CELLS`, two equal cells, two of one name, a reference that is no cell, and, by its
    label, for a cell that no model or recipe could have.
    """
    require(isinstance(preset, str), f"a preset is named by a text, got {preset!r}")
    require(isinstance(fixed, Mapping), f"fixed is a dictionary of fields, got {fixed!r}")
    base = {"variant": "hae", "preset": preset, **fixed}
    points = _points(grid, fixed)
    experiments = [_experiment(base, point.fields) for point in points]
    labels = _labels(points, base, experiments)
    for name, point in _control_points(controls or {}, points, labels):
        points.append(point)
        labels.append(name)
        experiments.append(_experiment(base, point.fields, f"control {name}"))
    names = list(dict.fromkeys(name for point in points for name in point.fields))
    values = [_values(names, base | dict(p.fields), made) for p, made in zip(points, experiments, strict=True)]
    varying = _varying(names, values)
    found = [
        Cell(label, {name: value[name] for name in varying}, made, point.role, point.reference, point.seeds)
        for label, value, made, point in zip(labels, values, experiments, points, strict=True)
    ]
    _require_different(found)
    return tuple(found)


def listed_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds from a number of them, or from a list, in order. Raises `HAELabError` for anything else."""
    asked, seeds = seeds, range(index(seeds)) if is_whole(seeds) else seeds
    listed = isinstance(seeds, list | tuple | range) or (isinstance(seeds, np.ndarray) and seeds.ndim == 1)
    some = list(islice(seeds, MOST_SEEDS + 1)) if listed else []
    require(len(some) <= MOST_SEEDS, f"a study has at most {MOST_SEEDS:,} seeds, got {reprlib.repr(asked)}")
    right = len(some) > 0 and all(is_whole(seed) and seed >= 0 for seed in some)
    found = {require_seed("a seed", seed) for seed in some} if right else set()
    require(
        len(found) == len(some) > 0,
        f"seeds are how many, from 1 on, or a list of different whole numbers from 0; got {reprlib.repr(asked)}",
    )
    return tuple(sorted(found))


# points


def _points(grid: Block | list[Block], fixed: Mapping[str, Any]) -> list[Point]:
    from sklearn.model_selection import ParameterGrid

    _require_fields(fixed)
    blocks = [_block(block, fixed) for block in (grid if isinstance(grid, list | tuple) else [grid])]
    size = sum(prod(map(len, block.values())) for block, _ in blocks if block)
    require(
        size > 0, f"a grid of size 0: each field needs a value, for example {{'variant': ['hae', 'v2']}}; got {grid}"
    )
    require(size <= MOST_CELLS, f"a grid of {size:,} cells; the most is {MOST_CELLS:,}: split it into several studies")
    # ParameterGrid sorts the fields; labels name them in the order of the declaration
    return [
        Point({name: point[name] for name in block}, **words)
        for block, words in blocks
        for point in ParameterGrid(block)
    ]


def _block(block: Any, fixed: Mapping[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The lists of a block, and its words."""
    require(isinstance(block, Mapping), f"a grid is a dictionary of lists, or a list of such, got {block!r}")
    lists = {name: value for name, value in block.items() if name not in WORDS}
    _require_fields(lists, WORDS)
    words = _words({name: value for name, value in block.items() if name in WORDS})
    both = [name for name in lists if name in fixed and "role" not in words]  # another cost is another length or width
    require(not both, f"{', '.join(both)} cannot be both in the grid and fixed")
    return {name: _listed(name, values) for name, values in lists.items()}, words


def _words(words: dict[str, Any]) -> dict[str, Any]:
    """What a block says about its cells, as a `Point` keeps it."""
    for name in ("label", "reference"):
        require(isinstance(words.get(name, ""), str), f"{name} is a text, got {words.get(name)!r}")
    if "seeds" in words:
        words["seeds"] = listed_seeds(words["seeds"])
    if "equal" in words:
        require("reference" in words, f"cells at equal {words['equal']} need a reference: the cell whose they are")
        require_name("equal", words["equal"], COSTS)
        words["role"] = EQUAL_COST + words.pop("equal")
    return words


def _listed(name: str, values: Any) -> list[Any]:
    if hasattr(values, "tolist"):  # an array
        values = values.tolist()
    require(isinstance(values, list | tuple | range), f"the grid needs a list of values for {name}, got {values!r}")
    some = list(islice(values, MOST_CELLS + 1))
    require(len(some) <= MOST_CELLS, f"{name} has more values than the {MOST_CELLS:,} cells that a grid may have")
    return [plain(value) for value in some]


def _control_points(
    controls: Mapping[str, Mapping[str, Any]], points: Sequence[Point], labels: Sequence[str]
) -> Iterator[tuple[str, Point]]:
    """Name and point of each control, on every data set of its reference."""
    require(isinstance(controls, Mapping), f"controls are named dictionaries of fields, got {controls!r}")
    labelled = list(zip(labels, points, strict=True))  # as they are without controls
    for label, point in labelled:
        if point.reference:
            require_name(f"reference of {label}", point.reference, list(dict.fromkeys(labels)))
    for name, control in controls.items():
        require(isinstance(name, str), f"a control is named by a text, got {name!r}")
        require(isinstance(control, Mapping), f"control {name} is a dictionary of fields, got {control!r}")
        changes = {field: value for field, value in control.items() if field not in CONTROL_WORDS}
        _require_fields(changes, CONTROL_WORDS)
        require(len(changes) > 0 and "data" not in changes, f"control {name} changes fields other than data")
        reference = control.get("reference", labels[0])
        require_name(f"reference of control {name}", reference, list(dict.fromkeys(labels)))
        seeds = listed_seeds(control["seeds"]) if "seeds" in control else None
        for label, point in labelled:
            if label == reference:
                yield name, Point({**point.fields, **changes}, name, CONTROL, reference, seeds)


def _require_fields(names: Iterable[str], words: Sequence[str] = ()) -> None:
    from hae_lab.diffusion.training import RECIPE_FIELDS

    for name in names:
        require_name("study field", name, (*BASE, *FIELDS, *RECIPE_FIELDS, *_own_fields(), *words))


def _own_fields() -> tuple[str, ...]:
    """The fields of an experiment beside its config, its recipe and its seed."""
    from hae_lab.diffusion.experiment import Experiment

    return tuple(field.name for field in fields(Experiment) if field.name not in ("config", "recipe", "seed"))


# experiments, values, labels


def _experiment(base: Mapping[str, Any], point: Mapping[str, Any], name: str = "") -> "Experiment":
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
        raise HAELabError(f"{name or f'cell {_label(point)}'}: {error}") from None


def _values(names: Iterable[str], settings: Mapping[str, Any], experiment: "Experiment") -> dict[str, Any]:
    """What each field is in a cell, whether the cell names it or not."""
    homes = (experiment.config, experiment.recipe, experiment)
    return {
        name: settings[name] if name in BASE else next(getattr(home, name) for home in homes if hasattr(home, name))
        for name in names
    }


def _varying(names: Iterable[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in names if len({value[name] for value in values}) > 1]


def _labels(points: Sequence[Point], base: Mapping[str, Any], experiments: Sequence["Experiment"]) -> list[str]:
    """The name that its block gives a cell, else the fields that it names and that vary over the grid."""
    names = list(dict.fromkeys(name for point in points for name in point.fields))
    settings = [{**base, **point.fields} for point in points]
    values = [_values(names, own, made) for own, made in zip(settings, experiments, strict=True)]
    varying = _varying(names, values)
    found = []
    for point, own, value in zip(points, settings, values, strict=True):
        if point.label:
            found.append(_filled(point.label, own))
        else:
            named = {name: value[name] for name in varying if name in point.fields}
            found.append(_label(named) or own["variant"])
    return found


def _filled(label: str, settings: Mapping[str, Any]) -> str:
    try:
        for _, name, form, _ in Formatter().parse(label):
            if name is not None and (name not in settings or not FORMAT.fullmatch(form or "")):
                raise KeyError(name)
        return label.format(**settings)
    except (KeyError, IndexError, ValueError, TypeError):
        known = ", ".join(f"{{{name}}}" for name in settings)
        raise HAELabError(f"label {label!r} may hold fields of its cell in braces, here {known}") from None


def _label(values: Mapping[str, Any]) -> str:
    named = (f"{name}={value}" for name, value in values.items() if name != "data" and name not in SPEAKING)
    return ", ".join([*(str(values[name]) for name in SPEAKING if name in values), *named])


def _require_different(found: Iterable[Cell]) -> None:
    made: dict[Experiment, Cell] = {}
    named: dict[tuple[str, str], Cell] = {}
    for cell in found:
        twin = made.setdefault(cell.experiment, cell)
        require(twin is cell, f"the grid holds one experiment twice: {twin} and {cell}")
        namesake = named.setdefault((cell.label, cell.experiment.data), cell)
        require(namesake is cell, f"two cells are called {cell}: give their blocks labels that differ")
