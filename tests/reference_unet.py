"""The family's forward pass a second time: plain formulas over the names of a state dict, slow and without our modules.

Patches and heads are cut out by loops, norms and softmaxes are written out. Only the mask is taken from `hae_lab`.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hae_lab.family import HAEConfig
from hae_lab.masks import TokenGrid
from hae_lab.rules import mask_for

State = Mapping[str, Tensor]


def timestep_angles(timesteps: Tensor, channels: int) -> Tensor:
    half = channels // 2
    freq = torch.tensor([10000 ** (-i / half) for i in range(half)], dtype=torch.float64)
    angles = timesteps.double()[:, None] * freq
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def two_layers(s: State, name: str, x: Tensor) -> Tensor:
    return linear(s, f"{name}.2", F.silu(linear(s, f"{name}.0", x)))


def conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return F.conv2d(x, weight, s[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def group_norm(s: State, name: str, x: Tensor) -> Tensor:
    groups = max(count for count in range(1, 33) if x.shape[1] % count == 0)
    split = x.reshape(len(x), groups, -1)
    split = (split - split.mean(2, keepdim=True)) / (split.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    return split.view_as(x) * s[f"{name}.weight"].view(per_channel) + s[f"{name}.bias"].view(per_channel)


def layer_norm(s: State, name: str, x: Tensor) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def halve(x: Tensor) -> Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def res_block(s: State, name: str, x: Tensor, emb: Tensor, config: HAEConfig, resize=lambda x: x) -> Tensor:
    act = F.silu if config.activation == "silu" else lambda x: x
    h = conv(s, f"{name}.in_layers.2", resize(act(group_norm(s, f"{name}.in_layers.0", x))))
    e = linear(s, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    if config.use_scale_shift_norm:
        scale, shift = e[:, : h.shape[1]], e[:, h.shape[1] :]
        h = F.silu(group_norm(s, f"{name}.out_layers.0", h) * (1 + scale) + shift)
    else:
        h = act(group_norm(s, f"{name}.out_layers.0", h + e))
    skip = resize(x)
    if f"{name}.skip_connection.weight" in s:
        skip = conv(s, f"{name}.skip_connection", skip)
    return skip + conv(s, f"{name}.out_layers.3", h)


def attend(q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None = None) -> Tensor:
    """One head of one sample: (queries, d), (keys, d), (keys, d) -> (queries, d)."""
    scores = q @ k.T / q.shape[1] ** 0.5
    if blocked is not None:
        scores = scores.masked_fill(blocked, -torch.inf)
    weights = (scores - scores.max(1, keepdim=True).values).exp()
    return weights / weights.sum(1, keepdim=True) @ v


def attention_block(s: State, name: str, x: Tensor, class_tokens: Tensor | None, heads: int) -> Tensor:
    d = x.shape[1] // heads
    pixels = group_norm(s, f"{name}.norm", x.flatten(2))
    qkv = linear_1d(s, f"{name}.qkv", pixels)  # (B, HW, 3C): head by head, q, k and v inside each
    extra = None if class_tokens is None else linear_1d(s, f"{name}.encoder_kv", class_tokens)
    out = torch.empty_like(qkv[..., : x.shape[1]])
    for b in range(len(x)):
        for head in range(heads):
            q, k, v = (qkv[b, :, (3 * head + i) * d : (3 * head + i + 1) * d] for i in range(3))
            if extra is not None:
                extra_k, extra_v = (extra[b, :, (2 * head + i) * d : (2 * head + i + 1) * d] for i in range(2))
                k, v = torch.cat([extra_k, k]), torch.cat([extra_v, v])
            out[b, :, head * d : (head + 1) * d] = attend(q, k, v)
    return x + linear_1d(s, f"{name}.proj_out", out.mT).mT.reshape(x.shape)


def linear_1d(s: State, name: str, x: Tensor) -> Tensor:
    """A 1x1 convolution over a row of tokens, tokens last to channels last: (B, C, L) -> (B, L, C_out)."""
    return x.mT @ s[f"{name}.weight"][:, :, 0].T + s[f"{name}.bias"]


def mstb(s: State, name: str, x: Tensor, config: HAEConfig) -> Tensor:
    height, width = x.shape[2:]
    pooled = config.regions == "pooled"
    h = conv(s, f"{name}.shared_patch_embed", x) if pooled else x
    tokens = [layer_norm(s, f"{name}.local_norm", h.flatten(2).mT)]
    for i, p in enumerate(config.patch_sizes[1:]):
        if height % p or width % p:
            continue
        patches = [h[:, :, r : r + p, c : c + p].flatten(2) for r in range(0, height, p) for c in range(0, width, p)]
        if pooled:
            regional = torch.stack([patch.mean(2) for patch in patches], dim=1)
        else:
            flat = torch.stack([patch.flatten(1) for patch in patches], dim=1)  # channel, row, column
            regional = linear(s, f"{name}.patch_projections.{i}", flat)
        tokens.append(layer_norm(s, f"{name}.regional_norms.{i}", regional))
    a = sparse_attention(s, f"{name}.multihead_attn", torch.cat(tokens, dim=1), height, width, config)
    mlp = f"{name}.mlp.mlp" if config.mlp_ratio < 1 else f"{name}.mlp"
    hidden = F.gelu(linear(s, f"{mlp}.0", layer_norm(s, f"{name}.norm_out", a)))
    return x + (a + linear(s, f"{mlp}.3", hidden)).mT.reshape(x.shape)


def sparse_attention(s: State, name: str, tokens: Tensor, height: int, width: int, config: HAEConfig) -> Tensor:
    """Every token asks, as in the document; the local answers are kept."""
    channels = tokens.shape[2]
    d = channels // config.mstb_heads
    mask = mask_for(config.mask_rule, TokenGrid(height, width, config.patch_sizes), config.sparsity, config.mask_seed)
    blocked = torch.from_numpy(mask.blocked())
    qkv = tokens @ s[f"{name}.in_proj_weight"].T + s[f"{name}.in_proj_bias"]
    out = torch.empty_like(tokens)
    for b in range(len(tokens)):
        for start in range(0, channels, d):
            q, k, v = (qkv[b, :, i * channels + start : i * channels + start + d] for i in range(3))
            out[b, :, start : start + d] = attend(q, k, v, blocked)
    return linear(s, f"{name}.out_proj", out)[:, : height * width]


def hybrid_block(s: State, name: str, x: Tensor, emb: Tensor, config: HAEConfig) -> Tensor:
    h = x + linear(s, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
    branches = []
    if config.cnn_branch:
        cnn = h
        for i in (0, 3):
            cnn = conv(s, f"{name}.conv_branch.{i + 2}", F.silu(group_norm(s, f"{name}.conv_branch.{i}", cnn)))
        branches.append(cnn)
    if config.transformer_branch:
        branches.append(mstb(s, f"{name}.transformer_branch", h, config))
    joined = torch.cat(branches, dim=1) if config.fusion == "concat" else sum(branches) / len(branches)
    return x + conv(s, f"{name}.fusion_conv", joined)


def unet(s: State, config: HAEConfig, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
    """What a model of this config with these weights should answer."""
    emb = two_layers(s, "time_embed", timestep_angles(timesteps, config.model_channels).to(x.dtype))
    class_tokens = None
    if config.num_classes is not None:
        c = torch.zeros_like(emb) if y is None else two_layers(s, "class_emb", s["label_emb.weight"][y])
        emb, class_tokens = emb + c, torch.einsum("bi,bj->bij", c, c)
    levels = range(len(config.channel_mult))
    attended = [2**level in config.attention_resolutions for level in levels]

    def attention(name: str, h: Tensor, hybrid: bool) -> Tensor:
        if hybrid:
            return hybrid_block(s, name, h, emb, config)
        return attention_block(s, name, h, class_tokens, config.num_heads)

    def resample(name: str, h: Tensor, resize) -> Tensor:
        if config.resblock_updown:
            return res_block(s, name, h, emb, config, resize)
        if not config.conv_resample:
            return resize(h)
        return conv(s, f"{name}.op", h, stride=2) if resize is halve else conv(s, f"{name}.conv", resize(h))

    everywhere = config.placement == "everywhere"
    skips = [conv(s, "input_blocks.0.0", x)]
    for level in levels:
        for _ in range(config.num_res_blocks):
            name = f"input_blocks.{len(skips)}"
            h = res_block(s, f"{name}.0", skips[-1], emb, config)
            skips.append(attention(f"{name}.1", h, everywhere) if attended[level] else h)
        if level != levels[-1]:
            skips.append(resample(f"input_blocks.{len(skips)}.0", skips[-1], halve))
    h = res_block(s, "middle_block.0", skips[-1], emb, config)
    if config.middle_attention:
        h = attention("middle_block.1", h, everywhere)
    h = res_block(s, f"middle_block.{1 + config.middle_attention}", h, emb, config)
    index = 0
    for level in reversed(levels):
        for i in range(config.num_res_blocks + 1):
            name, position = f"output_blocks.{index}", 1
            h = res_block(s, f"{name}.0", torch.cat([h, skips.pop()], dim=1), emb, config)
            if attended[level]:
                h = attention(f"{name}.{position}", h, config.placement in ("attention", "everywhere"))
                position += 1
            if level > 0 and i == config.num_res_blocks:
                if config.placement == "upsample":
                    h = hybrid_block(s, f"{name}.{position}", h, emb, config)
                    position += 1
                h = resample(f"{name}.{position}", h, double)
            index += 1
    h = group_norm(s, "out.0", h)
    return conv(s, "out.2", F.silu(h) if config.activation == "silu" else h)
