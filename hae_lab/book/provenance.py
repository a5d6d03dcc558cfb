"""The small line under each figure and table: from which file, by which function, in how many seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType

from hae_lab.audit.clone import committed_path, read_table
from hae_lab.audit.registry import SLOW_TABLES, TABLES, figures
from hae_lab.audit.seconds import FILE
from hae_lab.checks import require_name
from hae_lab.sources import unwrapped

WORDS = {
    "en": {"seconds": "{seconds} s to make", "less": "under {seconds} s to make", "committed": "measured before"},
    "zh": {"seconds": "生成用时 {seconds} 秒", "less": "生成用时不到 {seconds} 秒", "committed": "事先测得"},
}
SHORTEST = 1.0  # seconds: below, the computer decides


@dataclass(frozen=True)
class Provenance:
    """Files of data/ (names), the dotted name of the function, and how long it took, if that was measured."""

    files: tuple[str, ...]
    function: str
    seconds: float | None

    def line(self, language: str = "en") -> str:
        """One line for a reader."""
        files = ", ".join(f"data/{name}.csv" for name in self.files)
        return " · ".join(filter(None, [files, self.function, self._time(language)]))

    def _time(self, language: str) -> str:
        if self.seconds is None:
            return ""
        short = self.seconds < SHORTEST
        return WORDS[language]["less" if short else "seconds"].format(seconds=f"{max(self.seconds, SHORTEST):.2g}")


def of_figure(name: str) -> Provenance:
    """Of a figure of the registry. Raises `HAELabError` for an unknown name."""
    require_name("figure", name, figures())
    source = figures()[name]
    return Provenance(source.tables, function_name(source.draw), _seconds(name, "figure"))


def of_table(name: str) -> Provenance:
    """Of a table of data/; one that was measured before has no function here."""
    makers = TABLES | SLOW_TABLES
    function = function_name(makers[name]) if name in makers else ""
    return Provenance((name,), function, _seconds(name, "table"))


def function_name(function: Callable[..., object]) -> str:
    """Where a function is at home, without the package; of what wraps one, that one."""
    function = unwrapped(function)
    if function.__name__ == "<lambda>":  # it only hands the measured tables on: the function that it calls says more
        return function_name(_called(function))
    return f"{function.__module__}.{function.__qualname__}".removeprefix("hae_lab.")


def _called(function: FunctionType) -> Callable[..., object]:
    """The first function of a module that a lambda names."""
    names = function.__code__.co_names
    first = next(place for place, name in enumerate(names) if isinstance(function.__globals__.get(name), ModuleType))
    return getattr(function.__globals__[names[first]], names[first + 1])


def _seconds(name: str, kind: str) -> float | None:
    """CPU seconds that were measured on some computer, or None."""
    if not committed_path(FILE).exists():
        return None
    rows = read_table(FILE)
    found = rows.loc[(rows["output"] == name) & (rows["output_kind"] == kind), "seconds"]
    return float(found.iloc[0]) if len(found) else None
