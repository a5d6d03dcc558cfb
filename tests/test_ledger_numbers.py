"""A second source for the numbers of the ledger that no other test has: other libraries, loops, arithmetic by hand."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed

from hae_lab import tables
from hae_lab.audit import verdicts
from hae_lab.audit.baselines import document_mask_loop
from hae_lab.audit.claims import ledger, slots
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import Measured
from hae_lab.audit.profile_tables import memory_of
from hae_lab.masks import TokenGrid
from hae_lab.models import build
from hae_lab.models.slots import ConcatFusion, GeluMLP, LinearRegions, MeanFusion, PooledRegions
from hae_lab.presets import config
from hae_lab.rules import mask_for

ROOT = Path(__file__).parent.parent
C, SIDE = 6, 8
MAP = np.random.default_rng(0).normal(size=(C, SIDE, SIDE)).astype(np.float32)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return read_table("claims")


def of(rows: pd.DataFrame, claim: str, words: str) -> pd.Series:
    told = rows[rows["id"] == claim]
    (found,) = [row for _, row in told.iterrows() if words in f"{row['reading']}, {row['scope']}"]
    return found


def x() -> torch.Tensor:
    return torch.from_numpy(MAP)[None]


# structure


def test_encoder_and_middle_by_counting_the_published_names(rows):
    counts = json.loads((ROOT / "tests/data/param_counts.json").read_text())["as_described"]["brats128"]
    for section, claim in (("encoder", "one_encoder"), ("middle", "middle_standard")):
        (count,) = {counts[variant][section] for variant in ("unet", "hae", "lite", "v2")}
        assert of(rows, claim, f"parameters of the {section}")["computed"] == f"{count:,} in each"


def test_values_that_the_decoder_is_given_by_hand(rows):
    # brats128: 128 channels at 128 (stem, 2 blocks) and 64 (down, 2), 256 at 32, 384 at 16, 512 at 8; a down first
    skips = 3 * 128 * 128**2 + 128 * 64**2 + 2 * 128 * 64**2 + 128 * 32**2 + 2 * 256 * 32**2
    skips += 256 * 16**2 + 2 * 384 * 16**2 + 384 * 8**2 + 2 * 512 * 8**2
    handed = skips + 512 * 8**2
    assert of(rows, "encoder_compresses", "skip connections")["computed"].startswith(f"{handed:,}, ")
    assert f"{512 * 8**2:,} of the image's {4 * 128**2:,}" in of(rows, "encoder_compresses", "coarsest")["computed"]


def test_blocks_of_the_encoder_by_hand(rows):
    levels, attended = 5, 3  # of brats128; attention at rates 4, 8, 16; two residual blocks a level
    assert of(rows, "encoder_blocks", "both")["computed"] == f"{2 * levels} residual, {2 * attended} attention blocks"
    assert of(rows, "encoder_cnn", "convolutions alone")["computed"].startswith(f"{2 * attended} blocks")


def test_no_committed_run_diverged(rows):
    studies = [tables.read(path) for path in (ROOT / "data").glob("study_*.csv") if "_curves" not in path.name]
    losses = pd.concat([study["loss"] for study in studies])
    assert np.isfinite(losses).all()
    assert of(rows, "middle_stable", "finite")["computed"] == f"{len(losses)} of {len(losses)} runs"
    told = of(rows, "middle_stable", "because of the middle")
    assert told["computed"].startswith("0 of "), "a study asks now whether the middle block matters: read it there"
    assert int(told["computed"].split()[2]) == len(studies)


@pytest.mark.parametrize(
    ("middle", "levels", "alone"),
    [((True, True), ("4", "4"), 0), ((True, False), ("4", ""), 0), ((True, False), ("4", "4"), 1)],
)
def test_a_study_that_changes_the_middle_alone_would_be_named(middle, levels, alone):
    study = pd.DataFrame({"loss": 0.1, "middle_attention": middle, "attention_resolutions": levels})
    measured = Measured(lambda name: study)
    (_, found) = ledger.claims()["middle_stable"].findings(measured)
    assert found.computed.startswith(f"{alone and len(measured.studies)} of ")


# slots


def test_vits_patch_embedding_is_haes_linear_layer():
    for index, p in enumerate((4, 8)):
        vit = PatchEmbed(SIDE, SIDE, patch_size=p, in_channels=C, embed_dim=C, pos_embed_type=None)
        ours = LinearRegions(C, (4, 8))
        layer = ours.patch_projections[index]
        assert sum(each.numel() for each in vit.parameters()) == sum(each.numel() for each in layer.parameters())
        with torch.no_grad():
            layer.weight.copy_(vit.proj.weight.flatten(1))
            layer.bias.copy_(vit.proj.bias)
        torch.testing.assert_close(ours(x(), (4, 8))[1 + index], vit(x()))
        assert PooledRegions(C, (4, 8)).shared_patch_embed.weight.numel() == layer.weight.numel() / p**2


def test_pooled_tokens_are_means_over_the_six_axes():
    regions = PooledRegions(C, (4, 8)).requires_grad_(False)
    weight, bias = regions.shared_patch_embed.weight[:, :, 0, 0].numpy(), regions.shared_patch_embed.bias.numpy()
    for p, tokens in zip((4, 8), regions(x(), (4, 8))[1:], strict=True):
        for place, (row, column) in enumerate((r, c) for r in range(SIDE // p) for c in range(SIDE // p)):
            patch = MAP[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            mean = np.mean([weight @ patch[:, i, j] + bias for i in range(p) for j in range(p)], axis=0)
            np.testing.assert_allclose(tokens[0, place].numpy(), mean, atol=1e-5)


def test_the_mean_of_lite_has_no_weights(rows):
    fusion = MeanFusion(C, True).requires_grad_(False)
    a, b = MAP, MAP[:, ::-1].copy()
    weight, bias = fusion.fusion_conv.weight[:, :, 0, 0].numpy(), fusion.fusion_conv.bias.numpy()
    by_hand = np.einsum("oc,chw->ohw", weight, 0.5 * a + 0.5 * b) + bias[:, None, None]
    for first, second in ((a, b), (b, a)):
        out = fusion(torch.from_numpy(first)[None], torch.from_numpy(second)[None])[0].numpy()
        np.testing.assert_allclose(out, by_hand, atol=1e-5)
    assert [name for name, _ in fusion.named_parameters()] == ["fusion_conv.weight", "fusion_conv.bias"]
    assert of(rows, "weighted_mean", "a weighted one")["verdict"] == "does not hold"


def test_a_mean_misses_one_branch_alone_by_the_root_of_a_half(rows):
    # the best mean by least squares, for the concatenation of the ledger and for one that takes a branch alone
    branches = np.random.default_rng(1).normal(size=(20_000, 2 * slots.CHANNELS))
    mean = (branches[:, : slots.CHANNELS] + branches[:, slots.CHANNELS :]) / 2
    drawn = slots._part(ConcatFusion, True).fusion_conv.weight[:, :, 0, 0].numpy()
    alone = np.eye(slots.CHANNELS, 2 * slots.CHANNELS)
    missed = []
    for wanted in (drawn, alone):
        out = branches @ wanted.T
        fit, *_ = np.linalg.lstsq(mean, out, rcond=None)
        missed.append(np.linalg.norm(out - mean @ fit) / np.linalg.norm(out))
    assert missed[1] == pytest.approx(0.5**0.5, abs=0.01)
    told = of(rows, "same_expressiveness", "the mean does what")["computed"]
    assert int(told.split()[2]) == pytest.approx(100 * missed[0], abs=1.5)


def test_a_bottleneck_moves_in_a_quarter_of_the_directions(rows):
    ranks = []
    for ratio in (0.25, 4):
        torch.manual_seed(0)
        mlp = GeluMLP(16, ratio, 0.0).double().requires_grad_(False)
        token, step = torch.ones(16, dtype=torch.float64), 1e-4
        steps = [(mlp(token + step * unit) - mlp(token - step * unit)) / (2 * step) for unit in torch.eye(16).double()]
        singular = np.linalg.svd(torch.stack(steps).numpy(), compute_uv=False)
        ranks.append(int((singular > 1e-6 * singular[0]).sum()))
    assert ranks == [4, 16]
    assert of(rows, "bottleneck_expression", "directions")["computed"] == "4, of the 4x MLP 16"


def test_hae_cannot_shift_its_pixel_tokens_as_lite_does(rows):
    # a LayerNorm does not feel a pixel scaled and shifted; HAE has nothing before it, Lite a convolution with a bias
    for variant, feels in (("hae", False), ("lite", True)):
        block = next(each for each in build(variant, "tiny").modules() if hasattr(each, "local_norm"))
        pixels = torch.randn(1, block.local_norm.normalized_shape[0], 8, 8, generator=torch.Generator().manual_seed(0))
        tokens = [block.tokens(each)[:, :64] for each in (pixels, 3 * pixels + 2)]
        assert torch.allclose(*tokens, atol=1e-3) != feels
    assert of(rows, "full_expression", "Lite's pixel tokens")["verdict"] == "does not hold"


# masks


def blocked_by_loop(side: int) -> np.ndarray:
    grid = TokenGrid(side, side)
    return document_mask_loop(grid.n).numpy()[: grid.n_local]


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_hidden_shares_by_the_documents_own_loop(rows, side):
    told = float(of(rows, "ratio_at_any_size", f"{side} x {side} map")["computed"].split(" %")[0])
    assert told == pytest.approx(100 * blocked_by_loop(side).mean(), abs=0.5)  # other random columns
    assert (side == 4) == (told > 94)


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_far_connections_by_the_documents_own_loop(rows, side):
    blocked, n = blocked_by_loop(side), TokenGrid(side, side).n
    pixel, half = side**2 // 2, max(1, int(n * (1 - 0.9))) // 2
    far = [key for key in np.flatnonzero(~blocked[pixel]) if abs(key - pixel) > half]
    told = int(of(rows, "random_far", f"{side} x {side} map")["computed"])
    assert (told > 0) == (side > 4)
    assert bool(far) == (told > 0)


def test_a_new_draw_exchanges_what_it_draws():
    first, again = (~document_mask_loop(276, seed=seed) for seed in (0, 1))
    band = np.abs(np.subtract.outer(np.arange(276), np.arange(276))) <= 27 // 2
    assert first[torch.from_numpy(band)].all()
    assert again[torch.from_numpy(band)].all()
    assert (first != again).any()


def test_pixel_tokens_of_each_version_by_hand(rows):
    flat = MAP.reshape(C, -1).T
    tokens = LinearRegions(C, (4, 8))(x(), ())[0][0].numpy()
    assert (tokens == flat).all()
    pooled = PooledRegions(C, (4, 8)).requires_grad_(False)
    weight, bias = pooled.shared_patch_embed.weight[:, :, 0, 0].numpy(), pooled.shared_patch_embed.bias.numpy()
    np.testing.assert_allclose(pooled(x(), ())[0][0].numpy(), flat @ weight.T + bias, atol=1e-5)
    for variant, verdict in (("hae", "holds"), ("lite", "does not hold"), ("v2", "does not hold")):
        assert of(rows, "pixels_flattened", f"as they are in {variant},")["verdict"] == verdict


def test_an_8_x_8_patch_is_a_small_part_of_most_maps(rows):
    for side, percent in ((8, "100.0 %"), (16, "25.0 %"), (32, "6.2 %"), (64, "1.6 %")):
        assert of(rows, "patches_global", f"covers the map, {side} x {side} map")["computed"] == percent
    grid = TokenGrid(16, 16)
    seen = ~mask_for("document", grid).blocked()[: grid.n_local]
    percent = 100 * seen[:, slice(*grid.span(8))].any(axis=1).mean()
    assert of(rows, "patches_global", "some 8 x 8 patch, 16 x 16 map")["computed"] == f"{percent:.1f} %"


# devices, and what others say


def test_seconds_of_a_sample(rows):
    with (ROOT / "data" / "bench_model_cpu.csv").open() as file:
        times = {(row["variant"], row["way"]): float(row["ms_median"]) for row in csv.DictReader(file)}
    ms = times["v2", "document_shared"]
    told = of(rows, "mobile_real_time", "a sample of 25 steps")
    assert told["computed"] == f"{25 * ms / 1000:.1f} s"
    assert told["verdict"] == "does not hold"


def test_weights_in_mib_are_four_bytes_a_parameter(rows):
    params = (
        read_table("parameter_table")
        .query("preset == 'brats128' and scope == 'whole model'")
        .set_index("variant")["params"]
    )
    sizes = " / ".join(f"{4 * params[variant] / 2**20:.0f}" for variant in ("hae", "lite", "v2"))
    assert of(rows, "mobile_real_time", "smallest of the three")["computed"] == f"{sizes} MiB (HAE / Lite / V2)"
    assert sizes == "606 / 456 / 442"


def test_memory_without_classes_by_the_bytes_of_an_image():
    with_classes = config("v2", "lesson16", num_classes=2, dropout=0.1)
    for model_config in (with_classes, with_classes.replace(num_classes=None)):
        assert memory_of(model_config, 1)["saved_bytes"] == pytest.approx(kept_by_autograd(model_config), rel=0.02)


def kept_by_autograd(model_config) -> int:
    """Bytes that a real step keeps for the backward pass, each storage once, without parameters."""
    model = build(model_config).train()
    parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    labels = None if model_config.num_classes is None else torch.tensor([1])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.zeros(1, 1, 16, 16), torch.tensor([5]), labels).square().mean()
    assert loss.requires_grad
    return sum(kept.values())


# advice


def test_advice_is_as_good_as_what_it_rests_on(rows):
    for row in rows[rows["kind"] == "advice"].itertuples():
        rests = rows[(rows["id"] == row.reading.removeprefix("rests on ")) & (rows["kind"] != "reach")]
        assert row.verdict == verdicts.rests_on(rests["verdict"])
        counts = Counter(rests["verdict"]).most_common()
        assert row.computed == ", ".join(f"{verdict} in {count}" for verdict, count in counts)
        assert row.scope == f"its {len(rests)} readings"


# rules: bent, each of them changes what the ledger says

OF_RULE = {
    "judge": "ratio_at_any_size", "judge_saving": "bottleneck_75", "as_said": "own_projections", "worst": "stepwise",
    "unmeasured": "middle_stable", "in_order": "decoder_stepwise", "at_most": "full_expression",
    "noticeably_more": "hae_costs", "different_cards": "device_classes", "first_place": "v2_efficiency",
    "faster": "attention_efficiency", "better": "lite_keeps_performance", "order_of_quality": "quality_order",
    "first_of_pair": "lite_balance", "kept": "lite_keeps_performance", "rests_on": "choose_lite",
    "all_first": "best_quality", "valid": "lite_balance",
}  # fmt: skip


def test_every_rule_is_known_here():
    rules = {name for name, each in vars(verdicts).items() if getattr(each, "__module__", "") == verdicts.__name__}
    public = {name for name in rules if not name.startswith("_")}
    assert public == set(OF_RULE)


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


@pytest.mark.parametrize("rule", OF_RULE)
def test_a_bent_rule_changes_a_verdict(rule, rows, measured, monkeypatch):
    claim = ledger.claims()[OF_RULE[rule]]
    before = rows.loc[rows["id"] == claim.id, "verdict"]
    monkeypatch.setattr(verdicts, rule, lambda *_: verdicts.VOID if rule == "unmeasured" else verdicts.OPEN)
    assert any(each.verdict != was for each, was in zip(claim.check(measured), before, strict=False))
