"""The slots of the hybrid block: ways to make regional tokens, the token MLP, the fusion of the two branches.

A part of a slot is a small module class, known by name in `parts.SLOT_PARTS`, which takes more:

- `regions`: `Part(channels, patch_sizes)` with `forward(x, scales)`, (B, C, H, W) -> a list of tokens: those of the
  pixels (B, HW, C), then those of each patch size p in `scales`, (B, HW/p², C) in raster order;
- `mlp`: `Part(channels, ratio, dropout)`, over the last dimension, (..., C) -> (..., C);
- `fusion`: `Part(channels, both)` with `forward(transformed, convolved)`, two maps (B, C, H, W) -> (B, C, H, W); in a
  block with one branch alone `both` is False, and that branch's map comes first, then None.

For example regional tokens that no weight has to learn:

    class MaxRegions(nn.Module):
        def __init__(self, channels, patch_sizes):
            super().__init__()

        def forward(self, x, scales):
            pixels = x.flatten(2).mT  # (B, HW, C)
            return [pixels, *(F.max_pool2d(x, p).flatten(2).mT for p in scales)]  # (B, HW/p², C)

    SLOT_PARTS["regions"]["max"] = MaxRegions
    model = hae_lab.build("v2", "lesson16", regions="max")

Its parameters are counted on the module. A static method `formula(channels, grid, config) -> Cost`, if it has one,
gives parameters and MACs without building it; else it is built and traced on the meta device, where it must run.
`published_names` says that its layers stand in the block itself, as in published state dicts; such a part has nothing
but layers, and its `forward` is all that is used of it.
"""

import inspect
from collections.abc import Sequence
from math import lcm
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hae_lab.checks import HAELabError, require
from hae_lab.family import HAEConfig
from hae_lab.masks import TokenGrid
from hae_lab.parts import SLOT_PARTS

# where a block keeps the part of each slot
ATTRIBUTES = {"regions": "region_tokens", "mlp": "token_mlp", "fusion": "join"}


class Cost(NamedTuple):
    """Parameters of a layer, and its multiply-accumulates for one image."""

    params: int
    macs: int


def fill_slot(block: nn.Module, slot: str, name: str, channels: int, *options: Any) -> None:
    """Make a part and put it into a block; its layers into the block itself if these have published names.

    `block.slot_layers` says which of the block's modules are in which slot. Errors as in `make_part`.
    """
    part, attribute = make_part(slot, name, channels, *options), ATTRIBUTES[slot]
    layers = dict(part.named_children()) if getattr(part, "published_names", False) else {attribute: part}
    for layer_name, layer in layers.items():
        block.add_module(layer_name, layer)
    if part not in layers.values():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        require(not own, f"{slot} {name!r} has published_names, so only its layers may hold parameters and buffers")
        part._modules = block._modules  # the block owns them: who puts another layer in its place is obeyed
        # its forward, not itself: no second module that hooks and counters would meet
        object.__setattr__(block, attribute, part.forward)
    block.slot_layers = {**getattr(block, "slot_layers", {}), slot: tuple(layers)}


def make_part(slot: str, name: str, channels: int, *options: Any) -> nn.Module:
    """A part of a slot; one that is not the package's is tried on the meta device first.

    Raises `HAELabError` for an unknown name, for a part that takes or gives something else than its slot says, and
    for one that is no module or does not run.
    """
    maker, what = SLOT_PARTS[slot].find(name), f"{slot} {name!r}"
    try:
        inspect.signature(maker).bind(channels, *options)
    except TypeError as error:
        needed = f"made as Part({', '.join(map(repr, (channels, *options)))})"
        raise HAELabError(f"{what} cannot be {needed}: {error}; see hae_lab.models.slots") from None
    part = maker(channels, *options)
    require(isinstance(part, nn.Module), f"{what} gives a {type(part).__name__}: it must be an nn.Module")
    if not SLOT_PARTS[slot].is_own(name):
        patch_sizes = tuple(options[0]) if slot == "regions" else ()
        for side in (1, lcm(*patch_sizes)):  # a map that no patch fits, and one that all fit
            _try(part, what, slot, TokenGrid(side, side, (1, *patch_sizes)), channels, *options)
    return part


def part_options(slot: str, config: HAEConfig) -> tuple[Any, ...]:
    """What a part of a slot is made with, after its channels."""
    return {
        "regions": (tuple(p for p in config.patch_sizes if p > 1),),
        "mlp": (config.mlp_ratio, config.dropout),
        "fusion": (config.cnn_branch and config.transformer_branch,),
    }[slot]


