"""Claims on who sees whom: the mask and its rule, what is near and what is far."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hae_lab.audit import verdicts
from hae_lab.audit.baselines import document_mask_loop
from hae_lab.audit.claims.base import BEYOND, EXPRESSION, MASK, REACH, SAID, STRUCTURE, Evidence, Finding, claim, listed
from hae_lab.audit.claims.quality import readings_without
from hae_lab.audit.claims.scales import DOCUMENT_RULE, GRIDS, LARGEST_MAP, MASKS, branches, named_map
from hae_lab.audit.claims.tried import CHANNELS, CLOSE, error_of, in_words
from hae_lab.audit.measured import Measured
from hae_lab.family import HAEConfig
from hae_lab.masks import TokenGrid
from hae_lab.models.layers import seeded
from hae_lab.presets import DOCUMENT, config
from hae_lab.profilers.reach import NEIGHBOURHOOD, carried_pixels, seen_by_any_group, visibility
from hae_lab.rules import mask_for

CNN_REACH = 2  # pixels to each side, through the branch's two convolutions of 3 x 3
REDRAWN_TEST = "test_uses.py::test_a_redrawn_mask_is_that_of_the_next_seed"
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
    "The mask's sparsity ratio is 0.9 by default, so that a tenth of the tokens is kept",
    "90 % hidden",
    **MASKS | {"figure": "density_and_reach"},
    test="test_ledger_numbers.py::test_hidden_shares_by_the_documents_own_loop",
)
def sparsity_ratio(measured: Measured) -> Iterator[Finding]:
    """The share of pairs hidden from the pixels, map by map."""
    for grid in GRIDS:
        hidden = 100 * (1 - mask_for(DOCUMENT_RULE, grid).density())
        keys = visibility(grid, DOCUMENT_RULE)["keys_median"].item()
        seen = f"a pixel sees {keys:.0f} keys" if keys > 1 else "a pixel sees itself"
        reading, verdict = "query-key pairs that the mask hides", verdicts.judge(hidden, 90)
        yield Finding(reading, named_map(grid), f"{hidden:.1f} %; {seen}", verdict, MASK, way=DOCUMENT_RULE)


def _keep(grid: TokenGrid) -> int:
    """The document's keep_indices."""
    return max(1, int(grid.n * (1 - 0.9)))


@claim(
    {239: "mask = th.ones(seq_len, seq_len, dtype=th.bool)", 246: "mask[i, start:end] = False"},
    "The mask is boolean: True hides, False keeps",
    "True hides",
    **MASKS,
    test="test_models.py::test_create_sparse_mask_is_the_documents",
)
def true_hides(measured: Measured) -> Iterator[Finding]:
    """Type and diagonal of the mask; and whether torch's attention, given it, reads True as hidden."""
    n = 69
    mask = branches()[0].create_sparse_mask(n)
    themselves = int((~mask.diagonal()).sum())
    verdict = verdicts.as_said(mask.dtype == torch.bool and themselves == n)
    computed = f"{mask.dtype}; {themselves} of {n} tokens see themselves"
    yield Finding("booleans, False on the diagonal", f"n = {n}", computed, verdict, MASK, way=DOCUMENT_RULE)
    tokens = torch.randn(1, n, CHANNELS, generator=torch.Generator().manual_seed(0))
    others = torch.where(mask[0][:, None], tokens.flip(1), tokens)  # what the first token does not see is exchanged
    with seeded(0):
        layer = nn.MultiheadAttention(CHANNELS, 8, batch_first=True).eval().requires_grad_(False)
    first, again = (layer(tokens[:, :1], keys, keys, attn_mask=mask[:1])[0] for keys in (tokens, others))
    error = error_of(again, first)
    reading, scope = "nn.MultiheadAttention lets no True key change an output", f"n = {n}, C = {CHANNELS}"
    yield Finding(reading, scope, in_words(error), verdicts.at_most(error, CLOSE), STRUCTURE)


