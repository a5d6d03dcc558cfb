"""The hybrid block: a CNN branch beside a multi-scale sparse Transformer, with three slots that make the variants.

Source: the HAE design document, sections 1.1, 1.2, 2.1, 2.2, 3.1, 3.2; hae_lab/README.md for what it leaves open.
The document's class names stand at the end; each fixes the slots and nothing else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hae_lab import rules
from hae_lab.checks import require
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.models.layers import TimestepBlock, drawn_as, group_norm, run_block
from hae_lab.models.slots import fill_slot
from hae_lab.presets import VARIANTS


class MSTB(nn.Module):
    """Multi-scale sparse Transformer block: (B, C, H, W) -> (B, C, H, W). Document, sections 1.1, 2.1 and 3.2.

    Slot `regions` makes the tokens of the pixels and one C-wide token of each p x p patch; slot `mlp` is the token MLP,
    `mlp_ratio` its hidden width over C. See `models.slots`. A patch size that does not divide the map is left out.
    """

    slot_layers: dict[str, tuple[str, ...]]
    region_tokens: Callable[[Tensor, Sequence[int]], list[Tensor]]
    token_mlp: Callable[[Tensor], Tensor]

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        dropout: float = 0.1,
        patch_sizes: Sequence[int] = (1, 4, 8),
        *,
        regions: str = "linear",
        mlp: str = "gelu",
        mlp_ratio: float = 4,
        mask_rule: str = "document",
        sparsity: float = 0.9,
        mask_seed: int = 0,
    ) -> None:
        super().__init__()
        self.patch_sizes = tuple(patch_sizes)
        self.regions, self.mlp_name = regions, mlp
        self.mask_rule, self.sparsity, self.mask_seed = mask_rule, sparsity, mask_seed
        regional = tuple(p for p in self.patch_sizes if p > 1)
        self.local_norm = nn.LayerNorm(channels)
        self.regional_norms = nn.ModuleList(nn.LayerNorm(channels) for _ in regional)
        with drawn_as("regions"):
            fill_slot(self, "regions", regions, channels, regional)
        with drawn_as("attention"):
            self.multihead_attn = SparseMultiheadAttention(channels, num_heads, dropout)
        self.norm_out = nn.LayerNorm(channels)
        with drawn_as("MLP"):
            fill_slot(self, "mlp", mlp, channels, mlp_ratio, dropout)
        self.frozen: tuple[SparseMask, tuple[int, ...]] | None = None  # mask and scales of the one map that it takes

    def grid(self, height: int, width: int) -> TokenGrid:
        """Which token is which on a map of this size."""
        return TokenGrid(height, width, self.patch_sizes)

    def tokens(self, x: Tensor, scales: tuple[int, ...] | None = None) -> Tensor:
        """The normalised tokens of all scales, local first: (B, C, H, W) -> (B, n, C). Scales: those of the map."""
        scales = self.grid(*x.shape[2:]).scales if scales is None else scales
        pixels, *patches = self.region_tokens(x, scales)  # (B, HW, C), (B, HW/p², C)
        regional = [p for p in self.patch_sizes if p > 1]
        norms = [self.regional_norms[regional.index(p)] for p in scales]
        return torch.cat(
            [self.local_norm(pixels), *(norm(each) for norm, each in zip(norms, patches, strict=True))], dim=1
        )

    def forward(self, x: Tensor) -> Tensor:
        mask, scales = self.frozen or self._mask(*x.shape[2:])
        # no residual around the attention itself, as published
        attended = self.multihead_attn(self.tokens(x, scales), mask)  # (B, HW, C)
        out = attended + self.token_mlp(self.norm_out(attended))
        return x + out.mT.unflatten(2, x.shape[2:])

    def freeze(self, height: int, width: int) -> None:
        """Take maps of one size from now on, with the plan of their mask among the buffers."""
        self.frozen = mask, _ = self._mask(height, width)
        self.multihead_attn.freeze(mask)

    def _mask(self, height: int, width: int) -> tuple[SparseMask, tuple[int, ...]]:
        mask = rules.mask_for(self.mask_rule, self.grid(height, width), self.sparsity, self.mask_seed)
        return mask, mask.grid.scales

    def create_sparse_mask(self, seq_len: int, sparsity_ratio: float = 0.9) -> Tensor:
        """The document's mask over any `seq_len` tokens, True = blocked: (seq_len, seq_len) bool."""
        grid = TokenGrid(1, seq_len, (1,))
        return torch.from_numpy(rules.mask_for("document", grid, sparsity_ratio, self.mask_seed).blocked())

    def extra_repr(self) -> str:
        slots = f"regions={self.regions}, mlp={self.mlp_name}"
        return f"{slots}, patch_sizes={self.patch_sizes}, mask={self.mask_rule}({self.sparsity})"


