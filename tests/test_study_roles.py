"""What a study declares beside its question: labels, own seeds, cells at equal cost, controls, margins, looks."""

import numpy as np
import pandas as pd
import pytest

from hae_lab import HAELabError
from hae_lab.study import Study, committed, comparisons
from hae_lab.study.store import Store
from hae_lab.tables import read

TOML = """
name = "asked"
preset = "tiny"
margin_percent = {loss = 1, swd = 4}
seeds = 2
[fixed]
steps = 30
[[grid]]
seeds = 3
variant = ["unet", "hae"]
data = ["phantoms", "digits"]
[[grid]]
label = "{variant} without its CNN"
variant = ["hae"]
cnn_branch = [false]
[[grid]]
equal = "MACs"
reference = "hae"
label = "{variant}, {steps} steps"
variant = ["unet"]
steps = [37]
[controls."three quarters"]
reference = "hae"
model_channels = 24
[controls.short]
reference = "hae without its CNN"
steps = 20
seeds = [5]
"""


@pytest.fixture
def asked(tmp_path) -> Study:
    (tmp_path / "asked.toml").write_text(TOML)
    return Study.from_toml(tmp_path / "asked.toml")


def declared(grid=None, **options) -> Study:
    return Study("asked", grid or {"variant": ["hae", "v2"]}, **{"preset": "tiny", "seeds": 2} | options)


def finish(study: Study, path, losses, look: int = 1) -> None:
    """Put a loss by cell and seed into a store, as if the runs of a look had been run."""
    with Store(path) as opened:
        for run in study.planned_at(look):
            metrics = {"loss": losses(run.cell.label, run.seed), "curve": []}
            opened.finish(run, committed.ADOPTED | {"metrics": metrics})


def test_blocks_and_controls_become_cells_with_roles(asked):
    found = [(str(cell), cell.role, cell.reference) for cell in asked.cells]
    assert found == [
        ("unet on phantoms", "question", ""),
        ("hae on phantoms", "question", ""),
        ("unet on digits", "question", ""),
        ("hae on digits", "question", ""),
        ("hae without its CNN on phantoms", "question", ""),
        ("unet, 37 steps on phantoms", "equal MACs", "hae"),
        ("three quarters on phantoms", "control", "hae"),
        ("three quarters on digits", "control", "hae"),
        ("short on phantoms", "control", "hae without its CNN"),
    ]


def test_cells_of_the_question_may_have_a_reference():
    study = declared([{"variant": ["hae", "v2"]}, {"reference": "hae", "cnn_branch": [False], "label": "no CNN"}])
    assert [(cell.role, cell.reference) for cell in study.cells] == [("question", "")] * 2 + [("question", "hae")]


def test_a_control_is_its_reference_with_one_change(asked):
    cells = {str(cell): cell.experiment for cell in asked.cells}
    narrow, hae = cells["three quarters on digits"], cells["hae on digits"]
    assert (narrow.config.model_channels, hae.config.model_channels) == (24, 16)
    assert (narrow.data, narrow.recipe) == (hae.data, hae.recipe)
    short = cells["short on phantoms"]
    assert (short.config.cnn_branch, short.recipe.steps) == (False, 20)


def test_a_block_at_equal_cost_may_change_what_is_fixed(asked):
    steps = {cell.label: cell.experiment.recipe.steps for cell in asked.cells}
    assert (steps["unet, 37 steps"], steps["unet"]) == (37, 30)


def test_seeds_are_those_of_the_block(asked):
    seeds = {}
    for run in asked.planned:
        seeds.setdefault(str(run.cell), []).append(run.seed)
    assert seeds["unet on digits"] == [0, 1, 2]
    assert seeds["three quarters on digits"] == [0, 1]
    assert seeds["short on phantoms"] == [5]


def test_rows_carry_what_was_declared(asked, tmp_path):
    finish(asked, tmp_path / "s.sqlite", lambda cell, seed: 0.5)
    path = asked.export(tmp_path / "s.sqlite", tmp_path / "rows.csv")
    rows = read(path)
    assert list(rows.columns[:5]) == ["study", "cell", "role", "reference", "data"]
    named = rows[rows["role"] != "question"]
    assert named.groupby("role")["reference"].unique().map(list).to_dict() == {
        "control": ["hae", "hae without its CNN"],
        "equal MACs": ["hae"],
    }
    assert not rows.loc[rows["role"] == "question", "reference"].any()
    assert rows[["margin_percent", "margin_percent_swd"]].drop_duplicates().to_numpy().tolist() == [[1, 4]]
    assert "looks" not in rows


