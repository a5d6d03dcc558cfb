"""What `hae-lab bench` measures: masks, attention layers, models, training steps; a table and a file each.

A row is what one way takes; `speed_up` is the time of the baseline's way over it, on the same map, or of the same
variant.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab import rules, tables
from hae_lab.audit.baselines import document_mask_loop, multihead_attention, the_documents_way
from hae_lab.audit.bench_compile import bench_compile
from hae_lab.audit.bench_layers import bench_layers
from hae_lab.checks import require_name
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.training import Recipe, train
from hae_lab.masks import TokenGrid
from hae_lab.models import build
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention, pairs_run
from hae_lab.models.kernels import merge_heads, split_heads
from hae_lab.presets import CONTROL, VARIANTS, config
from hae_lab.profilers.timing import check_device, environment, interleaved, peak_bytes, predict, step_inputs
from hae_lab.rules import mask_for

CHANNELS, HEADS = 256, 8
LAYER, CORE = "layer", "core"  # parts of attention: with its projections, and scores, softmax and sum alone
DOCUMENT_LAYER, SDPA, SHARED = "document's layer", "SDPA with the mask, all queries", "document_shared"
LAYERS = (DOCUMENT_LAYER, SDPA, *rules.RULES)
DOCUMENTS_WAY, NO_BLOCKS = "document's way", ""  # of a model; one without hybrid blocks has one way alone
MODEL_CHANNELS = 64  # of the models that are timed: half of the preset, so that a CPU can wait for them
BARE_LOOP, OUR_LOOP = "bare loop", "hae_lab"
MASK_LOOP, MASK_INDEX = "document's row loop", "index form"
COLUMNS = (
    "variant", "part", "mask_rule", "way", "pass", "map", "batch", "n", "channels", "heads", "path", "module", "kind",
    "calls", "forward_ms", "backward_ms", "ms", "share_percent", "macs", "bytes_moved", "flops_per_byte",
    "gflops_per_second", "peak_gflops_per_second", "gbytes_per_second", "step_ms", "overhead_percent", "ms_median",
    "ms_q1", "ms_q3", "speed_up", "speed_up_q1", "speed_up_q3", "compile_s", "speed_up_sdpa", "limit", "peak_bytes",
    "repeats", "threads", "clock", "device", "device_name", "system", "python", "torch", "numpy",
)  # fmt: skip

Case = Callable[[], object]


def bench_masks(device: str = "cpu") -> pd.DataFrame:
    """Building the document's mask: its row loop against the index form, for square maps."""
    frames = []
    for side in (16, 32, 64):
        grid = TokenGrid(side, side)
        cases = {MASK_LOOP: partial(document_mask_loop, grid.n), MASK_INDEX: partial(rules.document, grid, 0.9, 0)}
        rows = _on_map(interleaved(cases, repeats=7 if side == 64 else 15), side)
        frames.append(rows.assign(speed_up=_speed_up(rows, "map", MASK_LOOP)))
    return pd.concat(frames, ignore_index=True)


def bench_attention(device: str = "cpu", sides: tuple[int, ...] = (16, 32, 64), repeats: int = 9) -> pd.DataFrame:
    """The whole attention layer with its projections, and the attention core alone, forward and forward + backward.

    C = 256, 8 heads, batch 1, fp32, dropout 0. `peak_bytes` is what one pass adds, in a process of its own.
    """
    frames = []
    for side in sides:
        for direction in ("forward", "forward + backward"):
            rows = _layers(LAYERS, side, direction, device, repeats)
            rows["speed_up"] = _speed_up(rows, "map", DOCUMENT_LAYER)
            rows["speed_up_sdpa"] = _speed_up(rows, "map", SDPA)
            frames += [rows, _cores(side, direction, device, repeats)]
    # the document's layer, whose mask is n x n, would not fit
    frames.append(_layers((SHARED, "spatial_reduction", "window2d"), 128, "forward", device, repeats=3))
    rows = pd.concat(frames, ignore_index=True).assign(channels=CHANNELS, heads=HEADS)
    return rows.astype({"peak_bytes": "Int64"}) if "peak_bytes" in rows else rows


def _layers(ways: tuple[str, ...], side: int, direction: str, device: str, repeats: int) -> pd.DataFrame:
    cases = {way: layer_case(way, side, direction, device) for way in ways}
    rows = _on_map(interleaved(cases, repeats=repeats, device=device), side)
    if device == "cpu":
        rows["peak_bytes"] = [peak_bytes(layer_case, way, side, direction, device) for way in rows["way"]]
    return rows.assign(**{"part": LAYER, "pass": direction})


