"""The diffusion U-Net of the HAE family, built from one config.

Source: guided-diffusion's U-Net (Dhariwal & Nichol 2021) for the body, the HAE design document for where hybrid blocks
stand. Parameter names and shapes are those of the published code.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hae_lab.checks import require, require_name
from hae_lab.family import FIELDS, HAEConfig
from hae_lab.models.hybrid import HybridBlock
from hae_lab.models.layers import (
    ACTIVATIONS,
    RESAMPLERS,
    AttentionBlock,
    ResBlock,
    TimestepBlock,
    drawn_as,
    group_norm,
    timestep_embedding,
    zero_init,
)
from hae_lab.presets import VARIANTS


class ConditionedSequential(nn.Sequential):
    """Layers in a row; each gets the timestep embedding or the class tokens if it takes them."""

    def forward(self, x: Tensor, emb: Tensor, class_tokens: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            elif isinstance(layer, AttentionBlock):
                x = layer(x, class_tokens)
            else:
                x = layer(x)
        return x


class HAEUNet(nn.Module):
    """Predicts what the diffusion process added to an image.

    Shapes: x (B, C_in, H, W) float, timesteps (B,), y (B,) integer or None -> (B, C_out, H, W), with H = W =
    `config.image_size`. y = -1 means "no label" for that sample; None means it for all.
    Raises `HAELabError` for inputs that do not fit the config.
    """

    def __init__(self, config: HAEConfig) -> None:
        super().__init__()
        self.config = config
        self.checks_inputs = True
        width, emb_width = config.model_channels, config.time_embed_dim
        with drawn_as("time_embed"):
            self.time_embed = _two_layers(width, emb_width)
        if config.num_classes is not None:
            with drawn_as("labels"):
                self.label_emb = nn.Embedding(config.num_classes, width)
                self.class_emb = _two_layers(width, emb_width)
        skips = self._build_encoder(config)
        self._build_middle(config)
        self._build_decoder(config, skips)
        finest = config.channels[0]
        self.out = nn.Sequential(
            group_norm(finest),
            ACTIVATIONS[config.activation](),
            zero_init(nn.Conv2d(finest, config.out_channels, 3, padding=1)),
        )

    def _build_encoder(self, config: HAEConfig) -> list[int]:
        """Fill `input_blocks`; return the width of each of its outputs."""
        channels = config.channels[0]
        with drawn_as("stem"):
            stem = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([ConditionedSequential(stem)])
        skips = [channels]
        for level, level_channels in enumerate(config.channels):
            for index in range(config.num_res_blocks):
                with drawn_as("encoder", level, index):
                    layers = [_res_block(config, channels, level_channels)]
                    channels = level_channels
                    if _has_attention(config, level):
                        layers.append(_attention(config, channels, hybrid=config.placement == "everywhere"))
                self.input_blocks.append(ConditionedSequential(*layers))
                skips.append(channels)
            if level < len(config.channels) - 1:
                with drawn_as("encoder", level):
                    down = _resample(config, channels, "down")
                self.input_blocks.append(ConditionedSequential(down))
                skips.append(channels)
        return skips

    def _build_middle(self, config: HAEConfig) -> None:
        channels = config.channels[-1]
        with drawn_as("middle", "before"):
            layers = [_res_block(config, channels, channels)]
        if config.middle_attention:
            with drawn_as("middle"):
                layers.append(_attention(config, channels, hybrid=config.placement == "everywhere"))
        with drawn_as("middle", "after"):
            layers.append(_res_block(config, channels, channels))
        self.middle_block = ConditionedSequential(*layers)

    def _build_decoder(self, config: HAEConfig, skips: list[int]) -> None:
        channels = config.channels[-1]
        self.output_blocks = nn.ModuleList()
        for level, level_channels in reversed(list(enumerate(config.channels))):
            for index in range(config.num_res_blocks + 1):
                with drawn_as("decoder", level, index):
                    layers = [_res_block(config, channels + skips.pop(), level_channels)]
                    channels = level_channels
                    if _has_attention(config, level):
                        hybrid = config.placement in ("attention", "everywhere")
                        layers.append(_attention(config, channels, hybrid))
                    if level > 0 and index == config.num_res_blocks:
                        if config.placement == "upsample":
                            layers.append(_hybrid_block(config, channels))
                        layers.append(_resample(config, channels, "up"))
                self.output_blocks.append(ConditionedSequential(*layers))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        if self.checks_inputs:
            self._check_inputs(x, timesteps, y)
        emb = self.time_embed(timestep_embedding(timesteps, self.config.model_channels).to(x.dtype))  # (B, E)
        class_tokens = None
        if self.config.num_classes is not None:
            label = self._embed_labels(y, emb)  # (B, E)
            emb = emb + label
            class_tokens = label[:, :, None] * label[:, None, :]  # (B, E, E): E tokens of width E
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, class_tokens)
            skips.append(x)
        x = self.middle_block(x, emb, class_tokens)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, class_tokens)
        return self.out(x)

    def _embed_labels(self, y: Tensor | None, emb: Tensor) -> Tensor:
        if y is None:
            return torch.zeros_like(emb)
        label = self.class_emb(self.label_emb(y.clamp(min=0)))
        return torch.where((y >= 0)[:, None], label, 0.0)

    def _check_inputs(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> None:
        config = self.config
        shape = (config.in_channels, config.image_size, config.image_size)
        for name, value in (("x", x), ("timesteps", timesteps), ("y", y)):
            is_tensor = isinstance(value, Tensor) or (name == "y" and value is None)
            require(is_tensor, f"{name} is a {type(value).__name__}: it must be a tensor")
        require(
            x.dim() == 4 and tuple(x.shape[1:]) == shape,
            f"x has shape {tuple(x.shape)}: this model takes (batch, {', '.join(map(str, shape))}); for another size "
            "or number of channels build a model with other image_size or in_channels",
        )
        require(x.is_floating_point(), f"x is {x.dtype}: it must be floating point, usually scaled to [-1, 1]")
        dtype = self.out[-1].weight.dtype
        fits = x.dtype == dtype or torch.is_autocast_enabled(x.device.type)
        require(fits, f"x is {x.dtype}, the model's weights are {dtype}: convert one, or run under torch.autocast")
        batch = len(x)
        require(batch > 0, f"x has shape {tuple(x.shape)}: at least one image is needed")
        is_real = not timesteps.is_complex() and timesteps.dtype != torch.bool
        require(
            tuple(timesteps.shape) == (batch,) and is_real,
            f"timesteps is {timesteps.dtype} of shape {tuple(timesteps.shape)}: one number a sample is needed, "
            f"shape ({batch},)",
        )
        if y is None:
            return
        require(config.num_classes is not None, "y was given to an unconditional model: build it with num_classes")
        is_labels = tuple(y.shape) == (batch,) and y.dtype in (torch.int64, torch.int32)
        require(is_labels, f"y is {y.dtype} of shape {tuple(y.shape)}: whole numbers of shape ({batch},) are needed")
        if _is_readable(y):
            out_of_range = y[(y < -1) | (y >= config.num_classes)].tolist()
            require(not out_of_range, f"labels {out_of_range} are out of range: -1 (none) to {config.num_classes - 1}")


def _is_readable(tensor: Tensor) -> bool:
    """Whether its numbers can be read: not on the meta device, and not while something traces."""
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not (traced or tensor.is_meta or hasattr(tensor, "fake_mode"))


def _two_layers(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, out_channels), nn.SiLU(), nn.Linear(out_channels, out_channels))


def _has_attention(config: HAEConfig, level: int) -> bool:
    return config.rates[level] in config.attention_resolutions


def _res_block(config: HAEConfig, channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
    with drawn_as("residual block"):
        return ResBlock(
            channels,
            config.time_embed_dim,
            out_channels,
            dropout=config.dropout,
            use_scale_shift_norm=config.use_scale_shift_norm,
            activation=config.activation,
            resample=resample,
            use_checkpoint=config.use_checkpoint,
        )


def _resample(config: HAEConfig, channels: int, direction: str) -> nn.Module:
    with drawn_as(direction):
        if config.resblock_updown:
            return _res_block(config, channels, channels, direction)
        return RESAMPLERS[direction](channels, config.conv_resample)


def _attention(config: HAEConfig, channels: int, hybrid: bool) -> nn.Module:
    if hybrid:
        return _hybrid_block(config, channels)
    with drawn_as("attention block"):
        return AttentionBlock(channels, config.num_heads, config.time_embed_dim, config.use_checkpoint)


def _hybrid_block(config: HAEConfig, channels: int) -> HybridBlock:
    with drawn_as("hybrid block"):
        return HybridBlock(
            channels,
            config.time_embed_dim,
            config.dropout,
            config.use_checkpoint,
            fusion=config.fusion,
            cnn_branch=config.cnn_branch,
            transformer_branch=config.transformer_branch,
            num_heads=config.mstb_heads,
            patch_sizes=config.patch_sizes,
            regions=config.regions,
            mlp=config.mlp,
            mlp_ratio=config.mlp_ratio,
            mask_rule=config.mask_rule,
            sparsity=config.sparsity,
            mask_seed=config.mask_seed,
        )


# guided-diffusion's keywords that have one meaning here, with the value that they must have
FIXED_KEYWORDS = {
    "dims": 2,
    "use_fp16": False,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_new_attention_order": False,
}


class HAEUNetModel(HAEUNet):
    """HAE under the document's name, with guided-diffusion's signature; further fields of `HAEConfig` work too.

    Raises `HAELabError` for a guided-diffusion keyword whose value this family does not have.
    """

    variant = "hae"

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: tuple[int, ...],
        **options: Any,
    ) -> None:
        for name, value in FIXED_KEYWORDS.items():
            given = options.pop(name, value)
            require(given == value, f"{name}={given!r} is not part of the HAE family: leave it out, or pass {value!r}")
        slots = VARIANTS[self.variant]
        fixed = [name for name in options if name in slots]
        require(not fixed, f"{type(self).__name__} fixes {', '.join(fixed)}: use hae_lab.build to change a slot")
        for name in options:
            require_name("field", name, FIELDS)
        config = HAEConfig(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            **slots,
            **options,
        )
        super().__init__(config)


class HAEUNetModelLite(HAEUNetModel):
    """HAE Lite under the document's name. Section 2."""

    variant = "lite"


class HAEUNetModelV2(HAEUNetModel):
    """HAE V2 under the document's name. Section 3."""

    variant = "v2"