def test_what_is_said_about_runs_does_not_rename_them():
    plain = declared()
    said = declared(
        [{"label": "the one: {variant}", "seeds": 2, "variant": ["hae", "v2"]}],
        controls={"narrow": {"model_channels": 24}},
        margin_percent=0.5,
    )
    keys = [run.key for run in plain.planned]
    assert keys == [run.key for run in said.planned][: len(keys)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin_percent": 0}, "margin_percent is a number above 0, got 0"),
        ({"margin_percent": {"loss": "1"}}, "margin_percent is a number above 0, got '1'"),
        ({"controls": {"narrow": {"model_chanels": 24}}}, "unknown study field 'model_chanels'"),
        ({"controls": {"narrow": {}}}, "control narrow changes fields other than data"),
        ({"controls": {"other": {"data": "digits"}}}, "control other changes fields other than data"),
        ({"controls": {"narrow": 24}}, "control narrow is a dictionary of fields, got 24"),
        ({"controls": [24]}, "controls are named dictionaries of fields, got [24]"),
        ({"controls": {"bad": {"model_channels": 0}}}, "control bad: model_channels is"),
        ({"controls": {"same": {"variant": "v2"}}}, "one experiment twice: v2 and same"),
        ({"controls": {"narrow": {"reference": "lite", "steps": 3}}}, "unknown reference of control narrow 'lite'"),
        ({"controls": {"v2": {"steps": 3}}}, "two cells are called v2"),
        ({"grid": [{"label": "all", "variant": ["hae", "v2"]}]}, "two cells are called all"),
        ({"grid": [{"label": "{variat}", "variant": ["hae", "v2"]}]}, "label '{variat}' may hold fields of its cell"),
        ({"grid": [{"label": 3, "variant": ["hae"]}]}, "label is a text, got 3"),
        ({"grid": [{"seeds": 0, "variant": ["hae"]}]}, "seeds are how many, from 1 on"),
        ({"grid": [{"equal": "MACs", "variant": ["hae"]}]}, "cells at equal MACs need a reference"),
        ({"grid": [{"equal": "macs", "reference": "hae", "variant": ["hae"]}]}, "unknown equal 'macs'"),
        ({"grid": [{"equal": "time", "reference": "ha", "variant": ["hae"]}]}, "unknown reference of hae 'ha'"),
        ({"until": "settled", "seeds_cap": 4}, "unknown until 'settled'"),
        ({"until": "decided", "seeds_cap": 5}, "seeds_cap is a whole multiple of 2"),
        ({"until": "decided", "seeds_cap": 4, "seeds": [3, 4]}, "and seeds are how many"),
        ({"until": "decided"}, "seeds_cap is a whole number from 2, got None"),
        ({"seeds_cap": 4}, 'seeds_cap is for until="decided", got 4'),
    ],
)
def test_a_mistake_in_a_declaration_is_named(options, message):
    with pytest.raises(HAELabError) as error:
        declared(**options)
    assert message in str(error.value)


# looks


def noisy(gap: float):
    """A loss around 1 with seeds of standard deviation 0.001, and V2 above HAE by `gap`."""
    noise = np.random.default_rng(0).normal(0, 0.001, (2, 100))
    return lambda cell, seed: float(1 + gap * (cell == "v2") + noise[int(cell == "v2"), seed])


@pytest.mark.parametrize(
    ("gap", "margin", "seeds"),
    [(0.1, 1, 2), (0.0022, 0.05, 6), (0.0, 0.01, 8), (0.0, 2, 2)],  # clear at once, later, never; clearly equal
)
def test_seeds_are_added_until_all_is_decided(gap, margin, seeds, tmp_path):
    study = declared(until="decided", seeds_cap=8, margin_percent=margin)
    assert [len(study.planned_at(look)) for look in (1, 2, 3, 4)] == [4, 8, 12, 16]
    finish(study, tmp_path / "s.sqlite", noisy(gap), 4)
    rows = study.results(tmp_path / "s.sqlite")
    assert rows["seed"].nunique() == seeds
    assert set(rows["looks"]) == {4}


def test_a_look_that_lacks_runs_is_not_passed(tmp_path):
    study = declared(until="decided", seeds_cap=6)
    finish(study, tmp_path / "s.sqlite", noisy(0.1))
    with Store(tmp_path / "s.sqlite") as opened:
        opened._connection.execute("DELETE FROM runs WHERE seed = 1")
    assert len(study.needed(tmp_path / "s.sqlite")) == 4
    assert len(study.results(tmp_path / "s.sqlite")) == 2


def test_running_stops_at_the_look_that_decides(tmp_path):
    study = declared(until="decided", seeds_cap=6, trial="study_trials:quick")
    rows = study.run(tmp_path / "s.sqlite", workers=1, progress=False)
    assert rows["seed"].tolist() == [0, 1, 0, 1]
    with Store(tmp_path / "s.sqlite") as opened:
        assert len(opened.select()) == 4


def test_comparisons_say_of_their_own_data_whether_the_controls_are_found():
    noise = np.random.default_rng(0).normal(0, 1e-3, 6)
    worse = {"phantoms": {"narrow": 0.2}, "digits": {"narrow": 0.0}, "twins": {}}  # by how much of the loss
    runs = [
        {"data": data, "cell": cell, "role": role, "reference": reference, "seed": seed, "loss": 1 + gap + wobble[seed]}
        for data, controls in worse.items()
        for cell, role, reference, gap, wobble in [
            ("hae", "question", None, 0.0, noise),
            ("v2", "question", None, 0.0, noise[::-1]),
            *(("narrow", "control", "hae", gap, np.roll(noise, 1)) for gap in controls.values()),
        ]
        for seed in range(6)
    ]
    found = comparisons.differences(pd.DataFrame(runs)).set_index("data")["controls"]
    assert found.to_dict() == {"phantoms": "found", "digits": "not found", "twins": "none"}


