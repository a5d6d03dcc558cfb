"""The house: one floor a room, imports down only, no way into the clone below the audit, quick names without torch."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from house import PACKAGE, House, report

# bottom to top, one room a floor; hae_lab/README.md draws the same house
FLOORS = (
    "checks files tables sources parts masks rules family presets models profilers diffusion deploy study plots "
    "explorer audit book __main__"
).split()
LINE = FLOORS.index("audit")  # from here up a clone is needed
WITHOUT_TORCH = FLOORS[: FLOORS.index("models")]
OF_THE_CLONE = ("data", "studies", "figures", "notebooks", "tests")

HOUSE = House(PACKAGE)
INSIDE = sorted(set(HOUSE.modules) - {HOUSE.name})
BELOW_THE_LINE = [module for module in INSIDE if FLOORS.index(HOUSE.room(module)) < LINE]


def points_up(module: str, target: str) -> bool:
    return FLOORS.index(HOUSE.room(target)) > FLOORS.index(HOUSE.room(module))


# floors


def test_every_room_has_a_floor_and_every_floor_a_room():
    assert set(HOUSE.rooms) == {*FLOORS, "__init__"}
    assert len(FLOORS) == len(set(FLOORS))


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_downwards_only(module):
    assert {name for name in HOUSE.imports[module] - {HOUSE.name} if points_up(module, name)} == set()


@pytest.mark.parametrize("module", INSIDE)
def test_no_module_imports_the_whole_package(module):
    # its lazy names come from any floor; `from hae_lab import masks` names a module and is fine
    assert HOUSE.name not in HOUSE.imports[module]


def test_the_front_door_opens_the_lower_floors_alone():
    rooms = {HOUSE.room(name) for name in HOUSE.imports[HOUSE.name]}
    assert rooms
    assert rooms <= set(WITHOUT_TORCH)


def test_imports_make_no_circle():
    order = list(TopologicalSorter({module: HOUSE.imports[module] for module in INSIDE}).static_order())
    assert set(order) == set(INSIDE)


def test_the_map_of_the_house_has_the_same_floors():
    drawing = (PACKAGE / "README.md").read_text().split("```")[1].strip()
    drawn = [line.split()[0] for line in drawing.splitlines()]
    rooms = [room.rstrip("/") for room in drawn]
    assert rooms == [*FLOORS[:LINE], "----", *FLOORS[LINE:]][::-1]
    assert [room for room in drawn if room.endswith("/")] == [f"{room}/" for room in rooms if (PACKAGE / room).is_dir()]


def test_the_map_points_to_files_and_names_that_exist():
    text = (PACKAGE / "README.md").read_text()
    for path in re.findall(r"`([\w/]+\.py)`", text):
        assert (PACKAGE / path).exists() or (PACKAGE.parent / path).exists(), path
    for path, names in re.findall(r"`([\w/]+\.py)`: ((?:`\w+`,? ?(?:and )?)+)", text):
        source = (PACKAGE / path).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE), (path, name)


# the line: what stands below works without a clone


@pytest.mark.parametrize("module", BELOW_THE_LINE)
def test_nothing_below_the_line_reads_the_clone(module):
    tree = ast.parse(HOUSE.modules[module].read_text())
    assert folders_of_the_clone(tree) == []
    outside = [path for path in own_paths(tree, HOUSE.modules[module]) if not path.is_relative_to(PACKAGE)]
    assert outside == []


def folders_of_the_clone(tree: ast.Module) -> list[str]:
    """Texts of a source that lead to a folder of the repository: joined to a path, or given to `Path` or `open`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found += [node.left, node.right]
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            found += node.args if name in ("Path", "open", "joinpath", "read_csv", "read", "glob") else []
    texts = [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if text.split("/")[0] in OF_THE_CLONE]


def own_paths(tree: ast.Module, file: Path) -> list[Path]:
    """What every `Path(__file__)` of a source leads to, with the `.parent` and `.parents[n]` behind it."""
    chains = [node for node in ast.walk(tree) if isinstance(node, ast.expr) and _is_own_path(node)]
    names = {"Path": Path, "__file__": str(file)}
    return [eval(ast.unparse(node), names) for node in chains]  # only the shapes that `_is_own_path` takes


