"""Studies declared: grids, labels, static counts, what a run is named by, the store, tables, cost."""

import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hae_lab import VARIANTS, HAELabError, build, config
from hae_lab.diffusion.datasets import HELD_OUT
from hae_lab.profilers.formulas import static_counts
from hae_lab.profilers.macs import compute, total
from hae_lab.rules import RULES
from hae_lab.study import Study, means
from hae_lab.study import store as store_module
from hae_lab.study.cost import estimated_seconds
from hae_lab.study.store import Run, Store, canonical_json, code_version, is_done
from hae_lab.tables import write

MACS = {"macs": "macs_run", "macs_dense": "macs_dense", "macs_kept": "macs_kept"}
OUTCOME = {
    "status": "ok", "metrics": {"loss": 0.5, "curve": [[1, 0.75], [2, 0.5]]}, "traceback": None, "seconds": 60.0,
    "host": "here", "versions": {"torch": "2"},
}  # fmt: skip


def tiny(name="tiny", grid=None, **options) -> Study:
    return Study(name, grid or {"mlp_ratio": [0.25, 4]}, **{"preset": "tiny", "seeds": 2} | options)


def finish(study: Study, path, outcome=OUTCOME, runs=slice(None)) -> None:
    """Put rows into a store as if the runs had been run."""
    with Store(path) as opened:
        for run in study.planned[runs]:
            opened.finish(run, outcome)


# declaration


@pytest.mark.parametrize(
    ("grid", "labels"),
    [
        ({"variant": ["unet", "lite"]}, ["unet", "lite"]),
        ({"variant": ["lite"]}, ["lite"]),
        ({"mlp_ratio": np.array([0.25, 4.0])}, ["mlp_ratio=0.25", "mlp_ratio=4.0"]),
        ({"mask_rule": ["dense", "window2d"], "fusion": ["mean"]}, ["dense", "window2d"]),
        (
            [{"variant": ["hae", "v2"]}, {"variant": ["v2"], "model_channels": [24]}],
            ["hae", "v2", "v2, model_channels=24"],
        ),
        ({"steps": range(10, 12), "variant": ["v2"]}, ["steps=10", "steps=11"]),
        ({"patch_sizes": [[1, 4], [1, 4, 8]]}, ["patch_sizes=(1, 4)", "patch_sizes=(1, 4, 8)"]),
        ({"preset": ["tiny", "lesson16"]}, ["tiny", "lesson16"]),
    ],
)
def test_cells_are_called_by_what_varies(grid, labels):
    assert [cell.label for cell in Study("labels", grid, preset="tiny").cells] == labels


def test_data_are_a_column_and_not_part_of_the_label():
    study = tiny(grid={"data": ["digits", "phantoms"], "variant": ["unet", "v2"]})
    assert [cell.label for cell in study.cells] == ["unet", "v2"] * 2
    assert list(map(str, study.cells)) == ["unet on digits", "v2 on digits", "unet on phantoms", "v2 on phantoms"]
    assert list(study.static()["data"]) == ["digits", "digits", "phantoms", "phantoms"]


def test_fields_reach_config_recipe_and_experiment():
    study = tiny(grid={"sparsity": [0.5], "learning_rate": [1e-3]}, fixed={"steps": 7, "samples": 8, "variant": "v2"})
    (cell,) = study.cells
    experiment = cell.experiment
    assert experiment.config == config("v2", "tiny", sparsity=0.5)
    assert (experiment.recipe.steps, experiment.recipe.learning_rate, experiment.samples) == (7, 1e-3, 8)


def test_cells_that_do_not_name_a_field_have_its_value():
    study = tiny(grid=[{"variant": ["v2"]}, {"variant": ["v2"], "model_channels": [24]}])
    assert [cell.values["model_channels"] for cell in study.cells] == [16, 24]


