"""Parts that users may add: registries by name, the one loader of "module:name" and "file.py:name", and their source.

A part is a function or class: a mask rule, a slot of the hybrid block, a data set, a metric, a trial. The source of the
parts that a run uses is in its key (`source_sha256`), and parts that are not the package's travel to the processes
that run it (`ship`, `adopt`). So a new part, or a changed one, renames the runs that use it and no others.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar

from hae_lab.checks import HAELabError, require, require_name

T = TypeVar("T")
PACKAGE = Path(__file__).parent
INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
PLAIN = (int, float, complex, str, bytes, bool, type(None))
BESIDE: ContextVar[Path | None] = ContextVar("BESIDE", default=None)  # where "file.py:name" is looked for first


class Registry(dict[str, T], Generic[T]):
    """The parts of one kind by name. A value may be the "module:name" of a part that is loaded when it is first used.

    Users add to it as to a dictionary. `find` also takes "module:name" and "file.py:name" of parts that nobody added.
    """

    def __init__(self, kind: str, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self.kind = kind
        self.adopted: dict[str, T] = {}  # parts that came from another process, under the names that they had there
        REGISTRIES[kind] = self

    def find(self, name: str) -> T:
        """The part of that name. Raises `HAELabError` for an unknown name, and for one that cannot be loaded."""
        if isinstance(name, str):
            if name in self:
                part = self[name]
                return load(part, self.kind) if isinstance(part, str) else part
            if name in self.adopted:
                return self.adopted[name]
            if ":" in name:
                return load(name, self.kind)
        require_name(self.kind, name, self)
        raise AssertionError  # for the type checker: the line above raised


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


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Look for "file.py:name" in this folder first, as a study in a file does."""
    token = BESIDE.set(folder)
    try:
        yield
    finally:
        BESIDE.reset(token)


def load(target: str, kind: str = "part") -> Any:
    """The object behind "module:name" or "file.py:name"; a file that was edited is read again.

    Raises `HAELabError` for another spelling, a module or file that cannot be imported, and a name that it lacks.
    """
    head, colon, name = str(target).rpartition(":")
    require(bool(head and colon and name), f"{kind} {target!r}: 'module:name' or 'file.py:name' is needed")
    try:
        module = _load_file(head) if head.endswith(".py") else import_module(head)
        return getattr(module, name)
    except HAELabError:
        raise
    except Exception as error:  # a user's module may raise anything
        raise HAELabError(f"{kind} {target!r} cannot be imported here: {type(error).__name__}: {error}") from None