def _cores(side: int, direction: str, device: str, repeats: int) -> pd.DataFrame:
    cases = {way: core_case(way, side, direction, device) for way in (SDPA, SHARED)}
    rows = _on_map(interleaved(cases, repeats=repeats, device=device), side)
    rows["speed_up_sdpa"] = _speed_up(rows, "map", SDPA)
    rows["limit"] = rows["way"].map({SDPA: 1.0, SHARED: core_limit(side)})
    return rows.assign(**{"part": CORE, "pass": direction})


def bench_model(device: str = "cpu", repeats: int = 15) -> pd.DataFrame:
    """Each variant of `brats128` at 64 channels, eval, batch 1: the document's way, and ours with two mask rules."""
    models = {pair: model for variant in VARIANTS for pair, model in _ways_of(variant, device).items()}
    x, timesteps = step_inputs(models[CONTROL, NO_BLOCKS].config, 1, device)
    cases = {pair: partial(predict, model, x, timesteps) for pair, model in models.items()}
    rows = _of_variants(cases, repeats=repeats, device=device)
    size = config(CONTROL, "brats128").image_size
    rows["speed_up"] = _speed_up(rows, "variant", DOCUMENTS_WAY, NO_BLOCKS)
    return rows.assign(**{"pass": "forward"}, map=f"{size}x{size}")


def _ways_of(variant: str, device: str) -> dict[tuple[str, str], nn.Module]:
    """The models of a variant that are timed, by variant and way."""
    ways = ("document", SHARED) if VARIANTS[variant].has_blocks else (NO_BLOCKS,)
    models = {}
    for way in ways:
        rule = {"mask_rule": way} if way else {}
        models[variant, way] = build(variant, "brats128", model_channels=MODEL_CHANNELS, **rule).eval().to(device)
    if VARIANTS[variant].has_blocks:
        models[variant, DOCUMENTS_WAY] = the_documents_way(models[variant, "document"])
    return models


def bench_training(device: str = "cpu", repeats: int = 5, steps: int = 30) -> pd.DataFrame:
    """A training step of each variant of `lesson16`, batch 32: our loop, with all it does, and a bare loop."""
    size = config(CONTROL, "lesson16").image_size
    images = phantoms(steps * Recipe().batch_size, size)
    cases: dict[tuple[str, str], Case] = {}
    for variant in VARIANTS:
        cases[variant, BARE_LOOP] = partial(bare_loop, variant, images.images, steps, device)
        cases[variant, OUR_LOOP] = partial(our_loop, variant, images, steps, device)
    rows = _of_variants(cases, repeats=repeats, device=device)
    rows[["ms_median", "ms_q1", "ms_q3"]] /= steps
    rows["speed_up"] = _speed_up(rows, "variant", BARE_LOOP)
    return rows.assign(**{"pass": "training step"}, map=f"{size}x{size}")


def our_loop(variant: str, images: ImageSet, steps: int, device: str = "cpu") -> None:
    """A short training run with moving average, clipping and checks."""
    train(config(variant, "lesson16"), images, Recipe(steps=steps), device=device)


