"""The wheel, installed elsewhere: what is below the audit works in an empty folder, the rest says it needs a clone."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import hae_lab
from hae_lab.profilers import compute, parameters, visibility

pytestmark = pytest.mark.slow

CLONE = Path(__file__).parent.parent
SOURCES = ("hae_lab", "pyproject.toml", "README.md", "LICENSE")
# run before anything else by Python itself, in the workers of a study too: the clone is not to be found
ISOLATION = f"""
import sys
sys.path[:] = [folder for folder in sys.path if folder != {str(CLONE)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources so that no build folder is left behind, or read."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (CLONE / name).is_dir() else shutil.copy
        copy(CLONE / name, folder / name)
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "-w", "built", cwd=folder)
    return next((folder / "built").glob("hae_lab-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", str(wheel), "--no-deps", "--target", str(folder / "packages"), cwd=folder)
    (folder / "isolation").mkdir()
    (folder / "isolation" / "sitecustomize.py").write_text(ISOLATION)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Runs Python in an empty folder, or another, with the wheel's package alone; returns what it did."""

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess:
        path = os.pathsep.join(str(installed / name) for name in ("isolation", "packages"))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)

    return run


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def printed(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_module_and_the_pages(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(CLONE).as_posix() for path in (CLONE / "hae_lab").rglob("*.py")}
    others = {
        path.relative_to(CLONE).as_posix()
        for kind in ("js", "toml", "cpp")
        for path in (CLONE / "hae_lab").glob(f"*/*.{kind}")
    }
    assert {"hae_lab/explorer/grid.js", "hae_lab/deploy/denoiser.js"} < others
    assert names == sources | others | {"hae_lab/py.typed"}


def test_the_clone_is_out_of_reach(python, installed):
    found = printed(
        python("-c", "import hae_lab, hae_lab.audit.clone as c; print(hae_lab.__file__); print(c.__file__)")
    )
    assert [Path(line).is_relative_to(installed / "packages") for line in found.splitlines()] == [True, True]
    assert "No module named" in python("-c", "import study_workers").stderr
    code = "from importlib.util import find_spec; print(find_spec('hae_lab.nowhere'))"
    assert printed(python("-c", code)) == "None"


# below the line: an empty folder will do


def test_models_and_profiles_are_those_of_the_clone(python):
    code = """
import hae_lab
from hae_lab.masks import TokenGrid
from hae_lab.profilers import compute, parameters, visibility
config = hae_lab.config("lite", "tiny")
model = hae_lab.build(config, seed=3)
print(sum(each.numel() for each in model.parameters()))
print(parameters(config)["params"].sum(), compute(config)["macs_run"].sum())
print(visibility(TokenGrid(8, 8), "document").to_csv(index=False))
"""
    counted, sums, *seen = printed(python("-c", code)).splitlines()
    config = hae_lab.config("lite", "tiny")
    assert int(counted) == sum(each.numel() for each in hae_lab.build(config).parameters())
    assert sums.split() == [str(parameters(config)["params"].sum()), str(compute(config)["macs_run"].sum())]
    grid = hae_lab.masks.TokenGrid(8, 8)
    assert "\n".join(seen) == visibility(grid, "document").to_csv(index=False).strip()


def test_figures_and_the_explorer(python, tmp_path):
    code = """
from pathlib import Path
import pandas as pd
from hae_lab import plots
from hae_lab.diffusion.data import phantoms
from hae_lab.explorer import MaskExplorerModel, explore
from hae_lab.masks import TokenGrid
from hae_lab.profilers import visibility
from hae_lab.rules import RULES
rows = pd.concat([visibility(TokenGrid(side, side), rule) for side in (8, 16) for rule in RULES])
Path("rows.png").write_bytes(plots.density_and_reach(rows).png())
Path("images.png").write_bytes(plots.image_grid(phantoms(4, 16).images, title="heads", columns=2).png())
print(MaskExplorerModel(rule="dense", side=8, query=0).matrix().shape)
print(explore(side=8).picker._esm.count("canvas"))
"""
    shape, page = printed(python("-c", code)).splitlines()
    assert shape == "(69, 69)"  # 64 pixels, four patches of 4 x 4, one of 8 x 8
    assert int(page) > 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"rows.png", "images.png"}


def test_training_and_a_study(python, tmp_path):
    done = python("-m", "hae_lab", "train", "v2", "--preset", "lesson16", "--steps", "2", "--batch-size", "4")
    assert "held-out loss" in printed(done)
    assert (tmp_path / "runs" / "v2-lesson16-phantoms" / "samples.png").exists()
    study = 'name = "one"\npreset = "tiny"\n[fixed]\nsteps = 2\nbatch_size = 4\n[grid]\nmlp_ratio = [0.25]\n'
    (tmp_path / "one.toml").write_text(study)
    assert "one.csv" in printed(python("-m", "hae_lab", "study", "one.toml", "--workers", "1"))
    header, *rows = (tmp_path / "runs" / "one.csv").read_text().splitlines()
    assert "loss" in header.split(",")
    assert len(rows) == 1


def test_show(python):
    assert "shared_patch_embed" in printed(python("-m", "hae_lab", "show", "lite", "--preset", "tiny"))


def test_models_are_exported_without_a_clone(python, tmp_path):
    done = python("-m", "hae_lab", "export", "v2", "--preset", "tiny", "--format", "pt2", "--out", "v2.pt2")
    assert str(tmp_path / "v2.pt2") in printed(done)
    assert (tmp_path / "v2.pt2").stat().st_size > 4 * 100_000


# above the line: a clone is needed


@pytest.mark.parametrize(
    "command",
    [
        ("reproduce", "--only", "claims"),
        ("reproduce", "--only", "quality_forest"),
        ("notebooks", "--refresh"),
        ("notebooks", "--blank"),
        ("site",),
    ],
    ids=" ".join,
)
def test_the_audit_and_the_book_say_that_they_need_a_clone(python, command, tmp_path):
    done = python("-m", "hae_lab", *command)
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1].startswith("hae-lab: ")
    assert "a clone of the repository" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_in_a_clone_the_wheel_reproduces(python, tmp_path):
    names = ("impossibility", "sample_floor")  # the second reads a committed study
    arguments = ("reproduce", "--out", str(tmp_path), *(f"--only={name}" for name in names))
    assert str(tmp_path / "data") in printed(python("-m", "hae_lab", *arguments, cwd=CLONE))
    for name in names:
        assert (tmp_path / "data" / f"{name}.csv").read_bytes() == (CLONE / "data" / f"{name}.csv").read_bytes()


# with few libraries

LIGHT = {"torch", "numpy", "pandas", "safetensors", "tqdm"}
OTHERS = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def test_models_and_profilers_need_five_of_the_libraries(python):
    project = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} - LIGHT
    modules = {{"scikit-learn": "sklearn", "pillow": "PIL"}.get(name, name) for name in names}
    assert {"matplotlib", "diffusers", "scipy", "jupyterlab", "accelerate"} <= modules
    code = (
        OTHERS.format(names=modules)
        + """
import hae_lab
from hae_lab.masks import TokenGrid
from hae_lab.profilers import compute, parameters, visibility
config = hae_lab.config("v2", "tiny")
model = hae_lab.build(config)
loaded = hae_lab.load_checkpoint(hae_lab.save_checkpoint(model, "model.safetensors"))
print(sum(each.numel() for each in loaded.parameters()), parameters(config)["params"].sum())
print(len(compute(config)), len(visibility(TokenGrid(8, 8), "document")), len(hae_lab.profile(config).text(2)))
"""
    )
    counted, summed, *lengths = printed(python("-c", code)).split()
    assert counted == summed
    assert all(int(length) > 0 for length in lengths)