@claim(
    {
        243: "保留对角线附近",
        244: "start = max(0, i - keep_indices // 2)",
        245: "end = min(seq_len, i + keep_indices // 2 + 1)",
    },
    "What is near the diagonal is kept: keep_indices // 2 tokens before and after",
    "100 % of what is near",
    **MASKS,
    test="test_visibility.py::test_neighbourhood_is_that_of_the_matrix",
)
def near_diagonal(measured: Measured) -> Iterator[Finding]:
    """Near in the sequence of tokens; and near on the map, of which nothing is said."""
    grid = LARGEST_MAP
    mask, half = mask_for(DOCUMENT_RULE, grid), _keep(grid) // 2
    pixels = range(0, grid.n_local, 101)
    near = [mask.seen(np.array([pixel]))[max(0, pixel - half) : pixel + half + 1] for pixel in pixels]
    percent = 100 * float(np.concatenate(near).mean())
    scope, way = named_map(grid), DOCUMENT_RULE
    reading = f"tokens up to {half} places before and after in the sequence"
    yield Finding(reading, scope, f"{percent:.1f} %", verdicts.judge(percent, 100), MASK, way=way)
    reading = f"near on the map too: the {NEIGHBOURHOOD} x {NEIGHBOURHOOD} pixels around a pixel (our choice)"
    for grid in GRIDS[1:]:
        percent = visibility(grid, DOCUMENT_RULE)["neighbourhood_percent"].item()
        computed, verdict = f"{percent:.1f} %", verdicts.judge(percent, 100)
        yield Finding(reading, named_map(grid), computed, verdict, MASK, way=way, asked_of=BEYOND)


@claim(
    {248: "随机保留一些远距离连接"},
    "Some far connections are kept at random",
    "some",
    **MASKS,
    test="test_ledger_numbers.py::test_far_connections_by_the_documents_own_loop",
)
def random_far(measured: Measured) -> Iterator[Finding]:
    """Keys of a pixel in the middle of the map beyond the band around it; the smallest map has none by line 249."""
    for grid in GRIDS:
        pixel, half = grid.n_local // 2, _keep(grid) // 2
        seen = np.flatnonzero(mask_for(DOCUMENT_RULE, grid).seen(np.array([pixel])))
        far = int((np.abs(seen - pixel) > half).sum())
        asked_of, verdict = SAID if _keep(grid) > 4 else BEYOND, verdicts.as_said(far > 0)
        reading = "keys of the middle pixel beyond the band" + ", where line 249 draws none" * (asked_of == BEYOND)
        yield Finding(reading, named_map(grid), f"{far}", verdict, MASK, way=DOCUMENT_RULE, asked_of=asked_of)


