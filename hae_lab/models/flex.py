"""The mask rules for FlexAttention, torch's attention that compiles a function of positions into its kernel.

Source of the interface: torch.nn.attention.flex_attention, `mask_mod`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hae_lab.checks import require, require_whole
from hae_lab.masks import CHUNK, SparseMask, TokenGrid
from hae_lab.rules import mask_for

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_mod(
    rule: str,
    grid: TokenGrid,
    sparsity: float = 0.9,
    seed: int = 0,
    *,
    heads: int = 8,
    device: str | torch.device = "cpu",
) -> MaskMod:
    """A rule as a function (batch, head, query, key) -> bool, True = seen, the same mask as everywhere in hae_lab.

        seen = hae_lab.mask_mod("document", TokenGrid(64, 64), heads=8, device="cuda")
        block_mask = create_block_mask(seen, None, 8, grid.n_local, grid.n, device="cuda")
        flex_attention(q, k, v, block_mask=block_mask)

    Positions are tokens of the grid; queries may be the pixels alone, its first `n_local`. Looks up one bit a pair, of
    n²/8 bytes a head group on `device`, so it is the same for all rules and compiles with `torch.compile`.
    Raises `HAELabError` as `mask_for` does, and for heads that the rule's groups do not divide.
    """
    mask = mask_for(rule, grid, sparsity, seed)
    fits = require_whole("heads", heads, 1) % mask.groups == 0
    size = f"{grid.height} x {grid.width}"
    require(fits, f"{rule} has {mask.groups} head groups on {size}, which must divide {heads} heads")
    bits, heads_a_group = torch.from_numpy(_bits(mask)).to(device), heads // mask.groups

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        byte = bits[head // heads_a_group, query, key // 8]
        return (byte >> (key % 8)) & 1 == 1

    return seen


def _bits(mask: SparseMask) -> np.ndarray:
    """The mask, eight keys a byte, the first in the lowest bit: (groups, n, ceil(n / 8)) uint8."""
    chunks = np.split(np.arange(mask.grid.n), range(CHUNK, mask.grid.n, CHUNK))
    groups = [
        [np.packbits(mask.allowed(queries, group), axis=1, bitorder="little") for queries in chunks]
        for group in range(mask.groups)
    ]
    return np.stack([np.concatenate(rows) for rows in groups])