@pytest.mark.parametrize(("seeds", "expected"), [(3, (0, 1, 2)), ([7, 3], (3, 7)), (range(2, 4), (2, 3))])
def test_seeds_are_a_number_or_a_list(seeds, expected):
    study = tiny(seeds=seeds)
    assert study.seeds == expected
    assert [run.seed for run in study.planned] == [*expected, *expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"mlp_ration": [1]}}, "unknown study field 'mlp_ration': did you mean 'mlp_ratio'"),
        ({"fixed": {"step": 10}}, "unknown study field 'step': did you mean 'steps'"),
        ({"grid": {"variant": ["lit"]}}, "cell lit: unknown variant 'lit': did you mean 'lite'"),
        ({"grid": {"data": ["digit"]}}, "unknown data set 'digit': did you mean 'digits'"),
        ({"grid": {"mlp_ratio": [-1]}}, "cell mlp_ratio=-1: mlp_ratio is a number above 0, got -1"),
        ({"grid": {"steps": [0]}}, "cell steps=0: steps is a whole number from 1, got 0"),
        ({"preset": "tin"}, "unknown preset 'tin': did you mean 'tiny'"),
        ({"grid": {"variant": "lite"}}, "a list of values for variant, got 'lite'"),
        ({"grid": {"variant": []}}, "a grid of size 0"),
        ({"grid": [{}]}, "a grid of size 0"),
        ({"grid": "lite"}, "a grid is a dictionary of lists, or a list of such, got 'lite'"),
        ({"grid": {"sparsity": [0.5, 0.5]}}, "one experiment twice: hae and hae"),
        ({"grid": [{"variant": ["hae", "v2"]}, {"mlp_ratio": [1, 4]}]}, "twice: hae and mlp_ratio=4"),
        ({"grid": {"steps": range(1, 102), "warmup_steps": range(100)}}, "a grid of 10,100 cells; the most is 10,000"),
        ({"fixed": {"mlp_ratio": 1}}, "mlp_ratio cannot be both in the grid and fixed"),
        ({"fixed": [("steps", 3)]}, "fixed is a dictionary"),
        ({"seeds": 0}, "seeds are how many, from 1 on, or a list"),
        ({"seeds": [1, 1]}, "seeds are how many"),
        ({"seeds": [-1]}, "seeds are how many"),
        ({"seeds": True}, "seeds are how many"),
        ({"name": "a/b"}, "it names files; got 'a/b'"),
    ],
)
def test_a_mistake_shows_where_the_study_is_declared(options, message):
    with pytest.raises(HAELabError) as error:
        tiny(**options)
    assert message in str(error.value)


def test_more_runs_than_the_limit_are_refused(tmp_path):
    with pytest.raises(HAELabError, match=r"4 runs are more than the limit of study 'tiny', 3"):
        tiny(limit=3).run(tmp_path / "s.sqlite")
    assert list(tmp_path.iterdir()) == []


TOML = """
name = "slots"
preset = "tiny"
seeds = [4, 5]
[fixed]
steps = 30
[[grid]]
variant = ["hae", "v2"]
[[grid]]
patch_sizes = [[1, 2], [1, 4]]
"""


def test_a_toml_file_is_a_study(tmp_path):
    (tmp_path / "slots.toml").write_text(TOML)
    study = Study.from_toml(tmp_path / "slots.toml")
    assert [cell.label for cell in study.cells] == ["hae", "v2", "patch_sizes=(1, 2)", "patch_sizes=(1, 4)"]
    assert (study.name, study.seeds, study.cells[0].experiment.recipe.steps) == ("slots", (4, 5), 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "Invalid value"),
        ("name = 'x'", "a study needs grid"),
        ("[grid]\nvariant = ['hae']", "a study needs name"),
        ("nam = 'x'\n[grid]\nvariant = ['hae']", "unknown key 'nam': did you mean 'name'"),
        ("name = 'x'\n[grid]\nvariant = ['ha']", "unknown variant 'ha': did you mean 'hae'"),
    ],
)
def test_a_bad_file_is_named(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(HAELabError, match=r"bad\.toml: ") as error:
        Study.from_toml(tmp_path / "bad.toml")
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HAELabError, match=r"cannot read '.*none\.toml': No such file"):
        Study.from_toml(tmp_path / "none.toml")


def test_declaring_needs_torch_and_importing_does_not():
    code = "import sys, hae_lab.study; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# static counts


