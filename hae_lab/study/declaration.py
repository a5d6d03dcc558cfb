"""A study: a grid of changes x seeds, declared in a few lines, run once, read as tidy tables."""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from hae_lab.checks import HAELabError, require, require_name, require_number, require_whole
from hae_lab.parts import Parts, beside
from hae_lab.sources import source_sha256
from hae_lab.study.grid import MARGIN_PERCENT, Block, Cell, cells, listed_seeds
from hae_lab.study.store import Run, Store
from hae_lab.study.task import TRIAL, TRIALS
from hae_lab.tables import write

if TYPE_CHECKING:
    from hae_lab.study.cost import Cost

STORE = Path("runs/studies.sqlite")
MOST_RUNS = 1_000_000
DECIDED = "decided"


@dataclass(frozen=True, eq=False)
class Study:
    """A grid of changes x seeds.

        Study("slots", {"regions": ["linear", "pooled"], "fusion": ["concat", "mean"]}, seeds=5, fixed={"steps": 300})

    `grid` is a dictionary of lists, of which every combination is a cell, or a list of such dictionaries. Its keys, and
    those of `fixed`, are "variant" (without it, hae) and the fields of `HAEConfig`, of `Recipe` and of `Experiment`
    ("data", "samples", "metrics", ...). `seeds` are a list, or how many from 0 on. `limit` is the most runs that may
    be trained. `trial` names what runs an experiment: a function that takes it and a folder and returns metrics.
    Mask rules, slots, data sets, metrics and trials are names in their registry, "module:name" or "file.py:name".

    A block of the grid may have a `label` for its cells, which may hold fields in braces, `seeds` of its own, a
    `reference`, the only cell that they are compared with (without it, every cell with every other), and `equal` =
    "MACs", "time" or "parameters", which then are those of the reference. `controls` are cells known
    to be worse, by name: fields that change, of the `reference` (without it, the first cell). `margin_percent`
    is the smallest difference of interest, in percent of the second of a pair, for all metrics or as {"loss": 1, ...}.
    With `until="decided"`, `seeds_cap` seeds are the most: as many as `seeds` are added until every comparison of the
    loss is decided.
    Raises `HAELabError` for what no study could be.
    """

    name: str
    grid: Block | list[Block]
    seeds: int | Sequence[int] = 1
    preset: str = "lesson16"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 1000
    trial: str = TRIAL
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    margin_percent: float | Mapping[str, float] = MARGIN_PERCENT
    until: str = ""
    seeds_cap: int | None = None

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and re.fullmatch(r"[\w.-]+", self.name)
        require(bool(named), f"a study's name is letters, digits, '_', '-', '.': it names files; got {self.name!r}")
        object.__setattr__(self, "seeds", listed_seeds(self.seeds))
        object.__setattr__(self, "limit", require_whole("limit", self.limit, 1))
        trial = TRIALS.find(self.trial)
        require(callable(trial), f"trial {self.trial!r} is a function of an experiment and a folder, got {trial!r}")
        self.margins  # noqa: B018
        self.looks  # noqa: B018
        self.cells  # noqa: B018 (made now, so that a mistake shows where the study is declared)
        count = self._count()
        require(count <= MOST_RUNS, f"a study has at most {MOST_RUNS:,} runs, {self.name!r} has {count:,}")

    @classmethod
    def from_toml(cls, path: str | Path, *, trust: bool = False, announce: Callable[[str], None] | None = None) -> Self:
        """The study in a TOML file, whose keys are the fields above; several [[grid]] tables make a list of grids.

            name = "bottleneck"
            seeds = 5
            [fixed]
            steps = 300
            [grid]
            mlp_ratio = [0.25, 1, 4]

        A part "file.py:name" is looked for beside the file. Code that is not the package's runs only with `trust`, and
        `announce` is told its name and place before. Raises `HAELabError`, with the file's name, for a file that is
        missing or holds no study, and for code that nobody trusts.
        """
        require(isinstance(path, str | Path), f"a study is in a file, got {path!r}")

        known: set[str] = set()

        def gate(target: str, place: str) -> None:
            told = f"{target} is code in {place}"
            require(trust, f"{told}: read it, then say trust=True, on the command line --trust")
            if announce is not None and told not in known:
                announce(f"{path}: {told}")
            known.add(told)

        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            for name in values:
                require_name("key", name, [each.name for each in fields(cls)])
            missing = [name for name in ("name", "grid") if name not in values]
            require(not missing, f"a study needs {' and '.join(missing)}")
            with beside(Path(path).resolve().parent, gate):
                return cls(**values)
        except OSError as error:
            raise HAELabError(f"cannot read {str(path)!r}: {error.strerror}") from None
        except ValueError as error:  # bad text, bad TOML, or a HAELabError from above
            raise HAELabError(f"{path}: {error}") from None

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of scikit-learn's `ParameterGrid`."""
        return cells(self.grid, self.fixed, self.preset, self.controls)

    @property
    def margins(self) -> dict[str, float]:
        """The margin of each metric in percent; that of "loss" is for all that are not named."""
        given = self.margin_percent
        named = not isinstance(given, Mapping) or all(isinstance(name, str) for name in given)
        require(named, f"margin_percent is a number, or one for each metric by name, got {given!r}")
        margins = {"loss": MARGIN_PERCENT} | (dict(given) if isinstance(given, Mapping) else {"loss": given})
        checked = {name: require_number("margin_percent", value, 0, low_open=True) for name, value in margins.items()}
        return {name: float(value) for name, value in checked.items()}

    @property
    def looks(self) -> int:
        """How often the study may look at its rows: once, or up to `seeds_cap` seeds."""
        if not self.until:
            require(self.seeds_cap is None, f'seeds_cap is for until="{DECIDED}", got {self.seeds_cap} without it')
            return 1
        require_name("until", self.until, [DECIDED])
        batch = len(listed_seeds(self.seeds))
        cap = require_whole("seeds_cap", self.seeds_cap, batch)
        counted = all(seeds == tuple(range(len(seeds))) for seeds in map(self._seeds, self.cells))
        require(counted and cap % batch == 0, f"seeds_cap is a whole multiple of {batch}, and seeds are how many")
        return cap // batch

    def _count(self) -> int:
        """How many runs there are at the last look."""
        return (
            sum(len(listed_seeds(self.seeds) if cell.seeds is None else cell.seeds) for cell in self.cells) * self.looks
        )

    def _seeds(self, cell: Cell, look: int = 1) -> tuple[int, ...]:
        """The seeds of a cell at a look: as many again as at the first, each time."""
        seeds = listed_seeds(self.seeds) if cell.seeds is None else cell.seeds
        return seeds if look == 1 else tuple(range(look * len(seeds)))

    @property
    def planned(self) -> tuple[Run, ...]:
        """Every run, by cell and seed, named by its parts as they are now; those of the last look."""
        return self.planned_at(self.looks)

    def planned_at(self, look: int) -> tuple[Run, ...]:
        """The runs that a look needs."""
        names = {place: _data_name(*place) for place in dict.fromkeys(map(_data_place, self.cells))}
        sources: dict[int, str] = {}  # by the id of a part, which many cells share
        runs = []
        for cell in self.cells:
            parts = self._parts(cell)
            named = {f"{kind} {name}": part for kind, known in parts.items() for name, part in known.items()}
            sources |= {id(part): source_sha256(part) for part in named.values() if id(part) not in sources}
            hashes = {name: sources[id(part)] for name, part in named.items()}
            data = names[_data_place(cell)]
            runs += [Run(cell, seed, self.trial, data, parts, hashes) for seed in self._seeds(cell, look)]
        return tuple(runs)

    def _parts(self, cell: Cell) -> Parts:
        """The parts of a cell's runs; a trial of the package is part of the code."""
        from hae_lab.diffusion.experiment import parts_of

        trial = {} if TRIALS.is_own(self.trial) else {self.trial: TRIALS.find(self.trial)}
        return parts_of(cell.experiment) | {TRIALS.kind: trial}

    @property
    def declared(self) -> dict[str, Any]:
        """What is declared about all rows: margins, and looks if there may be several."""
        margins = {
            "margin_percent" if name == "loss" else f"margin_percent_{name}": m for name, m in self.margins.items()
        }
        return margins | ({"looks": self.looks} if self.looks > 1 else {})

    def static(self, progress: bool = False) -> pd.DataFrame:
        """A row a cell, nothing trained: cell, data, the fields that vary, params, macs, macs_dense, macs_kept.

        MACs are those of one denoising step of one image, `macs` what our kernel runs; see `profilers.macs`.
        """
        from hae_lab.study import tables

        return tables.static(self.cells, progress)

    def cost(self, store: str | Path = STORE, workers: int = 2, *, retry_failed: bool = False) -> "Cost":
        """How many runs there are, how many are done, and how long the rest takes; `print` it.

        Times a few training steps of cells of which no run has finished yet.
        """
        from hae_lab.study.cost import cost
        from hae_lab.study.runner import checked_workers

        workers = checked_workers(workers)
        with Store(store) as opened:
            return cost(self.name, self.planned, opened, workers, retry_failed)

    def run(
        self,
        store: str | Path = STORE,
        *,
        workers: int = 2,
        backend: str = "local",
        address: str | None = None,
        retry_failed: bool = False,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Run what the store does not hold yet, and return `results`.

        Locally, `workers` processes take a run each, with one thread; `backend="dask"` takes the workers of the
        scheduler at `address`. Runs that are "ok" are never repeated, "failed" ones only with `retry_failed`; what a
        killed driver left behind continues from its checkpoint. Users' parts travel to the workers.
        Raises `HAELabError` for more than `limit` runs, a store that cannot be written or that another driver holds,
        and an unfit cluster.
        """
        from hae_lab.study import runner

        count = self._count()
        most = f"{count:,} runs are more than the limit of study {self.name!r}, {self.limit:,}"
        require(count <= self.limit, most)
        workers = runner.checked_workers(workers, backend, address)
        with Store(store) as opened, opened.held():
            for look in range(1, self.looks + 1):
                runs = self.planned_at(look)
                runner.bring_to_end(self.name, runs, opened, workers, backend, address, retry_failed, progress)
                if self._ends_at(look, store):
                    break
        return self.results(store)

    def needed(self, store: str | Path = STORE) -> tuple[Run, ...]:
        """The runs of the look at which the study ends, or of that which is not complete yet."""
        ended = (look for look in range(1, self.looks) if self._ends_at(look, store))
        return self.planned_at(next(ended, self.looks))

    def _ends_at(self, look: int, store: str | Path) -> bool:
        """Whether a look lacks runs, or decides every comparison."""
        if self.looks == 1:
            return True
        from hae_lab.study import comparisons, tables

        runs = self.planned_at(look)
        rows = tables.results(self.name, self.declared, runs, store)
        return len(rows) < len(runs) or comparisons.all_decided(rows)

    def results(self, store: str | Path = STORE) -> pd.DataFrame:
        """A row a finished run, by cell and seed: study, cell, role, reference, data, the fields that vary, seed,
        margin_percent and looks as declared, the counts of `static`, metrics, key. The same runs give the same table,
        wherever and whenever they ran."""
        from hae_lab.study import tables

        return tables.results(self.name, self.declared, self.needed(store), store)

    def curves(self, store: str | Path = STORE) -> pd.DataFrame:
        """Learning curves of the finished runs, by cell and seed: cell, data, seed, step, loss."""
        from hae_lab.study import tables

        return tables.curves(self.needed(store), store)

    def log(self, store: str | Path = STORE) -> pd.DataFrame:
        """How runs went: a row a run that has ended, with status, seconds, host, versions, traceback."""
        from hae_lab.study import tables

        return tables.log(self.planned, store)

    def export(self, store: str | Path, path: str | Path) -> Path:
        """Write `results` to a .csv or .parquet file, whole or not at all. Raises `HAELabError` for another suffix."""
        return write(self.results(store), path)


def _data_place(cell: Cell) -> tuple[str, int]:
    return cell.experiment.data, cell.experiment.config.image_size


def _data_name(name: str, size: int) -> str:
    """What names the images in a run's key; those of the toolkit are drawn by code that the key covers."""
    from hae_lab.diffusion.data import data_key
    from hae_lab.diffusion.datasets import DATA, load_data

    return name if DATA.is_own(name) else " | ".join(map(data_key, load_data(name, size)))
