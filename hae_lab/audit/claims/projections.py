"""Claims on projections: how patches become tokens in each version."""

from collections.abc import Iterator

from torch import Tensor, nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import BEYOND, PARAMETERS, REACH, Finding, claim
from hae_lab.audit.claims.built import BLOCK, LITE, SAYS_TEST, V2, branches_of, of_blocks
from hae_lab.audit.claims.parameters import PRESET, count, whole_params
from hae_lab.audit.claims.tried import CHANNELS, CLOSE, PATCHES, SIDE, error_of, in_words, part, some_map
from hae_lab.audit.measured import Measured
from hae_lab.models.slots import LinearRegions, PooledRegions
from hae_lab.presets import VARIANTS

PROJECTIONS_SCOPE = f"patches of 4 and 8, C = {CHANNELS}"


@claim(
    {52: "为每个尺度创建独立的线性投影层"},
    "HAE has a linear projection of its own for each scale",
    "one a scale",
    **BLOCK | {"notebook": "03_hae"},
    test=SAYS_TEST,
)
def own_projections(measured: Measured) -> Iterator[Finding]:
    """For each patch size, and for pixels too?"""
    layers = {len(each.patch_projections) for each in branches_of("hae")}
    scales = {len(each.patch_sizes) for each in branches_of("hae")}
    computed = f"{max(layers)} layers for {max(scales) - 1} patch sizes"
    yield of_blocks("each patch size above one pixel", layers == {size - 1 for size in scales}, computed)
    reading = "each scale, pixels included, which line 261 flattens as they are"
    computed = f"{max(layers)} layers for {max(scales)} scales"
    yield of_blocks(reading, layers == scales, computed, asked_of=BEYOND)


@claim(
    {
        146: "使用共享卷积投影层替代独立线性投影层",
        168: "独立Linear层 … 共享Conv1x1 … 参数共享",
        217: "继承Lite版本的共享投影层",
    },
    "Lite shares one convolution instead of the linear projections, and V2 inherits it",
    "one 1 x 1 convolution",
    **LITE,
    test=SAYS_TEST,
)
def shared_projection(measured: Measured) -> Iterator[Finding]:
    """One 1 x 1 convolution, no linear projection; of the same shape in both."""
    for variant in ("lite", "v2"):
        shared = [each.shared_patch_embed for each in branches_of(variant) if not hasattr(each, "patch_projections")]
        found = len(shared) == len(branches_of(variant)) and all(each.kernel_size == (1, 1) for each in shared)
        computed = f"{len(shared)} blocks with one 1 x 1 convolution and no linear projection"
        yield of_blocks(f"the projections of {VARIANTS[variant].title}", found, computed)


@claim(
    {147: "借鉴ViT的设计理念"},
    "Lite's shared projection follows ViT's idea",
    "ViT's patch embedding",
    **LITE,
    test="test_ledger_numbers.py::test_vits_patch_embedding_is_haes_linear_layer",
)
def after_vit(measured: Measured) -> Iterator[Finding]:
    """ViT's idea: patches are words, one layer embeds them all. Its embedding: a convolution as large as a patch."""
    pooled, p = part(PooledRegions, PATCHES), PATCHES[0]
    rows = SIDE // p
    tokens, moved = (pooled(x, PATCHES)[1].unflatten(1, (rows, rows)) for x in (some_map(), some_map().roll(p, 3)))
    error = error_of(moved, tokens.roll(1, 2))
    reading = "a patch becomes one token, by a layer that all patches share, as in ViT"
    computed = f"the map moved by a patch: tokens moved by one, {in_words(error)}"
    yield of_blocks(reading, error < CLOSE, computed, f"{p} x {p}, C = {CHANNELS}")
    kernel = pooled.shared_patch_embed.kernel_size
    computed = f"its kernel is {kernel[0]} x {kernel[1]}; of a patch it takes the mean, ViT all values"
    reading, found = "Lite's layer is ViT's patch embedding", kernel in [(p, p) for p in PATCHES]
    yield of_blocks(reading, found, computed, f"C = {CHANNELS}", BEYOND)
    regions = part(LinearRegions, PATCHES)
    for index, p in enumerate(PATCHES):
        linear, x = regions.patch_projections[index], some_map()
        vit = nn.functional.conv2d(x, linear.weight.view(CHANNELS, CHANNELS, p, p), linear.bias, stride=p)
        error = error_of(vit.flatten(2).mT, regions(x, PATCHES)[1 + index])
        computed = f"HAE's layer beside ViT's {p} x {p} convolution of stride {p}: {in_words(error)}"
        reading, scope = "the layer that it replaces is not ViT's already", f"{p} x {p}, C = {CHANNELS}"
        yield of_blocks(reading, error > CLOSE, computed, scope, BEYOND)


