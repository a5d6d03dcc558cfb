"""Mutation testing: which small changes of the package do the tests notice? `python tests/mutation.py --help`.

Cosmic Ray's operators say what can be changed; a seed draws the places, and for each place one change. Cosmic Ray's own
runner starts Python and torch anew for each mutant; here a process that has them forks, which is several times faster.
"""

import argparse
import ast
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from mutants import TABLE, Mutant, read, summary, write
from mutation_suites import SUITES

ROOT = Path(__file__).parent.parent
PRELOADED = "numpy pandas torch torch.nn.functional scipy.stats matplotlib.pyplot seaborn hypothesis pytest diffusers"
OPTIONS = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow and not browser"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the fork has some plugins already
LOG = "tests.txt"  # what the last tests said
WALL_SECONDS = 600  # who waits that long waits for ever, however busy the computer is


class ReplaceString(Operator):
    """Changes the words of a figure: Cosmic Ray has no operator for strings. Docstrings stay."""

    def mutation_positions(self, node) -> Iterator[tuple]:
        words = node.type == "fstring_string" or (node.type == "string" and node.value.strip("\"'"))
        if words and node.parent.type != "simple_stmt":
            yield node.start_pos, node.end_pos

    def mutate(self, node, index: int):
        end = 0 if node.type == "fstring_string" else len(node.value) - len(node.value.rstrip("\"'"))
        place = len(node.value) - end
        node.value = f"{node.value[:place]}XX{node.value[place:]}"
        return node

    @classmethod
    def examples(cls) -> tuple:
        return ()


@dataclass(frozen=True)
class Change:
    """One possible change of a source: the n-th occurrence of an operator, and where it stands."""

    operator: str
    occurrence: int
    start: tuple[int, int]
    stop: tuple[int, int]

    def apply(self, source: str) -> str:
        operator = ReplaceString() if self.operator == "ReplaceString" else get_operator(self.operator)()
        return mutate_code(source, operator, self.occurrence)


def annotations(source: str) -> list[tuple]:
    """(start, stop) of every annotation: `int | None` is no arithmetic."""
    nodes = list(ast.walk(ast.parse(source)))
    held = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    return [((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)) for one in held if one is not None]


def changes(source: str, strings: bool = False) -> list[Change]:
    """Every change that the operators know, in the order of operators and places."""
    nodes, typed = list(ast_nodes(parso.parse(source))), annotations(source)
    names = [name for name in operator_names() if not name.split("/")[-1].startswith("Variable")]
    operators = {name: get_operator(name)() for name in names}
    if strings:
        operators["ReplaceString"] = ReplaceString()
    found = []
    for name, operator in operators.items():
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        found += [Change(name, index, *place) for index, place in enumerate(places)]
    return [one for one in found if not any(low <= one.start and one.stop <= high for low, high in typed)]


def is_python(source: str) -> bool:
    """Operators take the star of `def f(a, *, b)` for a product: what no test has to notice is not drawn."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def sample(source: str, count: int, seed: int, strings: bool = False) -> tuple[int, list[Change]]:
    """How many places can be changed, and `count` of them with one change each, drawn by the seed."""
    places: dict[tuple, list[Change]] = {}
    for change in changes(source, strings):
        places.setdefault((change.start, change.stop), []).append(change)
    draw = random.Random(seed)
    order = sorted(places)
    draw.shuffle(order)  # and not `sample`: a larger count tries the same ones first
    drawn = (draw.choice(places[place]) for place in order)
    return len(places), list(islice((one for one in drawn if is_python(one.apply(source))), count))


def function_at(source: str, line: int) -> str:
    """The innermost function or class around a line, or nothing at the module's top."""
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.lineno <= line <= node.end_lineno
    ]
    return max(around, key=lambda node: node.lineno).name if around else ""


