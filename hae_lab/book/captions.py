"""The small line under each picture and table of a notebook, read from the code that shows it.

What a cell shows is its last expression; the functions in it, and in what its names were made of, say from which table
of data/ the picture is drawn, or that it is computed in the notebook.
"""

import ast
from collections.abc import Callable, Iterator
from html import escape
from importlib import import_module
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output

from hae_lab.audit.registry import SLOW_TABLES, TABLES, figures
from hae_lab.book.provenance import Provenance, function_name, of_figure, of_table
from hae_lab.sources import unwrapped

MARK = '<small class="hae-from">'
HERE = "computed in this notebook"
LISTED = 2  # functions that a line names


def with_captions(notebook: NotebookNode) -> NotebookNode:
    """Put the line below the outputs of each code cell that shows a picture or a table, in place of an older one."""
    imported: dict[str, Any] = {}
    made: dict[str, list[ast.AST]] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or not cell.source:
            continue
        cell.outputs = [output for output in cell.outputs if not is_caption(output)]
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:  # a magic of IPython
            continue
        imported |= _imports(tree)
        _remember(tree, made)
        if any(map(_shows, cell.outputs)) and isinstance(tree.body[-1], ast.Expr | ast.Assign):
            line = caption(tree.body[-1].value, imported, made)
            html = f"{MARK}{escape(line)}</small>"
            cell.outputs.append(new_output("display_data", {"text/html": html}))
    return notebook


def is_caption(output: NotebookNode) -> bool:
    """Whether an output is such a line."""
    return output.get("data", {}).get("text/html", "").startswith(MARK)


def caption(shown: ast.AST, imported: dict[str, Any], made: dict[str, list[ast.AST]]) -> str:
    """The line of an expression, with the names that were imported and made before it."""
    calls = list(_calls(shown, made, set()))
    functions = [found for call in calls if (found := _function(call.func, imported)) is not None]
    drawn = [name for name, source in figures().items() if unwrapped(source.draw) in functions]
    tables = {name: unwrapped(make) for name, make in (TABLES | SLOW_TABLES).items()}
    files = tuple(dict.fromkeys([*_read(calls), *(name for name, make in tables.items() if make in functions)]))
    exact = [name for name in drawn if set(figures()[name].tables) == set(files)]
    if exact:
        return of_figure(exact[0]).line()
    names = list(dict.fromkeys(map(function_name, functions)))[:LISTED]
    if len(files) == 1 and (not names or tables.get(files[0]) in functions) and not drawn:
        return of_table(files[0]).line()
    line = Provenance(files, ", ".join(names), None).line()
    return line if files else " · ".join(filter(None, [HERE, line]))


def _shows(output: NotebookNode) -> bool:
    data = output.get("data", {})
    return "image/png" in data or 'class="dataframe"' in data.get("text/html", "")


def _imports(tree: ast.Module) -> dict[str, Any]:
    """What the import statements of a cell name, as far as it is this package's."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.asname or alias.name: import_module(alias.name)
                for alias in node.names
                if alias.name.split(".")[0] == "hae_lab"
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hae_lab":
            found |= {alias.asname or alias.name: _member(str(node.module), alias.name) for alias in node.names}
    return found


def _member(module: str, name: str) -> Any:
    home = import_module(module)
    return getattr(home, name) if hasattr(home, name) else import_module(f"{module}.{name}")


def _remember(tree: ast.Module, made: dict[str, list[ast.AST]]) -> None:
    """Add to each name the expressions that the cell makes it of; one that is not made of itself forgets the old."""
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.For) else []
        value = node.value if isinstance(node, ast.Assign) else getattr(node, "iter", None)
        for target in targets:
            for name in _bound(target) if value is not None else ():
                grows = isinstance(target, ast.Subscript) or _names(name, value)
                made[name] = [*(made.get(name, []) if grows else []), value]


def _bound(target: ast.AST) -> Iterator[str]:
    """The names that an assignment makes, or adds to."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _bound(each)
    elif isinstance(target, ast.Subscript | ast.Attribute | ast.Starred):
        yield from _bound(target.value)


def _names(name: str, node: ast.AST) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node))


def _calls(node: ast.AST, made: dict[str, list[ast.AST]], seen: set[str]) -> Iterator[ast.Call]:
    """The calls of an expression from outside to inside, then those that its names were made of."""
    inside = list(ast.walk(node))
    yield from (each for each in inside if isinstance(each, ast.Call))
    for each in inside:
        if isinstance(each, ast.Name) and each.id in made and each.id not in seen:
            seen.add(each.id)
            for value in made[each.id]:
                yield from _calls(value, made, seen)


def _function(node: ast.AST, imported: dict[str, Any]) -> Callable[..., Any] | None:
    """The function of this package that a call names, without `read_table` and what only folds for reading, or None."""
    names = ast.unparse(node).split(".")
    found = imported.get(names[0])
    for name in names[1:]:
        found = getattr(found, name, None)
    home = getattr(found, "__module__", "") or ""
    told = callable(found) and home.startswith("hae_lab.") and not home.startswith("hae_lab.book")
    return found if told and getattr(found, "__name__", "") != "read_table" else None


def _read(calls: list[ast.Call]) -> list[str]:
    """Names of the tables that `read_table` is given."""
    return [
        str(call.args[0].value)
        for call in calls
        if ast.unparse(call.func).endswith("read_table") and call.args and isinstance(call.args[0], ast.Constant)
    ]
