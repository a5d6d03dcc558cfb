"""`reproduce --full`: the committed studies and lesson models again, from where the last run stopped."""

from collections.abc import Iterator
from pathlib import Path

from hae_lab.audit import clone
from hae_lab.audit.lessons import lessons_minutes, train_lessons
from hae_lab.audit.measured import CURVES
from hae_lab.audit.registry import SLOW_TABLES
from hae_lab.checks import require
from hae_lab.study import Study, committed
from hae_lab.study.store import code_version
from hae_lab.tables import read, write


def studies() -> tuple[Study, ...]:
    """The declared studies, in the order of their files; what they name is trusted, for they are the clone's own.

    Raises `HAELabError` if there are none.
    """
    declared = clone.root() / "studies"
    paths = sorted(declared.glob("*.toml"))
    require(bool(paths), f"no study at {str(declared)!r}")
    return tuple(Study.from_toml(path, trust=True) for path in paths)


def rerun(out: Path, store: Path, workers: int = 2, *, fresh: bool = False) -> Iterator[str]:
    """Run what the store lacks, train the lesson models, write their tables; yields what to tell the user.

    Committed rows that have the key of a planned run count as done, unless all is to be `fresh`. First what each study
    costs, and all together; then the path of each table, which is written when its study is complete.
    Raises `HAELabError` for another `out` than the clone, whose data/ is what `reproduce` reads.
    """
    root = clone.root()
    require(out.resolve() == root.resolve(), f"--full renews the tables of the clone: run it in {str(root)!r}")
    planned = studies()
    if not fresh:
        for study in planned:
            _adopt(study, out / "data", store)
    costs = [study.cost(store, workers) for study in planned]
    yield from map(str, costs)
    lessons = lessons_minutes(workers)
    yield f"lesson models: about {lessons:.2g} minutes, less what an earlier call has done"
    yield f"together: about {sum(cost.minutes or 0 for cost in costs) + lessons:.0f} minutes"
    for study in planned:
        yield from _finish(study, out / "data", store, workers)
    # under the code's name: another model starts anew
    rows = train_lessons(store.parent / "lessons" / code_version(), out / "data" / "checkpoints", workers)
    yield str(write(rows, out / "data" / "lessons.csv"))
    for name, make in SLOW_TABLES.items():
        yield str(write(make(), out / "data" / f"{name}.csv"))


def _adopt(study: Study, data: Path, store: Path) -> None:
    """Put the committed rows of a study into the store, whatever computer they come from."""
    path, curves = data / f"study_{study.name}.csv", data / f"study_{study.name}_curves.csv"
    rows = read(path) if path.exists() else None
    if rows is not None and "key" in rows:  # without keys nobody knows what they are of
        committed.adopt(study, rows, store, read(curves) if curves.exists() else None)


def _finish(study: Study, data: Path, store: Path, workers: int) -> Iterator[str]:
    rows = study.run(store, workers=workers)
    needed = len(study.needed(store))
    require(len(rows) == needed, f"{study.name}: {len(rows)} of {needed} runs are there; its table is left as it was")
    yield str(write(rows, data / f"study_{study.name}.csv"))
    if study.name in CURVES:
        yield str(write(study.curves(store), data / f"study_{study.name}_curves.csv"))
