"""What `hae-lab bench` measures: masks, attention layers, models, training steps; rows of `timing.interleaved`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab import rules
from hae_lab.audit.baselines import document_mask_loop, multihead_attention, the_documents_way
from hae_lab.checks import require_name
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.training import Recipe, train
from hae_lab.files import atomic_path
from hae_lab.masks import TokenGrid
from hae_lab.models import build
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention, pairs_run
from hae_lab.models.kernels import merge_heads, split_heads
from hae_lab.presets import VARIANTS, config
from hae_lab.profilers.timing import check_device, environment, interleaved, peak_bytes, predict, step_inputs
from hae_lab.rules import mask_for

CHANNELS, HEADS = 256, 8
DOCUMENT, SDPA = "document's layer", "SDPA with the mask, all queries"
LAYERS = (DOCUMENT, SDPA, *rules.RULES)
CORE_SDPA, CORE_SHARED = "core: SDPA with the mask, all queries", "core: document_shared"
BARE_LOOP, OUR_LOOP = "bare loop", "hae_lab"
MASK_LOOP, MASK_INDEX = "document's row loop", "index form"


def bench_masks(device: str = "cpu") -> pd.DataFrame:
    """Building the document's mask: its row loop against the index form, for square maps."""
    frames = []
    for side in (16, 32, 64):
        grid = TokenGrid(side, side)
        cases = {
            MASK_LOOP: partial(document_mask_loop, grid.n),
            MASK_INDEX: partial(rules.document, grid, 0.9, 0),
        }
        rows = interleaved(cases, repeats=7 if side == 64 else 15)
        frames.append(_with_speed_up(rows, speed_up=MASK_LOOP).assign(map=f"{side}x{side}", n=grid.n))
    return pd.concat(frames, ignore_index=True)


def bench_attention(device: str = "cpu", sides: tuple[int, ...] = (16, 32, 64), repeats: int = 9) -> pd.DataFrame:
    """The whole attention layer with its projections, and the attention core alone, forward and forward + backward.

    C = 256, 8 heads, batch 1, fp32, dropout 0. `peak_bytes` is what one pass adds, in a process of its own.
    """
    frames = []
    for side in sides:
        for direction in ("forward", "forward + backward"):
            cases = {name: layer_case(name, side, direction, device) for name in LAYERS}
            rows = interleaved(cases, repeats=repeats, device=device)
            rows = _with_speed_up(rows, speed_up=DOCUMENT, speed_up_sdpa=SDPA)
            if device == "cpu":
                rows["peak_bytes"] = [peak_bytes(layer_case, name, side, direction, device) for name in LAYERS]
            cores = {name: core_case(name, side, direction, device) for name in (CORE_SDPA, CORE_SHARED)}
            core_rows = _with_speed_up(interleaved(cores, repeats=repeats, device=device), speed_up_sdpa=CORE_SDPA)
            core_rows["limit"] = [1.0, core_limit(side)]
            both = pd.concat([rows, core_rows], ignore_index=True)
            frames.append(both.assign(**{"pass": direction}, map=f"{side}x{side}", n=TokenGrid(side, side).n))
    frames.append(_largest_map(device))
    return pd.concat(frames, ignore_index=True).assign(channels=CHANNELS, heads=HEADS)


def bench_model(device: str = "cpu", repeats: int = 15) -> pd.DataFrame:
    """Each variant of `brats128` at 64 channels, eval, batch 1: the document's way, and ours with two mask rules."""
    frames = []
    models = {}
    for variant in VARIANTS:
        for rule in ("document", "document_shared") if variant != "unet" else ("document",):
            name = variant if variant == "unet" else f"{variant}, {rule}"
            models[name] = build(variant, "brats128", model_channels=64, mask_rule=rule).eval().to(device)
        if variant != "unet":
            models[f"{variant}, document's way"] = the_documents_way(models[f"{variant}, document"])
    x, timesteps = step_inputs(models["unet"].config, 1, device)
    cases = {name: partial(predict, model, x, timesteps) for name, model in models.items()}
    rows = interleaved(cases, repeats=repeats, device=device)
    for variant in VARIANTS:
        mine = rows[rows["case"].str.split(",").str[0] == variant]
        base = variant if variant == "unet" else f"{variant}, document's way"
        frames.append(_with_speed_up(mine, speed_up=base).assign(variant=variant))
    size = config("hae", "brats128").image_size
    return pd.concat(frames, ignore_index=True).assign(**{"pass": "forward"}, map=f"{size}x{size}")


