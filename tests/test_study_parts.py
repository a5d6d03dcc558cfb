"""Users' parts in studies: of all five kinds, from a notebook, a module and a file, on real workers; and in keys."""

import shutil
import sys
from pathlib import Path

import pytest
import study_parts

import hae_lab
from hae_lab import HAELabError, parts
from hae_lab.__main__ import main
from hae_lab.diffusion.datasets import DATA
from hae_lab.diffusion.metrics import METRICS, Metric
from hae_lab.parts import SLOT_PARTS
from hae_lab.presets import PRESETS, VARIANTS
from hae_lab.rules import RULES
from hae_lab.study import Study
from hae_lab.study.store import code_version
from hae_lab.study.task import TRIALS

SOURCE = Path(study_parts.__file__).read_text()
TOML = """
name = "mine"
preset = "lesson16"
seeds = 1
trial = "{place}:trial"
[fixed]
steps = 2
batch_size = 4
mask_rule = "{place}:diagonal"
fusion = "{place}:GatedFusion"
data = "{place}:images"
metrics = ["{place}:sharpness"]
[grid]
variant = ["hae", "v2"]
"""
FIXED = {"steps": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(parts, "_FILES", {})


@pytest.fixture
def registered(monkeypatch):
    """All five kinds of parts under plain names, as a notebook registers them: of __main__, without a file."""
    main_module = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main_module)
    name = "<cell of a notebook>"
    parts.linecache.cache[name] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), name)
    exec(compile(SOURCE, name, "exec"), vars(main_module))
    monkeypatch.setitem(RULES, "diagonal", main_module.diagonal)
    monkeypatch.setitem(SLOT_PARTS["fusion"], "gated", main_module.GatedFusion)
    monkeypatch.setitem(DATA, "few", main_module.images)
    monkeypatch.setitem(METRICS, "sharpness", Metric("sharpness", measure=main_module.sharpness))
    monkeypatch.setitem(TRIALS, "counted", main_module.trial)
    return main_module


def named(**changes) -> Study:
    fixed = FIXED | {"mask_rule": "diagonal", "fusion": "gated", "data": "few", "metrics": ["sharpness"]}
    return Study("mine", {"variant": ["hae", "v2"]}, 1, "lesson16", fixed | changes, trial="counted")


def by_file(folder: Path, place: str = "study_parts_file.py") -> Study:
    folder.mkdir(exist_ok=True)
    (folder / "study_parts_file.py").write_text(SOURCE)
    (folder / "mine.toml").write_text(TOML.format(place=place))
    return Study.from_toml(folder / "mine.toml", trust=True)


def check(rows) -> None:
    assert rows["variant"].tolist() == ["hae", "v2"]
    assert rows["n_images"].tolist() == [12, 12]
    assert (rows["sharpness"] > 0).all()
    assert rows["loss"].nunique() == 2


@pytest.mark.slow
def test_parts_of_a_notebook_a_module_and_a_file_reach_the_processes(tmp_path, registered):
    tables = {}
    for name, study in {
        "notebook": named(),
        "module": by_file(tmp_path / "module", "study_parts"),
        "file": by_file(tmp_path / "file"),
    }.items():
        tables[name] = study.run(tmp_path / f"{name}.sqlite", progress=False)
        check(tables[name])
    same = ["variant", "params", "loss", "sharpness", "n_images"]  # one computation, whatever it is called
    for name in ("module", "file"):
        assert tables[name][same].equals(tables["notebook"][same])


@pytest.fixture
def address(tmp_path):
    from test_study_cluster import scheduler

    (tmp_path / "cluster").mkdir()
    with scheduler(tmp_path / "cluster", ("-m", "distributed.cli.dask_worker")) as address:
        yield address


@pytest.mark.slow
def test_parts_reach_workers_in_a_folder_without_the_file(tmp_path, registered, address):
    for name, study in {"notebook": named(), "file": by_file(tmp_path / "file")}.items():
        rows = study.run(tmp_path / f"{name}.sqlite", backend="dask", address=address, progress=False)
        check(rows)


# in keys


def keys(study: Study) -> list[str]:
    return [run.key for run in study.planned]


def test_a_changed_part_renames_just_its_runs(tmp_path):
    folder = tmp_path / "study"
    study = by_file(folder)
    before = keys(study)
    other = Study("other", {"variant": ["hae", "v2"]}, 1, "lesson16", FIXED)
    others = keys(other)
    for edit in (
        ("WIDTH = 5", "WIDTH = 7"),
        ("GATE = torch.tensor([0.25])", "GATE = torch.tensor([0.5])"),
        ("phantoms(12, size, seed=3)", "phantoms(12, size, seed=4)"),
        ("SCALE = np.array([1.0, 0.5])", "SCALE = np.array([2.0, 0.5])"),
        ('"n_images": 12', '"n_images": 13'),
    ):
        assert edit[0] in SOURCE
        (folder / "study_parts_file.py").write_text(SOURCE.replace(*edit))
        assert not set(keys(study)) & set(before)
    assert keys(other) == others
    (folder / "study_parts_file.py").write_text(
        SOURCE.replace("sees `WIDTH` keys", "sees some keys") + "\nUNUSED = 1\n"
    )
    assert keys(study) == before


