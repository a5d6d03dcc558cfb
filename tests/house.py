"""The house as a graph: which room imports which. `python tests/house.py [PACKAGE]` prints rooms, lines and arrows."""

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hae_lab"


@dataclass(frozen=True)
class House:
    """A package as modules, the rooms they stand in, and the imports between them."""

    package: Path

    @property
    def name(self) -> str:
        return self.package.name

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Dotted name -> file of every module; a package is its `__init__.py`."""
        parts = {path: path.relative_to(self.package.parent).with_suffix("").parts for path in self._files()}
        return {".".join(part for part in names if part != "__init__"): path for path, names in parts.items()}

    def _files(self) -> list[Path]:
        return sorted(self.package.rglob("*.py"))

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Module -> the modules of the package that it imports, at its top or inside functions."""
        return {module: self.imported(path.read_text(), module) for module, path in self.modules.items()}

    def imported(self, source: str, module: str = "example") -> set[str]:
        """The modules of the package that a source imports. Relative imports hide where they point: refused."""
        found = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import hides where it points"
                # `from package import name` takes a module, or what the package's __init__ holds
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in self.modules else str(node.module) for name in names}
        return {name for name in found if name.split(".")[0] == self.name}

    def room(self, module: str) -> str:
        """The first part of a module's name inside the package; the package's own `__init__` is the front door."""
        return [*module.split("."), "__init__"][1]

    @cached_property
    def rooms(self) -> dict[str, list[str]]:
        """Room -> its modules; the front door and the command line are rooms of one file."""
        rooms = defaultdict(list)
        for module in self.modules:
            rooms[self.room(module)].append(module)
        return dict(rooms)

    @cached_property
    def arrows(self) -> set[tuple[str, str]]:
        """(from, to) of every two rooms of which one imports the other, counted once."""
        pairs = {(self.room(module), self.room(name)) for module, names in self.imports.items() for name in names}
        return {(start, end) for start, end in pairs if start != end}

    def lines(self, modules: list[str]) -> int:
        return sum(len(self.modules[module].read_text().splitlines()) for module in modules)


def report(house: House) -> str:
    """Rooms with their files, lines and arrows down and in, most used first, and the sums."""
    used = {room: [start for start, end in house.arrows if end == room] for room in house.rooms}
    rows = [
        (room, len(modules), house.lines(modules), sum(start == room for start, _ in house.arrows), len(used[room]))
        for room, modules in house.rooms.items()
    ]
    rows.sort(key=lambda row: (-row[-1], row[0]))
    rows.append(
        ("all", len(house.modules), house.lines(list(house.modules)), len(house.arrows), len(house.arrows)),
    )
    header = f"{'room':<16}{'files':>7}{'lines':>8}{'uses':>7}{'used by':>9}"
    lines = [f"{room:<16}{files:>7,}{count:>8,}{uses:>7}{by:>9}" for room, files, count, uses, by in rows]
    return "\n".join([header, *lines, f"{len(house.rooms)} rooms, {len(house.arrows)} arrows"])


if __name__ == "__main__":
    print(report(House(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE)))
