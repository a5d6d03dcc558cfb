"""Claims on who sees whom: the mask and its rule, what is near and what is far."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hae_lab.audit import verdicts
from hae_lab.audit.baselines import document_mask_loop
from hae_lab.audit.claims.base import EXPRESSION, MASK, REACH, Evidence, Finding, claim, listed
from hae_lab.audit.claims.scales import DOCUMENT_RULE, GRIDS, LARGEST_MAP, MASKS, branches, named_map
from hae_lab.audit.measured import Measured
from hae_lab.family import HAEConfig
from hae_lab.presets import DOCUMENT, config
from hae_lab.profilers.reach import NEIGHBOURHOOD, visibility
from hae_lab.rules import mask_for

USES = Evidence("03_hae", "what_a_model_needs", "what_a_model_uses")


# the rule


@claim(
    {235: "所有版本都使用相同的稀疏注意力策略"},
    "All versions use the same strategy of sparse attention",
    "one mask",
    **MASKS,
    test="test_models.py::test_create_sparse_mask_is_the_documents",
)
def same_strategy(measured: Measured) -> Iterator[Finding]:
    """Rule and sparsity of the three configs, and the masks of the three blocks."""
    rules = {(each.mask_rule, each.sparsity, each.patch_sizes) for each in _configs()}
    computed = listed(sorted(f"{rule}, {sparsity:g}" for rule, sparsity, _ in rules))
    one_rule = verdicts.as_said(len(rules) == 1)
    yield Finding("rule and sparsity", "HAE, Lite, V2", computed, one_rule, MASK, way=DOCUMENT_RULE)
    masks = [each.create_sparse_mask(276) for each in branches()]
    same = all(bool((mask == masks[0]).all()) for mask in masks)
    computed = "equal" if same else "different"
    yield Finding("the masks of the three blocks", "n = 276", computed, verdicts.as_said(same), MASK, way=DOCUMENT_RULE)


def _configs() -> list[HAEConfig]:
    return [config(variant, "brats128") for variant in DOCUMENT]


@claim(
    {238: "sparsity_ratio=0.9", 240: "keep_indices = max(1, int(seq_len * (1 - sparsity_ratio)))"},
    "The mask hides a share of 0.9, whatever the number of tokens",
    "90 % hidden",
    **MASKS | {"figure": "density_and_reach"},
    test="test_ledger_numbers.py::test_hidden_shares_by_the_documents_own_loop",
)
def ratio_at_any_size(measured: Measured) -> Iterator[Finding]:
    """The share of pairs hidden from the pixels, map by map."""
    for grid in GRIDS:
        mask = mask_for(DOCUMENT_RULE, grid)
        hidden = 100 * (1 - mask.density())
        keys = visibility(grid, DOCUMENT_RULE)["keys_median"].item()
        computed = (
            f"{hidden:.1f} %; a pixel sees {keys:.0f} keys" if keys > 1 else f"{hidden:.1f} %; a pixel sees itself"
        )
        verdict = verdicts.judge(hidden, 90)
        yield Finding(
            "query-key pairs that the mask hides", named_map(grid), computed, verdict, MASK, way=DOCUMENT_RULE
        )


@claim(
    {243: "保留对角线附近"},
    "What is near the diagonal is kept",
    "100 % of what is near",
    **MASKS,
    test="test_visibility.py::test_neighbourhood_is_that_of_the_matrix",
)
def near_diagonal(measured: Measured) -> Iterator[Finding]:
    """Near in the sequence of tokens, and near on the map."""
    grid = LARGEST_MAP
    mask, half = mask_for(DOCUMENT_RULE, grid), max(1, int(grid.n * (1 - 0.9))) // 2
    pixels = range(0, grid.n_local, 101)
    near = [mask.seen(np.array([pixel]))[max(0, pixel - half) : pixel + half + 1] for pixel in pixels]
    percent = 100 * float(np.concatenate(near).mean())
    scope, way = named_map(grid), DOCUMENT_RULE
    reading = f"tokens up to {half} places before and after in the sequence"
    yield Finding(reading, scope, f"{percent:.1f} %", verdicts.judge(percent, 100), MASK, way=way)
    for grid in GRIDS[1:]:
        percent = visibility(grid, DOCUMENT_RULE)["neighbourhood_percent"].item()
        reading, verdict = f"the {NEIGHBOURHOOD} x {NEIGHBOURHOOD} pixels around a pixel", verdicts.judge(percent, 100)
        yield Finding(reading, named_map(grid), f"{percent:.1f} %", verdict, MASK, way=way)


@claim(
    {248: "随机保留一些远距离连接"},
    "Some far connections are kept at random",
    "some",
    **MASKS,
    test="test_ledger_numbers.py::test_far_connections_by_the_documents_own_loop",
)
def random_far(measured: Measured) -> Iterator[Finding]:
    """Keys of a pixel in the middle of the map beyond the band around it."""
    for grid in GRIDS:
        pixel, half = grid.n_local // 2, max(1, int(grid.n * (1 - 0.9))) // 2
        seen = np.flatnonzero(mask_for(DOCUMENT_RULE, grid).seen(np.array([pixel])))
        far = int((np.abs(seen - pixel) > half).sum())
        verdict = verdicts.as_said(far > 0)
        yield Finding(
            "keys of the middle pixel beyond the band", named_map(grid), f"{far}", verdict, MASK, way=DOCUMENT_RULE
        )


@claim(
    {251: "random_indices = th.randperm(seq_len)[:num_random]"},
    "The far connections are drawn at each call",
    "a new mask at each call",
    **MASKS,
    test="test_models.py::test_eval_is_repeatable_to_the_bit",
)
def mask_redrawn(measured: Measured) -> Iterator[Finding]:
    """The document's function, called twice, and ours; and what a new mask costs a trained model."""
    first, again = (~document_mask_loop(LARGEST_MAP.n, seed=seed) for seed in (0, 1))
    percent = 100 * (1 - int((first & again).sum()) / int(first.sum()))
    verdict = verdicts.as_said(percent > 0)
    yield Finding(
        "the document's function, called twice",
        named_map(LARGEST_MAP),
        f"{percent:.1f} % of the kept pairs are others",
        verdict,
        MASK,
    )
    block = branches()[0]
    same = bool((block.create_sparse_mask(276) == block.create_sparse_mask(276)).all())
    computed = "equal: drawn once, from the seed of the config" if same else "different"
    verdict = verdicts.as_said(not same)
    yield Finding("this package's block, called twice", "n = 276", computed, verdict, MASK, way=DOCUMENT_RULE)
    for row in _uses(measured, "mask_redrawn"):
        reading, verdict = (
            "a trained model takes a new mask as well as its own",
            verdicts.at_most(row["percent_low"], 0),
        )
        test = "test_uses.py::test_a_redrawn_mask_is_that_of_the_next_seed"
        yield Finding(reading, _lesson(row), _loss(row), verdict, REACH, evidence=USES.with_test(test))


