"""The v3 table and its figure, once more from models, rows and formulas; and that study, search and delta agree."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from hae_lab import PRESETS, build, config, plots
from hae_lab.audit import bench_v3, v3_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.rerun import studies
from hae_lab.audit.search_space import changes
from hae_lab.diffusion.bounds import loss_bounds
from hae_lab.plots.searches import COSTS as DRAWN_COSTS
from hae_lab.profilers import compute
from hae_lab.profilers.paired import FEWEST

COSTS, QUALITY = read_table("v3").set_index("variant"), read_table("v3_quality")
STUDIES = {study.name: study for study in studies()}
AT_TIME = " at HAE's time"


def params(model_config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(model_config).parameters())


# one delta


@pytest.mark.parametrize("study", ["v3", "v3_phantoms"])
def test_the_study_trains_what_the_search_chose(study):
    models = v3_tables.v3_models()
    found = {cell.label.removesuffix(AT_TIME): cell.experiment.config for cell in STUDIES[study].cells}
    shared = set(found) & set(models)
    assert {"hae", "v3", v3_tables.OWN_BODY} <= shared
    assert {name: found[name] for name in shared} == {name: models[name] for name in shared}


def test_the_choice_is_the_best_of_the_longest_rung():
    searched = read_table("v3_search")
    last = searched[searched["rung"] == searched["rung"].max()]
    scores = {name: rows["percent_to_hae"].mean() for name, rows in last.groupby("candidate")}
    row = searched[searched["candidate"] == min(scores, key=scores.get)].iloc[0]
    for preset in ("lesson16", "brats128"):
        assert v3_tables.v3_models()["v3"] == config("hae", "lesson16", **changes(row.to_dict()))
        assert config("hae", preset, **v3_tables.v3_changes(preset)) == config("hae", preset, **changes(row, preset))


def test_the_delta_names_what_differs_from_hae_and_fits_every_body():
    assert v3_tables.v3_changes() == {
        "channel_mult": (1, 1, 1), "attention_resolutions": (4,), "conv_resample": False, "cnn_branch": False,
        "regions": "pooled", "mask_rule": "dense", "mstb_heads": 4,
    }  # fmt: skip
    for preset in PRESETS:
        assert config("hae", preset, **v3_tables.v3_changes()).channel_mult == (1, 1, 1)


@pytest.mark.parametrize("study", ["v3", "v3_phantoms"])
def test_steps_at_equal_time_follow_from_the_measured_times(study):
    ms = COSTS["training_ms"]
    for cell in STUDIES[study].cells:
        if cell.role == "equal time":
            name = cell.label.removesuffix(AT_TIME)
            assert cell.experiment.recipe.steps == pytest.approx(400 * ms["hae"] / ms[name], rel=0.02)


# costs


def test_costs_are_those_of_the_models():
    models = v3_tables.v3_models()
    assert list(COSTS.index) == list(models)
    for name, model_config in models.items():
        assert COSTS.loc[name, "params"] == params(model_config)
        assert COSTS.loc[name, "macs"] == compute(model_config)["macs_run"].sum()
    for column in ("params", "macs", "training_ms", "denoising_ms"):
        percent = 100 * COSTS[column] / COSTS.loc["hae", column]
        assert np.allclose(percent, COSTS[f"{column.removesuffix('_ms')}_percent_of_hae"], rtol=1e-4)
    v3 = config("hae", "brats128", **v3_tables.v3_changes("brats128"))
    assert COSTS.loc["v3", "params_brats128"] == params(v3)


def test_models_without_blocks_are_as_large_as_they_say():
    models = v3_tables.v3_models()
    for name, like in ((v3_tables.OWN_BODY, "v3"), (list(models)[-2], "v3"), (list(models)[-1], "hae")):
        width, wanted = models[name].model_channels, params(models[like])
        off = {step: abs(params(models[name].replace(model_channels=width + step)) - wanted) for step in (-4, 0, 4)}
        assert off[0] == min(off.values())
        assert models[name].placement == "none"


def test_v3_is_small_and_faster_than_v2():
    v3 = COSTS.loc["v3"]
    assert v3["params_percent_of_hae"] <= 40
    assert v3["params_brats128_percent_of_hae"] <= 40
    assert v3["training_against_v2"] == "faster"
    assert v3["denoising_against_v2"] == "faster"


# quality


def runs_of(name: str, data: str, equal: str) -> pd.DataFrame:
    """The runs of a model, by seed, out of the committed studies."""
    label = name if name == "hae" or equal == "steps" else name + AT_TIME
    rows = pd.concat([read_table(f"study_{study}") for study in v3_tables.STUDIES[data]]).drop_duplicates(
        ["cell", "seed"]
    )
    seeds = read_table(f"study_{v3_tables.STUDIES[data][1]}")["seed"].unique()
    rows = rows[(rows["cell"] == label) & rows["seed"].isin(seeds)]
    return rows.set_index("seed").sort_index()


@pytest.mark.parametrize("place", range(len(QUALITY)))
def test_losses_and_differences_by_hand(place):
    row = QUALITY.iloc[place]
    mine = runs_of(row["variant"], row["data"], row["equal"])["loss"]
    assert len(mine) == row["n_seeds"]
    assert mine.mean() == pytest.approx(row["loss_mean"], rel=1e-5)
    low, high = stats.t.interval(0.95, len(mine) - 1, mine.mean(), stats.sem(mine))
    assert [low, high] == pytest.approx([row["loss_ci_low"], row["loss_ci_high"]], rel=1e-4)
    if row["data"] == "twins":
        bounds = loss_bounds("twins")
        share = (bounds.own["loss"] - mine.mean()) / (bounds.own["loss"] - bounds.shared["loss"])
        assert share == pytest.approx(row["gain_share_mean"], rel=1e-3)
    if row["against"]:
        theirs = runs_of(row["against"], row["data"], row["equal"])["loss"]
        percent = 100 * (mine - theirs) / theirs.mean()
        assert percent.mean() == pytest.approx(row["percent"], abs=0.01)
        half = stats.t.ppf(0.975, len(percent) - 1) * stats.sem(percent)
        assert [percent.mean() - half, percent.mean() + half] == pytest.approx(
            [row["percent_low"], row["percent_high"]], abs=0.02
        )


def test_seeds_are_those_of_v3_everywhere():
    for (data, _), rows in QUALITY.groupby(["data", "equal"]):
        seeds = read_table(f"study_{v3_tables.STUDIES[data][1]}")["seed"].nunique()
        assert (rows["n_seeds"] <= seeds).all()
        assert (rows.loc[rows["variant"].isin(["hae", "v3"]), "n_seeds"] == seeds).all()


# the figure and the benchmark


def test_the_figure_shows_the_rows():
    figure = plots.searched(COSTS.reset_index(), QUALITY)
    left, right = figure.axes
    marks = sorted(float(line.get_xdata()[0]) for line in left.lines if line.get_marker() in "osD^")
    assert marks == pytest.approx(sorted(COSTS[list(DRAWN_COSTS)].to_numpy().ravel()))
    drawn = sorted(float(bar.lines[0].get_xdata()[0]) for bar in right.containers)
    assert drawn == pytest.approx(sorted(QUALITY.loc[QUALITY["against"] == "hae", "percent"]))
    assert f"{COSTS.loc['v3', 'params_percent_of_hae']:.0f} % of HAE's parameters" in figure.get_suptitle()


def test_the_title_of_the_figure_says_costs_and_verdicts():
    verdicts = {"twins": "equal", "phantoms": "second better", "digits": "equal"}
    made = pd.DataFrame({"data": verdicts.keys(), "verdict": verdicts.values()}).assign(
        variant="v3", equal="time", against="hae", percent=1.0, percent_low=0.5, percent_high=1.5, n_seeds=10
    )
    title = " ".join(plots.searched(COSTS.reset_index(), made).get_suptitle().split())
    params, time = COSTS.loc["v3", ["params_percent_of_hae", "training_percent_of_hae"]]
    assert title == (
        f"{plots.variant_title('v3')}: {params:.0f} % of HAE's parameters, {time:.0f} % of its time; after equal time "
        "equal to HAE on twins and digits and worse than HAE on phantoms (10 seeds)"
    )


def test_every_mark_of_the_figure_stands_in_the_row_of_its_model():
    rows = COSTS.reset_index()
    left, right = plots.searched(rows, QUALITY).axes
    titles = [plots.variant_title(name) for name in rows["variant"]]
    assert [tick.get_text() for tick in left.get_yticklabels()] == titles
    marks = [line for line in left.lines if line.get_marker() in "osD^"]
    drawn = {(line.get_marker(), line.get_ydata()[0]): line.get_xdata()[0] for line in marks}
    for place, row in enumerate(rows.to_dict("records")):
        for column, marker in zip(DRAWN_COSTS, "osD^", strict=True):
            assert drawn[marker, place] == row[column]
    (promised,) = [line for line in left.lines if line.get_linestyle() == ":"]
    assert list(promised.get_xdata()) == [40, 40]
    against = QUALITY[QUALITY["against"] == "hae"]
    for bars, row in zip(right.containers, against.to_dict("records"), strict=True):
        line, _, (arm,) = bars
        assert round(line.get_ydata()[0]) == list(rows["variant"]).index(row["variant"])
        ends = [row["percent_low"], row["percent_high"]]
        assert arm.get_segments()[0][:, 0].tolist() == pytest.approx(ends)
        assert (line.get_markerfacecolor() == "white") == (row["equal"] == "steps")
    places = [bars.lines[0].get_ydata()[0] for bars in right.containers]
    assert len(set(places)) == len(places)  # none hides another


def test_the_benchmark_times_each_model_in_both_passes(monkeypatch):
    tiny = {name: config(name, "tiny") for name in ("hae", "v2")}
    monkeypatch.setattr(bench_v3, "v3_models", lambda: tiny)
    rows = bench_v3.bench_v3(repeats=FEWEST)
    assert list(zip(rows["variant"], rows["pass"], rows["batch"], strict=True)) == [
        ("hae", "training step", 32), ("v2", "training step", 32), ("hae", "forward", 1), ("v2", "forward", 1),
    ]  # fmt: skip
    assert (rows["ms_median"] > 0).all()
    assert list(rows["against"].fillna("")) == ["v2", "", "v2", ""]


def test_a_case_does_so_many_steps():
    model_config, built = config("v2", "tiny"), []
    original = bench_v3.build
    case = bench_v3.denoising_case
    try:
        bench_v3.build = lambda each: built.append(original(each)) or built[-1]
        run = case(model_config, 3)
    finally:
        bench_v3.build = original
    calls = []
    built[0].register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    run()
    assert calls == [(1, 1, 16, 16)] * 3