def redraw_masks(model: nn.Module, seed: int) -> None:
    """Let every `MSTB` of a model draw its mask from another seed. Raises `HAELabError` if one is frozen."""
    blocks = [module for module in model.modules() if isinstance(module, MSTB)]
    require(all(block.frozen is None for block in blocks), "a frozen model keeps its masks: redraw them before")
    for block in blocks:
        block.mask_seed = seed


class HybridBlock(TimestepBlock):
    """CNN branch beside Transformer branch, joined and added to the input: (B, C, H, W), (B, E) -> (B, C, H, W).

    Slot `fusion` joins them, see `models.slots`; of a block with one branch alone it sees that. Further keywords go to
    the `MSTB`. Document, sections 1.2 and 2.2; it has both branches.
    """

    slot_layers: dict[str, tuple[str, ...]]
    join: Callable[[Tensor, Tensor | None], Tensor]

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float = 0.1,
        use_checkpoint: bool = False,
        *,
        fusion: str = "concat",
        cnn_branch: bool = True,
        transformer_branch: bool = True,
        **mstb_options,
    ) -> None:
        super().__init__()
        self.fusion, self.use_checkpoint = fusion, use_checkpoint
        require(cnn_branch or transformer_branch, "a hybrid block without either branch: keep one of them")
        with drawn_as("timestep"):
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, channels))
        if cnn_branch:
            with drawn_as("CNN branch"):
                self.conv_branch = nn.Sequential(
                    group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
                    group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
                )  # fmt: skip
        if transformer_branch:
            self.transformer_branch = MSTB(channels, dropout=dropout, **mstb_options)
        self.branches = tuple(name for name in ("transformer_branch", "conv_branch") if hasattr(self, name))
        with drawn_as("fusion"):
            fill_slot(self, "fusion", fusion, channels, len(self.branches) == 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return run_block(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = x + self.emb_layers(emb)[:, :, None, None]
        maps = [getattr(self, name)(h) for name in self.branches]  # each (B, C, H, W)
        return x + self.join(maps[0], maps[1] if len(maps) == 2 else None)

    def extra_repr(self) -> str:
        return f"fusion={self.fusion}"


class MultiScaleSparseTransformerBlock(MSTB):
    """HAE's MSTB, under the document's name and signature. Section 1.1."""

    variant = "hae"

    def __init__(
        self, channels: int, num_heads: int = 8, dropout: float = 0.1, patch_sizes: Sequence[int] = (1, 4, 8)
    ) -> None:
        slots = VARIANTS[self.variant]
        super().__init__(
            channels, num_heads, dropout, patch_sizes, regions=slots["regions"], mlp_ratio=slots["mlp_ratio"]
        )


class MultiScaleSparseTransformerBlockLite(MultiScaleSparseTransformerBlock):
    """HAE Lite's MSTB. Section 2.1."""

    variant = "lite"


class MultiScaleSparseTransformerBlockV2(MultiScaleSparseTransformerBlock):
    """HAE V2's MSTB. Section 3.2."""

    variant = "v2"


class HybridCNNTransformerBlock(HybridBlock):
    """HAE's hybrid block, under the document's name and signature. Section 1.2."""

    variant = "hae"

    def __init__(self, channels: int, emb_channels: int, dropout: float = 0.1, use_checkpoint: bool = False) -> None:
        super().__init__(channels, emb_channels, dropout, use_checkpoint, **VARIANTS[self.variant])


class HybridCNNTransformerBlockLite(HybridCNNTransformerBlock):
    """HAE Lite's hybrid block. Section 2.2."""

    variant = "lite"


class HybridCNNTransformerBlockV2(HybridCNNTransformerBlock):
    """HAE V2's hybrid block. Section 3."""

    variant = "v2"