def _is_own_path(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and _leads_to_file(node.value, "parents")
    return _leads_to_file(node, "parent") or ast.unparse(node) == "Path(__file__)"


def _leads_to_file(node: ast.expr, attribute: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == attribute and _is_own_path(node.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("root / 'data' / f'{name}.csv'", ["data"]),
        ("pd.read_csv('data/claims.csv')", ["data/claims.csv"]),
        ("open(Path('studies'))", ["studies"]),
        ("rows['data']; label == 'data'", []),
        ("Path('runs') / 'mine.sqlite'", []),
    ],
)
def test_ways_into_the_clone_are_seen(source, expected):
    assert folders_of_the_clone(ast.parse(source)) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Path(__file__)", ["h/p/m.py"]),
        ("PACKAGE = Path(__file__).parent", ["h/p", "h/p/m.py"]),
        ("Path(__file__).parents[2] / 'x'", [".", "h/p/m.py"]),
        ("Path(__file__).parent.parents[1]", [".", "h/p", "h/p/m.py"]),
        ("path.parent", []),
    ],
)
def test_climbs_out_of_the_package_are_seen(source, expected):
    assert sorted(own_paths(ast.parse(source), Path("h/p/m.py"))) == [Path(path) for path in expected]


def test_the_audit_itself_would_be_caught():
    source = HOUSE.modules["hae_lab.audit.clone"]
    outside = [path for path in own_paths(ast.parse(source.read_text()), source) if not path.is_relative_to(PACKAGE)]
    assert outside == [PACKAGE.parent]


# how it is told


@pytest.mark.parametrize(
    ("module", "target", "upwards"),
    [
        ("hae_lab.presets", "hae_lab.models.unet", True),
        ("hae_lab.study.runner", "hae_lab.plots", True),
        ("hae_lab.explorer", "hae_lab.audit.clone", True),
        ("hae_lab.presets", "hae_lab.family", False),
        ("hae_lab.models.unet", "hae_lab.models.layers", False),
    ],
)
def test_floors_tell_up_from_down(module, target, upwards):
    assert points_up(module, target) == upwards


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", set()),
        ("import hae_lab.study", {"hae_lab.study"}),
        ("from hae_lab import masks, checks", {"hae_lab.masks", "hae_lab.checks"}),
        ("from hae_lab import build", {"hae_lab"}),
        ("def f():\n    from hae_lab.models.unet import HAEUNet", {"hae_lab.models.unet"}),
        ("if True:\n    from hae_lab.models import unet, build", {"hae_lab.models.unet", "hae_lab.models"}),
    ],
)
def test_imports_are_seen(source, expected):
    assert HOUSE.imported(source) == expected


def test_relative_imports_are_refused():
    with pytest.raises(AssertionError, match="relative import"):
        HOUSE.imported("from . import masks")


def test_rooms_lines_and_arrows_are_counted(tmp_path):
    package = tmp_path / "home"
    files = {
        "__init__": "from home.low import a\n",
        "low": "a = 1\nb = 2\n",
        "top/__init__": "",
        "top/x": "import home.low\nfrom home.top import y\n",
        "top/y": "def f():\n    from home.low import b\n",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    house = House(package)
    assert set(house.modules) == {"home", "home.low", "home.top", "home.top.x", "home.top.y"}
    assert house.arrows == {("__init__", "low"), ("top", "low")}
    assert house.lines(house.rooms["top"]) == 4
    assert report(house).splitlines()[1].split() == ["low", "1", "2", "0", "2"]
    assert report(house).splitlines()[-1] == "3 rooms, 2 arrows"


# quick names


@pytest.mark.parametrize("room", ["hae_lab", *(f"hae_lab.{room}" for room in WITHOUT_TORCH), "hae_lab.__main__"])
def test_import_does_not_wait_for_torch(room):
    code = f"import sys, {room}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