# families and controls, on rows by hand


def rows_of(data: str, cells: dict[str, tuple[str, str, str, float]]) -> list[dict]:
    """Six runs a cell: name -> (variant, role, reference, loss); the losses of a cell wobble by a thousandth."""
    noise = np.random.default_rng(1).normal(0, 1e-3, (len(cells), 6))
    return [
        {"data": data, "cell": cell, "variant": variant, "role": role, "reference": reference, "seed": seed}
        | {"loss": loss + noise[place, seed], "margin_percent": 3.0}
        for place, (cell, (variant, role, reference, loss)) in enumerate(cells.items())
        for seed in range(6)
    ]


QUESTION_OF_TWO = {"v2": ("v2", "question", "", 1.0), "hae": ("hae", "question", "", 1.0)}


def test_families_are_the_question_and_cells_at_equal_cost_in_the_order_of_the_rows():
    equal = {
        "unet, 37 steps": ("unet", "equal MACs", "hae", 0.9),
        "v2, wide": ("v2", "equal parameters", "hae", 0.9),
        "hae, 20 steps": ("hae", "equal time", "v2, wide", 0.9),
        "hae, 21 steps": ("hae", "equal time", "v2, wide", 0.9),
    }
    control = {"narrow": ("hae", "control", "hae", 2.0)}
    rows = pd.DataFrame(rows_of("phantoms", QUESTION_OF_TWO | equal | control) + rows_of("digits", QUESTION_OF_TWO))
    found = [(one.data, one.equal, list(one.rows["cell"].unique())) for one in comparisons.families(rows)]
    assert found == [
        ("phantoms", "steps", ["v2", "hae"]),
        ("phantoms", "MACs", ["hae", "unet"]),  # different variants: their names
        ("phantoms", "parameters", ["v2", "hae"]),  # in the order of the question
        ("phantoms", "time", ["v2, wide", "hae, 20 steps", "hae, 21 steps"]),  # two of one variant: as they are
        ("digits", "steps", ["v2", "hae"]),
    ]
    assert [len(one.rows) for one in comparisons.families(rows)] == [12, 12, 12, 18, 12]


def test_rows_without_roles_are_one_question_a_data_set():
    rows = pd.DataFrame(rows_of("twins", QUESTION_OF_TWO) + rows_of("digits", QUESTION_OF_TWO))
    found = list(comparisons.families(rows.drop(columns=["role", "reference"])))
    assert [(one.data, one.equal, len(one.rows)) for one in found] == [("twins", "steps", 12), ("digits", "steps", 12)]
    assert comparisons.controls_found(rows.drop(columns=["role", "reference"])) == "none"


@pytest.mark.parametrize(
    ("loss", "found"),
    [(1.2, "found"), (1.04, "found"), (1.02, "not found"), (1.0, "not found"), (0.8, "not found")],
)
def test_a_control_is_found_where_it_is_worse_by_more_than_the_margin(loss, found):
    rows = pd.DataFrame(rows_of("twins", QUESTION_OF_TWO | {"narrow": ("hae", "control", "hae", loss)}))
    (effect,) = comparisons.control_effects(rows).to_dict("records")
    means = rows.groupby("cell")["loss"].mean()
    assert (effect["data"], effect["first"], effect["second"]) == ("twins", "narrow", "hae")
    assert effect["mean_difference"] == pytest.approx(means["narrow"] - means["hae"])
    assert effect["margin_percent"] == 3
    assert comparisons.controls_found(rows) == comparisons.controls_found(rows, "twins") == found
    assert comparisons.controls_found(rows, "digits") == "none"


def test_all_is_decided_where_every_pair_has_a_verdict_and_every_control_is_found():
    control = {"narrow": ("hae", "control", "hae", 1.2)}
    rows = pd.DataFrame(rows_of("twins", QUESTION_OF_TWO | control))
    assert comparisons.all_decided(rows)  # equal within the margin
    lost = rows.assign(loss=rows["loss"].where(rows["cell"] != "narrow", 1 + 1e-3 * rows["seed"]))
    assert not comparisons.all_decided(lost)
    wild = rows.assign(loss=rows["loss"].where(rows["cell"] != "v2", 1 + 0.2 * (-1.0) ** rows["seed"]))
    assert not comparisons.all_decided(wild)


def test_a_family_whose_metric_was_not_measured_is_left_out():
    rows = pd.DataFrame(rows_of("twins", QUESTION_OF_TWO) + rows_of("digits", QUESTION_OF_TWO))
    rows["swd"] = rows["loss"].where(rows["data"] == "digits")
    assert set(comparisons.differences(rows, "swd")["data"]) == {"digits"}
    with pytest.raises(HAELabError, match="no comparison"):
        comparisons.differences(rows[rows["data"] == "twins"], "swd")
