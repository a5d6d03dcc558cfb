"""The parts of the U-Net body: norm, timestep embedding, resampling, residual block, self-attention block.

Names, shapes and meanings follow guided-diffusion (Dhariwal & Nichol 2021), so that its state dicts load.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hae_lab.checks import require_name

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "identity": nn.Identity}


_drawn_by: ContextVar[tuple[int | str, ...]] = ContextVar("drawn_by", default=())  # a seed, then names


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, weights are drawn by this seed and by where they stand (see `drawn_as`); the global state is kept."""
    token = _drawn_by.set((seed,))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        _drawn_by.reset(token)


@contextmanager
def drawn_as(*names: int | str) -> Iterator[None]:
    """Within, weights are drawn from a stream of this name, so that layers which two models share start alike.

    Names nest. Outside of `seeded` nothing changes: weights then come from the global state, as torch's do.
    """
    place = _drawn_by.get()
    if not place:
        yield
        return
    token = _drawn_by.set((*place, *names))
    try:
        digest = sha256("/".join(map(str, _drawn_by.get())).encode()).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big"))
        yield
    finally:
        _drawn_by.reset(token)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest divisor of `channels` up to 32 as its number of groups."""
    groups = next(count for count in range(32, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def zero_init(module: nn.Module) -> nn.Module:
    """Set every parameter to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Sinusoidal embedding, cosines then sines: (B,) -> (B, channels), `channels` even."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) / half * steps)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def run_block(function: Callable[..., Tensor], use_checkpoint: bool, *inputs: Tensor | None) -> Tensor:
    """Call `function`, storing only its inputs for the backward pass if `use_checkpoint`."""
    if use_checkpoint and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class TimestepBlock(nn.Module):
    """A block that also takes the timestep embedding: `forward(x, emb)`."""


class Downsample(nn.Module):
    """Halve the map by a strided convolution or, without `use_conv`, by averaging: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int, use_conv: bool = True) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double the map by repeating pixels, then convolve if `use_conv`: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int, use_conv: bool = True) -> None:
        super().__init__()
        if use_conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.use_conv = use_conv

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if self.use_conv else x


RESAMPLERS: dict[str, type[nn.Module]] = {"up": Upsample, "down": Downsample}


class ResBlock(TimestepBlock):
    """Two 3x3 convolutions around the timestep embedding, plus a skip: (B, C, H, W), (B, E) -> (B, C_out, H', W').

    `resample` is "up" or "down" for the blocks that stand in for a resampling layer (`resblock_updown`).
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int | None = None,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        activation: str = "silu",
        resample: str | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        require_name("activation", activation, ACTIVATIONS)
        out_channels = out_channels or channels
        act = ACTIVATIONS[activation]
        # the published code lost only the first activation of a scale-shift block
        last_act = nn.SiLU if use_scale_shift_norm else act
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.resample = RESAMPLERS[resample](channels, use_conv=False) if resample else None
        self.in_layers = nn.Sequential(group_norm(channels), act(), nn.Conv2d(channels, out_channels, 3, padding=1))
        emb_out_channels = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            last_act(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return run_block(self._forward, self.use_checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample is None:
            h = self.in_layers(x)  # (B, C_out, H, W)
        else:
            norm, act, conv = self.in_layers
            h, x = conv(self.resample(act(norm(x)))), self.resample(x)  # (B, C_out, H', W'), (B, C, H', W')
        emb = self.emb_layers(emb)[:, :, None, None]  # (B, C_out or 2 C_out, 1, 1)
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            norm, *rest = self.out_layers
            h = norm(h) * (1 + scale) + shift
        else:
            h, rest = h + emb, self.out_layers
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a map, with the class tokens as extra keys: (B, C, H, W) -> (B, C, H, W).

    `class_tokens` is (B, `encoder_channels`, L) or None.
    """

    def __init__(self, channels: int, num_heads: int, encoder_channels: int, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.use_checkpoint = use_checkpoint
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = nn.Conv1d(encoder_channels, 2 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, class_tokens: Tensor | None = None) -> Tensor:
        return run_block(self._forward, self.use_checkpoint, x, class_tokens)

    def _forward(self, x: Tensor, class_tokens: Tensor | None) -> Tensor:
        pixels = x.flatten(2)  # (B, C, HW)
        # heads are split first, then q, k and v inside each head
        q, k, v = self.qkv(self.norm(pixels)).unflatten(1, (self.num_heads, 3, -1)).unbind(2)  # (B, heads, C/heads, HW)
        if class_tokens is not None:
            class_k, class_v = self.encoder_kv(class_tokens).unflatten(1, (self.num_heads, 2, -1)).unbind(2)
            k, v = torch.cat([class_k, k], dim=-1), torch.cat([class_v, v], dim=-1)  # (B, heads, C/heads, L + HW)
        # contiguous rows, or the fused kernel of the CPU does not take them
        q, k, v = (heads.mT.contiguous() for heads in (q, k, v))  # (B, heads, HW or L + HW, C/heads)
        attended = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)  # (B, C, HW)
        return x + self.proj_out(attended).view_as(x)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
