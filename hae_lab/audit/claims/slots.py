"""Claims on the three slots: projections, token MLP, fusion. What they are, and what they can express, is tried out."""

import copy
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import EXPRESSION, PARAMETERS, REACH, STRUCTURE, Finding, claim, listed
from hae_lab.audit.claims.parameters import PRESET, count, whole_params
from hae_lab.audit.claims.quality import readings_kept
from hae_lab.audit.claims.structure import narrow
from hae_lab.audit.measured import Measured
from hae_lab.models import MSTB, BottleneckMLP, HybridBlock
from hae_lab.models.layers import drawn_as, seeded
from hae_lab.models.slots import ConcatFusion, GeluMLP, LinearRegions, MeanFusion, PooledRegions
from hae_lab.presets import DOCUMENT, VARIANTS

CHANNELS, SIDE, PATCHES = 16, 8, (4, 8)  # small enough to try things out on
CLOSE = 1e-5  # relative, of two ways of one sum in single precision
BLOCK = {"notebook": "02_build_the_block", "figure": "hybrid_blocks", "table": "hybrid_blocks"}
LITE = BLOCK | {"notebook": "04_hae_lite"}
V2 = BLOCK | {"notebook": "05_hae_v2"}
SLOT_SCOPE = f"every hybrid block of {PRESET}"
SAYS = "test_architecture.py::test_slots_say_what_they_hold"


@lru_cache(maxsize=1)
def _map() -> Tensor:
    """An arbitrary map (1, C, H, W)."""
    return torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=8)
def _part(kind: type[nn.Module], *options: object) -> nn.Module:
    """A slot's part with arbitrary weights, the global random state untouched: do not change it."""
    with seeded(0), drawn_as(kind.__name__):
        return kind(CHANNELS, *options).eval().requires_grad_(False)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((found - expected).norm() / expected.norm())


def in_words(error: float) -> str:
    """An error as it is told: rounding differs from computer to computer, and says nothing."""
    return f"missed by {100 * error:.0f} % of its norm" if error > CLOSE else "equal up to rounding"


def blocks(variant: str) -> list[MSTB]:
    """The Transformer branches of a version."""
    return [each for each in narrow(variant).modules() if isinstance(each, MSTB)]


def _slot(reading: str, found: bool, computed: str, scope: str = SLOT_SCOPE, claimed: str = "") -> Finding:
    return Finding(reading, scope, computed, verdicts.as_said(found), STRUCTURE, claimed=claimed)


# projections


@claim(
    {52: "为每个尺度创建独立的线性投影层"},
    "HAE has a linear projection of its own for each scale",
    "one a scale",
    **BLOCK | {"notebook": "03_hae"},
    test="test_architecture.py::test_slots_say_what_they_hold",
)
def own_projections(measured: Measured) -> Iterator[Finding]:
    """For each patch size, and for pixels too?"""
    layers = {len(each.patch_projections) for each in blocks("hae")}
    scales = {len(each.patch_sizes) for each in blocks("hae")}
    computed = f"{max(layers)} layers for {max(scales) - 1} patch sizes"
    yield _slot("each patch size above one pixel", layers == {size - 1 for size in scales}, computed)
    yield _slot("each scale, pixels included", layers == scales, f"{max(layers)} layers for {max(scales)} scales")


@claim(
    {
        146: "使用共享卷积投影层替代独立线性投影层",
        168: "独立Linear层 … 共享Conv1x1 … 参数共享",
        217: "继承Lite版本的共享投影层",
    },
    "Lite shares one convolution instead of the linear projections, and V2 inherits it",
    "one 1 x 1 convolution",
    **LITE,
    test=SAYS,
)
def shared_projection(measured: Measured) -> Iterator[Finding]:
    """One 1 x 1 convolution, no linear projection; of the same shape in both."""
    for variant in ("lite", "v2"):
        shared = [each.shared_patch_embed for each in blocks(variant) if not hasattr(each, "patch_projections")]
        found = len(shared) == len(blocks(variant)) and all(each.kernel_size == (1, 1) for each in shared)
        computed = f"{len(shared)} blocks with one 1 x 1 convolution and no linear projection"
        yield _slot(f"the projections of {VARIANTS[variant].title}", found, computed)


