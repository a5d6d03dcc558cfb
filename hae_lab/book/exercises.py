"""Checks of the exercises in which a reader completes a function: each says what is right, or where it first differs.

A check takes the reader's function, tries it on inputs that it has not seen, and returns a sentence. It raises
`HAELabError` with the input, what came back and what would be right.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hae_lab.audit.verdicts import FAILS, HOLDS, NEARLY
from hae_lab.checks import require
from hae_lab.masks import TokenGrid
from hae_lab.models.hybrid import HybridBlock
from hae_lab.models.slots import BottleneckMLP, MeanFusion, token_mlp
from hae_lab.presets import VARIANTS

SparseMaskMaker = Callable[[int, float], Tensor]


def check_count_parameters(function: Callable[[nn.Module], int]) -> str:
    """`function(module)`, the number of its parameters."""
    cases = {
        "nn.Linear(3, 5)": (nn.Linear(3, 5), 3 * 5 + 5),
        "nn.Conv2d(2, 4, 3)": (nn.Conv2d(2, 4, 3), 2 * 4 * 9 + 4),
        "two layers": (nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)), 30),
        "nn.ReLU()": (nn.ReLU(), 0),
    }
    for name, (module, right) in cases.items():
        _same(name, function(module), right)
    return f"right for {', '.join(cases)}"


def check_ddim_step(function: Callable[[Tensor, Tensor, float, float], Tensor]) -> str:
    """`function(x, clean, now, after)`: the image after a step without fresh noise; shares of signal, now and after."""
    generator = torch.Generator().manual_seed(5)
    clean, noise = torch.randn(2, 3, 1, 4, 4, generator=generator)
    for now, after in ((0.1, 0.3), (0.5, 0.9), (0.9, 1.0)):
        x = now**0.5 * clean + (1 - now) ** 0.5 * noise
        right = after**0.5 * clean + (1 - after) ** 0.5 * noise
        _close(f"signal {now} to {after}", function(x, clean, now, after), right)
    return "right: the same noise stays, less of it; with nothing but signal left, the clean image"


def check_patch_mean(function: Callable[[Tensor, int], Tensor]) -> str:
    """`function(x, p)`: the mean of every p x p patch, (B, C, H, W) -> (B, C, H/p, W/p)."""
    generator = torch.Generator().manual_seed(6)
    for shape, p in (((1, 2, 8, 8), 4), ((2, 3, 4, 12), 2), ((2, 1, 6, 6), 6)):
        x = torch.randn(shape, generator=generator)
        _close(f"map {shape}, patches of {p}", function(x, p), F.avg_pool2d(x, p))
    return "right for square and oblong maps, one patch and many"


def check_sparse_mask(function: SparseMaskMaker) -> str:
    """`function(seq_len, sparsity_ratio)`: the document's mask, True = blocked; columns drawn for each row."""
    for n, sparsity in ((68, 0.9), (30, 0.8), (20, 0.9), (276, 0.9)):
        case, keep = f"{n} tokens, sparsity {sparsity}", max(1, int(n * (1 - sparsity)))
        mask = torch.as_tensor(function(n, sparsity))
        _same(f"{case}: shape", tuple(mask.shape), (n, n))
        _same(f"{case}: type", mask.dtype, torch.bool)
        gap = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        inside = gap <= keep // 2
        require(not bool(mask.diagonal().any()), f"{case}: a token is blocked for itself; True means blocked")
        blocked = int((mask & inside).sum())
        require(blocked == 0, f"{case}: {blocked} pairs of the band of {keep // 2} tokens each side are blocked")
        extra = (~mask & ~inside).sum(1)  # (n,) beyond the band
        most = max(1, keep // 4) if keep > 4 else 0
        require(int(extra.max()) <= most, f"{case}: a row sees {int(extra.max())} keys beyond its band, at most {most}")
        # a random column falls into the band now and then, but not in half of the rows
        require(
            2 * extra.sum() >= most * n, f"{case}: {int(extra.sum())} keys beyond the bands, {most} a row are drawn"
        )
        distinct = (~mask & ~inside).any(0).sum()
        shared = most > 0 and int(distinct) <= 2 * most
        require(not shared, f"{case}: all rows see the same random columns; each row draws its own")
    return "right: the band, the random columns of each row, and few tokens without any"


def check_own_token(function: Callable[[int, int, int, Sequence[int]], int]) -> str:
    """`function(row, column, side, patch_sizes)`: index of the token, of the last patch size, that holds a pixel."""
    for side, sizes in ((16, (4,)), (16, (4, 8)), (8, (4,)), (32, (2, 4, 8))):
        grid = TokenGrid(side, side, (1, *sizes))
        for row, column in ((0, 0), (5, 7), (side - 1, 2), (side - 1, side - 1)):
            right = int(grid.parent(sizes[-1])[row * side + column])
            case = f"pixel ({row}, {column}) of {side} x {side}, patches {sizes}"
            _same(case, function(row, column, side, sizes), right)
    return "right: pixels first, then each patch size in raster order"


@torch.no_grad()
def check_concat_of_mean(function: Callable[[Tensor], Tensor]) -> str:
    """`function(M)`: weights (C, 2C) with which a concat fusion does what a mean fusion with M (C, C) does."""
    generator = torch.Generator().manual_seed(7)
    for channels in (2, 6):
        u, v = torch.randn(2, 1, channels, 3, 3, generator=generator)
        mean = MeanFusion(channels)
        M = torch.randn(channels, channels, generator=generator)
        mean.fusion_conv.weight.copy_(M[:, :, None, None])
        mean.fusion_conv.bias.zero_()
        weights = torch.as_tensor(function(M))
        _same(f"C = {channels}: shape", tuple(weights.shape), (channels, 2 * channels))
        joined = F.conv2d(torch.cat([u, v], 1), weights[:, :, None, None])
        _close(f"C = {channels}: what the fusion gives", joined, mean(v, u))
    return "right: both halves of the concat weights are M / 2"


def check_mlp_params(function: Callable[[int, float], int]) -> str:
    """`function(C, r)`: parameters of the token MLP C -> rC -> C, biases included; at least one inside."""
    for channels, ratio in ((64, 4), (64, 0.25), (512, 0.25), (6, 0.1)):
        bottleneck = ratio < 1
        made = BottleneckMLP(channels, ratio) if bottleneck else token_mlp(channels, int(channels * ratio), 0.0)
        right = sum(parameter.numel() for parameter in made.parameters())
        _same(f"C = {channels}, r = {ratio}", function(channels, ratio), right)
    return "right for both MLPs, and for a bottleneck that would be narrower than one"


def check_square_coefficient(function: Callable[[Callable[[int], int], int, int], float]) -> str:
    """`function(count, width, step)`: what stands before C² in `count(C)`, from three equally spaced widths."""
    cases = {
        "nn.Conv2d(C, C, 3)": (lambda C: nn.Conv2d(C, C, 3), 9),
        "nn.Linear(C, 4 C)": (lambda C: nn.Linear(C, 4 * C), 4),
        "nn.LayerNorm(C)": (nn.LayerNorm, 0),
        "attention of C channels": (lambda C: nn.MultiheadAttention(C, 8), 4),
        "a hybrid block of Lite": (lambda C: HybridBlock(C, 512, **VARIANTS["lite"]), 32),
        "a hybrid block of V2": (lambda C: HybridBlock(C, 512, **VARIANTS["v2"]), 24.5),
    }
    for (name, (make, right)), (width, step) in product(cases.items(), ((64, 64), (128, 32))):
        with torch.device("meta"):
            found = function(lambda C, make=make: sum(each.numel() for each in make(C).parameters()), width, step)
        _same(f"{name}, from C = {width} in steps of {step}", found, right)
    return f"right for {', '.join(cases)}"


def check_cross_mask(function: Callable[[TokenGrid], Tensor]) -> str:
    """`function(grid)`: (n, n), True = blocked; a pixel sees its own row, its own column and all regional tokens."""
    for grid in (TokenGrid(4, 4, (1, 2)), TokenGrid(8, 12, (1, 4)), TokenGrid(6, 4, (1, 4)), TokenGrid(16, 16)):
        case = f"{grid.height} x {grid.width}, patches {grid.scales}"
        mask = torch.as_tensor(function(grid))
        _same(f"{case}: shape", tuple(mask.shape), (grid.n, grid.n))
        _same(f"{case}: type", mask.dtype, torch.bool)
        for query in range(grid.n_local):
            row, column = divmod(query, grid.width)
            seen = {row * grid.width + each for each in range(grid.width)}
            seen |= {each * grid.width + column for each in range(grid.height)}
            seen |= set(range(grid.n_local, grid.n))
            found = set((~mask[query]).nonzero().flatten().tolist())
            what = f"{case}: pixel ({row}, {column}); True means blocked; tokens that differ"
            _same(what, sorted(found ^ seen), [])
        empty = int(mask[grid.n_local :].all(1).sum())
        _same(f"{case}: regional tokens that see nothing", empty, 0)
    return "right for square and oblong maps, with one, two and no regional scales"


def check_attention_macs(function: Callable[[int, int, int], int]) -> str:
    """`function(queries, keys, C)`: multiply-accumulates of a dense attention layer, projections included.

    What is right is counted by torch's own counter.
    """
    for queries, keys, channels in ((276, 276, 64), (256, 276, 64), (4096, 4416, 128), (1, 1, 8)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            layer = nn.MultiheadAttention(channels, 8, batch_first=True)
            kv = torch.empty(1, keys, channels)
            layer(torch.empty(1, queries, channels), kv, kv)
        right = counter.get_total_flops() // 2
        _same(f"{queries} queries, {keys} keys, C = {channels}", function(queries, keys, channels), right)
    return "right: as torch counts it, with all queries and with the pixels alone"


def check_holm(function: Callable[[Sequence[float]], Sequence[float]]) -> str:
    """`function(p_values)`: Holm's p values, in the order given."""
    for p_values in ((0.01, 0.04, 0.03), (0.5,), (0.02, 0.02, 0.9, 0.001), (0.04, 0.2, 0.6)):
        _close(f"p = {p_values}", torch.as_tensor(function(p_values)), torch.tensor(_holm(p_values)))
    return "right: in the order given, never falling, never above 1"


def check_verdict_of(function: Callable[[float, float], str]) -> str:
    """`function(computed_percent, claimed_percent)`: "holds", "nearly holds" or "does not hold"."""
    for computed, right in (
        (70, HOLDS),
        (71, HOLDS),
        (69, HOLDS),
        (71.5, NEARLY),
        (65, NEARLY),
        (75.25, FAILS),
        (0, FAILS),
    ):
        _same(f"{computed} % computed, 70 % claimed", function(computed, 70), right)
    _same("71 % computed, 40 % claimed", function(71, 40), FAILS)
    return "right on both sides of what is claimed, and at both bounds"


def _holm(p_values: Sequence[float]) -> list[float]:
    """By the definition: a p value is at least what every smaller one became."""
    count = len(p_values)
    scaled = [(count - sum(each < p for each in p_values)) * p for p in p_values]
    return [min(1.0, max(s for s, each in zip(scaled, p_values, strict=True) if each <= p)) for p in p_values]


def check_on_front(function: Callable[[Sequence[float], Sequence[float]], Sequence[bool]]) -> str:
    """`function(costs, losses)`: of each model, whether none is as cheap and as good, and better in one of the two."""
    cases = (
        ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0)),
        ((1.0, 2.0, 3.0), (1.0, 2.0, 0.5)),
        ((2.0, 2.0, 5.0), (1.0, 4.0, 1.0)),
        ((2.0, 2.0), (1.0, 1.0)),
    )
    for costs, losses in cases:
        found, right = [bool(each) for each in function(costs, losses)], _on_front(costs, losses)
        _same(f"costs {costs}, losses {losses}", found, right)
    return "right: also where two are equal in one, or in both"


def _on_front(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """By the definition, pair by pair."""
    models = list(zip(costs, losses, strict=True))
    return [not any(a <= cost and b <= loss and (a, b) != (cost, loss) for a, b in models) for cost, loss in models]


def _same(case: str, found: Any, right: Any) -> None:
    require(found == right, f"{case}: {right} would be right, got {found}")


def _close(case: str, found: Any, right: Tensor) -> None:
    found = torch.as_tensor(found)
    _same(f"{case}: shape", tuple(found.shape), tuple(right.shape))
    place = tuple(int(i) for i in np.unravel_index(int((found - right).abs().argmax()), right.shape))
    near = bool(torch.allclose(found.to(right.dtype), right, atol=1e-5))
    require(near, f"{case}: at {place}, {right[place]:.4f} would be right, got {found[place]:.4f}")