@claim(
    {148: "大幅减少参数量"},
    "Lite's projection saves parameters greatly",
    f"at least {verdicts.GREATLY} % fewer",
    **LITE | {"table": "slot_waterfall", "figure": "slot_waterfall"},
    test="test_parameter_table.py::test_coefficients_are_the_sums_of_the_slots",
)
def lite_far_fewer(measured: Measured) -> Iterator[Finding]:
    """Of the projections; and what is left of it in the whole model, where a smaller saving counts too."""
    own, shared = count(part(LinearRegions, PATCHES)), count(part(PooledRegions, PATCHES))
    params, greatly = whole_params(), f"at least {verdicts.GREATLY} % fewer (our threshold)"
    of_model = 100 * (1 - params["lite"] / params["hae"])
    for reading, saved, claimed, scope, kind in (
        (f"the projections, {greatly}", 100 * (1 - shared / own), verdicts.GREATLY, PROJECTIONS_SCOPE, PARAMETERS),
        (f"the whole model, {greatly}", of_model, verdicts.GREATLY, PRESET, REACH),
    ):
        yield Finding(reading, scope, f"{saved:.1f} %", verdicts.judge_saving(saved, claimed), kind)
    reading = f"the whole model, more than {verdicts.NEAR} % fewer (our threshold for what is worth a word)"
    yield Finding(reading, PRESET, f"{of_model:.1f} %", verdicts.noticeably_more(of_model), PARAMETERS)


@claim(
    {209: "x_projected = self.shared_patch_embed(x)", 211: "对投影后的特征进行块划分"},
    "V2 projects the map first, and then divides it into patches",
    "projected, then divided",
    **V2,
    test="test_ledger_numbers.py::test_pooled_tokens_are_means_over_the_six_axes",
)
def projected_first(measured: Measured) -> Iterator[Finding]:
    """Whose map is divided, the projected or the given one; for a mean, either order comes to one."""
    regions, p = part(PooledRegions, PATCHES), PATCHES[0]
    seen: list[Tensor] = []
    handle = regions.shared_patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        tokens = regions(some_map(), PATCHES)[1]
    finally:
        handle.remove()
    sides = [tuple(each.shape[2:]) for each in seen]
    found = sides == [(SIDE, SIDE)]
    computed = f"the projection is given the {SIDE} x {SIDE} map" if found else f"it is given maps of {sides}"
    yield of_blocks("the whole map is projected, once", found, computed, PROJECTIONS_SCOPE)
    pooled = nn.functional.avg_pool2d(some_map(), p)
    after = regions.shared_patch_embed(pooled).flatten(2).mT
    error = error_of(after, tokens)
    reading = "the order matters: divided and averaged first, tokens are others"
    yield of_blocks(reading, error > CLOSE, in_words(error), PROJECTIONS_SCOPE, asked_of=BEYOND)


@claim(
    {213: "x_patches = x_patches.mean(dim=(4, 5))", 218: "使用平均池化替代线性投影", 228: "共享Conv1x1+池化"},
    "V2 pools patches by their mean instead of a linear projection",
    "the mean of a patch",
    **V2,
    test="test_ledger_numbers.py::test_pooled_tokens_are_means_over_the_six_axes",
)
def v2_pooling(measured: Measured) -> Iterator[Finding]:
    """The document's line, run; and is it what sets V2 apart from Lite?"""
    regions, p = part(PooledRegions, PATCHES), PATCHES[0]
    projected = regions.shared_patch_embed(some_map())
    patches = projected.view(1, CHANNELS, SIDE // p, p, SIDE // p, p).transpose(3, 4)  # (B, C, rows, columns, p, p)
    error = error_of(regions(some_map(), PATCHES)[1], patches.mean(dim=(4, 5)).flatten(2).mT)
    scope = f"{p} x {p} patches of a {SIDE} x {SIDE} map, C = {CHANNELS}"
    yield of_blocks("the document's line gives V2's tokens", error < CLOSE, in_words(error), scope)
    ways = {variant: {each.regions for each in branches_of(variant)} for variant in ("lite", "v2")}
    own = ways["lite"] != ways["v2"]
    computed = "Lite pools as V2 does" if not own else f"Lite {ways['lite']}, V2 {ways['v2']}"
    yield of_blocks("pooling is V2's own, Lite does without", own, computed)
