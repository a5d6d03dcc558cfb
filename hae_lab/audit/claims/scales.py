"""Claims on scales: pixels, patches of 4 x 4 and of 8 x 8, what becomes a token and who sees it."""

from collections.abc import Iterator

import numpy as np
import torch

from hae_lab.audit import parameter_tables, verdicts
from hae_lab.audit.claims.base import BEYOND, MASK, REACH, SAID, STRUCTURE, Finding, claim, listed
from hae_lab.audit.claims.quality import readings_without
from hae_lab.audit.measured import Measured
from hae_lab.masks import TokenGrid
from hae_lab.models import (
    MSTB,
    MultiScaleSparseTransformerBlock,
    MultiScaleSparseTransformerBlockLite,
    MultiScaleSparseTransformerBlockV2,
)
from hae_lab.presets import DOCUMENT, config
from hae_lab.profilers.reach import seen_by_any_group, visibility
from hae_lab.rules import mask_for

GRIDS = [TokenGrid(side, side) for side in (4, 8, 16, 32, 64)]  # of hybrid blocks in the presets
CHANNELS = 16
LARGEST_MAP = GRIDS[-1]  # with hybrid blocks, on brats128
DOCUMENT_RULE = "document"
MASKS = {"notebook": "07_sparse_masks", "figure": "mask_rules", "table": "visibility"}


def named_map(grid: TokenGrid) -> str:
    """A map as scopes name it."""
    return f"{grid.height} x {grid.width} map, n = {grid.n}"


def branches() -> list[MSTB]:
    """The Transformer branches of HAE, Lite and V2 under the document's names, small."""
    kinds = (
        MultiScaleSparseTransformerBlock,
        MultiScaleSparseTransformerBlockLite,
        MultiScaleSparseTransformerBlockV2,
    )
    return [kind(CHANNELS) for kind in kinds]


@claim(
    {15: "处理不同尺度的空间信息", 51: "支持多尺度patch处理 (1x1, 4x4, 8x8)"},
    "Multi-scale patches (1 x 1, 4 x 4, 8 x 8) are supported",
    "three scales",
    notebook="07_sparse_masks",
    figure="mask_rules",
    table="visibility",
    test="test_visibility.py::test_dropped_scales_are_named",
)
def three_scales(measured: Measured) -> Iterator[Finding]:
    """Three scales on a map: do they exist, and does any pixel see them? And on every map of a model?"""
    seen = _scales_seen(LARGEST_MAP)
    yield Finding(
        "tokens of the three sizes, each seen by some pixel",
        f"the largest map of brats128, {LARGEST_MAP.height} x {LARGEST_MAP.width}",
        f"{', '.join(f'{size} x {size}' for size in seen)}",
        verdicts.as_said(seen == [1, 4, 8]),
        MASK,
        way="document",
    )
    for preset in (*parameter_tables.TABLE_PRESETS, "lesson16"):
        model_config = config("hae", preset)
        sides = [model_config.sizes[level] for level in model_config.hybrid_levels]
        grids = [TokenGrid(side, side) for side in sides]
        exist = sum(not grid.dropped for grid in grids)
        seen_on = sum(_scales_seen(grid) == [1, 4, 8] for grid in grids)
        yield Finding(
            "three scales in every hybrid block",
            f"{preset}, maps of side {', '.join(map(str, sides))}",
            f"three scales exist on {exist} and are seen by some pixel on {seen_on} of {len(grids)} maps",
            verdicts.as_said(seen_on == len(grids)),
            REACH,
            way="document",
        )
    reading = "trained, tokens of patches help where one object is there at two scales"
    yield from readings_without(measured, "scales", "HAE, no regional tokens", "HAE", reading, "quality_forest_scales")


def _scales_seen(grid: TokenGrid) -> list[int]:
    """The patch sizes of which some pixel sees a token, pixels themselves as 1."""
    seen = seen_by_any_group(mask_for("document", grid), np.arange(grid.n_local))
    spans = {1: slice(0, grid.n_local)} | {p: slice(*grid.span(p)) for p in grid.scales}
    return [size for size, span in spans.items() if seen[span].any()]


