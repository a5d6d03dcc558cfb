"""What is benchmarked: the baselines do the document's work, and rows of other devices stay."""

import pandas as pd
import pytest
import torch
from parity_data import sample_inputs, with_parity_weights
from torch import nn

from hae_lab import HAELabError, build, rules
from hae_lab.audit import baselines, benchmarks
from hae_lab.masks import TokenGrid
from hae_lab.models.attention import SparseMultiheadAttention


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
@pytest.mark.parametrize("name", benchmarks.LAYERS)
def test_every_layer_case_runs(name, direction):
    benchmarks.layer_case(name, 8, direction)()


def test_sdpa_baseline_equals_the_documents_layer():
    grid = TokenGrid(8, 8)
    layer, tokens = SparseMultiheadAttention(benchmarks.CHANNELS, benchmarks.HEADS), torch.randn(1, grid.n, 256)
    blocked = benchmarks._blocked(grid, "cpu")
    with torch.no_grad():
        document = benchmarks._documents_layer(baselines.multihead_attention(layer), tokens, blocked)
        sdpa = benchmarks._sdpa_layer(layer, tokens, ~blocked)
        ours = layer(tokens, rules.mask_for("document", grid))
    assert torch.allclose(document, sdpa, atol=1e-5)
    assert torch.allclose(document[:, : grid.n_local], ours, atol=1e-5)


def test_core_limit_is_the_arithmetic_of_the_key_lists():
    grid = TokenGrid(64, 64)
    keep = int(grid.n * (1 - 0.9))
    # a block of 64 queries reads a band and one draw of random columns
    most_keys = 64 + 2 * (keep // 2) + keep // 4
    assert benchmarks.core_limit(64) == pytest.approx(grid.n**2 / (grid.n_local * most_keys), rel=0.02)


@pytest.fixture
def quick(monkeypatch):
    def rows(device: str) -> pd.DataFrame:
        return benchmarks._with_speed_up(
            pd.DataFrame({"case": ["slow", "fast"], "ms_median": [8.0, 2.0]}), speed_up="slow"
        )

    monkeypatch.setitem(benchmarks.BENCHMARKS, "masks", rows)


def test_speed_up_is_the_ratio_to_the_baseline_and_rows_name_their_device(quick, tmp_path):
    path, rows = benchmarks.bench("masks", tmp_path)
    assert path == tmp_path / "latency_cpu.csv"
    assert rows["speed_up"].tolist() == [1.0, 4.0]
    assert {"device_name", "torch", "python", "system"} <= set(rows.columns)


def test_measuring_again_replaces_the_rows_of_this_device_alone(quick, tmp_path):
    path, _ = benchmarks.bench("masks", tmp_path)
    pd.read_csv(path).assign(device_name="another computer").to_csv(path, index=False)
    benchmarks.bench("masks", tmp_path)
    benchmarks.bench("masks", tmp_path)
    kept = pd.read_csv(path)
    assert kept["device_name"].nunique() == 2
    assert len(kept) == 4
    assert list(tmp_path.iterdir()) == [path]


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