def part_inputs(slot: str, grid: TokenGrid, channels: int, *options: Any) -> tuple[Any, ...]:
    """What a block calls a part with for one image, on the meta device."""
    x = torch.empty(1, channels, grid.height, grid.width, device="meta")
    if slot == "regions":
        return x, grid.scales
    return (x.flatten(2).mT,) if slot == "mlp" else (x, x if options[0] else None)


def _try(part: nn.Module, what: str, slot: str, grid: TokenGrid, channels: int, *options: Any) -> None:
    """Raise `HAELabError` unless a part gives what its slot asks for on a map."""
    inputs = part_inputs(slot, grid, channels, *options)
    wanted = [(1, grid.n_local // p**2, channels) for p in (1, *grid.scales)]
    if slot != "regions":
        wanted = [tuple(inputs[0].shape)]
    state = {name: tensor.to("meta") for name, tensor in (*part.named_parameters(), *part.named_buffers())}
    where = f"{what} on a {grid.height} x {grid.width} map of {channels} channels"
    try:
        with torch.no_grad(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            out = functional_call(part, state, inputs)
    except Exception as error:  # a user's module may raise anything
        raise HAELabError(f"{where} fails: {type(error).__name__}: {error}; see hae_lab.models.slots") from error
    given = out if slot == "regions" and isinstance(out, list | tuple) else [out]
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in given]
    require(shapes == wanted, f"{where} gives {shapes}: its slot needs {wanted}; see hae_lab.models.slots")


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
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Cost:
        regional = [p for p in config.patch_sizes if p > 1]
        params = sum(channels * p * p * channels + channels for p in regional)
        return Cost(params, len(grid.scales) * grid.n_local * channels**2)


class PooledRegions(nn.Module):
    """One 1x1 convolution that all pixels pass, local tokens too, then the mean over each patch. Document, 2.1, 3.2."""

    published_names: ClassVar[bool] = True
    patch_operation: ClassVar[str] = "mean"

    def __init__(self, channels: int, patch_sizes: Sequence[int]) -> None:
        super().__init__()
        self.shared_patch_embed = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, scales: Sequence[int]) -> list[Tensor]:
        h = self.shared_patch_embed(x)  # (B, C, H, W)
        return [h.flatten(2).mT, *(F.avg_pool2d(h, p).flatten(2).mT for p in scales)]  # (B, HW, C), (B, HW/p², C)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Cost:
        return Cost(channels**2 + channels, grid.n_local * channels**2)


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


class GeluMLP(nn.Module):
    """The document's token MLP, `ratio` times as wide inside; below 1 it is a `BottleneckMLP`. Sections 1.1 and 3.1."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, ratio: float, dropout: float) -> None:
        super().__init__()
        narrow = ratio < 1
        self.mlp = (
            BottleneckMLP(channels, ratio, dropout) if narrow else token_mlp(channels, int(channels * ratio), dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Cost:
        hidden = max(1, int(channels * config.mlp_ratio))
        return Cost(2 * channels * hidden + hidden + channels, 2 * grid.n_local * channels * hidden)


# fusion


class ConcatFusion(nn.Module):
    """Both branches side by side, then a 1x1 convolution 2C -> C. Document, section 1.2."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, both: bool = True) -> None:
        super().__init__()
        self.fusion_conv = nn.Conv2d(2 * channels if both else channels, channels, 1)

    def forward(self, transformed: Tensor, convolved: Tensor | None = None) -> Tensor:
        joined = transformed if convolved is None else torch.cat([convolved, transformed], dim=1)  # (B, 2C, H, W)
        return self.fusion_conv(joined)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Cost:
        joined = 2 * channels if config.cnn_branch and config.transformer_branch else channels
        return Cost(joined * channels + channels, grid.n_local * joined * channels)


class MeanFusion(nn.Module):
    """The plain mean of both branches, then a 1x1 convolution C -> C. Document, section 2.2."""

    published_names: ClassVar[bool] = True

    def __init__(self, channels: int, both: bool = True) -> None:
        super().__init__()
        self.fusion_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, transformed: Tensor, convolved: Tensor | None = None) -> Tensor:
        return self.fusion_conv(transformed if convolved is None else (convolved + transformed) / 2)

    @staticmethod
    def formula(channels: int, grid: TokenGrid, config: HAEConfig) -> Cost:
        return Cost(channels**2 + channels, grid.n_local * channels**2)
