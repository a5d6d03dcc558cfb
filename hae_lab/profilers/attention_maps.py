"""What each head of a multi-scale block attends to, for one pixel of one image."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hae_lab.checks import require, require_whole
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models import MSTB
from hae_lab.rules import mask_for


class AttentionMaps(NamedTuple):
    """Attention weights of one pixel: each head's sum to 1 over all tokens."""

    grid: TokenGrid
    pixel: int
    weights: np.ndarray  # (heads, n)

    def on_map(self, patch_size: int = 1) -> np.ndarray:
        """The weights of one scale as pictures: (heads, H / patch_size, W / patch_size)."""
        shape = (-1, self.grid.height // patch_size, self.grid.width // patch_size)
        return self.weights[:, slice(*self.grid.span(patch_size))].reshape(shape)


class BlockAttention:
    """The attention of one multi-scale block for the first image that it was called with: any pixel, under any mask."""

    def __init__(self, block: MSTB, tokens: Tensor, mask: SparseMask) -> None:
        self.block, self.tokens, self.mask = block, tokens[:1].detach(), mask

    @property
    def grid(self) -> TokenGrid:
        return self.mask.grid

    @property
    def heads(self) -> int:
        return self.block.multihead_attn.heads

    def maps(self, pixel: int, mask: SparseMask | None = None) -> AttentionMaps:
        """The weights of one pixel, under the block's own mask or another of the same grid.

        Raises `HAELabError` for a pixel that the grid does not have, and a mask of another grid.
        """
        mask = self.mask if mask is None else mask
        require(mask.grid == self.grid, f"the block's tokens lie on {self.grid}, the mask is one of {mask.grid}")
        pixel = require_whole("pixel", pixel, 0, self.grid.n_local - 1)
        weights = torch.zeros(self.heads, self.grid.n)
        with torch.no_grad():
            seen = self.block.multihead_attn.weights(self.tokens, mask, torch.tensor([pixel]))  # (1, heads, 1, m)
        weights[:, slice(*mask.span)] = seen[0, :, 0].float().cpu()
        return AttentionMaps(self.grid, pixel, weights.numpy())


def block_attention(model: nn.Module, inputs: Mapping[str, Any], path: str) -> BlockAttention:
    """The attention of the multi-scale block at `path`, as the model runs on `inputs` in eval mode.

    Raises `HAELabError` if there is no such block.
    """
    blocks = [name for name, module in model.named_modules() if isinstance(module, MSTB)]
    require(path in blocks, f"no multi-scale block at {path!r}: this model has {', '.join(blocks) or 'none'}")
    block = cast(MSTB, model.get_submodule(path))
    return BlockAttention(block, *_caught_inputs(model, inputs, block)[:2])


def attention_maps(
    model: nn.Module, inputs: Mapping[str, Any], path: str, pixel: int, mask_rule: str | None = None
) -> AttentionMaps:
    """The weights with which one pixel of the first image attends, in the multi-scale block at `path`.

    The model runs on `inputs` as it stands, in eval mode. `mask_rule` says which keys the pixel may see, whatever the
    model ran with: "dense" shows the weights before the mask, None the model's own rule.
    Raises `HAELabError` if there is no such block or no such pixel.
    """
    attention = block_attention(model, inputs, path)
    block, mask = attention.block, attention.mask
    if mask_rule is not None:
        mask = mask_for(mask_rule, mask.grid, block.sparsity, block.mask_seed)
    return attention.maps(pixel, mask)


def _caught_inputs(model: nn.Module, inputs: Mapping[str, Any], block: MSTB) -> tuple[Tensor, SparseMask]:
    """What the block's attention layer was called with; the model is left as it was."""
    caught = []
    hook = block.multihead_attn.register_forward_pre_hook(lambda _, arguments: caught.append(arguments))
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    finally:
        hook.remove()
        model.train(was_training)
    return caught[0]
