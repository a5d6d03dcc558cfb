"""The table of mutation testing, one row a mutant. `python tests/mutants.py > tests/mutants.md` sums it up."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import NormalDist

TABLE = Path(__file__).parent / "mutants.csv"

HEAD = """# Mutation testing

Small changes of the package, drawn by a seed (`python tests/mutation.py`), and whether the tests notice: a mutant is
killed if a test fails or does not come to an end. `places` of a module can be changed; each mutant changes one of them.
Who lived at first has a note, also where a test was then written for it. The interval is Wilson's, of the share killed
at first: what is killed now is no sample any more, since tests were written for these very mutants. Two to eight are
drawn of a module, small or large, so the last line describes the mutants tried and not the package. Some tests were
written before their mutant was tried; what only such a test kills counts as alive at first, but for `checks`, where
nobody counted. Modules that are not named were not tried. Each mutant stands in [mutants.csv](mutants.csv).
"""


@dataclass(frozen=True)
class Mutant:
    """One change of the `made` places of a module; `note` is why it may live, or the test that was written for it."""

    module: str
    made: int
    line: int
    function: str
    operator: str
    before: str
    after: str
    outcome: str
    note: str

    @property
    def killed(self) -> bool:
        return self.outcome in ("killed", "timeout")

    @property
    def key(self) -> tuple[str, ...]:
        """What stays when lines above it come and go."""
        return self.module, self.function, self.before, self.after

    @property
    def place(self) -> tuple:
        return self.module, self.line, self.operator, self.after


def read(path: Path = TABLE) -> list[Mutant]:
    with path.open(newline="") as file:
        return [Mutant(**row | {"made": int(row["made"]), "line": int(row["line"])}) for row in csv.DictReader(file)]


def write(path: Path, mutants: Sequence[Mutant]) -> None:
    """Not by `hae_lab.tables`: the process that forks for each mutant must not hold the package."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Mutant)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(mutants, key=lambda row: row.place))


def wilson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share that a sample measured. Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * (hits * (count - hits) / count + z * z / 4) ** 0.5
    return centre - half, centre + half


def summary(mutants: Sequence[Mutant]) -> str:
    """Module by module and in all: mutants killed at first, the interval of that share in percent, and killed now."""
    head = "| module | places | tried | killed at first | percent | 95 % interval | killed now |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- |"]
    groups = {name: [one for one in mutants if one.module == name] for name in sorted({one.module for one in mutants})}
    rows = [(f"`{name}`", group[0].made, group) for name, group in groups.items()]
    rows.append(("all", sum(made for _, made, _ in rows), list(mutants)))
    for name, made, group in rows:
        hits, count = sum(one.killed and not one.note for one in group), len(group)
        low, high = (100 * end for end in wilson(hits, count))
        first = f"{hits} | {100 * hits / count:.0f} | {low:.0f} to {high:.0f}"
        lines.append(f"| {name} | {made:,} | {count} | {first} | {sum(one.killed for one in group)} |")
    return "\n".join(lines)


def told(mutants: Sequence[Mutant], killed: bool) -> str:
    """The mutants with a note, as a list: those that live, or those that a new test kills."""
    return "\n".join(
        f"- `{one.module}.py`, `{one.function or 'top'}`: `{one.before}` became `{one.after}`: {one.note}"
        for one in mutants
        if one.killed == killed and one.note
    )


def report(mutants: Sequence[Mutant]) -> str:
    parts = [HEAD, summary(mutants)]
    parts += ["\n## Alive at first, and what kills it now\n", told(mutants, killed=True)]
    parts += ["\n## Alive, and why\n", told(mutants, killed=False)]
    return "\n".join(parts)


if __name__ == "__main__":
    print(report(read()))
