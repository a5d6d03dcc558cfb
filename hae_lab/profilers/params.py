"""Where the parameters sit: counted module by module on the meta device, beside closed formulas from the config alone.

Convention: a parameter is a number that training could change; dead ones are counted, and flagged.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

from hae_lab.family import HAEConfig, hybrid_sites
from hae_lab.models import MSTB, HAEUNet, HybridBlock, build
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample
from hae_lab.profilers.reach import seen_by_any_group
from hae_lab.rules import mask_for

SECTIONS = {
    "time_embed": "embedding", "label_emb": "embedding", "class_emb": "embedding",
    "input_blocks": "encoder", "middle_block": "middle", "output_blocks": "decoder", "out": "out",
}  # fmt: skip
BLOCKS = {
    HybridBlock: "hybrid block", ResBlock: "residual block", AttentionBlock: "attention block",
    Downsample: "resampling", Upsample: "resampling",
}  # fmt: skip
# attribute of the hybrid block or of its MSTB -> part
HYBRID_PARTS = {"emb_layers": "timestep", "conv_branch": "CNN branch", "fusion_conv": "fusion"}
MSTB_PARTS = {
    "local_norm": "norms", "regional_norms": "norms", "norm_out": "norms",
    "patch_projections": "projections", "shared_patch_embed": "projections",
    "multihead_attn": "attention", "mlp": "MLP",
}  # fmt: skip


def parameters(config_or_module: HAEConfig | nn.Module) -> pd.DataFrame:
    """A row for each module that owns parameters; the column `params` sums to the model's total.

    Columns: path, module (class), section (embedding, encoder, middle, decoder, out), block (hybrid block, residual
    block, ...), part (inside a hybrid block: timestep, CNN branch, norms, projections, attention, MLP, fusion; else
    the block), params, share_percent, dead (why no gradient can reach it, else empty). A config is built on meta.
    """
    model = config_or_module
    if isinstance(model, HAEConfig):
        with torch.device("meta"):
            model = build(model)
    dead = dict(_dead_modules(model))
    rows = [
        {**_place(model, path), "params": params, "dead": dead.get(path, "")} for path, params in _owned_params(model)
    ]
    frame = pd.DataFrame(rows)
    frame.insert(6, "share_percent", 100 * frame["params"] / frame["params"].sum())
    return frame


def parameter_parts(config: HAEConfig) -> pd.DataFrame:
    """A row a part: counted on the model, by closed formula, share of the whole in percent, and how many are dead.

    Parts are nested: the model is embedding + encoder + middle + decoder + out; hybrid blocks lie in the sections, and
    are timestep + CNN branch + MSTB + fusion; the MSTB is norms + projections + attention + MLP.
    """
    frame = parameters(config)
    formulas = parameter_formulas(config)
    counted = {part: frame[_in_part(frame, part)] for part in formulas}
    rows = [
        {
            "part": part,
            "params": int(counted[part]["params"].sum()),
            "params_formula": formula,
            "dead_params": int(counted[part].query("dead != ''")["params"].sum()),
        }
        for part, formula in formulas.items()
    ]
    parts = pd.DataFrame(rows)
    parts.insert(3, "share_percent", 100 * parts["params"] / parts["params"].iloc[0])
    return parts


def _owned_params(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(path, count) of each module that holds parameters itself; a shared parameter counts at its first owner."""
    seen = set()
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield path, sum(p.numel() for p in own)


def _place(model: nn.Module, path: str) -> dict[str, str]:
    section = SECTIONS.get(path.split(".")[0], "other")
    ancestors = [(prefix, model.get_submodule(prefix)) for prefix in _prefixes(path)]
    block = next((name for _, module in ancestors for kind, name in BLOCKS.items() if isinstance(module, kind)), None)
    block = block or ("embedding" if section == "embedding" else "convolution")
    part = block
    for prefix, module in ancestors:
        attribute = path.removeprefix(prefix + ".").split(".")[0]
        if isinstance(module, HybridBlock):
            part = HYBRID_PARTS.get(attribute, part)
        elif isinstance(module, MSTB):
            part = MSTB_PARTS.get(attribute, part)
    kind = type(model.get_submodule(path)).__name__
    return {"path": path, "module": kind, "section": section, "block": block, "part": part}


def _prefixes(path: str) -> list[str]:
    """The path and its ancestors, outermost first."""
    names = path.split(".")
    return [".".join(names[: depth + 1]) for depth in range(len(names))]


def _in_part(frame: pd.DataFrame, part: str) -> pd.Series:
    if part == "model":
        return pd.Series(True, frame.index)
    if part in set(SECTIONS.values()):
        return frame["section"] == part
    in_hybrid = frame["block"] == "hybrid block"
    if part == "hybrid blocks":
        return in_hybrid
    if part == "MSTB":
        return in_hybrid & frame["part"].isin(MSTB_PARTS.values())
    return in_hybrid & (frame["part"] == part)


