"""The document's way of doing things, written afresh, as what the benchmarks compare with.

Source: the HAE design document, section "稀疏注意力机制" and section 1.1: a mask built row by row in every forward
pass, and `nn.MultiheadAttention` with its default arguments over all tokens, regional queries included.
"""

import copy

import torch
from torch import Tensor, nn

from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models import MSTB
from hae_lab.models.attention import SparseMultiheadAttention


def document_mask_loop(n: int, sparsity: float = 0.9, seed: int = 0) -> Tensor:
    """The document's mask, built row by row as it does: (n, n) bool, True = blocked."""
    generator = torch.Generator().manual_seed(seed)
    blocked = torch.ones(n, n, dtype=torch.bool)
    keep = max(1, int(n * (1 - sparsity)))
    for row in range(n):
        blocked[row, max(0, row - keep // 2) : min(n, row + keep // 2 + 1)] = False
        if keep > 4:
            columns = torch.randperm(n, generator=generator)[: max(1, keep // 4)]
            blocked[row, columns] = False
    return blocked


def loop_rule(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """A mask rule that keeps what `document_mask_loop` keeps: to compare our kernels on an equal mask."""
    return SparseMask.from_blocked(document_mask_loop(grid.n, sparsity, seed).numpy(), grid)


def multihead_attention(layer: SparseMultiheadAttention) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` that holds the same parameters as our layer (shared, not copied)."""
    channels = layer.out_proj.in_features
    attention = nn.MultiheadAttention(channels, layer.heads, layer.dropout, batch_first=True, device="meta")
    attention.in_proj_weight, attention.in_proj_bias = layer.in_proj_weight, layer.in_proj_bias
    attention.out_proj.weight, attention.out_proj.bias = layer.out_proj.weight, layer.out_proj.bias
    return attention


class DocumentAttention(nn.Module):
    """Our layer's interface, the document's work: tokens (B, n, C), mask -> (B, n_local, C).

    Of `mask` only the grid is used: the mask itself is built anew, row by row, in every pass.
    """

    def __init__(self, layer: SparseMultiheadAttention, sparsity: float, seed: int) -> None:
        super().__init__()
        self.attention = multihead_attention(layer)
        self.sparsity, self.seed = sparsity, seed

    def forward(self, tokens: Tensor, mask: SparseMask) -> Tensor:
        blocked = document_mask_loop(tokens.shape[1], self.sparsity, self.seed).to(tokens.device)
        attended, _ = self.attention(tokens, tokens, tokens, attn_mask=blocked)
        return attended[:, : mask.grid.n_local]


def the_documents_way(model: nn.Module) -> nn.Module:
    """A copy of the model, sharing its weights, whose multi-scale blocks work as the document describes."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, memo=shared)
    for block in model.modules():
        if isinstance(block, MSTB):
            block.multihead_attn = DocumentAttention(block.multihead_attn, block.sparsity, block.mask_seed)
    return model
