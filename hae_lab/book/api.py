"""The API reference as Markdown pages, a room each, read from the sources: signatures and docstrings.

Docstrings are Markdown; Sphinx's Python directives take them as they stand, and give every name an address. Nothing is
imported for it, so that torch need not load and no default is shown as the address of an object.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef | ast.AnnAssign | ast.Assign


def pages() -> dict[str, str]:
    """Room -> Markdown: its modules with their docstrings, public classes, functions and constants.

    A room is a module or a subpackage; "index" names what the front door gives, and leads to the rooms.
    """
    rooms: dict[str, dict[str, ast.Module]] = {}
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.stem != "__init__", path)):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            name = ".".join([PACKAGE.name, *(part for part in parts if part != "__init__")])
            rooms.setdefault(parts[0], {})[name] = ast.parse(path.read_text(encoding="utf-8"))
    exported = {name for modules in rooms.values() for tree in modules.values() for name in _all(tree)}
    written = {room: "\n".join(_module(*each, exported) for each in modules.items()) for room, modules in rooms.items()}
    return {"index": _index(rooms)} | dict(sorted(written.items()))


def definitions(tree: ast.Module | ast.ClassDef, exported: Iterable[str] = ()) -> Iterator[tuple[str, Definition]]:
    """(name, node) of what a module or class defines for others, in the order of the source.

    Constants are for others if they have a type, or stand in some `__all__`.
    """
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign):
            name = ast.unparse(node.target)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in exported:
            name = ast.unparse(node.targets[0])
        else:
            continue
        if not name.startswith("_"):
            yield name, node


def _all(tree: ast.Module) -> list[str]:
    """The names in a module's `__all__`, where it is written out."""
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets)
    ]
    return [name for each in lists for name in ast.literal_eval(each)]


# pages


def _index(rooms: dict[str, dict[str, ast.Module]]) -> str:
    front = import_module(PACKAGE.name).__all__
    homes = {
        name: f"{module}.{name}"
        for modules in rooms.values()
        for module, tree in modules.items()
        for name, _ in definitions(tree, front)
        if name in front
    }
    names = ", ".join(f"{{py:obj}}`{name} <{homes[name]}>`" for name in front)
    rows = [
        f"- [`{PACKAGE.name}.{room}`]({room}.md): {_summary(next(iter(rooms[room].values())))}"
        for room in sorted(rooms)
    ]
    contents = _directive("toctree", "", ":hidden:\n\n" + "\n".join(sorted(rooms)))
    return f"# API\n\n`import {PACKAGE.name}` gives {names}.\n\nThe rooms:\n\n" + "\n".join([*rows, "", contents])


def _summary(tree: ast.Module) -> str:
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())


def _module(name: str, tree: ast.Module, exported: Iterable[str]) -> str:
    level = "#" if name.count(".") == 1 else "##"
    parts = [f"{level} {name}\n", _directive("py:module", name), f"{ast.get_docstring(tree) or ''}\n"]
    return "\n".join([*parts, *(_definition(each, node) for each, node in definitions(tree, exported))])


def _definition(name: str, node: Definition) -> str:
    """A name as a directive: its signature, its docstring, and for a class what belongs to it."""
    if isinstance(node, ast.Assign):
        return _directive("py:data", name)
    if isinstance(node, ast.AnnAssign):
        return _directive("py:data", name, f":type: {ast.unparse(node.annotation)}")
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        members = [_member(each, child) for each, child in definitions(node) if isinstance(child, Function)]
        return _directive("py:class", f"{name}({_constructor(node)})", "\n\n".join([text, *members]), ticks=7)
    return _directive("py:function", name + _signature(node), text)


def _member(name: str, node: Function) -> str:
    text = ast.get_docstring(node) or ""
    decorators = {ast.unparse(each).split("(")[0].split(".")[-1] for each in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        kind = f":type: {ast.unparse(node.returns)}\n\n" if node.returns else ""
        return _directive("py:property", name, kind + text)
    options = [f":{each}:" for each in ("classmethod", "staticmethod") if each in decorators]
    signature = _signature(node, bound="staticmethod" not in decorators)
    return _directive("py:method", name + signature, "\n".join([*options, "", text]))


# signatures


def _constructor(node: ast.ClassDef) -> str:
    """The arguments of a class: those of its `__init__`, or the fields of a dataclass or a named tuple."""
    for child in node.body:
        if isinstance(child, Function) and child.name == "__init__":
            return _arguments(child, bound=True)
    kinds = " ".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
    if "dataclass" not in kinds and "NamedTuple" not in kinds:
        return ""
    return ", ".join(map(ast.unparse, _fields(node)))


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """The fields of a dataclass or named tuple, those of the package's classes that it extends first."""
    parents = [_classes()[name] for name in map(ast.unparse, node.bases) if name in _classes()]
    fields = {ast.unparse(field.target): field for parent in parents for field in _fields(parent)}
    own = {name: child for name, child in definitions(node) if isinstance(child, ast.AnnAssign)}
    fields |= own  # a field told anew keeps its place
    return [field for field in fields.values() if "ClassVar" not in ast.unparse(field.annotation)]


@lru_cache
def _classes() -> dict[str, ast.ClassDef]:
    """Every class of the package by its name."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _signature(node: Function, bound: bool = False) -> str:
    return f"({_arguments(node, bound)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")


def _arguments(node: Function, bound: bool) -> str:
    """The arguments as in the source; of a method without the object it is bound to."""
    text = ast.unparse(node.args)
    if bound:
        text = text.removeprefix(node.args.args[0].arg).removeprefix(", ")
    return text


def _directive(name: str, argument: str, body: str = "", ticks: int = 6) -> str:
    """A directive of Markdown; more ticks than any docstring holds, and than a directive inside."""
    return f"{'`' * ticks}{{{name}}} {argument}".rstrip() + f"\n{body}\n{'`' * ticks}\n"