def counted(model_config) -> dict[str, int]:
    """Parameters and MACs by walking through the model."""
    macs = total(compute(model_config))
    params = sum(parameter.numel() for parameter in build(model_config).parameters())
    return {"params": params, **{name: macs[column] for name, column in MACS.items()}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", ["brats128", "cifar32", "lesson32", "tiny"])
def test_static_counts_are_those_of_the_model(variant, preset):
    model_config = config(variant, preset)
    with torch.device("meta"):
        assert static_counts(model_config) == counted(model_config)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    changes=st.fixed_dictionaries(
        {
            "placement": st.sampled_from(["none", "upsample", "attention", "everywhere"]),
            "regions": st.sampled_from(["linear", "pooled"]),
            "fusion": st.sampled_from(["concat", "mean"]),
            "mlp_ratio": st.sampled_from([0.1, 0.25, 1, 3]),
            "cnn_branch": st.booleans(),
            "patch_sizes": st.sampled_from([(1,), (1, 2), (1, 4, 8), (1, 3, 2)]),
            "mask_rule": st.sampled_from(list(RULES)),
            "sparsity": st.sampled_from([0.5, 0.9]),
            "resblock_updown": st.booleans(),
            "conv_resample": st.booleans(),
            "use_scale_shift_norm": st.booleans(),
            "num_classes": st.sampled_from([None, 3]),
            "num_res_blocks": st.integers(1, 3),
            "attention_resolutions": st.sampled_from([(), (2,), (1, 4), (4,)]),
            "mstb_heads": st.sampled_from([2, 8]),
            "out_channels": st.sampled_from([1, 2]),
        }
    )
)
def test_static_counts_follow_every_field(changes):
    model_config = config("hae", "lesson16", **changes)
    with torch.device("meta"):
        assert static_counts(model_config) == counted(model_config)


def test_a_thousand_configurations_are_counted():
    grid = {
        "regions": ["linear", "pooled"],
        "fusion": ["concat", "mean"],
        "mlp_ratio": [0.0625, 0.125, 0.25, 0.5, 1, 2, 4],
        "placement": ["upsample", "attention", "everywhere"],
        "mask_rule": list(RULES),
        "model_channels": [64, 128],
    }
    study = Study("many", grid, preset="brats128")
    rows = study.static()
    assert len(rows) == 1008
    assert list(rows) == ["cell", "data", *grid, "params", "macs", "macs_dense", "macs_kept"]
    assert rows["cell"].is_unique
    assert (rows["macs_kept"] <= rows["macs"]).all()


# what a run is named by


def only(study: Study) -> Run:
    (run,) = study.planned
    return run


BASE = {"grid": {"mlp_ratio": [4]}, "seeds": [0]}


@pytest.mark.parametrize("same", [{"name": "other"}, {"grid": {"mlp_ratio": [4.0]}}, {"grid": {"variant": ["hae"]}}])
def test_studies_share_runs_of_equal_experiments(same):
    assert only(tiny(**BASE | same)).key == only(tiny(**BASE)).key


@pytest.mark.parametrize(
    "other",
    [
        {"seeds": [1]},
        {"grid": {"mlp_ratio": [2]}},
        {"fixed": {"steps": 10}},
        {"fixed": {"data": "digits"}},
        {"fixed": {"data": "study_trials:images"}},
        {"trial": "study_trials:quick"},
    ],
)
def test_what_decides_a_result_is_in_the_key(other):
    assert only(tiny(**BASE | other)).key != only(tiny(**BASE)).key


def test_the_images_of_a_user_are_in_the_key(monkeypatch):
    study = tiny(**BASE, fixed={"data": "study_trials:images"})
    assert "seed=9" in only(study).data
    assert "held-out" in only(study).data


def test_code_is_in_the_key(monkeypatch):
    before = only(tiny(**BASE)).key
    monkeypatch.setattr(store_module, "code_version", lambda: "changed")
    assert only(tiny(**BASE)).key != before


def test_canonical_json_is_one_for_equal_values():
    assert canonical_json('{"b": 4.0, "a": [0.25, 1e3]}') == canonical_json('{"a":[0.250,1000],"b":4}')
    assert canonical_json('{"a": 4.5}') != canonical_json('{"a": 4}')


SOURCE = """def f(x):
    return x + 1
"""