# local and global


@claim(
    {11: "结合局部建模和长距离依赖建模", 16: "融合CNN的局部感受野和Transformer的全局建模能力"},
    "The CNN's local view is joined with the Transformer's global one",
    "100 % of the map",
    **MASKS | {"figure": "density_and_reach"},
    test="test_visibility.py::test_hops_are_powers_of_the_pixel_matrix",
)
def local_and_global(measured: Measured) -> Iterator[Finding]:
    """What can change a pixel's output in one block; and do trained models use what is far?"""
    for grid in GRIDS[1:]:
        seen = visibility(grid, DOCUMENT_RULE)
        for blocks, kind in ((1, MASK), (2, REACH)):
            percent = seen[f"reach_{blocks}_percent"].item()
            reading = (
                f"pixels that can change a pixel's output through the attention of {blocks} block{'s' * (blocks > 1)}"
            )
            verdict = verdicts.judge(percent, 100)
            yield Finding(
                reading,
                named_map(grid),
                f"{percent:.1f} %",
                verdict,
                kind,
                way=DOCUMENT_RULE,
                example=grid == LARGEST_MAP and blocks == 1,
            )
    for row in _uses(measured, "itself_only"):
        reading, verdict = "a trained model needs more than each pixel itself", verdicts.as_said(row["percent_low"] > 0)
        evidence = USES.with_test("test_uses.py::test_who_sees_itself_only_gets_its_own_value")
        computed, claimed = f"{_loss(row)} without", "a loss without"
        yield Finding(reading, _lesson(row), computed, verdict, EXPRESSION, claimed=claimed, evidence=evidence)


def _uses(measured: Measured, change: str) -> list[dict[str, Any]]:
    """What a change costs each lesson model."""
    rows = measured.read("what_a_model_uses")
    return rows[rows["change"] == change].to_dict("records")


def _lesson(row: Mapping[str, Any]) -> str:
    return f"lesson model of {row['variant']}, {row['n_images']} images"


def _loss(row: Mapping[str, Any]) -> str:
    mean, low, high = (round(row[name], 2) + 0.0 for name in ("percent", "percent_low", "percent_high"))
    return f"loss {mean:+.2f} % [{low:+.2f}, {high:+.2f}]"
