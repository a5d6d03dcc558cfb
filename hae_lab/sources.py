"""What a function or class is, by its source: whose it is, what it uses, and a hash of all that."""

import ast
import dataclasses
import functools
import hashlib
import inspect
import linecache
import re
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module, util
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from hae_lab.checks import HAELabError, require

PACKAGE = Path(__file__).parent
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
INSTALLED = ("site-packages", "dist-packages")  # folders
PLAIN = (int, float, complex, str, bytes, bool, type(None))
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


# whose code is it


def users_modules(values: Iterable[Any]) -> list[ModuleType]:
    """The user's modules that values need: their own, and those that these import."""
    found: dict[str, ModuleType] = {}
    waiting = [each for value in values for each in ([value] if isinstance(value, ModuleType) else pieces(value))]
    while waiting:
        value = waiting.pop()
        module = value if isinstance(value, ModuleType) else sys.modules.get(module_of(value))
        if module is not None and module.__name__ not in found and is_users(module):
            found[module.__name__] = module
            waiting += list(vars(module).values())
    return [module for name, module in found.items() if name != "__main__"]  # which goes by value anyway


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a partial, or one within another, calls; any other is its own."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def pieces(part: Any) -> list[Any]:
    """The functions and classes that a part is made of: itself, or what a partial, a method, a metric holds."""
    if isinstance(part, functools.partial):
        return [piece for value in (part.func, *part.args, *part.keywords.values()) for piece in pieces(value)]
    if inspect.ismethod(part):
        return [part.__func__, part.__self__ if inspect.isclass(part.__self__) else type(part.__self__)]
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = [getattr(part, field.name) for field in dataclasses.fields(part)]
        return [type(part), *(piece for value in values for piece in pieces(value))]
    return [part] if inspect.isroutine(part) or inspect.isclass(part) else []


def module_of(value: Any) -> str:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def is_users(module: ModuleType) -> bool:
    """Whether a module is neither installed nor the package's: a user's file, or a notebook."""
    if module.__name__ == "__main__":
        return True
    file = getattr(module, "__file__", None)
    return file is not None and _is_users_file(file)


def _is_users_file(file: str) -> bool:
    path = Path(file).resolve()
    installed = any(folder in path.parts for folder in INSTALLED)
    return not (installed or path.is_relative_to(PACKAGE) or path.is_relative_to(STDLIB))


# what is it made of


def source_sha256(part: Any) -> str:
    """Hash of a part's source, without comments and docstrings, and of all that it uses of its own module.

    Functions, classes and constants of the module count if the part names them, directly or through others; so do
    default values, what a closure holds, and the user's other modules. What is installed, and the rest of the package,
    does not. Equal on all computers that run one minor version of Python.
    Raises `HAELabError` where there is no source, and for an object whose state no source tells.
    """
    found = pieces(part)
    require(bool(found), f"{part!r} is no part: write it as a function or class (or a dataclass), which has a source")
    walk = _Walk(module_of(found[0]))
    walk.add("part", part)
    return hashlib.sha256("\n".join(walk.lines).encode()).hexdigest()