@pytest.mark.parametrize(
    ("file", "text", "changed"),
    [
        ("models/a.py", "# why\n" + SOURCE.replace("1\n", "1  # one\n"), False),
        ("models/a.py", SOURCE.replace("(x):", '(x):\n    """Add one."""'), False),
        ("models/a.py", SOURCE.replace("1", "2"), True),
        ("diffusion/deep/b.py", SOURCE.replace("1", "2"), True),
        ("family.py", "X = 'a string, no docstring'\n", True),
        ("plots.py", SOURCE, False),
        ("models/notes.txt", "text", False),
    ],
)
def test_code_version_sees_what_decides_a_result_and_no_comments(file, text, changed, tmp_path):
    for name in ("family.py", "masks.py", "models/a.py", "diffusion/deep/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    code_version.cache_clear()
    before = code_version(tmp_path)
    code_version.cache_clear()
    (tmp_path / file).write_text(text)
    assert (code_version(tmp_path) != before) == changed
    code_version.cache_clear()


# the store


def test_failed_runs_are_retried_when_asked(tmp_path):
    study = tiny(**BASE)
    finish(study, tmp_path / "s.sqlite", OUTCOME | {"status": "failed"})
    with Store(tmp_path / "s.sqlite") as opened:
        row = opened.select()[only(study).key]
    assert (is_done(row), is_done(row, retry_failed=True), is_done(None)) == (True, False, False)


def test_a_second_driver_is_refused_and_readers_are_not(tmp_path):
    study, path = tiny(), tmp_path / "s.sqlite"
    finish(study, path)
    with Store(path) as opened, opened.held():
        with pytest.raises(HAELabError, match=r"the store '.*s\.sqlite' is taken: another driver"):
            study.run(path)
        assert len(study.results(path)) == len(study.log(path)) == study.cost(path).ok == 4
    assert len(study.run(path, progress=False)) == 4


OLD_SCHEMA = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY, trial TEXT NOT NULL, experiment TEXT NOT NULL, seed INTEGER NOT NULL, data TEXT NOT NULL,
    code TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('running', 'ok', 'failed')), metrics TEXT,
    traceback TEXT, seconds REAL, host TEXT, versions TEXT, started REAL NOT NULL, finished REAL,
    driver TEXT NOT NULL, beat REAL NOT NULL
)
"""


def test_a_store_of_an_older_version_opens_with_what_has_ended(tmp_path):
    path = tmp_path / "s.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("PRAGMA journal_mode=WAL")
        old.execute(OLD_SCHEMA)
        for key, status in (("a", "ok"), ("b", "running"), ("c", "failed")):
            values = (
                key,
                "t",
                "{}",
                3,
                "d",
                "old",
                status,
                '{"loss": 1}',
                None,
                2.0,
                "here",
                "{}",
                1.0,
                2.0,
                "{}",
                2.0,
            )
            old.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 16)})", values)
    old.close()
    for _ in range(2):  # the second time it is one of today's
        with Store(path) as opened:
            rows = opened.select()
    assert {key: row["status"] for key, row in rows.items()} == {"a": "ok", "c": "failed"}
    assert (rows["a"]["metrics"], rows["a"]["seconds"], rows["a"]["parts"]) == ('{"loss": 1}', 2.0, "{}")


def test_a_store_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HAELabError, match=r"cannot keep runs in '.*file/s\.sqlite'"):
        tiny().run(tmp_path / "file" / "s.sqlite")
    (tmp_path / "s.sqlite").write_text("no database " * 100)
    with pytest.raises(HAELabError, match="file is not a database"):
        tiny().run(tmp_path / "s.sqlite")


# tables


def test_results_have_a_row_a_finished_run_in_the_order_of_cells_and_seeds(tmp_path):
    study = tiny(seeds=[5, 3])
    for runs in (slice(3, 4), slice(0, 2)):
        finish(study, tmp_path / "s.sqlite", runs=runs)
    rows = study.results(tmp_path / "s.sqlite")
    assert list(rows.columns) == [
        *("study", "cell", "role", "data", "mlp_ratio", "seed", "margin_percent"),
        *("params", "macs", "macs_dense", "macs_kept", "loss", "key"),
    ]
    assert rows[["mlp_ratio", "seed"]].to_numpy().tolist() == [[0.25, 3], [0.25, 5], [4, 5]]


def test_curves_are_long(tmp_path):
    study = tiny(seeds=1)
    finish(study, tmp_path / "s.sqlite")
    curves = study.curves(tmp_path / "s.sqlite")
    assert list(curves.columns) == ["cell", "data", "seed", "step", "loss"]
    assert curves.to_numpy().tolist()[1] == ["mlp_ratio=0.25", "phantoms", 0, 2, 0.5]
    assert len(curves) == 4


def test_the_log_says_how_runs_went(tmp_path):
    study = tiny(seeds=1)
    finish(study, tmp_path / "s.sqlite", OUTCOME | {"status": "failed", "traceback": "Boom"}, slice(1))
    (row,) = study.log(tmp_path / "s.sqlite").to_dict("records")
    assert (row["status"], row["traceback"], row["host"], row["seconds"]) == ("failed", "Boom", "here", 60)
    assert row["started"] <= row["finished"]


def test_tables_of_nothing_are_empty(tmp_path):
    study = tiny()
    for table in (study.results, study.curves, study.log):
        assert table(tmp_path / "s.sqlite").empty
    assert means(study.results(tmp_path / "s.sqlite")).empty


def test_means_average_over_seeds(tmp_path):
    study = tiny()
    finish(study, tmp_path / "s.sqlite")
    found = means(study.results(tmp_path / "s.sqlite"))
    assert found.to_dict("list") == {
        "cell": ["mlp_ratio=0.25", "mlp_ratio=4"], "data": ["phantoms"] * 2, "seeds": [2, 2], "loss": [0.5, 0.5],
    }  # fmt: skip
    assert list(found.columns) == ["cell", "data", "seeds", "loss"]


def test_exports_can_be_read_back(tmp_path):
    study = tiny(grid={"patch_sizes": [[1], [1, 2]]})
    finish(study, tmp_path / "s.sqlite")
    rows = study.results(tmp_path / "s.sqlite")
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        path = study.export(tmp_path / "s.sqlite", tmp_path / f"out{suffix}")
        pd.testing.assert_frame_equal(read(path), rows, check_dtype=suffix == ".parquet")


def test_other_formats_and_missing_pyarrow_are_named(tmp_path, monkeypatch):
    with pytest.raises(HAELabError, match=r"\.csv or \.parquet, got 'out\.xlsx'"):
        tiny().export(tmp_path / "s.sqlite", "out.xlsx")
    monkeypatch.setattr("hae_lab.tables.find_spec", lambda name: None)
    with pytest.raises(HAELabError, match=r'pip install "hae-lab\[parquet\]"'):
        write(pd.DataFrame({"cell": ["hae"]}), tmp_path / "out.parquet")


# cost


def test_cost_goes_by_finished_runs(tmp_path):
    study = tiny(seeds=3)
    finish(study, tmp_path / "s.sqlite", runs=slice(0, 1))
    finish(study, tmp_path / "s.sqlite", OUTCOME | {"seconds": 120.0}, slice(3, 4))
    finish(study, tmp_path / "s.sqlite", OUTCOME | {"status": "failed"}, slice(5, 6))
    cost = study.cost(tmp_path / "s.sqlite", workers=2)
    assert (cost.runs, cost.ok, cost.failed, cost.todo, cost.minutes) == (6, 2, 1, 3, 2.0)
    assert str(cost) == "tiny: 6 runs, 2 ok, 1 failed, 3 to do: about 2 minutes on 2 workers (by finished runs)"
    assert study.cost(tmp_path / "s.sqlite", retry_failed=True).todo == 4


def test_the_cost_of_other_trials_is_unknown_before_one_has_finished(tmp_path):
    cost = tiny(trial="study_trials:quick").cost(tmp_path / "s.sqlite")
    assert "4 to do: for an unknown time on 2 workers" in str(cost)


def test_cost_times_training_steps_of_what_is_new(tmp_path):
    study = tiny(grid={"variant": ["unet"]}, seeds=1, preset="lesson16", fixed={"data": "study_trials:images"})
    assert "about" in str(study.cost(tmp_path / "s.sqlite"))


COSTED = {"steps": 250, "evaluate_every": 100, "samples": 8, "sampling_steps": 25}  # evaluated at 100, 200 and 250


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, 3 * 4 * HELD_OUT + 8 * 25),
        ({"metrics": ["dark_auroc", "dark_dice", "foreign_auroc"]}, 3 * 4 * HELD_OUT + 8 * 25 + 2 * 128 * 2 * 5),
        ({"samples": 0}, 3 * 4 * HELD_OUT),
        ({"data": "study_trials:images"}, 3 * 4 * 8 + 8 * 25),
        ({"steps": 50, "samples": 0}, 4 * HELD_OUT),
    ],
)
def test_estimated_seconds_are_steps_and_passes(changes, images, monkeypatch):
    monkeypatch.setattr("hae_lab.study.cost._time", lambda experiment: (0.5, 0.001))
    (cell,) = tiny(grid={"variant": ["unet"]}, seeds=1, fixed=COSTED | changes).cells
    steps = changes.get("steps", 250)
    assert estimated_seconds([cell.experiment]) == pytest.approx([0.5 * steps + 0.001 * images])


def test_a_cell_that_cannot_be_timed_does_not_stop_the_study(tmp_path):
    fixed = {"data": "study_trials:images", "learning_rate": 1e30, "warmup_steps": 0}
    cost = tiny(grid={"variant": ["unet"]}, preset="lesson16", fixed=fixed).cost(tmp_path / "s.sqlite")
    assert cost.minutes is None
    assert "no training step to time: the loss is nan" in str(cost)
