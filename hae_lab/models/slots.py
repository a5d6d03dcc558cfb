"""The slots of the hybrid block: ways to make regional tokens, the token MLP, the fusion of the two branches.

A part of a slot is a small module class, known by name in `parts.SLOT_PARTS`, which takes more:

- `regions`: `Part(channels, patch_sizes)` with `forward(x, scales)`, (B, C, H, W) -> a list of tokens: those of the
  pixels (B, HW, C), then those of each patch size p in `scales`, (B, HW/p², C) in raster order;
- `mlp`: `Part(channels, ratio, dropout)`, over the last dimension, (..., C) -> (..., C);
- `fusion`: `Part(channels, cnn_branch)` with `forward(transformed, convolved)`, two maps (B, C, H, W), the second None
  without a CNN branch, -> (B, C, H, W).

Its parameters are counted on the module. `formula`, if it has one, gives parameters and MACs without building it:
`params` and `macs` for one image, from the width, the number of pixels and the config; else it is built and traced on
the meta device. `published_names` says that its layers stand in the block itself, as in published state dicts.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab.family import HAEConfig
from hae_lab.masks import TokenGrid
from hae_lab.parts import SLOT_PARTS


class Formula(NamedTuple):
    """Parameters of a part, and its multiply-accumulates for one image."""

    params: int
    macs: int


def fill_slot(block: nn.Module, slot: str, part: nn.Module) -> nn.Module:
    """Put a part into a block under the slot's name; its layers into the block itself if these have published names."""
    if not getattr(part, "published_names", False):
        block.add_module(slot, part)
        return part
    for name, layer in part.named_children():
        block.add_module(name, layer)
    object.__setattr__(block, slot, part)  # known, but no second owner of the layers
    return part


# regions


class LinearRegions(nn.Module):
    """A Linear of its own for each patch size, over the flattened patch. Document, section 1.1."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, patch_sizes: Sequence[int]) -> None:
        super().__init__()
        self.patch_sizes = tuple(patch_sizes)
        self.patch_projections = nn.ModuleList(nn.Linear(channels * p * p, channels) for p in patch_sizes)

    def forward(self, x: Tensor, scales: Sequence[int]) -> list[Tensor]:
        tokens = [x.flatten(2).mT]  # (B, HW, C)
        for p in scales:
            patches = F.unfold(x, p, stride=p).mT  # (B, HW/p², C p²), channel-major
            tokens.append(self.patch_projections[self.patch_sizes.index(p)](patches))  # (B, HW/p², C)
        return tokens

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Formula:
        regional = [p for p in config.patch_sizes if p > 1]
        params = sum(channels * p * p * channels + channels for p in regional)
        return Formula(params, len(grid.scales) * grid.n_local * channels**2)


class PooledRegions(nn.Module):
    """One 1x1 convolution that all pixels pass, local tokens too, then the mean over each patch. Document, 2.1, 3.2."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, patch_sizes: Sequence[int]) -> None:
        super().__init__()
        self.shared_patch_embed = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, scales: Sequence[int]) -> list[Tensor]:
        h = self.shared_patch_embed(x)  # (B, C, H, W)
        return [h.flatten(2).mT, *(F.avg_pool2d(h, p).flatten(2).mT for p in scales)]  # (B, HW, C), (B, HW/p², C)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Formula:
        return Formula(channels**2 + channels, grid.n_local * channels**2)


# the token MLP


def token_mlp(channels: int, hidden: int, dropout: float) -> nn.Sequential:
    """Linear, GELU, dropout, Linear, dropout over the last dimension: (..., C) -> (..., C)."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, channels), nn.Dropout(dropout)
    )


class BottleneckMLP(nn.Module):
    """V2's token MLP, narrower inside than outside: (..., C) -> (..., C). Document, section 3.1."""

    def __init__(self, channels: int, bottleneck_ratio: float = 0.25, dropout: float = 0.1) -> None:
        super().__init__()
        self.mlp = token_mlp(channels, max(1, int(channels * bottleneck_ratio)), dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def gelu_mlp(channels: int, ratio: float, dropout: float) -> nn.Module:
    """The document's token MLP, `ratio` times as wide inside; below 1 it is a `BottleneckMLP`."""
    return BottleneckMLP(channels, ratio, dropout) if ratio < 1 else token_mlp(channels, int(channels * ratio), dropout)


def _gelu_formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Formula:
    hidden = max(1, int(channels * config.mlp_ratio))
    return Formula(2 * channels * hidden + hidden + channels, 2 * grid.n_local * channels * hidden)


gelu_mlp.formula = _gelu_formula


# fusion


class ConcatFusion(nn.Module):
    """Both branches side by side, then a 1x1 convolution 2C -> C. Document, section 1.2."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, cnn_branch: bool = True) -> None:
        super().__init__()
        self.fusion_conv = nn.Conv2d(2 * channels if cnn_branch else channels, channels, 1)

    def forward(self, transformed: Tensor, convolved: Tensor | None = None) -> Tensor:
        joined = transformed if convolved is None else torch.cat([convolved, transformed], dim=1)  # (B, 2C, H, W)
        return self.fusion_conv(joined)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Formula:
        joined = 2 * channels if config.cnn_branch else channels
        return Formula(joined * channels + channels, grid.n_local * joined * channels)


class MeanFusion(nn.Module):
    """The plain mean of both branches, then a 1x1 convolution C -> C. Document, section 2.2."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, cnn_branch: bool = True) -> None:
        super().__init__()
        self.fusion_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, transformed: Tensor, convolved: Tensor | None = None) -> Tensor:
        return self.fusion_conv(transformed if convolved is None else (convolved + transformed) / 2)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Formula:
        return Formula(channels**2 + channels, grid.n_local * channels**2)


def slot_part(slot: str, name: str) -> type[nn.Module]:
    """The class (or function) that fills a slot. Raises `HAELabError` for an unknown name."""
    return SLOT_PARTS[slot].find(name)