@claim(
    {147: "借鉴ViT的设计理念"},
    "Lite's shared projection follows ViT's idea",
    "ViT's patch embedding",
    **LITE,
    test="test_ledger_numbers.py::test_vits_patch_embedding_is_haes_linear_layer",
)
def after_vit(measured: Measured) -> Iterator[Finding]:
    """ViT embeds a patch by a convolution as large as the patch, with its stride: whose projection is that?"""
    kernel = _part(PooledRegions, PATCHES).shared_patch_embed.kernel_size
    computed = f"its kernel is {kernel[0]} x {kernel[1]}; of a patch it takes the mean, ViT all values"
    yield _slot("Lite's projection is ViT's", kernel in [(p, p) for p in PATCHES], computed, f"C = {CHANNELS}")
    regions = _part(LinearRegions, PATCHES)
    for index, p in enumerate(PATCHES):
        linear, x = regions.patch_projections[index], _map()
        vit = nn.functional.conv2d(x, linear.weight.view(CHANNELS, CHANNELS, p, p), linear.bias, stride=p)
        error = error_of(vit.flatten(2).mT, regions(x, PATCHES)[1 + index])
        computed = f"HAE's layer beside ViT's {p} x {p} convolution of stride {p}: {in_words(error)}"
        yield _slot("the layer that it replaces is not ViT's", error > CLOSE, computed, f"{p} x {p}, C = {CHANNELS}")


@claim(
    {148: "大幅减少参数量"},
    "Lite's projection saves parameters greatly",
    f"at least {verdicts.GREATLY} % fewer",
    **LITE | {"table": "slot_waterfall", "figure": "slot_waterfall"},
    test="test_parameter_table.py::test_coefficients_are_the_sums_of_the_slots",
)
def lite_far_fewer(measured: Measured) -> Iterator[Finding]:
    """Of the projections; and what is left of it in the block and in the whole model."""
    own, shared = count(_part(LinearRegions, PATCHES)), count(_part(PooledRegions, PATCHES))
    params = whole_params()
    for reading, saved, scope, kind in (
        ("the projections", 100 * (1 - shared / own), f"patches of 4 and 8, C = {CHANNELS}", PARAMETERS),
        ("the whole model", 100 * (1 - params["lite"] / params["hae"]), PRESET, REACH),
    ):
        yield Finding(reading, scope, f"{saved:.1f} %", verdicts.judge_saving(saved, verdicts.GREATLY), kind)


