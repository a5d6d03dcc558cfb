"""Multi-head attention of the local tokens that runs a `SparseMask` exactly, by the kernel that suits it."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab.checks import HAELabError, require, require_name
from hae_lab.masks import SparseMask
from hae_lab.models.columns import column_pairs, column_plans, columns
from hae_lab.models.kernels import (
    allowed_matrix,
    attention_weights,
    block_pairs,
    block_plans,
    blocks,
    masked,
    matrix_pairs,
    matrix_plan,
    merge_heads,
    reference,
    slice_pairs,
    slice_plan,
    slices,
    split_heads,
)
from hae_lab.models.native import native, native_pairs, native_plans, runs_natively
from hae_lab.models.plans import PLANS, MakePlan, copy_with, plan_beside, plan_of

__all__ = [
    "KERNELS",
    "Kernel",
    "SparseMultiheadAttention",
    "allowed_matrix",
    "attention_weights",
    "kernel_for",
    "kernel_name",
    "merge_heads",
    "pairs_kept",
    "pairs_run",
    "split_heads",
]


class Kernel(NamedTuple):
    attend: Callable[[Tensor, Tensor, nn.Module, int, float], Tensor]  # queries, keys and values, plan, heads, dropout
    plan: MakePlan
    pairs: Callable[[SparseMask, int], int]  # scores computed for one sample
    cost: float = 1.0  # time that a score takes beside one of `masked`, measured on maps of 64 to 1024 pixels
    natively: bool = False  # whether `native` takes its place where it is asked for

    def run(self, q: Tensor, kv: Tensor, mask: SparseMask, heads: int, dropout: float = 0.0) -> Tensor:
        """(B, n_local, C), (B, m, 2C) -> (B, n_local, C), by a plan that is made once."""
        return self.attend(q, kv, plan_beside(q, self.plan, mask, heads), heads, dropout)


KERNELS = {
    "reference": Kernel(reference, matrix_plan, matrix_pairs),
    "masked": Kernel(masked, matrix_plan, matrix_pairs),
    "blocks": Kernel(blocks, block_plans, block_pairs, cost=1.2, natively=True),
    "columns": Kernel(columns, column_plans, column_pairs, cost=4.0, natively=True),
    "slices": Kernel(slices, slice_plan, slice_pairs),
    "native": Kernel(native, native_plans, native_pairs),
}


def kernel_for(mask: SparseMask, heads: int, name: str | None = None) -> Kernel:
    """The named kernel, or the one that suits the mask. Raises `HAELabError` for an unknown name or unfit heads."""
    return KERNELS[kernel_name(mask, heads, name)]


def kernel_name(mask: SparseMask, heads: int, name: str | None = None) -> str:
    """The name of `kernel_for`; errors are the same."""
    require_name("attention kernel", name or mask.kernel, KERNELS)
    require(heads % mask.groups == 0, f"{heads} heads cannot be split evenly over {mask.groups} head groups")
    return name or _cheaper(mask, heads)


@lru_cache(maxsize=PLANS)
def _cheaper(mask: SparseMask, heads: int) -> str:
    """The kernel of the mask's rule, or `masked` where so few pairs are hidden that it costs less."""
    costs = {name: KERNELS[name].cost * KERNELS[name].pairs(mask, heads) for name in (mask.kernel, "masked")}
    return min(costs, key=costs.__getitem__)


def pairs_run(mask: SparseMask, heads: int, kernel: str | None = None) -> int:
    """Query-key scores that a kernel computes for one sample, all heads together, padding included.

    `kernel` None means the one that suits the mask.
    """
    return kernel_for(mask, heads, kernel).pairs(mask, heads)


def pairs_kept(mask: SparseMask, heads: int) -> int:
    """Query-key pairs of the local queries that the mask keeps for one sample, all heads together."""
    kept = sum(int(mask.keys_per_query(group)[: mask.grid.n_local].sum()) for group in range(mask.groups))
    return heads // mask.groups * kept


class Frozen(NamedTuple):
    """What `forward` reads of a mask, read beforehand."""

    mask: SparseMask
    n_local: int
    span: tuple[int, int]
    kernel: Kernel


