"""What is benchmarked: the baselines do the document's work, and rows of other devices stay."""

import warnings

import pandas as pd
import pytest
import torch
from parity_data import sample_inputs, with_parity_weights
from torch import nn

import hae_lab.presets
from hae_lab import HAELabError, build, rules, tables
from hae_lab.audit import (
    baselines,
    bench_attention,
    bench_compile,
    bench_deployment,
    bench_faster_training,
    bench_layers,
    benchmarks,
)
from hae_lab.audit.bench_faster_training import Way
from hae_lab.audit.clone import read_table
from hae_lab.audit.lessons import lesson_model
from hae_lab.diffusion.data import phantoms
from hae_lab.masks import TokenGrid
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.profilers import backward_macs, compute, layer_times, timing
from hae_lab.profilers.macs import total


def test_the_baseline_loop_keeps_what_the_document_says():
    blocked = baselines.document_mask_loop(100, seed=3)
    keep = int(100 * (1 - 0.9))
    row = torch.arange(100)
    band = (row[:, None] - row).abs() <= keep // 2
    assert not blocked[band].any()
    outside = (~blocked & ~band).sum(1)
    assert outside.max() <= max(1, keep // 4)
    assert outside.sum() > 0


@pytest.mark.parametrize("variant", ["hae", "lite", "v2"])
def test_the_documents_way_gives_equal_outputs_for_equal_masks(variant, monkeypatch):
    monkeypatch.setitem(rules.RULES, "loop", baselines.loop_rule)
    model = with_parity_weights(build(variant, "tiny", mask_rule="loop")).eval()
    slow = baselines.the_documents_way(model)
    inputs = sample_inputs(model.config)
    with torch.no_grad():
        assert torch.allclose(slow(**inputs), model(**inputs), atol=1e-5, rtol=0)
    assert any(isinstance(module, nn.MultiheadAttention) for module in slow.modules())


def test_the_documents_way_shares_the_weights_and_leaves_the_model_alone():
    model = build("v2", "tiny")
    slow = baselines.the_documents_way(model)
    assert {id(p) for p in slow.parameters()} == {id(p) for p in model.parameters()}
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("name", bench_attention.LAYERS)
def test_every_layer_case_runs(name, direction):
    bench_attention.layer_case(name, 8, direction)()


def test_sdpa_baseline_equals_the_documents_layer():
    grid = TokenGrid(8, 8)
    layer, tokens = (
        SparseMultiheadAttention(bench_attention.CHANNELS, bench_attention.HEADS),
        torch.randn(1, grid.n, 256),
    )
    blocked = bench_attention._blocked(grid, "cpu")
    with torch.no_grad():
        document = bench_attention._documents_layer(baselines.multihead_attention(layer), tokens, blocked)
        sdpa = bench_attention._sdpa_layer(layer, tokens, ~blocked)
        ours = layer(tokens, rules.mask_for("document", grid))
    assert torch.allclose(document, sdpa, atol=1e-5)
    assert torch.allclose(document[:, : grid.n_local], ours, atol=1e-5)


def test_core_limit_is_the_arithmetic_of_the_key_lists():
    grid = TokenGrid(64, 64)
    keep = int(grid.n * (1 - 0.9))
    # a block of 64 queries reads a band and one draw of random columns
    most_keys = 64 + 2 * (keep // 2) + keep // 4
    assert bench_attention.core_limit(64) == pytest.approx(grid.n / most_keys, rel=0.02)


@pytest.mark.parametrize("way", [bench_attention.DENSE, bench_attention.SHARED])
def test_every_core_case_runs(way):
    bench_attention.core_case(way, 8)()


@pytest.fixture
def times(monkeypatch):
    """A clock that takes as many ms as told, case by case; what it was asked to time."""
    asked: list[list[str]] = []

    def rounds(cases, repeats, **options) -> pd.DataFrame:
        asked.append(list(cases))
        return pd.DataFrame([[10.0 * (place + 1) for place in range(len(cases))]] * repeats, columns=list(cases))

    for module in (benchmarks, bench_attention, timing):
        monkeypatch.setattr(module, "rounds", rounds)
    monkeypatch.setattr(bench_attention, "peak_bytes", lambda *case: 1000)
    return asked


def test_masks_compare_two_ways_on_each_map(times):
    rows = benchmarks.bench_masks()
    assert rows["map"].tolist() == ["16x16", "16x16", "32x32", "32x32", "64x64", "64x64"]
    assert rows["n"].tolist() == [276, 276, 1104, 1104, 4416, 4416]
    assert rows["way"].tolist() == ["document's row loop", "index form"] * 3
    assert rows["speed_up"].tolist() == [1.0, 0.5] * 3


@pytest.fixture
def no_cases(monkeypatch):
    monkeypatch.setattr(bench_attention, "layer_case", lambda *case: None)
    monkeypatch.setattr(bench_attention, "core_case", lambda *case: None)


def test_attention_tells_layers_from_cores(times, no_cases, monkeypatch):
    monkeypatch.setattr(bench_attention.shutil, "which", lambda name: None)
    rows = bench_attention.bench_attention(sides=(16,))
    assert rows.groupby(["part", "pass", "map"], sort=False).size().to_dict() == {
        ("layer", "forward", "16x16"): 8, ("core", "forward", "16x16"): 2, ("layer", "forward + backward", "16x16"): 8,
        ("core", "forward + backward", "16x16"): 2, ("layer", "forward", "128x128"): 3,
    }  # fmt: skip
    layer = rows[(rows["part"] == "layer") & (rows["pass"] == "forward") & (rows["map"] == "16x16")].set_index("way")
    # cases take 10, 20, 30 ... ms: the document's layer, masked SDPA, the rules
    assert layer.loc["dense", "speed_up"] == 10 / 80
    assert layer.loc["dense", "speed_up_sdpa"] == 20 / 80
    assert layer.loc["document", "speed_up_dense"] == 80 / 30
    assert layer.loc["document", ["against", "verdict"]].tolist() == ["dense", "faster"]
    assert layer.loc["document", "faster_percent"] == pytest.approx(100 * (1 - 30 / 80))
    assert pd.isna(layer.loc["dense", "verdict"])
    core = rows[(rows["part"] == "core") & (rows["pass"] == "forward")].set_index("way")
    assert core["speed_up_dense"].to_dict() == {"dense": 1.0, "document_shared": 0.5}
    assert core.loc["document_shared", ["against", "verdict"]].tolist() == ["dense", "slower"]
    assert core.loc["document_shared", "limit"] == bench_attention.core_limit(16)
    assert rows.loc[rows["part"] == "core", ["speed_up", "peak_bytes"]].isna().all(axis=None)
    assert set(rows.loc[rows["part"] == "layer", "peak_bytes"]) == {1000}
    assert str(rows["peak_bytes"].dtype) == "Int64"


def test_flex_attention_runs_on_the_largest_map_where_it_can(times, no_cases, monkeypatch):
    monkeypatch.setattr(bench_attention.shutil, "which", lambda name: name)
    rows = bench_attention.bench_attention(sides=(8, 16))
    flex = rows[rows["way"].isin(bench_attention.FLEX)]
    assert flex[["pass", "map"]].drop_duplicates().values.tolist() == [["forward", "16x16"]]
    assert flex["mask_rule"].isna().all()
    natively = rows[rows["way"].isin(bench_attention.NATIVE)]
    assert natively.groupby(["pass", "map"]).size().tolist() == [2, 2, 2, 2]
    assert set(natively["mask_rule"]) == {"document", "document_shared"}
    assert set(rows.loc[rows["way"] == rows["mask_rule"], "way"]) == set(rules.RULES)
    assert len(flex) == 2
    assert flex["peak_bytes"].isna().all()
    assert bench_attention.flex_ways("forward + backward", "cuda") == tuple(bench_attention.FLEX)


def test_flex_attention_computes_what_ours_does():
    grid = TokenGrid(16, 16)
    layer, tokens = (
        SparseMultiheadAttention(bench_attention.CHANNELS, bench_attention.HEADS),
        torch.randn(1, grid.n, 256),
    )
    for rule in bench_attention.FLEX.values():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is slow without its compiler
            core = bench_attention.flex_core(rule, grid, "cpu", compiled=False)
            flex = bench_attention._flex_layer(layer, tokens, grid.n_local, core)
            assert torch.allclose(flex, layer(tokens, rules.mask_for(rule, grid)), atol=1e-5)


def test_a_model_is_compared_with_the_documents_way_of_its_variant(times, monkeypatch):
    tiny = {"brats128": hae_lab.PRESETS["tiny"]}
    monkeypatch.setattr(hae_lab.presets, "PRESETS", hae_lab.PRESETS | tiny)
    rows = benchmarks.bench_model()
    ways = rows.groupby("variant", sort=False)["way"].agg(list).to_dict()
    ours = ["document", "document_shared", "document's way"]
    assert ways == {"unet": [""], "hae": ours, "lite": ours, "v2": ours}
    speed_up = rows.set_index(["variant", "way"])["speed_up"]
    assert speed_up["unet", ""] == 1
    assert speed_up["hae", "document_shared"] == 40 / 30  # the cases of hae take 20, 30 and 40 ms
    assert speed_up["v2", "document"] == 100 / 80


def test_models_are_compared_with_the_same_way_of_v2(times, monkeypatch):
    tiny = {"brats128": hae_lab.PRESETS["tiny"]}
    monkeypatch.setattr(hae_lab.presets, "PRESETS", hae_lab.PRESETS | tiny)
    rows = benchmarks.bench_model().set_index(["variant", "way"])
    assert rows["against"].fillna("").to_dict() == {
        ("unet", ""): "v2 document", ("hae", "document"): "v2 document", ("lite", "document"): "v2 document",
        ("hae", "document_shared"): "v2 document_shared", ("lite", "document_shared"): "v2 document_shared",
        ("hae", "document's way"): "v2 document's way", ("lite", "document's way"): "v2 document's way",
        ("v2", "document"): "", ("v2", "document_shared"): "v2 document", ("v2", "document's way"): "v2 document",
    }  # fmt: skip
    assert rows.loc[("hae", "document"), "faster_percent"] == pytest.approx(100 * (1 - 20 / 80))
    assert set(rows["verdict"].dropna()) == {"faster", "slower"}


def test_a_training_step_is_a_share_of_the_run(times):
    rows = (
        benchmarks.bench_training(steps={"lesson16": 2, "lesson32": 4})
        .set_index(["preset", "variant", "way"])
        .sort_index()
    )
    assert rows.loc[("lesson16", "unet", "bare loop"), "ms_median"] == 10 / 2
    assert rows.loc[("lesson32", "unet", "bare loop"), "ms_median"] == 10 / 4
    assert rows.loc[("lesson16", "v2", "hae_lab"), ["ms_median", "ms_q1", "ms_q3"]].tolist() == [80 / 2] * 3
    assert rows.loc[("lesson16", "v2", "hae_lab"), "speed_up"] == 70 / 80
    assert rows.loc[("lesson32", "lite", "bare loop"), "speed_up"] == 1
    assert rows.loc[("lesson16", "lite", "hae_lab"), "against"] == "v2 hae_lab"
    assert rows.loc["lesson32", "map"].unique().tolist() == ["32x32"]


@pytest.mark.parametrize("loop", [benchmarks.bare_loop, benchmarks.our_loop])
def test_training_loops_run(loop):
    images = phantoms(32, 16)
    loop("unet", "lesson16", images.images if loop is benchmarks.bare_loop else images, 1)


@pytest.fixture
def quick(monkeypatch):
    rows = pd.DataFrame({"way": ["slow", "fast"], "map": "4x4", "n": 17, "ms_median": [8.0, 2.0]})
    monkeypatch.setitem(benchmarks.BENCHMARKS, "masks", lambda device: rows)


def test_rows_name_their_device_and_come_back_as_they_were(quick, tmp_path):
    path, rows = benchmarks.bench("masks", tmp_path)
    assert path == tmp_path / "bench_masks_cpu.csv"
    assert {"device_name", "torch", "python", "system"} <= set(rows.columns)
    pd.testing.assert_frame_equal(tables.read(path), rows, check_dtype=False)


def test_measuring_again_replaces_the_rows_of_this_device_alone(quick, tmp_path):
    path, _ = benchmarks.bench("masks", tmp_path)
    tables.write(tables.read(path).assign(device_name="another computer", ms_median=[5.0, 6.0]), path)
    benchmarks.bench("masks", tmp_path)
    benchmarks.bench("masks", tmp_path)
    kept = tables.read(path)
    assert len(kept) == 4
    assert kept.loc[kept["device_name"] == "another computer", "ms_median"].tolist() == [5.0, 6.0]
    assert kept.loc[kept["device_name"] != "another computer", "ms_median"].tolist() == [8.0, 2.0]
    assert str(kept["n"].dtype) == "int64"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", benchmarks.BENCHMARKS)
def test_committed_rows_have_the_columns_of_the_benchmark(what):
    rows = read_table(f"bench_{what}_cpu")
    assert list(rows.columns) == [name for name in benchmarks.COLUMNS if name in rows.columns]
    assert not rows[[name for name in rows.columns if name != "way"]].isna().all().any()
    keys = ("variant", "preset", "part", "mask_rule", "way", "pass", "map", "path", "kind", "steps", "device_name")
    assert not rows.duplicated([name for name in keys if name in rows.columns]).any()
    for names in (("ms_q1", "ms_median", "ms_q3"), ("speed_up_q1", "speed_up", "speed_up_q3")):
        if set(names) <= set(rows.columns):
            assert (rows[names[0]] <= rows[names[1]]).all()
            assert (rows[names[1]] <= rows[names[2]]).all()


def test_speed_ups_are_paired_round_by_round(monkeypatch):
    """By a clock that slows down: medians of times alone would say something else."""
    ms = [(10.0, 5.0), (20.0, 5.0), (90.0, 60.0)] * 5

    def rounds(cases, repeats, device) -> pd.DataFrame:
        assert repeats == len(ms)
        return pd.DataFrame(ms, columns=list(cases))

    monkeypatch.setattr(bench_compile, "rounds", rounds)
    rows = bench_compile.in_rounds({"eager": None, "compiled": None}, "eager", 15, "cpu").set_index("way")
    assert rows.loc["eager", ["speed_up_q1", "speed_up", "speed_up_q3"]].tolist() == [1.0, 1.0, 1.0]
    assert rows.loc["compiled", ["speed_up_q1", "speed_up", "speed_up_q3"]].tolist() == [1.5, 2.0, 4.0]
    assert rows.loc["compiled", ["ms_q1", "ms_median", "ms_q3"]].tolist() == [5.0, 5.0, 60.0]
    assert rows.loc["compiled", ["against", "verdict"]].tolist() == ["eager", "faster"]
    assert (rows["clock"] == "CPU time").all()


def test_compiled_models_run_beside_eager_ones(monkeypatch):
    monkeypatch.setattr(bench_compile, "PRESET", "tiny")
    monkeypatch.setattr(bench_compile.torch, "compile", lambda model, fullgraph: model)
    rows = bench_compile.bench_compile()
    assert rows.groupby("pass")["way"].agg(list).to_dict() == {
        "forward": ["eager", "frozen", "compiled"], "training step": ["eager", "frozen", "compiled"]
    }  # fmt: skip
    assert rows["compile_s"].notna().tolist() == [False, False, True] * 2
    assert rows["against"].fillna("").tolist() == ["", "eager", "eager"] * 2
    assert rows["verdict"].notna().tolist() == [False, True, True] * 2
    assert set(rows["map"]) == {"16x16"}


@pytest.mark.slow
def test_ways_to_train_faster_are_told_apart_and_train_alike(monkeypatch):
    monkeypatch.setattr(bench_faster_training, "PRESETS", ("tiny",))
    monkeypatch.setattr(bench_faster_training.torch, "compile", lambda model, fullgraph: model)
    rows = bench_faster_training.bench_faster_training().set_index("way")
    assert list(rows.index) == list(bench_faster_training.WAYS)
    assert rows.loc["AdamW by tensors", "speed_up"] == 1
    assert rows["verdict"].notna().tolist() == [False] + 6 * [True]
    assert rows["batch"].tolist() == [32, 32, 32, 32, 32, 128, 32]
    assert rows["loss_change_percent"].isna().tolist() == [False, False, False, False, False, True, False]
    assert rows["loss_change_percent"].max() < 0.1


def test_times_of_ways_are_those_of_an_image_and_model(monkeypatch):
    def rounds(cases, **_) -> pd.DataFrame:
        return pd.DataFrame(15 * [(64.0, 128.0, 512.0)], columns=[*cases])

    ways = {"AdamW by tensors": Way(), "batch 128": Way(batch=128), "4 models at once": Way(models=4)}
    stubs = {"start": lambda *_: print, "losses_of": lambda *_: [1.0]}
    for name, value in ({"WAYS": ways, "PRESETS": ("tiny",), "rounds": rounds} | stubs).items():
        monkeypatch.setattr(bench_faster_training, name, value)
    rows = bench_faster_training.bench_faster_training()
    assert rows["ms_median"].tolist() == [2.0, 1.0, 4.0]
    assert rows["speed_up"].tolist() == [1.0, 2.0, 0.5]


def test_a_way_that_does_not_train_is_noticed(monkeypatch):
    trained = bench_faster_training.losses_of(bench_faster_training.start(Way(), "tiny"), 16)
    monkeypatch.setattr(bench_faster_training, "_update", lambda parameters, way: lambda: None)
    still = bench_faster_training.losses_of(bench_faster_training.start(Way(), "tiny"), 16)
    assert trained[0] == still[0]
    assert bench_faster_training.change_percent(still, trained) > 10


@pytest.mark.slow
def test_a_model_is_measured_where_it_is_deployed():
    case = bench_deployment.Deployed("lite", "tiny", "window2d")
    rows = bench_deployment.bench_deployment(cases=[case]).set_index("way")
    assert list(rows.index) == ["torch eager", "onnxruntime", "onnxruntime int8"]
    assert set(rows["steps"]) == {1}  # a model without training draws nothing
    assert rows["speed_up"].iloc[0] == 1
    assert rows["against"].fillna("").tolist() == ["", "torch eager", "torch eager"]
    weights = 4 * sum(p.numel() for p in build("lite", "tiny").parameters())
    assert weights < rows.loc["torch eager", "file_bytes"] < 1.1 * weights
    assert rows.loc["onnxruntime int8", "file_bytes"] < 0.7 * rows.loc["onnxruntime", "file_bytes"]
    assert rows.loc["onnxruntime", "largest_difference"] < 1e-4 < rows.loc["onnxruntime int8", "largest_difference"]
    assert rows["process_bytes"].min() > rows["file_bytes"].max()
    assert rows.loc["onnxruntime", "process_bytes"] < rows.loc["torch eager", "process_bytes"] / 2


def test_a_deployed_model_s_loss_stands_beside_that_of_torch(monkeypatch):
    monkeypatch.setattr(bench_deployment, "HELD_OUT", 4)
    model, worse = lesson_model("v2"), lesson_model("v2")
    nn.init.constant_(worse.out[-1].bias, 0.2)
    case = bench_deployment.CASES[2]
    assert case == ("v2", "lesson32", "document")
    found = bench_deployment._losses({"torch eager": model, "onnxruntime": model, "onnxruntime int8": worse}, case)
    assert found["loss"]["torch eager"] == found["loss"]["onnxruntime"] < found["loss"]["onnxruntime int8"]
    assert found["loss_percent"]["onnxruntime"] == 0
    above = found["loss"]["onnxruntime int8"] / found["loss"]["torch eager"] - 1
    assert found["loss_percent"]["onnxruntime int8"] == pytest.approx(100 * above)
    assert "torch eager" not in found["loss_percent"]


def test_deployment_is_measured_on_the_cpu():
    with pytest.raises(HAELabError, match="deployment is measured on the CPU, got the device 'cuda'"):
        bench_deployment.bench_deployment("cuda")


def test_layers_are_measured_with_gradients_and_without(monkeypatch):
    monkeypatch.setattr(bench_layers, "PRESET", "tiny")
    monkeypatch.setattr(bench_layers, "CHANNELS", 16)
    monkeypatch.setattr(layer_times, "machine_limits", lambda device: (100.0, 10.0))
    rows = bench_layers.bench_layers(repeats=1)
    model_config = hae_lab.config("v2", "tiny", mask_rule="document")
    sums = rows[rows["mask_rule"] == "document"].groupby("pass")[["macs", "share_percent", "backward_ms"]].sum()
    assert sums.loc["forward", "macs"] == total(compute(model_config))["macs_run"]
    assert sums.loc["forward", "backward_ms"] == 0
    step = backward_macs(model_config)
    assert sums.loc["forward + backward", "macs"] == step["macs_step"].sum()
    assert sums["share_percent"].tolist() == pytest.approx([100, 100])


def test_small_layers_are_summed_up():
    parts = [("a", "convolution", 10, 99.9), ("b", "norm", 0, 0.04), ("c", "norm", 0, 0.03), ("d", "norm", 0, 0.05)]
    rows = pd.DataFrame(parts, columns=["path", "kind", "macs", "share_percent"]).assign(module="x", step_ms=7.0)
    for column in ("calls", "forward_ms", "backward_ms", "ms", "bytes_moved"):
        rows[column] = 1
    rows["flops_per_byte"] = rows["gflops_per_second"] = 2.0 * rows["macs"]
    found = bench_layers.without_small(rows)
    assert found["path"].tolist() == ["a", "d", "(others)"]
    others = found.iloc[2]
    assert (others["kind"], others["calls"], others["ms"], others["step_ms"]) == ("norm", 2, 2, 7.0)
    assert found["share_percent"].sum() == pytest.approx(rows["share_percent"].sum())


@pytest.mark.parametrize(
    ("what", "device", "message"),
    [
        ("mask", "cpu", "unknown benchmark 'mask': did you mean 'masks'"),
        ("masks", "gpu", "unknown device 'gpu': .*known are cpu, cuda"),
    ],
)
def test_bad_requests_are_named(what, device, message, tmp_path):
    with pytest.raises(HAELabError, match=message):
        benchmarks.bench(what, tmp_path, device)


def test_no_row_is_measured_with_other_kernels_than_it_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HAE_LAB_NATIVE", "1")
    with pytest.raises(HAELabError, match="unset HAE_LAB_NATIVE"):
        benchmarks.bench("masks", tmp_path)
