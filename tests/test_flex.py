"""The mask rules as functions for FlexAttention: the same matrices, and the same attention."""

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

import hae_lab
from hae_lab import HAELabError
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models.attention import KERNELS, merge_heads, split_heads
from hae_lab.profilers.reach import empty_blocks
from hae_lab.rules import RULES, mask_for

HEADS = 4
GRIDS = [TokenGrid(8, 8), TokenGrid(12, 20), TokenGrid(4, 4), TokenGrid(24, 40), TokenGrid(9, 9, (1, 3))]


def matrices(mask: SparseMask) -> np.ndarray:
    """What each of the heads sees: (heads, n, n)."""
    blocked = mask.blocked()
    groups = blocked[None] if blocked.ndim == 2 else blocked
    return ~np.repeat(groups, HEADS // len(groups), axis=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_flex_attention_the_same_matrix(rule, grid):
    for sparsity, seed in ((0.9, 0), (0.6, 7)):
        seen = hae_lab.mask_mod(rule, grid, sparsity, seed, heads=HEADS)
        made = create_mask(seen, 1, HEADS, grid.n, grid.n, device="cpu")
        assert np.array_equal(made[0].numpy(), matrices(mask_for(rule, grid, sparsity, seed)))


@pytest.mark.parametrize("grid", GRIDS[:4], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_empty_blocks_are_those_that_flex_attention_leaves_out(rule, grid):
    seen = hae_lab.mask_mod(rule, grid, heads=HEADS)
    for side in (16, 64, 128):
        made = create_block_mask(seen, None, HEADS, grid.n_local, grid.n, device="cpu", BLOCK_SIZE=side)
        kept = int(made.kv_num_blocks.sum() + made.full_kv_num_blocks.sum())
        blocks = HEADS * -(-grid.n_local // side) * -(-grid.n // side)
        found = empty_blocks(mask_for(rule, grid))[f"empty_blocks_{side}_percent"]
        assert found == pytest.approx(100 * (1 - kept / blocks))


def test_head_groups_are_those_of_our_layers():
    grid = TokenGrid(8, 8)
    made = create_mask(hae_lab.mask_mod("spatial_reduction", grid, heads=HEADS), 1, HEADS, grid.n, grid.n, device="cpu")
    scales = [[p for p in (4, 8) if made[0, head, :, slice(*grid.span(p))].any()] for head in range(HEADS)]
    assert scales == [[4], [4], [8], [8]]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rule", RULES)
def test_flex_attention_of_the_pixels_computes_what_ours_does(rule):
    grid, width = TokenGrid(8, 8), 32
    generator = torch.Generator().manual_seed(0)
    q, kv = (torch.randn(2, n, size, generator=generator) for n, size in ((grid.n_local, width), (grid.n, 2 * width)))
    seen = hae_lab.mask_mod(rule, grid, heads=HEADS)
    block_mask = create_block_mask(seen, None, HEADS, grid.n_local, grid.n, device="cpu", BLOCK_SIZE=16)
    queries, keys, values = (split_heads(x, HEADS) for x in (q, *kv.chunk(2, dim=-1)))
    flex = merge_heads(flex_attention(queries, keys, values, block_mask=block_mask))
    mask = mask_for(rule, grid)
    ours = KERNELS["reference"].run(q, kv[:, slice(*mask.span)], mask, HEADS)
    assert torch.allclose(flex, ours, atol=1e-5)


def test_a_rule_of_ones_own(monkeypatch):
    def nothing_but_itself(grid, sparsity, seed):
        return SparseMask.from_blocked(~np.eye(grid.n, dtype=bool), grid)

    monkeypatch.setitem(RULES, "itself", nothing_but_itself)
    grid = TokenGrid(4, 4)
    made = create_mask(hae_lab.mask_mod("itself", grid), 1, 1, grid.n, grid.n, device="cpu")
    assert torch.equal(made[0, 0], torch.eye(grid.n, dtype=torch.bool))


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("documnt", {}, "unknown mask rule 'documnt': did you mean 'document'"),
        ("spatial_reduction", {"heads": 3}, "2 head groups on 8 x 8, which must divide 3 heads"),
        ("document", {"heads": 0}, "heads"),
        ("document", {"sparsity": 1.0}, "sparsity"),
    ],
)
def test_bad_requests_are_named(rule, options, message):
    with pytest.raises(HAELabError, match=message):
        hae_lab.mask_mod(rule, TokenGrid(8, 8), **options)
