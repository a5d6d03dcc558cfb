"""Claims on who sees whom: scales, the mask and its rule, what is near and what is far."""

from collections.abc import Iterator

import numpy as np

from hae_lab.audit import parameter_tables, verdicts
from hae_lab.audit.claims.base import MASK, REACH, Finding, claim
from hae_lab.audit.measured import Measured
from hae_lab.masks import TokenGrid
from hae_lab.presets import config
from hae_lab.profilers.reach import seen_by_any_group
from hae_lab.rules import mask_for

LARGEST_MAP = TokenGrid(64, 64)  # with hybrid blocks, on brats128


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


def _scales_seen(grid: TokenGrid) -> list[int]:
    """The patch sizes of which some pixel sees a token, pixels themselves as 1."""
    seen = seen_by_any_group(mask_for("document", grid), np.arange(grid.n_local))
    spans = {1: slice(0, grid.n_local)} | {p: slice(*grid.span(p)) for p in grid.scales}
    return [size for size, span in spans.items() if seen[span].any()]
