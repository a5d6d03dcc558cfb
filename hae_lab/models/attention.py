"""Multi-head attention of the local tokens that runs a `SparseMask`."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab.errors import require
from hae_lab.masks import SparseMask


class SparseMultiheadAttention(nn.Module):
    """Multi-head attention with the state dict of `nn.MultiheadAttention`: tokens (B, n, C), mask -> (B, n_local, C).

    Only the local tokens ask; all tokens answer. The document computes the regional queries too and throws them away.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(channels % heads == 0, f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, mask: SparseMask) -> Tensor:
        n_local = mask.grid.n_local
        channels = tokens.shape[-1]
        q_weight, kv_weight = self.in_proj_weight.split([channels, 2 * channels])
        q_bias, kv_bias = self.in_proj_bias.split([channels, 2 * channels])
        q = self._split_heads(F.linear(tokens[:, :n_local], q_weight, q_bias))  # (B, heads, n_local, C/heads)
        k, v = F.linear(tokens, kv_weight, kv_bias).chunk(2, dim=-1)
        k, v = self._split_heads(k), self._split_heads(v)  # (B, heads, n, C/heads)
        allowed = None if mask.is_dense else allowed_matrix(mask, self.heads, tokens.device)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dropout={self.dropout}"


def allowed_matrix(mask: SparseMask, heads: int, device: torch.device) -> Tensor:
    """The local rows of the mask, True = may attend: (1 or heads, n_local, n) bool."""
    grid = mask.grid
    require(heads % mask.groups == 0, f"{heads} heads cannot be split evenly over {mask.groups} head groups")
    if device.type == "meta":
        return torch.empty(1, grid.n_local, grid.n, dtype=torch.bool, device=device)
    return _allowed_matrix(mask, heads, device)


@lru_cache(maxsize=16)
def _allowed_matrix(mask: SparseMask, heads: int, device: torch.device) -> Tensor:
    pixels = np.arange(mask.grid.n_local)
    allowed = torch.stack([torch.from_numpy(mask.allowed(pixels, group)) for group in range(mask.groups)])
    if mask.groups > 1:
        allowed = allowed.repeat_interleave(heads // mask.groups, dim=0)
    return allowed.to(device)


def pairs_run(mask: SparseMask, heads: int, kernel: str | None = None) -> int:
    """Query-key scores that the kernel computes for one sample, all heads together, padding included.

    `kernel` None means the rule's default.
    """
    return heads * mask.grid.n_local * mask.grid.n


def pairs_kept(mask: SparseMask, heads: int) -> int:
    """Query-key pairs of the local queries that the mask keeps for one sample, all heads together."""
    kept = sum(int(mask.keys_per_query(group)[: mask.grid.n_local].sum()) for group in range(mask.groups))
    return heads // mask.groups * kept
