"""`reproduce --full`: the committed studies and lesson models again, from where the last run stopped."""

from collections.abc import Iterator
from pathlib import Path

from hae_lab.errors import require
from hae_lab.lessons import train_lessons
from hae_lab.reproduce import write_table
from hae_lab.study import Study

DECLARED = Path(__file__).parent.parent / "studies"
CURVES = ("variants", "digits")  # studies whose learning curves are kept


def studies() -> tuple[Study, ...]:
    """The declared studies, in the order of their files. Raises `HAELabError` if there are none."""
    paths = sorted(DECLARED.glob("*.toml"))
    require(bool(paths), f"no study at {str(DECLARED)!r}: run this in a clone of the repository")
    return tuple(Study.from_toml(path) for path in paths)


def rerun(out: Path, store: Path, workers: int = 2) -> Iterator[Path]:
    """Say what each study costs, run what the store lacks, train the lesson models; yield the paths written."""
    planned = studies()
    for study in planned:
        print(study.cost(store, workers))
    for study in planned:
        rows = study.run(store, workers=workers)
        complete = len(rows) == len(study.planned)
        require(complete, f"{study.name}: {len(rows)} of {len(study.planned)} runs are there; data/ is left as it was")
        yield write_table(rows, out / "data" / f"study_{study.name}.csv")
        if study.name in CURVES:
            yield write_table(study.curves(store), out / "data" / f"study_{study.name}_curves.csv")
    lessons = train_lessons(store.parent / "lessons", out / "data" / "checkpoints", workers)
    yield write_table(lessons, out / "data" / "lessons.csv")
