"""Where the parameters sit: counted module by module on the meta device, beside the closed formulas of `formulas`.

Convention: a parameter is a number that training could change; dead ones are counted, and flagged.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

from hae_lab.family import HAEConfig, hybrid_sites
from hae_lab.models import MSTB, HAEUNet, build
from hae_lab.models.layers import AttentionBlock
from hae_lab.profilers.formulas import parameter_formulas
from hae_lab.profilers.places import MSTB_PARTS, SECTIONS, place
from hae_lab.profilers.reach import seen_by_any_group
from hae_lab.rules import mask_for


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
        {**place(model, path), "params": params, "dead": dead.get(path, "")} for path, params in _owned_params(model)
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
    seen: set[int] = set()
    for path, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        if own:
            yield path, sum(p.numel() for p in own)


def _in_part(frame: pd.DataFrame, part: str) -> pd.Series:
    if part == "model":
        return pd.Series(True, frame.index)
    if part in set(SECTIONS.values()):
        return frame["section"] == part
    in_hybrid = frame["block"] == "hybrid block"
    if part == "hybrid blocks":
        return in_hybrid
    if part == "MSTB":
        return in_hybrid & frame["part"].isin(MSTB_PARTS)
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
    sites = hybrid_sites(config) if blocks else []  # a hybrid block may have no Transformer
    for (path, block), (_, level) in zip(blocks, sites, strict=True):
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
