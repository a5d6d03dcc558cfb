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
from hae_lab.audit.claims import base, ledger, masks, structure, tried
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


@pytest.fixture(scope="module")
def measured() -> Measured:
    return Measured()


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
    told = f"{2 * levels} ResBlock, {levels - 1} Downsample, {2 * attended} AttentionBlock"
    assert of(rows, "encoder_cnn", "as line 25 has it")["computed"] == told


def test_order_of_the_decoder_by_hand(rows):
    upsamples, versions, levels, attended = 4, 3, 5, 3  # of brats128; one place more than in the encoder a level
    told = of(rows, "decoder_order", "as the document places them")
    assert told["computed"].startswith(f"{upsamples * versions} of {upsamples * versions} as drawn")
    told = of(rows, "decoder_order", "beside each residual block")
    assert told["computed"] == f"beside {3 * attended} of {3 * levels}"
    rebuilt = of(rows, "decoder_order", "published revision")  # its finest level has an upsample and no block
    assert (rebuilt["computed"].split(" as ")[0], rebuilt["verdict"]) == ("6 of 9", "does not hold")


@pytest.mark.parametrize(
    ("row", "drawn"),
    [
        ("ResBlock AttentionBlock HybridBlock Upsample", True),
        ("ResBlock HybridBlock Upsample", True),
        ("ResBlock HybridBlock AttentionBlock Upsample", False),
        ("HybridBlock ResBlock Upsample", False),
        ("ResBlock AttentionBlock Upsample", False),
    ],
)
def test_the_drawn_order_is_told_from_others(row, drawn):
    assert structure._in_drawn_order(row.split()) == drawn


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
    assert of(rows, "weighted_mean", "unequal or learned weights")["verdict"] == "does not hold"


def test_a_mean_misses_one_branch_alone_by_the_root_of_a_half(rows):
    # the best mean by least squares, for the concatenation of the ledger and for one that takes a branch alone
    branches = np.random.default_rng(1).normal(size=(20_000, 2 * tried.CHANNELS))
    mean = (branches[:, : tried.CHANNELS] + branches[:, tried.CHANNELS :]) / 2
    drawn = tried.part(ConcatFusion, True).fusion_conv.weight[:, :, 0, 0].numpy()
    alone = np.eye(tried.CHANNELS, 2 * tried.CHANNELS)
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
    told = float(of(rows, "sparsity_ratio", f"{side} x {side} map")["computed"].split(" %")[0])
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
    # among so many rows there is one whose random keys all lie beyond the band
    beyond = [(np.abs(np.flatnonzero(~row) - place) > half).sum() for place, row in enumerate(blocked)]
    assert of(rows, "random_count", f"{side} x {side} map")["computed"].startswith(f"{max(beyond)}, of ")


