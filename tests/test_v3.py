"""The v3 table once more from models; and that search and delta agree."""

import numpy as np
import torch

from hae_lab import PRESETS, build, config
from hae_lab.audit import bench_v3, v3_tables
from hae_lab.audit.clone import read_table
from hae_lab.audit.search_space import changes
from hae_lab.profilers import compute
from hae_lab.profilers.paired import FEWEST

COSTS = read_table("v3").set_index("variant")


def params(model_config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(model_config).parameters())


# one delta


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


# the benchmark


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