def bare_loop(variant: str, images: Tensor, steps: int, device: str = "cpu") -> None:
    """As many steps of the same model by hand: forward, backward, AdamW, nothing else."""
    model = build(variant, "lesson16").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), Recipe().learning_rate)
    generator = torch.Generator().manual_seed(0)
    for batch in images.split(Recipe().batch_size)[:steps]:
        noise = torch.randn(batch.shape, generator=generator)
        timesteps = torch.randint(1000, (len(batch),), generator=generator)
        output = model((batch + noise).to(device), timesteps.to(device))
        F.mse_loss(output, noise.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()


BENCHMARKS: dict[str, Callable[[str], pd.DataFrame]] = {
    "masks": bench_masks,
    "attention": bench_attention,
    "model": bench_model,
    "training": bench_training,
    "layers": bench_layers,
    "compile": bench_compile,
}


def bench(what: str, folder: str | Path = "data", device: str = "cpu") -> tuple[Path, pd.DataFrame]:
    """Measure and keep the rows in `folder`/bench_<what>_<device>.csv; return the path and the new rows.

    Rows of other computers stay as they are. Raises `HAELabError` for an unknown benchmark or a device that is not
    there, before anything is measured, and for a file there that is not such a table.
    """
    require_name("benchmark", what, BENCHMARKS)
    check_device(device)
    path = Path(folder) / f"bench_{what}_{device}.csv"
    kept = tables.read(path) if path.exists() else pd.DataFrame(columns=["device_name"])
    rows = BENCHMARKS[what](device).assign(**environment(device))
    rows = rows[[name for name in COLUMNS if name in rows.columns]]
    others = kept[~kept["device_name"].isin(rows["device_name"])]
    tables.write(pd.concat([others, rows], ignore_index=True) if len(others) else rows, path)
    return path, rows


def layer_case(name: str, side: int, direction: str = "forward", device: str = "cpu") -> Callable[[], object]:
    """One pass of an attention layer over a square map: the document's layer, masked SDPA, or ours with a rule."""
    grid = TokenGrid(side, side)
    tokens = torch.randn(1, grid.n, CHANNELS, generator=torch.Generator().manual_seed(0)).to(device)
    layer = SparseMultiheadAttention(CHANNELS, HEADS).to(device)
    if name == DOCUMENT_LAYER:
        layer, blocked = multihead_attention(layer), _blocked(grid, device)
        run = partial(_documents_layer, layer, tokens, blocked)
    elif name == SDPA:
        run = partial(_sdpa_layer, layer, tokens, ~_blocked(grid, device))
    else:
        run = partial(layer, tokens, mask_for(name, grid))
    return _in_direction(run, direction, tokens)


def core_case(name: str, side: int, direction: str = "forward", device: str = "cpu") -> Callable[[], object]:
    """Scores, softmax and sum alone, without projections."""
    grid = TokenGrid(side, side)
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(1, grid.n, width, generator=generator).to(device) for width in (CHANNELS, 2 * CHANNELS))
    if name == SDPA:
        run = partial(_sdpa, q, kv, ~_blocked(grid, device))
        return _in_direction(run, direction, q, kv)
    mask = mask_for(SHARED, grid)
    q, kv = q[:, : grid.n_local].contiguous(), kv[:, slice(*mask.span)].contiguous()
    return _in_direction(partial(KERNELS["blocks"].run, q, kv, mask, HEADS), direction, q, kv)


def core_limit(side: int) -> float:
    """n² / (n_local K): what the core of `document_shared` could save at most, K the keys its kernel reads a query."""
    grid = TokenGrid(side, side)
    return HEADS * grid.n**2 / pairs_run(mask_for(SHARED, grid), HEADS)


def _blocked(grid: TokenGrid, device: str) -> Tensor:
    return torch.from_numpy(mask_for("document", grid).blocked()).to(device)


def _documents_layer(layer: nn.MultiheadAttention, tokens: Tensor, blocked: Tensor) -> Tensor:
    return layer(tokens, tokens, tokens, attn_mask=blocked)[0]


def _sdpa_layer(layer: SparseMultiheadAttention, tokens: Tensor, allowed: Tensor) -> Tensor:
    projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)
    q, kv = projected.split([CHANNELS, 2 * CHANNELS], dim=-1)
    return layer.out_proj(_sdpa(q, kv, allowed))


def _sdpa(q: Tensor, kv: Tensor, allowed: Tensor) -> Tensor:
    q, k, v = (split_heads(x, HEADS) for x in (q, *kv.chunk(2, dim=-1)))
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[None, None]))


def _in_direction(run: Callable[[], Tensor], direction: str, *inputs: Tensor) -> Callable[[], object]:
    require_name("pass", direction, ("forward", "forward + backward"))
    if direction == "forward":
        return partial(_without_grad, run)
    for tensor in inputs:
        tensor.requires_grad_(True)
    return partial(_with_backward, run)


def _without_grad(run: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        run()


def _with_backward(run: Callable[[], Tensor]) -> None:
    run().sum().backward()


def _on_map(rows: pd.DataFrame, side: int) -> pd.DataFrame:
    """Rows of `interleaved`, a way each, with the square map that they were timed on."""
    return rows.rename(columns={"case": "way"}).assign(map=f"{side}x{side}", n=TokenGrid(side, side).n)


def _of_variants(cases: Mapping[tuple[str, str], Case], **options: object) -> pd.DataFrame:
    """Rows of `interleaved`, a variant and way each."""
    named = {f"{variant} {way}": run for (variant, way), run in cases.items()}
    keys = pd.DataFrame(list(cases), columns=["variant", "way"], index=list(named))
    return keys.join(interleaved(named, **options).set_index("case")).reset_index(drop=True)


def _speed_up(rows: pd.DataFrame, by: str, *baselines: str) -> pd.Series:
    """Median time of the baseline, the row of the same `by` with one of these ways, over that of each row."""
    medians = rows[rows["way"].isin(baselines)].set_index(by)["ms_median"]
    return rows[by].map(medians) / rows["ms_median"]