def test_pixels_far_away_by_the_mask_as_a_matrix(rows):
    for side in (8, 16):
        grid = TokenGrid(side, side)
        row, column = np.divmod(np.arange(side**2), side)
        pixels = [np.abs(row - side // 2), np.abs(column - side // 2)]
        middle = side // 2 * side + side // 2
        seen = np.flatnonzero(~mask_for("document", grid).blocked()[middle])
        far = [max(each[key] for each in pixels) for key in seen if key < grid.n_local]
        for p in grid.scales:
            start, stop = grid.span(p)
            for patch in seen[(seen >= start) & (seen < stop)] - start:
                in_patch = (row // p * (side // p) + column // p) == patch
                far.append(max(each[in_patch].max() for each in pixels))
        assert of(rows, "local_and_global", f"CNN branch reaches, 2 pixels, {side} x")["computed"] == (
            f"up to {max(far)} pixels away"
        )


def test_a_pixel_reaches_two_pixels_through_the_cnn_branch():
    block = next(each for each in build("hae", "tiny").modules() if hasattr(each, "conv_branch"))
    convolutions = [each for each in block.conv_branch if isinstance(each, torch.nn.Conv2d)]
    assert sum(each.kernel_size[0] // 2 for each in convolutions) == masks.CNN_REACH


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
    percent = 100 * seen[:, slice(*grid.span(4))].any(axis=1).mean()
    assert of(rows, "patches_regional", "some 4 x 4 patch, 16 x 16 map")["computed"] == f"{percent:.1f} %"


# devices, and what others say


def test_seconds_and_bytes_of_a_deployed_model(rows):
    with (ROOT / "data" / "deployment.csv").open() as file:
        deployed = [row for row in csv.DictReader(file) if row["variant"] == "v2"]
    told = rows[(rows["id"] == "mobile_real_time") & (rows["table"] == "deployment")]
    assert len(told) == 2 * len(deployed) > 0
    for row in deployed:
        here = told[told["scope"].str.startswith(f"V2, {row['preset']}, {row['mask_rule']}, ")]
        assert len(here) == 2, "one reading of the time and one of the memory"
        time, memory = (here[here["kind"] == kind].iloc[0] for kind in ("time", "memory"))
        seconds = float(row["sample_s"])
        least = min(float(row[f"{way}_process_bytes"]) for way in ("onnx", "torch"))
        assert time["computed"] == f"{seconds:.1f} s by {row['way']}"
        assert memory["computed"] == f"{least / 2**20:.0f} MiB"
        assert time["verdict"] == ("holds" if seconds <= 1 else "does not hold")
        assert memory["verdict"] == ("holds" if least <= 2**30 else "does not hold")


def test_a_model_that_is_deployed_anew_is_read(measured):
    """Whatever is measured on the device, each V2 of it is judged."""
    committed = read_table("bench_deployment_cpu").query("variant == 'v2' and mask_rule == 'document'")
    slow = committed.assign(mask_rule="dense", ms_median=committed["ms_median"] * 1e4, process_bytes=2**31)
    more = pd.concat([read_table("bench_deployment_cpu"), slow], ignore_index=True)
    changed = Measured(lambda name: more if name == "bench_deployment_cpu" else read_table(name))
    before, after = (ledger.claims()["mobile_real_time"].findings(each) for each in (measured, changed))
    new = [each for each in after if ", dense, " in each.scope]
    assert len(after) - len(before) == len(new) == 2 * slow["preset"].nunique()
    assert {each.verdict for each in new} == {"does not hold"}


def test_what_hae_costs_by_the_rounds_of_the_benchmark(rows):
    with (ROOT / "data" / "bench_model_cpu.csv").open() as file:
        against = {row["way"]: row for row in csv.DictReader(file) if row["variant"] == "hae"}
    told = rows[(rows["id"] == "hae_costs") & (rows["kind"] == "time")]
    assert set(told["way"]) == set(against)
    for row in told.to_dict("records"):
        more = -float(against[row["way"]]["faster_percent"])
        right = more > 5 if row["asked_of"] == base.BEYOND else against[row["way"]]["verdict"] == "slower"
        assert row["verdict"] == ("holds" if right else "does not hold")
        assert row["computed"].startswith(f"{more:.1f} % more")


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
        rests = rows[(rows["id"] == row.reading.removeprefix("rests on ")) & (rows["asked_of"] == row.asked_of)]
        assert row.verdict == verdicts.rests_on(rests["verdict"])
        counts = Counter(rests["verdict"]).most_common()
        assert row.computed == ", ".join(f"{verdict} in {count}" for verdict, count in counts)
        assert row.scope == f"its {len(rests)} readings ({row.asked_of})"


# rules: bent, each of them changes what the ledger says

OF_RULE = {
    "judge": "sparsity_ratio", "judge_saving": "bottleneck_75", "as_said": "own_projections", "worst": "stepwise",
    "unmeasured": "middle_stable", "in_order": "decoder_stepwise", "at_most": "full_expression",
    "noticeably_more": "hae_costs", "mostly": "encoder_local", "different_cards": "device_classes",
    "first_place": "v2_efficiency",
    "faster": "attention_efficiency", "better": "lite_keeps_performance", "order_of_quality": "quality_order",
    "first_of_pair": "lite_balance", "kept": "lite_keeps_performance", "rests_on": "choose_lite",
    "all_first": "best_quality", "valid": "lite_balance",
}  # fmt: skip


def test_every_rule_is_known_here():
    rules = {name for name, each in vars(verdicts).items() if getattr(each, "__module__", "") == verdicts.__name__}
    public = {name for name in rules if not name.startswith("_")}
    assert public == set(OF_RULE)


@pytest.mark.parametrize("rule", OF_RULE)
def test_a_bent_rule_changes_a_verdict(rule, rows, measured, monkeypatch):
    claim = ledger.claims()[OF_RULE[rule]]
    before = rows.loc[rows["id"] == claim.id, "verdict"]
    monkeypatch.setattr(verdicts, rule, lambda *_: verdicts.VOID if rule == "unmeasured" else verdicts.OPEN)
    assert any(each.verdict != was for each, was in zip(claim.check(measured), before, strict=False))
