"""What `hae-lab bench attention` measures: our rules, the document's layer, fused attention, compiled kernels."""

import shutil
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab import rules
from hae_lab.audit.baselines import multihead_attention
from hae_lab.checks import require_name
from hae_lab.masks import TokenGrid
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention, kernel_name, pairs_run
from hae_lab.models.flex import mask_mod
from hae_lab.models.kernels import merge_heads, split_heads
from hae_lab.models.native import COMPILERS as NATIVE_COMPILERS
from hae_lab.profilers.paired import FEWEST, compare
from hae_lab.profilers.timing import interleaved, peak_bytes, rounds, summary
from hae_lab.rules import mask_for

CHANNELS, HEADS = 256, 8
LAYER, CORE = "layer", "core"  # parts of attention: with its projections, and scores, softmax and sum alone
DOCUMENT_LAYER, SDPA, SHARED, DENSE = "document's layer", "SDPA with the mask, all queries", "document_shared", "dense"
LAYERS = (DOCUMENT_LAYER, SDPA, *rules.RULES)
FLEX = {f"FlexAttention, {rule}": rule for rule in (SHARED, "window2d")}
NATIVE = {f"{rule}, native": rule for rule in ("document", SHARED)}
COMPILERS = ("g++", "clang++", "cl")


def bench_attention(device: str = "cpu", sides: tuple[int, ...] = (16, 32, 64), repeats: int = FEWEST) -> pd.DataFrame:
    """The whole attention layer with its projections, and the attention core alone, forward and forward + backward.

    C = 256, 8 heads, batch 1, fp32, dropout 0. Verdicts compare with the rule `dense`, the fused kernel for the local
    queries without a mask: the strongest baseline. `peak_bytes` is what one pass adds, in a process of its own.
    """
    frames = []
    for side in sides:
        for direction in ("forward", "forward + backward"):
            ways = [*LAYERS, *native_ways(device), *(flex_ways(direction, device) if side == max(sides) else ())]
            cases = {way: layer_case(way, side, direction, device) for way in ways}
            ms = rounds(cases, repeats=repeats, device=device)
            rows = on_map(summary(ms, device=device), side)
            for column, baseline in (("speed_up", DOCUMENT_LAYER), ("speed_up_sdpa", SDPA), ("speed_up_dense", DENSE)):
                rows[column] = speed_up(rows, "map", baseline)
            rows = rows.join(compare(ms, {way: DENSE for way in ways if way != DENSE}), on="way")
            frames += [_with_peaks(rows, side, direction, device), _cores(side, direction, device, repeats)]
    # the document's layer, whose mask is n x n, would not fit
    cases = {way: layer_case(way, 128, "forward", device) for way in (SHARED, "spatial_reduction", "window2d")}
    rows = on_map(interleaved(cases, repeats=3, device=device), 128)
    frames.append(_with_peaks(rows, 128, "forward", device))
    rows = pd.concat(frames, ignore_index=True).assign(channels=CHANNELS, heads=HEADS)
    rows["mask_rule"] = rows["way"].map({rule: rule for rule in rules.RULES} | NATIVE)
    return rows.astype({"peak_bytes": "Int64"}) if "peak_bytes" in rows else rows


def flex_ways(direction: str, device: str) -> tuple[str, ...]:
    """FlexAttention where it runs: on a CPU forward alone, and with a C++ compiler, which takes it 45 s a rule."""
    if device == "cpu" and (direction != "forward" or not any(map(shutil.which, COMPILERS))):
        return ()
    return tuple(FLEX)


def native_ways(device: str) -> tuple[str, ...]:
    """Our kernel in C++, on a CPU with a compiler that makes it."""
    return tuple(NATIVE) if device == "cpu" and any(map(shutil.which, NATIVE_COMPILERS)) else ()


def _with_peaks(rows: pd.DataFrame, side: int, direction: str, device: str) -> pd.DataFrame:
    """The rows of layers; what FlexAttention takes beside its compiler cannot be told."""
    if device == "cpu":
        known = [way for way in rows["way"] if way not in FLEX]
        peaks = {way: peak_bytes(layer_case, way, side, direction, device) for way in known}
        rows["peak_bytes"] = rows["way"].map(peaks).astype("Int64")
    return rows.assign(**{"part": LAYER, "pass": direction})


def _cores(side: int, direction: str, device: str, repeats: int) -> pd.DataFrame:
    ms = rounds(
        {way: core_case(way, side, direction, device) for way in (DENSE, SHARED)}, repeats=repeats, device=device
    )
    rows = on_map(summary(ms, device=device), side).join(compare(ms, {SHARED: DENSE}), on="way")
    rows["speed_up_dense"] = speed_up(rows, "map", DENSE)
    rows["limit"] = rows["way"].map({DENSE: 1.0, SHARED: core_limit(side)})
    return rows.assign(**{"part": CORE, "pass": direction})