@claim(
    {249: "if keep_indices > 4", 250: "num_random = max(1, keep_indices // 4)"},
    "Of keep_indices, if they are more than 4, a quarter is drawn at random besides",
    "max(1, keep_indices // 4) a row, or none",
    **MASKS,
    test="test_ledger_numbers.py::test_far_connections_by_the_documents_own_loop",
)
def random_count(measured: Measured) -> Iterator[Finding]:
    """Different columns that are drawn for each pixel, beside the printed lines."""
    for grid in GRIDS:
        drawn = mask_for(DOCUMENT_RULE, grid).columns(np.arange(grid.n_local))  # (n_local, columns)
        counts = {len(set(row)) for row in drawn.tolist()}
        keep = _keep(grid)
        verdict = verdicts.as_said(counts == {max(1, keep // 4) if keep > 4 else 0})
        computed = f"{listed(sorted(counts))}, of keep_indices = {keep}"
        yield Finding("keys drawn for a pixel", named_map(grid), computed, verdict, MASK, way=DOCUMENT_RULE)


@claim(
    {251: "random_indices = th.randperm(seq_len)[:num_random]"},
    "The far connections are drawn from all tokens, without a seed: anew whenever the mask is made",
    "another mask at each call",
    **MASKS,
    test="test_ledger_numbers.py::test_a_new_draw_exchanges_what_it_draws",
)
def mask_redrawn(measured: Measured) -> Iterator[Finding]:
    """The document's function, called twice; and whether a trained model can do with a mask that it never saw."""
    first, again = (~document_mask_loop(LARGEST_MAP.n, seed=seed) for seed in (0, 1))
    percent = 100 * (1 - int((first & again).sum()) / int(first.sum()))
    computed, verdict = f"{percent:.1f} % of the kept pairs are others", verdicts.as_said(percent > 0)
    yield Finding("the document's function, called twice", named_map(LARGEST_MAP), computed, verdict, MASK)
    for row in _uses(measured, "mask_redrawn"):
        reading = "harmless, of which the document says nothing: a trained model takes a new mask as well as its own"
        verdict, evidence = verdicts.at_most(row["percent_low"], 0), USES.with_test(REDRAWN_TEST)
        yield Finding(reading, _lesson(row), _loss(row), verdict, REACH, claimed="no loss", evidence=evidence)


# local and global


@claim(
    {11: "结合局部建模和长距离依赖建模", 16: "融合CNN的局部感受野和Transformer的全局建模能力"},
    "The CNN's local view is joined with the Transformer's global one",
    "100 % of the map",
    **MASKS | {"figure": "density_and_reach"},
    test="test_visibility.py::test_hops_are_powers_of_the_pixel_matrix",
)
def local_and_global(measured: Measured) -> Iterator[Finding]:
    """What can change a pixel's output: what the CNN cannot reach, all of the map; do trained models use it?"""
    for grid in GRIDS[1:]:
        farthest = _farthest(grid)
        reading = f"long range: pixels farther than the CNN branch reaches, {CNN_REACH} pixels"
        computed, verdict = f"up to {farthest} pixels away", verdicts.as_said(farthest > CNN_REACH)
        yield Finding(reading, named_map(grid), computed, verdict, MASK, way=DOCUMENT_RULE)
    for grid in GRIDS[1:]:
        seen = visibility(grid, DOCUMENT_RULE)
        for blocks, words in ((1, "1 block"), (2, "2 blocks")):
            percent = seen[f"reach_{blocks}_percent"].item()
            yield Finding(
                f"global: pixels that can change a pixel's output through the attention of {words}",
                named_map(grid),
                f"{percent:.1f} %",
                verdicts.judge(percent, 100),
                MASK if blocks == 1 else REACH,
                way=DOCUMENT_RULE,
                asked_of=SAID,
                example=grid == LARGEST_MAP and blocks == 1,
            )
    for row in _uses(measured, "itself_only"):
        reading, verdict = "a trained model needs more than each pixel itself", verdicts.as_said(row["percent_low"] > 0)
        evidence = USES.with_test("test_uses.py::test_who_sees_itself_only_gets_its_own_value")
        yield Finding(
            reading, _lesson(row), f"{_loss(row)} without", verdict, EXPRESSION,
            claimed="a loss without", evidence=evidence, asked_of=BEYOND,
        )  # fmt: skip
    reading = "trained, in a body without attention, the Transformer helps to relate a cell to its copy"
    yield from readings_without(measured, "reach", "HAE, no Transformer", "HAE", reading, "gain_by_distance")


def _farthest(grid: TokenGrid) -> int:
    """Rows or columns from the middle pixel to the farthest that can change its output in one block's attention."""
    middle = grid.height // 2 * grid.width + grid.width // 2
    carried = carried_pixels(grid, seen_by_any_group(mask_for(DOCUMENT_RULE, grid), np.array([middle])))
    rows, columns = np.divmod(np.flatnonzero(carried), grid.width)
    return int(max(np.abs(rows - grid.height // 2).max(), np.abs(columns - grid.width // 2).max()))


def _uses(measured: Measured, change: str) -> list[dict[str, Any]]:
    """What a change costs each lesson model."""
    rows = measured.read("what_a_model_uses")
    return rows[rows["change"] == change].to_dict("records")


def _lesson(row: Mapping[str, Any]) -> str:
    return f"lesson model of {row['variant']}, {row['n_images']} images"


def _loss(row: Mapping[str, Any]) -> str:
    mean, low, high = (round(row[name], 2) + 0.0 for name in ("percent", "percent_low", "percent_high"))
    return f"loss {mean:+.2f} % [{low:+.2f}, {high:+.2f}]"