def _child(root: Path, files: list[str], cpu_seconds: float) -> None:
    """What the fork does: pytest on a copy of the project, quietly, with an end."""
    os.setsid()
    signal.alarm(WALL_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 1))
    os.chdir(root)
    os.environ |= {"PYTHONPATH": str(root), "CI": "true"}  # CI: Hypothesis repeats its cases and keeps none
    sys.path[:] = [str(root), *(path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests"))]
    for name in ("mutants", "mutation", "mutation_suites"):
        sys.modules.pop(name, None)
    said = os.open(root.parent / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 70
    try:
        import pytest

        code = int(pytest.main([*OPTIONS, *files]))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    held = sys.modules.get("hae_lab")
    if code == 0 and not (held and Path(held.__file__).is_relative_to(root)):
        code = 71
    os._exit(code)


def run(root: Path, files: list[str], cpu_seconds: float) -> tuple[str, float]:
    """Passed, failed, out of time, or an error of the tests themselves; and the CPU seconds that it took."""
    pid = os.fork()
    if not pid:
        _child(root, files, cpu_seconds)
    _, status, used = os.wait4(pid, 0)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # workers that a test left behind
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
        outcome = "timeout" if late else "killed"
    else:
        codes = {0: "survived", 70: "error", 71: "error", 5: "error", 4: "killed"}
        outcome = codes.get(os.WEXITSTATUS(status), "killed")
    return outcome, used.ru_utime + used.ru_stime


@contextmanager
def copy_of_the_project() -> Iterator[Path]:
    """The project in a folder of its own, where sources can be changed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", "__pycache__", ".hypothesis"))
        yield root


def _write(path: Path, source: str) -> None:
    """A source without its compiled twin: two mutants may share size and second."""
    path.write_text(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def asked_test(name: str) -> str:
    """What pytest is asked for: "test_rules", or one test of it, "test_rules::test_band"."""
    file, *test = name.split("::")
    return "::".join([f"tests/{file}.py", *test])


def try_module(root: Path, module: str, count: int, seed: int) -> Iterator[Mutant]:
    """The outcome of `count` mutants of a module, each against the test files that speak of it."""
    path, files = f"hae_lab/{module}.py", [asked_test(name) for name in SUITES[module]]
    source = (root / path).read_text()
    made, chosen = sample(source, count, seed, strings=module.startswith("plots/"))
    outcome, seconds = run(root, files, 3600)
    print(f"{module}: {made} places, {len(chosen)} tried, tests take {seconds:.1f} s of CPU", flush=True)
    if outcome != "survived":
        print((root.parent / LOG).read_text()[-2000:])
        raise SystemExit(f"{module}: its tests fail without any change ({outcome})")
    for change in chosen:
        mutated = change.apply(source)
        _write(root / path, mutated)
        try:
            outcome, _ = run(root, files, 3 * seconds + 15)
        finally:
            _write(root / path, source)
        line = change.start[0]
        before, after = source.splitlines()[line - 1].strip(), mutated.splitlines()[line - 1].strip()
        name = change.operator.split("/")[-1]
        yield Mutant(module, made, line, function_at(source, line), name, before, after, outcome, "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="such as rules or study/power; default: all of mutation_suites.py")
    parser.add_argument("--count", type=int, default=12, help="mutants a module (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TABLE, help="CSV file; rows of other modules in it stay")
    parser.add_argument("--floor", type=float, default=90.0, help="percent that must be killed (default 90)")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    for name in PRELOADED.split():
        import_module(name)
    sys.modules["torch"].set_num_threads(1)
    modules = asked.modules or list(SUITES)
    notes = {one.key: one.note for one in read()} if TABLE.exists() else {}
    kept = [one for one in read(asked.out) if one.module not in modules] if asked.out.exists() else []
    found: list[Mutant] = []
    with copy_of_the_project() as root:
        for module in modules:
            for one in try_module(root, module, asked.count, asked.seed):
                found.append(replace(one, note=notes.get(one.key, "")))
                print(f"{one.outcome:<9}{one.module}:{one.line}  {one.before}  ->  {one.after}", flush=True)
                write(asked.out, [*kept, *found])
    print(summary(found))
    percent = 100 * sum(one.killed for one in found) / len(found)
    if percent < asked.floor:
        raise SystemExit(f"{percent:.1f} % of the mutants were killed, wanted: {asked.floor} %")


if __name__ == "__main__":
    main()