@claim(
    {213: "x_patches = x_patches.mean(dim=(4, 5))", 218: "使用平均池化替代线性投影", 228: "共享Conv1x1+池化"},
    "V2 pools patches by their mean instead of a linear projection",
    "the mean of a patch",
    **V2,
    test="test_ledger_numbers.py::test_pooled_tokens_are_means_over_the_six_axes",
)
def v2_pooling(measured: Measured) -> Iterator[Finding]:
    """The document's line, run; and is it what sets V2 apart from Lite?"""
    regions, p = _part(PooledRegions, PATCHES), PATCHES[0]
    projected = regions.shared_patch_embed(_map())
    patches = projected.view(1, CHANNELS, SIDE // p, p, SIDE // p, p).transpose(3, 4)  # (B, C, rows, columns, p, p)
    error = error_of(regions(_map(), PATCHES)[1], patches.mean(dim=(4, 5)).flatten(2).mT)
    scope = f"{p} x {p} patches of a {SIDE} x {SIDE} map, C = {CHANNELS}"
    yield _slot("the document's line gives V2's tokens", error < CLOSE, in_words(error), scope)
    ways = {variant: {each.regions for each in blocks(variant)} for variant in ("lite", "v2")}
    own = ways["lite"] != ways["v2"]
    computed = "Lite pools as V2 does" if not own else f"Lite {ways['lite']}, V2 {ways['v2']}"
    yield _slot("pooling is V2's own, Lite does without", own, computed)


# fusion


@claim(
    {72: "通过拼接进行特征融合", 169: "拼接+Conv … 平均+Conv"},
    "HAE joins its branches by concatenation",
    "2C in, C out",
    **BLOCK | {"notebook": "03_hae"},
    test="test_compute.py::test_one_hybrid_block_by_hand",
)
def concat_fusion(measured: Measured) -> Iterator[Finding]:
    """Channels into the fusion of each block."""
    found = {_fusion_inputs("hae", each) for each in hybrid_blocks("hae")}
    yield _slot("input channels of the fusion over C", found == {2}, f"{listed(found)}")


@claim(
    {154: "加权平均而不是拼接", 160: "使用加权平均替代特征拼接"},
    "Lite joins its branches by a weighted mean instead of concatenation",
    "a weighted mean",
    **LITE,
    test="test_ledger_numbers.py::test_the_mean_of_lite_has_no_weights",
)
def weighted_mean(measured: Measured) -> Iterator[Finding]:
    """A mean it is; weighted would be unequal or learned weights."""
    fusion, a, b = _part(MeanFusion, True), _map(), _map().flip(2)
    error = error_of(fusion(a, b), fusion.fusion_conv((a + b) / 2))
    scope = f"the fusion alone, C = {CHANNELS}"
    yield _slot("the mean of both branches", error < CLOSE, in_words(error), scope)
    swapped = error_of(fusion(b, a), fusion(a, b))
    weights = count(fusion) - count(fusion.fusion_conv)
    computed = f"{weights} weights; with the branches exchanged the output is {in_words(swapped)}"
    yield _slot("a weighted one", weights > 0 or swapped > CLOSE, computed, scope)


@claim(
    {161: "减少融合卷积的输入通道数", 169: "减少通道数"},
    "Lite's fusion convolution has fewer input channels",
    "C instead of 2C",
    **LITE,
    test=SAYS,
)
def fewer_fusion_inputs(measured: Measured) -> Iterator[Finding]:
    """Channels into the fusion, over C."""
    found = {variant: {_fusion_inputs(variant, each) for each in hybrid_blocks(variant)} for variant in DOCUMENT}
    fewer = max(found["lite"]) < min(found["hae"]) and max(found["v2"]) < min(found["hae"])
    yield _slot(
        "input channels over C",
        fewer,
        f"HAE {listed(found['hae'])}, Lite {listed(found['lite'])}, V2 {listed(found['v2'])}",
    )


def hybrid_blocks(variant: str) -> list[HybridBlock]:
    """The hybrid blocks of a version."""
    return [each for each in narrow(variant).modules() if isinstance(each, HybridBlock)]


def _fusion_inputs(variant: str, block: HybridBlock) -> int:
    return block.fusion_conv.in_channels // block.fusion_conv.out_channels


@claim(
    {162: "保持相同的表达能力"},
    "The mean keeps the same expressive power",
    "the same functions",
    **LITE,
    test="test_ledger_numbers.py::test_a_mean_misses_one_branch_alone_by_the_root_of_a_half",
)
def same_expressiveness(measured: Measured) -> Iterator[Finding]:
    """Concatenation can do what the mean does; can the mean do what concatenation does? And do trained models tell?"""
    concat, mean, a, b = _part(ConcatFusion, True), _part(MeanFusion, True), _map(), _map().flip(2)
    weight, bias = mean.fusion_conv.weight, mean.fusion_conv.bias
    tied = nn.functional.conv2d(torch.cat([b, a], 1), torch.cat([weight, weight], 1) / 2, bias)
    error = error_of(tied, mean(a, b))
    scope = f"the fusion alone, C = {CHANNELS}"
    yield _expressed("concatenation with tied halves is the mean", error, scope)
    wanted = concat.fusion_conv.weight.flatten(1)  # (C, 2C)
    halves = wanted.view(CHANNELS, 2, CHANNELS)
    nearest = halves.mean(1, keepdim=True).expand_as(halves).reshape_as(wanted)  # the tied halves next to it
    yield _expressed("the mean does what concatenation does", error_of(nearest, wanted), scope)
    yield from readings_kept(measured, "fusion", "trained models are as good: held-out loss at equal steps")


def _expressed(reading: str, error: float, scope: str) -> Finding:
    return Finding(reading, scope, in_words(error), verdicts.at_most(error, CLOSE), EXPRESSION)


# the token MLP


@claim(
    {53: "使用完整的4倍扩展MLP", 170: "4倍扩展 … 保持不变"},
    "HAE's token MLP is four times as wide inside, and so is Lite's",
    "4 C",
    **BLOCK | {"notebook": "03_hae"},
    test=SAYS,
)
def full_mlp(measured: Measured) -> Iterator[Finding]:
    """Hidden width over C."""
    for variant in ("hae", "lite"):
        ratios = {each.mlp[0].out_features / each.mlp[0].in_features for each in blocks(variant)}
        title = VARIANTS[variant].title
        yield _slot(f"hidden width of {title}'s over C", ratios == {4}, listed(f"{ratio:g}" for ratio in ratios))


@claim(
    {
        188: "bottleneck_dim = max(1, int(channels * bottleneck_ratio))",
        200: "瓶颈结构：channels → bottleneck_dim → channels",
    },
    "The bottleneck narrows C to max(1, int(C x ratio)) and widens it back",
    "C, less, C",
    **V2,
    test="test_models.py::test_bottleneck_mlp_narrows_to_the_ratio",
)
def bottleneck_shape(measured: Measured) -> Iterator[Finding]:
    """Widths of some bottlenecks."""
    cases = [(channels, ratio) for channels in (2, 16, 512) for ratio in (0.0625, 0.25, 0.5)]
    widths = {case: BottleneckMLP(*case).mlp[0].out_features for case in cases}
    back = all(BottleneckMLP(*case).mlp[3].out_features == case[0] for case in cases)
    right = back and all(width == max(1, int(channels * ratio)) for (channels, ratio), width in widths.items())
    computed = f"{len(cases)} of {len(cases)}" if right else str(widths)
    yield _slot("widths inside", right, computed, "C = 2, 16, 512, ratio 1/16, 1/4, 1/2")


@claim(
    {187: "bottleneck_ratio=0.25", 201: "默认瓶颈比例0.25", 219: "集成瓶颈MLP结构", 228: "瓶颈0.25倍"},
    "V2 has the bottleneck MLP in its blocks, with a ratio of 0.25 by default",
    "0.25",
    **V2,
    test="test_models.py::test_only_v2_has_a_bottleneck_mlp",
)
def v2_bottleneck(measured: Measured) -> Iterator[Finding]:
    """The MLPs of V2's blocks, and their hidden width over C."""
    found = [each.mlp for each in blocks("v2") if isinstance(each.mlp, BottleneckMLP)]
    ratios = {each.mlp[0].out_features / each.mlp[0].in_features for each in found}
    right = len(found) == len(blocks("v2")) and ratios == {0.25}
    yield _slot("bottlenecks, and their ratio", right, f"{len(found)} of {len(blocks('v2'))}, {listed(ratios)}")


@claim(
    {202: "保持非线性表达能力"},
    "The bottleneck keeps the nonlinear expressive power",
    "the same power",
    **V2 | {"table": "study_bottleneck", "figure": "bottleneck_ratio"},
    test="test_ledger_numbers.py::test_a_bottleneck_moves_in_a_quarter_of_the_directions",
)
def bottleneck_expression(measured: Measured) -> Iterator[Finding]:
    """It is not linear; in how many directions can it move a token; and do trained models tell?"""
    mlp, token = _part(GeluMLP, 0.25, 0.0), _map()[0, :, 0, 0]
    bent = error_of(mlp(2 * token) - mlp(0 * token), 2 * (mlp(token) - mlp(0 * token)))
    scope = f"one MLP, C = {CHANNELS}"
    verdict = verdicts.as_said(bent > CLOSE)
    yield Finding("it is not linear", scope, f"off a line by {100 * bent:.0f} %", verdict, EXPRESSION)
    ranks = [_directions(_part(GeluMLP, ratio, 0.0), token) for ratio in (4, 0.25)]
    verdict = verdicts.as_said(ranks[1] >= ranks[0])
    computed = f"{ranks[1]}, of the 4x MLP {ranks[0]}"
    yield Finding("directions in which it can move a token", scope, computed, verdict, EXPRESSION)
    yield from readings_kept(measured, "mlp_ratio", "trained models are as good: held-out loss at equal steps")


def _directions(mlp: nn.Module, token: Tensor) -> int:
    """The rank of what the MLP does to small changes of a token."""
    jacobian = torch.autograd.functional.jacobian(mlp, token)
    return int(torch.linalg.matrix_rank(jacobian, rtol=1e-5))


# the slots together


@claim(
    {
        226: "4倍扩展 … 独立Linear … 拼接",
        227: "4倍扩展 … 共享Conv1x1 … 平均",
        228: "瓶颈0.25倍 … 共享Conv1x1+池化 … 平均",
    },
    "MLP, projection and fusion of the three versions, as the table has them",
    "the table's words",
    **BLOCK | {"notebook": "00_start_here"},
    test="test_family.py::test_variants_are_the_documents_slots",
)
def slots_of_the_table(measured: Measured) -> Iterator[Finding]:
    """The slots of each version in the table's words."""
    words = {
        "hae": (4, "patch_projections", 2), "lite": (4, "shared_patch_embed", 1), "v2": (0.25, "shared_patch_embed", 1),
    }  # fmt: skip
    for variant, (ratio, layer, inputs) in words.items():
        block = hybrid_blocks(variant)[0]
        mlp = next(each for each in block.transformer_branch.mlp.modules() if isinstance(each, nn.Linear))
        found = (mlp.out_features / mlp.in_features, layer, _fusion_inputs(variant, block))
        right = found == (ratio, layer, inputs) and hasattr(block.transformer_branch, layer)
        computed = f"MLP {found[0]:g} C, {layer}, fusion of {found[2]} C"
        yield _slot(f"the slots of {VARIANTS[variant].title}", right, computed)


@claim(
    {283: "完整的特征表达能力"},
    "HAE has the full expressive power of features",
    "HAE can do what the others do",
    **LITE,
    test="test_ledger_numbers.py::test_hae_cannot_shift_its_pixel_tokens_as_lite_does",
)
def full_expression(measured: Measured) -> Iterator[Finding]:
    """Whether HAE's slots, with the right weights, do what Lite's and V2's do."""
    pooled, x = _part(PooledRegions, PATCHES), _map()
    weight, bias = pooled.shared_patch_embed.weight.flatten(1), pooled.shared_patch_embed.bias  # (C, C), (C,)
    scope, tokens = f"the slot alone, C = {CHANNELS}", pooled(x, PATCHES)
    for index, p in enumerate(PATCHES):
        tiled = weight.repeat_interleave(p * p, dim=1) / p**2  # (C, C p²), channel-major
        made = nn.functional.linear(nn.functional.unfold(x, p, stride=p).mT, tiled, bias)
        yield _expressed(f"Lite's {p} x {p} tokens from HAE's projection", error_of(made, tokens[1 + index]), scope)
    yield _expressed("Lite's pixel tokens, for which HAE has no layer", error_of(x.flatten(2).mT, tokens[0]), scope)
    narrow_mlp, token = _part(GeluMLP, 0.25, 0.0), x.flatten(2).mT
    wide = _widened(narrow_mlp)
    yield _expressed("V2's bottleneck from HAE's MLP", error_of(wide(token), narrow_mlp(token)), scope)
    mean, b = _part(MeanFusion, True), x.flip(2)
    halves = torch.cat([mean.fusion_conv.weight] * 2, 1) / 2
    made = nn.functional.conv2d(torch.cat([b, x], 1), halves, mean.fusion_conv.bias)
    yield _expressed("Lite's mean from HAE's concatenation", error_of(made, mean(x, b)), scope)


def _widened(narrow_mlp: nn.Module) -> nn.Module:
    """A 4x MLP that does what a bottleneck does: its further hidden units are silent."""
    wide = copy.deepcopy(_part(GeluMLP, 4, 0.0))
    inside, outside = narrow_mlp.mlp.mlp[0], narrow_mlp.mlp.mlp[3]
    for layer in (wide.mlp[0], wide.mlp[3]):
        layer.weight.zero_()
        layer.bias.zero_()
    wide.mlp[0].weight[: len(inside.bias)], wide.mlp[0].bias[: len(inside.bias)] = inside.weight, inside.bias
    wide.mlp[3].weight[:, : len(inside.bias)], wide.mlp[3].bias[:] = outside.weight, outside.bias
    return wide