def bench_training(device: str = "cpu", repeats: int = 5, steps: int = 30) -> pd.DataFrame:
    """A training step of each variant of `lesson16`, batch 32: our loop, with all it does, and a bare loop."""
    images = phantoms(steps * Recipe().batch_size, config("unet", "lesson16").image_size)
    cases = {}
    for variant in VARIANTS:
        cases[f"{variant}, {BARE_LOOP}"] = partial(bare_loop, variant, images.images, steps, device)
        cases[f"{variant}, {OUR_LOOP}"] = partial(our_loop, variant, images, steps, device)
    rows = interleaved(cases, repeats=repeats, device=device)
    rows[["ms_median", "ms_q1", "ms_q3"]] /= steps
    rows["variant"] = rows["case"].str.split(", ").str[0]
    groups = rows.groupby("variant", sort=False)
    parts = [_with_speed_up(mine, speed_up=f"{variant}, {BARE_LOOP}") for variant, mine in groups]
    return pd.concat(parts, ignore_index=True).assign(**{"pass": "training step"}, map="16x16")


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
}


def bench(what: str, folder: str | Path = "data", device: str = "cpu") -> tuple[Path, pd.DataFrame]:
    """Measure and keep the rows in `folder`/latency_<device>.csv; return the path and the new rows.

    Rows of other benchmarks and of other devices stay as they are. Raises `HAELabError` for an unknown benchmark or a
    device that is not there.
    """
    require_name("benchmark", what, BENCHMARKS)
    check_device(device)
    rows = BENCHMARKS[what](device)
    rows = rows.assign(benchmark=what, **environment(device))
    path = Path(folder) / f"latency_{device}.csv"
    _merge_rows(path, rows)
    return path, rows


def layer_case(name: str, side: int, direction: str = "forward", device: str = "cpu") -> Callable[[], object]:
    """One pass of an attention layer over a square map: the document's layer, masked SDPA, or ours with a rule."""
    grid = TokenGrid(side, side)
    tokens = torch.randn(1, grid.n, CHANNELS, generator=torch.Generator().manual_seed(0)).to(device)
    layer = SparseMultiheadAttention(CHANNELS, HEADS).to(device)
    if name == DOCUMENT:
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
    if name == CORE_SDPA:
        run = partial(_sdpa, q, kv, ~_blocked(grid, device))
        return _in_direction(run, direction, q, kv)
    mask = mask_for("document_shared", grid)
    q, kv = q[:, : grid.n_local].contiguous(), kv[:, slice(*mask.span)].contiguous()
    return _in_direction(partial(KERNELS["blocks"].run, q, kv, mask, HEADS), direction, q, kv)


def core_limit(side: int) -> float:
    """n² / (n_local K): what the core of `document_shared` could save at most, K the keys its kernel reads a query."""
    grid = TokenGrid(side, side)
    return HEADS * grid.n**2 / pairs_run(mask_for("document_shared", grid), HEADS)


def _largest_map(device: str) -> pd.DataFrame:
    """128 x 128: forward of the rules that need no n x n matrix; the document's layer would not fit."""
    names = ("document_shared", "spatial_reduction", "window2d")
    rows = interleaved({name: layer_case(name, 128, "forward", device) for name in names}, repeats=3, device=device)
    if device == "cpu":
        rows["peak_bytes"] = [peak_bytes(layer_case, name, 128, "forward", device) for name in names]
    return rows.assign(**{"pass": "forward"}, map="128x128", n=TokenGrid(128, 128).n)


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


def _with_speed_up(rows: pd.DataFrame, **baselines: str) -> pd.DataFrame:
    """Add a column a baseline: its median over each row's."""
    medians = rows.set_index("case")["ms_median"]
    return rows.assign(**{column: medians[case] / rows["ms_median"] for column, case in baselines.items()})


def _merge_rows(path: Path, rows: pd.DataFrame) -> None:
    if path.exists():
        old = pd.read_csv(path)
        mine = rows.iloc[0]
        measured_again = (old["benchmark"] == mine["benchmark"]) & (old["device_name"] == mine["device_name"])
        rows = pd.concat([old[~measured_again], rows], ignore_index=True)
    with atomic_path(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.4g", lineterminator="\n")