def _load_file(name: str) -> ModuleType:
    folders = [folder for folder in (BESIDE.get(), Path.cwd()) if folder is not None]
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None and name in _FILES:
        return _FILES[name].module
    if path is None:
        raise HAELabError(f"no file {name!r} in {' or '.join(repr(str(folder)) for folder in folders)}")
    path, text = path.resolve(), path.read_bytes()
    sha256 = hashlib.sha256(text).hexdigest()
    known = _FILES.get(name)
    if known is not None and known[:2] == (path, sha256):
        return known.module
    require(known is None or known.path == path, f"{name!r} is {str(path)!r} and was {str(known and known.path)!r}")
    # under a name of its own, so that it hides no module and pickles by value
    spec = util.spec_from_file_location(f"_hae_lab_part_{path.stem}_{sha256[:8]}", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    linecache.checkcache(str(path))
    spec.loader.exec_module(module)
    _FILES[name] = _Loaded(path, sha256, module)
    return module


# to other processes


def is_ours(part: Any) -> bool:
    """Whether a part comes with the package."""
    return _module_of(part).split(".")[0] == PACKAGE.name


def ship(parts: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Parts by kind and name as bytes for `adopt`; those of users' modules by value, so that no file must be there."""
    import cloudpickle

    foreign = {kind: {name: part for name, part in named.items() if not is_ours(part)} for kind, named in parts.items()}
    modules = {id(module): module for named in foreign.values() for part in named.values() for module in _modules(part)}
    for module in modules.values():
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(foreign)
    except Exception as error:  # whatever a part holds
        raise HAELabError(f"a part cannot be sent to other processes: {type(error).__name__}: {error}") from None
    finally:
        for module in modules.values():
            cloudpickle.unregister_pickle_by_value(module)


def adopt(shipped: bytes) -> None:
    """Make the parts of another process known here, under the names that they have there."""
    import cloudpickle

    for kind, named in cloudpickle.loads(shipped).items():
        for name, part in named.items():
            registry = REGISTRIES[kind]
            registry.adopted[name] = part
            if ":" not in name:
                registry[name] = part


def _modules(part: Any) -> list[ModuleType]:
    """The user's modules that a part needs: its own, and those that these import."""
    found: dict[str, ModuleType] = {}
    waiting = [_module_of(part)]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in found or not _is_users(module):
            continue
        found[name] = module
        waiting += [_module_of(value) for value in vars(module).values()]
    return list(found.values())


def _module_of(part: Any) -> str:
    if isinstance(part, functools.partial):
        return _module_of(part.func)
    if isinstance(part, ModuleType):
        return part.__name__
    own = getattr(part, "__module__", None)
    return own if isinstance(own, str) else ""


def _is_users(module: ModuleType) -> bool:
    """Whether a module is neither installed nor the package's nor a notebook's (which pickles by value anyway)."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__ == "__main__":
        return False
    path = Path(file).resolve()
    return not any(path.is_relative_to(folder) for folder in (PACKAGE, *INSTALLED))


# what a part is, by its source


def source_sha256(part: Any) -> str:
    """Hash of a part's source, without comments and docstrings, and of all that it uses of its own module.

    Functions, classes and constants of the module count if the part names them, directly or through others; so do the
    user's other modules. What is installed, and the rest of the package, does not. Raises `HAELabError` where there is
    no source.
    """
    lines: dict[str, str] = {}
    _collect(part, "part", _module_of(part), lines)
    return hashlib.sha256("\n".join(f"{name} {lines[name]}" for name in sorted(lines)).encode()).hexdigest()


def _collect(value: Any, name: str, home: str, lines: dict[str, str]) -> None:
    """Add what a value is made of to `lines`, name by name; `home` is the module that counts."""
    if isinstance(value, functools.partial):
        arguments = (value.args, sorted(value.keywords.items()))
        lines[name] = f"partial {arguments!r}"
        _collect(value.func, f"{name}.func", home, lines)
        return
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        if not inspect.isroutine(value) and not isinstance(value, ModuleType):
            lines[name] = _constant(value)
        return
    key = f"{_module_key(value)}:{value.__qualname__}"
    if key in lines:
        return
    tree = _tree(value)
    lines[key] = ast.dump(tree)
    known = _globals(value)
    for used in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & known.keys()):
        other = known[used]
        if inspect.isfunction(other) or inspect.isclass(other):
            module = sys.modules.get(_module_of(other))
            if _module_of(other) == home or (module is not None and _is_users(module)):
                _collect(other, used, home, lines)
        elif isinstance(other, ModuleType):
            if _is_users(other):
                lines[f"module {other.__name__}"] = ast.dump(without_docstrings(ast.parse(inspect.getsource(other))))
        elif _is_plain(other) or isinstance(other, functools.partial):
            _collect(other, f"{key}.{used}", home, lines)


def _module_key(value: Any) -> str:
    """The name of a module without the hash of its file: the sources say what changed."""
    module = _module_of(value)
    return module[: -len("_12345678")] if module.startswith("_hae_lab_part_") else module


def _globals(value: Any) -> Mapping[str, Any]:
    if inspect.isfunction(value):
        inner = dict(
            zip(value.__code__.co_freevars, (cell.cell_contents for cell in value.__closure__ or ()), strict=True)
        )
        return {**value.__globals__, **inner}
    return vars(sys.modules[value.__module__])


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return isinstance(value, PLAIN) or hasattr(value, "tobytes")


def _constant(value: Any) -> str:
    if hasattr(value, "tobytes"):  # an array
        return (
            f"{getattr(value, 'dtype', '')} {getattr(value, 'shape', '')} {hashlib.sha256(value.tobytes()).hexdigest()}"
        )
    if isinstance(value, set | frozenset):
        return repr(sorted(value, key=repr))
    return repr(value)


def _tree(value: Any) -> ast.AST:
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        source = _class_source(value)
    try:
        return without_docstrings(ast.parse(textwrap.dedent(source)))
    except SyntaxError:  # a lambda in the middle of an expression
        return ast.parse(repr(source.strip()))


def _class_source(value: Any) -> str:
    """The source of a class that was written in a notebook, which Python itself does not find."""
    methods = (
        [method for method in vars(value).values() if inspect.isfunction(method)] if inspect.isclass(value) else []
    )
    for method in methods:
        text = "".join(linecache.getlines(method.__code__.co_filename))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                return ast.get_source_segment(text, node) or ""
    raise HAELabError(f"{value!r} has no source to name its runs by: write it in a file or a notebook")


def without_docstrings(tree: ast.AST) -> ast.AST:
    """The same tree, its docstrings taken out in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return tree
