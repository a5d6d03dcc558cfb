"""The house: imports point downwards only, and the command line need not wait for torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hae_lab

PACKAGE = Path(hae_lab.__file__).parent
ROOT = PACKAGE.name

# design.md, section 2, by the first part of a module's name inside the package
FLOORS = {
    **dict.fromkeys(("config", "masks", "plots", "errors", "files", "statistics"), 1),
    **dict.fromkeys(("models",), 2),
    **dict.fromkeys(("profilers", "diffusion"), 3),
    **dict.fromkeys(("claims", "study", "explorer", "study_tables", "lessons"), 4),
    **dict.fromkeys(("reproduce", "rerun", "notebooks", "readme", "site"), 5),  # the writers
    **dict.fromkeys(("__main__",), 6),
}


def find_modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module; a package is its `__init__.py`."""
    files = {path.relative_to(package.parent).with_suffix(""): path for path in package.rglob("*.py")}
    return {".".join(part for part in name.parts if part != "__init__"): path for name, path in files.items()}


MODULES = find_modules(PACKAGE)
INSIDE = sorted(set(MODULES) - {ROOT})


def imported(source: str, module: str, modules=MODULES) -> set[str]:
    """The modules of the package that a module's source imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import hides where it points"
            # `from package import name` takes a module, or what the package's __init__ holds
            found |= {
                name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            }
    return {name for name in found if name.split(".")[0] == ROOT}


def imports_of(module: str) -> set[str]:
    return imported(MODULES[module].read_text(), module)


def floor(module: str) -> int | None:
    return FLOORS.get(module.split(".")[1])


def points_up(module: str, target: str) -> bool:
    floors = floor(module), floor(target)
    return None not in floors and floors[1] > floors[0]


def test_modules_are_found():
    assert {ROOT, f"{ROOT}.config", f"{ROOT}.models", f"{ROOT}.models.unet"} <= set(MODULES)


@pytest.mark.parametrize("module", INSIDE)
def test_every_module_has_a_floor(module):
    assert floor(module) is not None, f"{module} stands on no floor of the design"


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_downwards_only(module):
    assert {name for name in imports_of(module) - {ROOT} if points_up(module, name)} == set()


@pytest.mark.parametrize("module", INSIDE)
def test_no_module_imports_the_whole_package(module):
    # its lazy names come from any floor; `from hae_lab import masks` names a module and is fine
    assert ROOT not in imports_of(module)


def test_the_package_imports_floor_one_alone():
    assert {floor(name) for name in imports_of(ROOT)} == {1}


def test_imports_make_no_circle():
    order = list(TopologicalSorter({module: imports_of(module) for module in INSIDE}).static_order())
    assert len(order) >= len(INSIDE)


@pytest.mark.parametrize(
    ("module", "target", "upwards"),
    [
        ("hae_lab.presets", "hae_lab.models.unet", True),
        ("hae_lab.models", "hae_lab.profilers.macs", True),
        ("hae_lab.presets", "hae_lab.masks", False),
        ("hae_lab.study", "hae_lab.diffusion", False),
    ],
)
def test_floors_tell_up_from_down(module, target, upwards):
    assert points_up(module, target) == upwards


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", set()),
        ("import hae_lab.study", {"hae_lab.study"}),
        ("from hae_lab import masks, errors", {"hae_lab.masks", "hae_lab.checks"}),
        ("from hae_lab import build", {"hae_lab"}),
        ("def f():\n    from hae_lab.models.unet import HAEUNet", {"hae_lab.models.unet"}),
        ("if True:\n    from hae_lab.models import unet, build", {"hae_lab.models.unet", "hae_lab.models"}),
    ],
)
def test_imports_are_seen(source, expected):
    assert imported(source, "example") == expected


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="relative import"):
        imported("from . import masks", "example")


@pytest.mark.parametrize("module", ["hae_lab", "hae_lab.presets", "hae_lab.masks"])
def test_import_does_not_wait_for_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