class SparseMultiheadAttention(nn.Module):
    """Multi-head attention with the state dict of `nn.MultiheadAttention`: tokens (B, n, C), mask -> (B, n_local, C).

    Only the local tokens ask, and only the tokens in `mask.span` answer. The document computes the regional queries too
    and throws them away. `kernel` is a name in `KERNELS`, or None for the one that suits the mask, which `native` may
    replace where the environment asks for it (see `hae_lab.models.native`). `dropout` falls on the attention weights in
    training, as in the document; on a CPU that is slow (the fused kernel does not take it), so prefer 0 where speed
    matters.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0, kernel: str | None = None) -> None:
        super().__init__()
        fits = heads > 0 and channels % heads == 0
        require(fits, f"{heads} heads do not divide {channels} channels")
        self.heads = heads
        self.dropout = dropout
        self.kernel = kernel
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        self.frozen: Frozen | None = None
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, mask: SparseMask) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        frozen = self.frozen
        if frozen is not None and mask is frozen.mask:
            q, kv = self._project(tokens, frozen.n_local, frozen.span)
            return self.out_proj(frozen.kernel.attend(q, kv, self.plan, self.heads, dropout))
        self._check(tokens, mask)
        kernel = kernel_for(mask, self.heads, self.kernel)
        q, kv = self._project(tokens, mask.grid.n_local, mask.span)
        if self.kernel is None and kernel.natively and runs_natively(q, self.heads, dropout):
            kernel = KERNELS["native"]
        return self.out_proj(kernel.run(q, kv, mask, self.heads, dropout))

    def freeze(self, mask: SparseMask) -> None:
        """Keep the plan of one mask as buffers of this layer, outside its state dict; the kernel is chosen for good."""
        kernel = kernel_for(mask, self.heads, self.kernel)
        # the layer's own: buffers move with it, the common plan stays
        self.plan = copy_with(plan_of(kernel.plan, mask, self.heads, self.in_proj_weight.device), lambda tensor: tensor)
        self.frozen = Frozen(mask, mask.grid.n_local, mask.span, kernel)

    def weights(self, tokens: Tensor, mask: SparseMask, pixels: Tensor) -> Tensor:
        """How much each head attends to each token in `mask.span`, for some pixels: (B, heads, len(pixels), m)."""
        self._check(tokens, mask)
        q, kv = self._project(tokens, mask.grid.n_local, mask.span)
        allowed = plan_beside(tokens, matrix_plan, mask, self.heads).allowed[:, pixels]
        return attention_weights(*(split_heads(x, self.heads) for x in (q[:, pixels], kv.chunk(2, dim=-1)[0])), allowed)

    def _check(self, tokens: Tensor, mask: SparseMask) -> None:
        """Raise `HAELabError` for tokens that are not those of the mask: more of them would attend in silence."""
        if not isinstance(mask, SparseMask):
            raise HAELabError(f"attention takes a SparseMask, got {type(mask).__name__}: see hae_lab.rules.mask_for")
        if tokens.dim() != 3 or tokens.shape[1] != mask.grid.n or tokens.shape[2] != self.in_proj_weight.shape[1]:
            right = f"(B, {mask.grid.n}, {self.in_proj_weight.shape[1]})"
            raise HAELabError(f"tokens are {right} for a mask of {mask.grid}, got {tuple(tokens.shape)}")

    def _project(self, tokens: Tensor, n_local: int, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, n, C) -> queries (B, n_local, C), keys and values (B, m, 2C)."""
        channels = tokens.shape[-1]
        q_weight, kv_weight = self.in_proj_weight.split([channels, 2 * channels])
        q_bias, kv_bias = self.in_proj_bias.split([channels, 2 * channels])
        q = F.linear(tokens[:, :n_local], q_weight, q_bias)
        return q, F.linear(tokens[:, span[0] : span[1]], kv_weight, kv_bias)

    def extra_repr(self) -> str:
        kernel = f", kernel={self.kernel}" if self.kernel else ""
        frozen = ", frozen" if self.frozen else ""
        return f"heads={self.heads}, dropout={self.dropout}{kernel}{frozen}"