def test_what_is_registered_renames_no_run(monkeypatch):
    study = Study("plain", {"variant": ["hae", "v2"], "data": ["digits", "phantoms"]}, 1, "tiny", FIXED)
    before = keys(study)
    monkeypatch.setitem(RULES, "mine", study_parts.diagonal)
    monkeypatch.setitem(DATA, "mine", study_parts.images)
    monkeypatch.setitem(SLOT_PARTS["fusion"], "mine", study_parts.GatedFusion)
    monkeypatch.setitem(METRICS, "mine", Metric("mine", measure=study_parts.sharpness))
    monkeypatch.setitem(PRESETS, "mine", PRESETS["tiny"])
    monkeypatch.setattr("hae_lab.presets.VARIANTS", dict(VARIANTS))
    hae_lab.register_variant("v3", "HAE V3", regions="pooled")
    assert keys(study) == before
    monkeypatch.setitem(RULES, "document", study_parts.diagonal)
    assert not set(keys(study)) & set(before)


NEW = """

def new_part(grid, sparsity, seed):
    return dense(grid, sparsity, seed)


RULES["new"] = new_part
"""


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("rules.py", False),
        ("presets.py", False),
        ("parts.py", False),
        ("sources.py", False),
        ("models/slots.py", False),
        ("diffusion/datasets.py", False),
        ("diffusion/metrics.py", False),
        ("models/hybrid.py", True),
        ("diffusion/training.py", True),
        ("family.py", True),
    ],
)
def test_a_part_added_to_the_package_leaves_the_code_version(file, renamed, tmp_path):
    package = tmp_path / "hae_lab"
    shutil.copytree(Path(hae_lab.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_version(package) == code_version()
    code_version.cache_clear()
    with (package / file).open("a") as added:
        added.write(NEW)
    assert (code_version(package) != code_version()) == renamed
    code_version.cache_clear()


# the command

PLUGIN = """
import hae_lab
from hae_lab.rules import RULES
from hae_lab.masks import SparseMask
import numpy as np

hae_lab.register_variant("v3", "HAE V3", regions="pooled", mlp_ratio=0.25, fusion="concat")


def first_keys(grid, sparsity, seed):
    start = np.zeros((1, grid.n), np.int32)
    return SparseMask(grid, start, start + np.int32(2), np.empty((1, grid.n, 0), np.int32), kernel="masked")


RULES["first_keys"] = first_keys
"""
PLUGIN_TOML = """
name = "plugged"
preset = "tiny"
seeds = 1
trial = "study_trials:quick"
[grid]
variant = ["v2", "v3"]
mask_rule = ["first_keys"]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The command line in a folder with a plugin; what it registers is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    variants, rules = dict(VARIANTS), dict(RULES)
    (tmp_path / "my_variants.py").write_text(PLUGIN)
    (tmp_path / "plugged.toml").write_text(PLUGIN_TOML)
    yield
    for registry, before in ((VARIANTS, variants), (RULES, rules)):
        for name in set(registry) - set(before):
            del registry[name]
    sys.modules.pop("my_variants", None)


@pytest.mark.parametrize("name", ["my_variants", "my_variants.py"])
def test_a_plugin_registers_before_the_command_runs(name, plugin, capsys):
    assert main(["--plugin", name, "study", "plugged.toml", "--trust", "--static"]) == 0
    static = capsys.readouterr().out
    assert "v3" in static
    assert main(["--plugin", name, "show", "v3", "--preset", "tiny", "--depth", "1"]) == 0
    shown = capsys.readouterr().out
    params = sum(p.numel() for p in hae_lab.build(hae_lab.config("v3", "tiny")).parameters())
    assert str(params) in static
    assert f"{params:,}" in shown
    assert main(["show", "v4"]) == 2
    assert "unknown variant 'v4': known are unet, hae, lite, v2, v3" in capsys.readouterr().err


@pytest.mark.slow
def test_the_parts_of_a_plugin_reach_the_workers(plugin, tmp_path, capsys):
    assert (
        main(["--plugin", "my_variants.py", "study", "plugged.toml", "--trust", "--store", "s.sqlite", "--out", "out"])
        == 0
    )
    assert len((tmp_path / "out" / "plugged.csv").read_text().splitlines()) == 3


def test_a_plugin_that_is_not_there_is_named(capsys):
    assert main(["--plugin", "no_such_plugin", "show", "v2"]) == 2
    assert "--plugin no_such_plugin cannot be imported here: ModuleNotFoundError" in capsys.readouterr().err


def test_an_object_that_is_no_function_is_refused_with_its_reason(monkeypatch):
    class Rule:
        def __call__(self, grid, sparsity, seed):
            return study_parts.diagonal(grid, sparsity, seed)

    monkeypatch.setitem(RULES, "object", Rule())
    study = Study("mine", {"mask_rule": ["object"]}, 1, "tiny")
    with pytest.raises(HAELabError, match="is no part: write it as a function or class"):
        study.planned  # noqa: B018