class _Walk:
    """What a part is made of: a line for each source and constant, in the order in which they are reached."""

    def __init__(self, home: str) -> None:
        self.home = home  # the module whose functions and classes count, beside the user's
        self.lines: list[str] = []
        self._seen: dict[int, tuple[int, Any]] = {}  # id of code -> its place; the code itself, so that it keeps its id
        self._open: list[int] = []  # ids of the values that hold this one: a value may hold itself

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.lines.append(f"{name} = {value!r}")
        elif inspect.isfunction(value) or inspect.isclass(value) or isinstance(value, ModuleType):
            self._add_code(name, value)
        elif id(value) in self._open:
            self.lines.append(f"{name} is around it")
        else:
            self._open.append(id(value))
            self._add_value(name, value)
            self._open.pop()

    def _add_all(self, name: str, values: Mapping[Any, Any]) -> None:
        self.lines.append(f"{name} {{")
        for key, value in values.items():
            self.add(f"{name}.{_repr(key)}", value)
        self.lines.append("}")

    def _add_code(self, name: str, value: Any) -> None:
        if not self._counts(value):
            self.lines.append(f"{name} is not the user's")
        elif id(value) in self._seen:
            self.lines.append(f"{name} is {self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = len(self._seen), value
            if isinstance(value, ModuleType):
                self.lines += [f"{name} {_module_source(module)}" for module in users_modules([value])]
            elif inspect.isclass(value):
                self._add_class(name, value)
            else:
                self._add_function(name, value)

    def _counts(self, value: Any) -> bool:
        module = value if isinstance(value, ModuleType) else sys.modules.get(module_of(value))
        return module_of(value) == self.home or (module is not None and is_users(module))

    def _add_function(self, name: str, value: Any) -> None:
        code = value.__code__
        scope = {**value.__globals__, **_closure(value)}
        if code.co_name == "<lambda>":
            self.lines.append(f"{name} {_bytecode(code)}")
            self._add_names(name, _code_names(code), scope)
        else:
            self._add_tree(name, _tree(code, value), scope)
        self._add_all(f"{name} defaults", {"by place": value.__defaults__, "by name": value.__kwdefaults__})

    def _add_class(self, name: str, value: Any) -> None:
        module = sys.modules.get(module_of(value))
        scope = dict(vars(module)) if module else {}
        for method in _methods(value):
            scope |= _closure(method)
        self._add_tree(name, _tree(value, value), scope)

    def _add_tree(self, name: str, tree: ast.AST, scope: Mapping[str, Any]) -> None:
        self.lines.append(f"{name} {ast.dump(tree)}")
        self._add_names(name, {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, scope)
        for imported in _users_imports(tree):
            self._add_code(f"{name} imports {imported.__name__}", imported)

    def _add_names(self, name: str, used: set[str], scope: Mapping[str, Any]) -> None:
        for each in sorted(used & scope.keys()):
            self.add(f"{name}.{each}", scope[each])

    def _add_value(self, name: str, value: Any) -> None:
        """What is neither plain nor code: its contents as far as they can be told."""
        home = type(value).__module__.split(".")[0]
        if isinstance(value, functools.partial):
            self._add_all(name, {"func": value.func, "args": value.args, "keywords": value.keywords})
        elif inspect.ismethod(value):
            self._add_all(name, {"func": value.__func__, "self": value.__self__})
        elif isinstance(value, dict | list | tuple) and home != PACKAGE.name:  # a registry is none of the user's
            self._add_all(name, value if isinstance(value, dict) else dict(enumerate(value)))
        elif isinstance(value, set | frozenset):
            self.lines.append(f"{name} = {sorted(map(_repr, value))}")
        elif home == "torch":
            self._add_torch(name, value)
        elif hasattr(value, "tobytes"):  # an array
            self._add_array(name, value)
        elif dataclasses.is_dataclass(value) or self._counts(type(value)):
            self._add_code(f"{name} class", type(value))
            self._add_all(name, _state(value))
        else:
            self.lines.append(f"{name} = {_repr(value.to_dict()) if home == 'pandas' else _repr(value)}")

    def _add_array(self, name: str, value: Any) -> None:
        dtype, shape = getattr(value, "dtype", ""), getattr(value, "shape", "")
        if getattr(dtype, "hasobject", False):
            self.add(name, value.tolist())
        else:
            self.lines.append(f"{name} = {dtype} {shape} {hashlib.sha256(value.tobytes()).hexdigest()}")

    def _add_torch(self, name: str, value: Any) -> None:
        import torch

        self.lines.append(f"{name} = {type(value).__name__}")
        if isinstance(value, torch.nn.Module):
            self._add_all(name, {"layers": repr(value), "state": dict(value.state_dict())})
        elif isinstance(value, torch.Tensor):
            bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.lines.append(f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(bits.tobytes()).hexdigest()}")
        else:
            self.lines.append(_repr(value))


def _state(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(getattr(value, "__dict__", {}))


def _repr(value: Any) -> str:
    return ADDRESS.sub("", repr(value))


def _closure(function: Any) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing in it yet
            found[name] = cell.cell_contents
    return found


def _methods(value: type) -> list[Any]:
    inner = (getattr(each, "__func__", getattr(each, "fget", each)) for each in vars(value).values())
    return [each for each in inner if inspect.isfunction(each)]


def _code_names(code: CodeType) -> set[str]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names, *code.co_freevars}.union(*map(_code_names, inner))


def _bytecode(code: CodeType) -> str:
    """What a lambda does; its source is a line that may hold another lambda."""
    constants = [_bytecode(each) if isinstance(each, CodeType) else _repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _module_source(module: ModuleType) -> str:
    return ast.dump(without_docstrings(ast.parse(inspect.getsource(module))))


def _users_imports(tree: ast.AST) -> list[ModuleType]:
    """The user's modules that a function imports inside."""
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    found = []
    for name in sorted(names):
        with suppress(Exception):  # the function itself will say so
            spec = util.find_spec(name)
            if spec is not None and spec.origin is not None and _is_users_file(spec.origin):
                found.append(import_module(name))
    return found


def _tree(code: Any, value: Any) -> ast.AST:
    """The tree of a code object or class, of which `value` is what the user knows."""
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        source = _class_source(value)
    return without_docstrings(ast.parse(textwrap.dedent(source)))


def _class_source(value: Any) -> str:
    """The source of a class that was written in a notebook, which Python itself does not find."""
    for method in _methods(value) if inspect.isclass(value) else []:
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
