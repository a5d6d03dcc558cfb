"""Parts that users may add: registries by name, the one loader of "module:name" and "file.py:name", and their journey.

A part is a function or class: a mask rule, a slot of the hybrid block, a data set, a metric, a trial. The source of the
parts that a run uses is in its key (`sources.source_sha256`), and parts that are not the package's travel to the
processes that run it (`ship`, `adopted`). So a new part, or a changed one, renames the runs that use it and no others.
"""

import functools
import hashlib
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

from hae_lab.checks import HAELabError, require, require_name
from hae_lab.sources import PACKAGE, users_modules

T = TypeVar("T")
Parts = Mapping[str, Mapping[str, Any]]  # kind -> name -> part
BESIDE: ContextVar[Path | None] = ContextVar("BESIDE", default=None)  # where "file.py:name" is looked for first
Gate = Callable[[str, str], None]  # is told the target and the place of code that is not the package's; may raise
GATE: ContextVar[Gate | None] = ContextVar("GATE", default=None)


class Registry(dict[str, T], Generic[T]):
    """The parts of one kind by name. A value may be the "module:name" of a part that is loaded when it is first used.

    Users add to it as to a dictionary. `find` also takes "module:name" and "file.py:name" of parts that nobody added.
    """

    def __init__(self, kind: str, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self.kind = kind
        self.own = dict(parts)  # those of the package
        self.lent: Mapping[str, T] = {}  # parts of another process, under the names that they have there
        REGISTRIES[kind] = self

    def find(self, name: str) -> T:
        """The part of that name. Raises `HAELabError` for an unknown name, and for one that cannot be loaded."""
        if isinstance(name, str):
            if name in self.lent:
                return self.lent[name]
            if name in self:
                part = self[name]
                return load(part, self.kind) if isinstance(part, str) else part
            if ":" in name:
                return load(name, self.kind)
        require_name(self.kind, name, self)
        raise AssertionError  # for the type checker: the line above raised

    def is_own(self, name: str) -> bool:
        """Whether every process that has the package finds the same part under this name."""
        if name in self:
            return name in self.own and self[name] is self.own[name]
        return name.startswith(f"{PACKAGE.name}.")


REGISTRIES: dict[str, Registry[Any]] = {}

# the slots of the hybrid block; what fills them is in `models.slots`, and torch is not imported for its name
SLOT_PARTS: dict[str, Registry[Any]] = {
    "regions": Registry(
        "regions", {"linear": "hae_lab.models.slots:LinearRegions", "pooled": "hae_lab.models.slots:PooledRegions"}
    ),
    "mlp": Registry("mlp", {"gelu": "hae_lab.models.slots:GeluMLP"}),
    "fusion": Registry(
        "fusion", {"concat": "hae_lab.models.slots:ConcatFusion", "mean": "hae_lab.models.slots:MeanFusion"}
    ),
}


# the one loader


class _Loaded(NamedTuple):
    path: Path
    sha256: str
    module: ModuleType


_FILES: dict[str, _Loaded] = {}  # as it was named -> what was loaded
_RUNNING: dict[Path, ModuleType] = {}  # files whose code runs now: one that names a part of its own finds itself


@contextmanager
def beside(folder: Path, gate: Gate | None = None) -> Iterator[None]:
    """Look for "file.py:name" in this folder first, as a study in a file does.

    With a `gate`, names come from a file: none may lead out of the folder, and what is not the package's passes the
    gate before any of its code runs.
    """
    tokens = BESIDE.set(folder), GATE.set(gate)
    try:
        yield
    finally:
        BESIDE.reset(tokens[0])
        GATE.reset(tokens[1])


def load(target: str, kind: str = "part") -> Any:
    """The object behind "module:name" or "file.py:name"; a file that was edited is read again.

    Raises `HAELabError` for another spelling, a module or file that cannot be imported, and a name that it lacks.
    """
    head, colon, name = str(target).rpartition(":")
    require(bool(head and colon and name), f"{kind} {target!r}: 'module:name' or 'file.py:name' is needed")
    gate = GATE.get()
    if gate is not None and head.split(".")[0] != PACKAGE.name:
        gate(f"{kind} {target!r}", _place(head))
    module = load_module(head, f"{kind} {target!r}")
    require(hasattr(module, name), f"{kind} {target!r} cannot be imported here: {head!r} has no {name!r}")
    return getattr(module, name)


def _place(name: str) -> str:
    """Where the code of a module or file lies, found without running any of it."""
    if name.endswith(".py"):
        folder = BESIDE.get() or Path.cwd()
        place = (folder / name).resolve()
        inside = not Path(name).is_absolute() and place.is_relative_to(folder.resolve())
        require(inside, f"{name!r} leads out of {str(folder)!r}: a study takes code from its own folder")
        if not place.is_file() and (Path.cwd() / name).is_file():
            place = (Path.cwd() / name).resolve()
            require(place.is_relative_to(Path.cwd().resolve()), f"{name!r} leads out of {str(Path.cwd())!r}")
        return str(place)
    root = name.partition(".")[0]  # of a module deeper down, whose search would import those above it
    try:
        found = util.find_spec(root)
    except (ImportError, ValueError):
        found = None
    return str(found.origin or next(iter(found.submodule_search_locations or []), "")) if found else f"module {root}"


def load_module(name: str, asked: str | None = None) -> ModuleType:
    """The module "name" or "file.py". Raises `HAELabError`, which names what `asked` for it, if it cannot be had."""
    try:
        return _load_file(name) if name.endswith(".py") else import_module(name)
    except HAELabError:
        raise
    except Exception as error:  # a user's module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise HAELabError(f"{asked or repr(name)} cannot be imported here: {reason}") from None


def _load_file(name: str) -> ModuleType:
    known = _FILES.get(name)
    folders = [folder for folder in (BESIDE.get(), known and known.path.parent, Path.cwd()) if folder is not None]
    places = [folder / (Path(name).name if known and folder == known.path.parent else name) for folder in folders]
    found = next((place for place in places if place.is_file()), None)
    if found is None and known is not None:
        return known.module
    if found is None:
        raise HAELabError(f"no file {name!r} in {' or '.join(repr(str(folder)) for folder in folders)}")
    path, text = found.resolve(), found.read_bytes()
    if path in _RUNNING:
        return _RUNNING[path]
    if known is not None:
        same = f"{name!r} is {str(known.path)!r} in this process already, not {str(path)!r}: give one another name"
        require(known.path == path, same)
    sha256 = hashlib.sha256(text).hexdigest()
    if known is None or known.sha256 != sha256:
        # under a name of its own, so that it hides no module and pickles by value
        unique = hashlib.sha256(f"{path} {sha256}".encode()).hexdigest()[:8]
        _FILES[name] = _Loaded(path, sha256, _execute(path, f"_hae_lab_part_{path.stem}_{unique}"))
    return _FILES[name].module


def _execute(path: Path, name: str) -> ModuleType:
    """A file as a module; what lies beside it can be imported, as for a script."""
    spec = util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    linecache.checkcache(str(path))
    sys.modules[name] = _RUNNING[path] = module
    sys.path.insert(0, str(path.parent))
    try:
        # compiled here: an edit within a second of the last would find the old bytecode
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        del _RUNNING[path]
        sys.path.remove(str(path.parent))
    return module


# to other processes


def ship(parts: Parts) -> bytes:
    """Parts by kind and name as bytes for `adopted`; those of users' modules by value, so that no file must be there.

    Parts of the package are left out. Raises `HAELabError` for a part that holds what cannot travel, as an open file.
    """
    import cloudpickle

    foreign = {
        kind: {name: part for name, part in named.items() if not REGISTRIES[kind].is_own(name)}
        for kind, named in parts.items()
    }
    modules = users_modules(part for named in foreign.values() for part in named.values())
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps({kind: named for kind, named in foreign.items() if named})
    except Exception as error:  # whatever a part holds
        names = ", ".join(name for named in foreign.values() for name in named)
        raise HAELabError(f"{names} cannot be sent to other processes: {type(error).__name__}: {error}") from None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def adopted(shipped: bytes) -> Iterator[None]:
    """Know the parts of another process here, under the names that they have there, and forget them afterwards."""
    lent = _unpacked(shipped)
    before = {kind: REGISTRIES[kind].lent for kind in lent}
    for kind, parts in lent.items():
        REGISTRIES[kind].lent = parts
    try:
        yield
    finally:
        for kind, earlier in before.items():
            REGISTRIES[kind].lent = earlier


@functools.lru_cache(maxsize=4)  # the runs of a study share their parts, and so the images that these drew
def _unpacked(shipped: bytes) -> dict[str, dict[str, Any]]:
    import cloudpickle

    return cloudpickle.loads(shipped)