@claim(
    {261: "直接展平 … 像素级细节"},
    "Tokens of pixels: flattened as they are, one a pixel",
    "flattened as they are",
    **MASKS | {"table": "hybrid_blocks", "figure": "hybrid_blocks"},
    test="test_ledger_numbers.py::test_pixel_tokens_of_each_version_by_hand",
)
def pixels_flattened(measured: Measured) -> Iterator[Finding]:
    """One token a pixel; and does a layer stand before it?"""
    per_pixel = {grid.n_local / (grid.height * grid.width) for grid in GRIDS}
    verdict = verdicts.as_said(per_pixel == {1})
    yield Finding(
        "one token a pixel", "maps of side 4 to 64", listed(f"{each:g}" for each in per_pixel), verdict, STRUCTURE
    )
    for variant, block in zip(DOCUMENT, branches(), strict=True):
        shared = hasattr(block, "shared_patch_embed")
        computed = "they pass the shared convolution first" if shared else "no layer before them"
        verdict = verdicts.as_said(not shared)
        yield Finding(f"flattened as they are in {variant}", "the block alone", computed, verdict, STRUCTURE)


@claim(
    {262: "4x4 … 块划分+投影", 263: "8x8 … 块划分+投影"},
    "Tokens of 4 x 4 and 8 x 8 patches: divided into patches, and projected",
    "one token a patch, projected",
    **MASKS | {"table": "hybrid_blocks", "figure": "hybrid_blocks"},
    test="test_architecture.py::test_tokens_are_those_of_the_grid",
)
def patches_projected(measured: Measured) -> Iterator[Finding]:
    """Tokens of each scale on the largest map, and the layer that projects them."""
    pixels = LARGEST_MAP.n_local
    for p in LARGEST_MAP.scales:
        start, stop = LARGEST_MAP.span(p)
        verdict = verdicts.as_said(stop - start == pixels // p**2)
        yield Finding(f"one token a {p} x {p} patch", named_map(LARGEST_MAP), f"{stop - start}", verdict, STRUCTURE)
    layers = [1 if hasattr(each, "shared_patch_embed") else len(each.patch_projections) for each in branches()]
    verdict = verdicts.as_said(all(layers))
    yield Finding("projected by a layer", "HAE, Lite, V2", listed(layers), verdict, STRUCTURE)


@claim(
    {262: "区域 … 局部模式"},
    "The 4 x 4 patches are regional: local patterns",
    "a token for the pixels of its patch",
    **MASKS,
    test="test_ledger_numbers.py::test_pooled_tokens_are_means_over_the_six_axes",
)
def patches_regional(measured: Measured) -> Iterator[Finding]:
    """Of which pixels a token tells; and whether pixels see the tokens that tell of around them."""
    height = width = 8
    for variant, block in zip(DOCUMENT, branches(), strict=True):
        x = torch.randn(1, CHANNELS, height, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
        block.region_tokens(x, (4, 8))[1][0, 0].sum().backward()  # the token of the first patch
        assert x.grad is not None
        rows, columns = x.grad.abs().sum((0, 1)).nonzero().max(0).values.add(1).tolist()
        computed, verdict = f"{rows} x {columns} pixels", verdicts.as_said((rows, columns) == (4, 4))
        yield Finding(f"what a token of {variant} tells of", "8 x 8 map, one block", computed, verdict, STRUCTURE)
    for grid in GRIDS[1:]:
        percent = visibility(grid, DOCUMENT_RULE)["sees_4_percent"].item()
        reading, verdict = "every pixel sees the token of some 4 x 4 patch", verdicts.judge(percent, 100)
        yield Finding(
            reading, named_map(grid), f"{percent:.1f} %", verdict, MASK,
            claimed="100 % of the pixels", way=DOCUMENT_RULE, asked_of=BEYOND,
        )  # fmt: skip


@claim(
    {263: "全局 … 全局结构"},
    "The 8 x 8 patches are global: global structure",
    "100 % of the map",
    **MASKS,
    test="test_ledger_numbers.py::test_an_8_x_8_patch_is_a_small_part_of_most_maps",
)
def patches_global(measured: Measured) -> Iterator[Finding]:
    """What the patches cover, together and each, and how many pixels see a token of them."""
    for grid in GRIDS:
        if 8 in grid.scales:
            start, stop = grid.span(8)
            pixels = grid.height * grid.width
            for words, tokens, asked_of in (
                ("the 8 x 8 patches together cover", stop - start, SAID),
                ("one 8 x 8 patch by itself covers", 1, BEYOND),
            ):
                percent = 100 * tokens * 8**2 / pixels
                verdict = verdicts.judge(percent, 100)
                reading = f"{words} the map"
                yield Finding(reading, named_map(grid), f"{percent:.1f} %", verdict, MASK, asked_of=asked_of)
    for grid in GRIDS[1:]:
        percent = visibility(grid, DOCUMENT_RULE)["sees_8_percent"].item()
        reading, verdict = "every pixel sees the token of some 8 x 8 patch", verdicts.judge(percent, 100)
        yield Finding(reading, named_map(grid), f"{percent:.1f} %", verdict, MASK, way=DOCUMENT_RULE)