def on_map(rows: pd.DataFrame, side: int) -> pd.DataFrame:
    """Rows of `timing.summary`, a way each, with the square map that they were timed on."""
    return rows.rename(columns={"case": "way"}).assign(map=f"{side}x{side}", n=TokenGrid(side, side).n)


def speed_up(rows: pd.DataFrame, by: str | list[str], *baselines: str) -> pd.Series:
    """Median time of the baseline, the row of the same `by` with one of these ways, over that of each row."""
    medians = rows[rows["way"].isin(baselines)].set_index(by)["ms_median"].rename("baseline")
    return rows.join(medians, on=by)["baseline"] / rows["ms_median"]


# cases


def layer_case(name: str, side: int, direction: str = "forward", device: str = "cpu") -> Callable[[], object]:
    """One pass of an attention layer over a square map: the document's, masked SDPA, FlexAttention, or ours.

    Rules run torch's kernels, whatever the environment asks for; ways in `NATIVE` run the one in C++.
    """
    grid = TokenGrid(side, side)
    tokens = torch.randn(1, grid.n, CHANNELS, generator=torch.Generator().manual_seed(0)).to(device)
    layer = SparseMultiheadAttention(CHANNELS, HEADS).to(device)
    if name == DOCUMENT_LAYER:
        layer, blocked = multihead_attention(layer), _blocked(grid, device)
        run = partial(_documents_layer, layer, tokens, blocked)
    elif name == SDPA:
        run = partial(_sdpa_layer, layer, tokens, ~_blocked(grid, device))
    elif name in FLEX:
        run = partial(_flex_layer, layer, tokens, grid.n_local, flex_core(FLEX[name], grid, device))
    else:
        mask = mask_for(NATIVE.get(name, name), grid)
        layer.kernel = "native" if name in NATIVE else kernel_name(mask, HEADS)
        run = partial(layer, tokens, mask)
    return _in_direction(run, direction, tokens)


def flex_core(rule: str, grid: TokenGrid, device: str, compiled: bool = True) -> Callable[..., Tensor]:
    """FlexAttention under a rule, compiled at its first call: q (1, heads, n_local, d), k and v (1, heads, n, d)."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    seen = mask_mod(rule, grid, heads=HEADS, device=device)
    block_mask = create_block_mask(seen, None, HEADS, grid.n_local, grid.n, device=device)
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return partial(attend, block_mask=block_mask)


def core_case(name: str, side: int, direction: str = "forward", device: str = "cpu") -> Callable[[], object]:
    """Scores, softmax and sum alone, without projections."""
    grid = TokenGrid(side, side)
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(1, grid.n, width, generator=generator).to(device) for width in (CHANNELS, 2 * CHANNELS))
    mask = mask_for(name, grid)
    q, kv = q[:, : grid.n_local].contiguous(), kv[:, slice(*mask.span)].contiguous()
    return _in_direction(partial(KERNELS[mask.kernel].run, q, kv, mask, HEADS), direction, q, kv)


def core_limit(side: int) -> float:
    """n / K: what the core of `document_shared` could gain over dense at most, K the keys its kernel reads a query."""
    grid = TokenGrid(side, side)
    mask = mask_for(SHARED, grid)
    return HEADS * grid.n_local * grid.n / pairs_run(mask, HEADS, mask.kernel)


def _blocked(grid: TokenGrid, device: str) -> Tensor:
    return torch.from_numpy(mask_for("document", grid).blocked()).to(device)


def _documents_layer(layer: nn.MultiheadAttention, tokens: Tensor, blocked: Tensor) -> Tensor:
    return layer(tokens, tokens, tokens, attn_mask=blocked)[0]


def _sdpa_layer(layer: SparseMultiheadAttention, tokens: Tensor, allowed: Tensor) -> Tensor:
    projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)
    q, kv = projected.split([CHANNELS, 2 * CHANNELS], dim=-1)
    return layer.out_proj(_sdpa(q, kv, allowed))


def _flex_layer(layer: SparseMultiheadAttention, tokens: Tensor, n_local: int, attend: Callable[..., Tensor]) -> Tensor:
    q_weight, kv_weight = layer.in_proj_weight.split([CHANNELS, 2 * CHANNELS])
    q_bias, kv_bias = layer.in_proj_bias.split([CHANNELS, 2 * CHANNELS])
    q, kv = F.linear(tokens[:, :n_local], q_weight, q_bias), F.linear(tokens, kv_weight, kv_bias)
    return layer.out_proj(merge_heads(attend(*(split_heads(x, HEADS) for x in (q, *kv.chunk(2, dim=-1))))))


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