def _dead_modules(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(path, reason) of the modules that no gradient can reach."""
    if not isinstance(model, HAEUNet):
        return
    config = model.config
    if config.num_classes is None:
        for path, module in model.named_modules():
            if isinstance(module, AttentionBlock):
                yield f"{path}.encoder_kv", "the model has no classes"
    blocks = [(path, module) for path, module in model.named_modules() if isinstance(module, MSTB)]
    for (path, block), (_, level) in zip(blocks, hybrid_sites(config), strict=True):
        for index, reason in _dead_scales(block, config.sizes[level]):
            yield f"{path}.regional_norms.{index}", reason
            yield f"{path}.patch_projections.{index}", reason


def _dead_scales(block: MSTB, side: int) -> Iterator[tuple[int, str]]:
    grid = block.grid(side, side)
    mask = mask_for(block.mask_rule, grid, block.sparsity, block.mask_seed)
    seen = seen_by_any_group(mask, np.arange(grid.n_local))
    for index, p in enumerate(p for p in block.patch_sizes if p > 1):
        if p in grid.dropped:
            yield index, f"patch {p} does not divide the {side} x {side} map"
        elif not seen[slice(*grid.span(p))].any():
            yield index, f"the mask hides the {p} x {p} patches of the {side} x {side} map from every pixel"


# Closed formulas: plain integer arithmetic on the config, sharing no code with the models.


def parameter_formulas(config: HAEConfig) -> dict[str, int]:
    """Parameters of each part by closed formula, in the order and nesting of `parameter_parts`."""
    body = {
        "embedding": _embedding(config), "encoder": _encoder(config), "middle": _middle(config),
        "decoder": _decoder(config), "out": _norm(config.channels[0]) + _conv(config.channels[0], config.out_channels),
    }  # fmt: skip
    blocks = [(section, hybrid_formulas(config, config.channels[level])) for section, level in hybrid_sites(config)]
    for section, block in blocks:
        body[section] += sum(block.values())
    hybrid = {part: sum(block[part] for _, block in blocks) for part in hybrid_formulas(config, 1)}
    mstb = {part: hybrid[part] for part in ("norms", "projections", "attention", "MLP")}
    return {
        "model": sum(body.values()),
        **body,
        "hybrid blocks": sum(hybrid.values()),
        "timestep": hybrid["timestep"],
        "CNN branch": hybrid["CNN branch"],
        "MSTB": sum(mstb.values()),
        **mstb,
        "fusion": hybrid["fusion"],
    }


def hybrid_formulas(config: HAEConfig, c: int) -> dict[str, int]:
    """Parameters of each part of one hybrid block of c channels."""
    regional = [p for p in config.patch_sizes if p > 1]
    linear_regions = config.regions == "linear"
    hidden = max(1, int(c * config.mlp_ratio))
    joined = 2 * c if config.fusion == "concat" and config.cnn_branch else c
    return {
        "timestep": _linear(config.time_embed_dim, c),
        "CNN branch": 2 * (_norm(c) + _conv(c, c)) if config.cnn_branch else 0,
        "norms": (2 + len(regional)) * _norm(c),
        "projections": sum(_linear(c * p * p, c) for p in regional) if linear_regions else _linear(c, c),
        "attention": 4 * _linear(c, c),
        "MLP": _linear(c, hidden) + _linear(hidden, c),
        "fusion": _linear(joined, c),
    }


def _embedding(config: HAEConfig) -> int:
    mlp = _linear(config.model_channels, config.time_embed_dim) + _linear(config.time_embed_dim, config.time_embed_dim)
    if config.num_classes is None:
        return mlp
    return 2 * mlp + config.num_classes * config.model_channels


def _encoder(config: HAEConfig) -> int:
    widths = config.channels
    total = _conv(config.in_channels, widths[0])
    for level, c in enumerate(widths):
        below = widths[max(0, level - 1)]
        total += _residual(config, below, c) + (config.num_res_blocks - 1) * _residual(config, c, c)
        total += config.num_res_blocks * _plain_attention(config, level, "encoder")
    return total + sum(_resampling(config, c) for c in widths[:-1])


def _middle(config: HAEConfig) -> int:
    c = config.channels[-1]
    attention = 0 if config.placement == "everywhere" else _attention(config, c)
    return 2 * _residual(config, c, c) + attention


def _decoder(config: HAEConfig) -> int:
    widths = config.channels
    total = 0
    for level, c in enumerate(widths):
        above, below = widths[min(level + 1, len(widths) - 1)], widths[max(0, level - 1)]
        # the first block comes from the level above, the last one's skip from the level below
        total += _residual(config, above + c, c) + _residual(config, c + below, c)
        total += (config.num_res_blocks - 1) * _residual(config, 2 * c, c)
        total += (config.num_res_blocks + 1) * _plain_attention(config, level, "decoder")
    return total + sum(_resampling(config, c) for c in widths[1:])


def _plain_attention(config: HAEConfig, level: int, section: str) -> int:
    replaced = config.placement == "everywhere" or (config.placement == "attention" and section == "decoder")
    if replaced or 2**level not in config.attention_resolutions:
        return 0
    return _attention(config, config.channels[level])


def _attention(config: HAEConfig, c: int) -> int:
    return _norm(c) + _linear(c, 3 * c) + _linear(config.time_embed_dim, 2 * c) + _linear(c, c)


def _residual(config: HAEConfig, c_in: int, c: int) -> int:
    emb = _linear(config.time_embed_dim, 2 * c if config.use_scale_shift_norm else c)
    skip = _linear(c_in, c) if c_in != c else 0
    return _norm(c_in) + _conv(c_in, c) + emb + _norm(c) + _conv(c, c) + skip


def _resampling(config: HAEConfig, c: int) -> int:
    if config.resblock_updown:
        return _residual(config, c, c)
    return _conv(c, c) if config.conv_resample else 0


def _conv(c_in: int, c_out: int) -> int:
    return 9 * c_in * c_out + c_out


def _linear(c_in: int, c_out: int) -> int:
    return c_in * c_out + c_out


def _norm(c: int) -> int:
    return 2 * c
