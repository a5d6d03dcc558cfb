"""Where in a model a module stands: section, block and part, the names that all profilers share."""

from typing import Any

from torch import nn

from hae_lab.models import MSTB, HybridBlock
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample

SECTIONS = {
    "time_embed": "embedding", "label_emb": "embedding", "class_emb": "embedding",
    "input_blocks": "encoder", "middle_block": "middle", "output_blocks": "decoder", "out": "out",
}  # fmt: skip
BLOCKS = {
    HybridBlock: "hybrid block", ResBlock: "residual block", AttentionBlock: "attention block",
    Downsample: "resampling", Upsample: "resampling",
}  # fmt: skip
# the parts of a hybrid block: those with a name of their own in the block or in its MSTB, and those of its slots
LAYER_PARTS = {
    HybridBlock: {"emb_layers": "timestep", "conv_branch": "CNN branch"},
    MSTB: {"local_norm": "norms", "regional_norms": "norms", "norm_out": "norms", "multihead_attn": "attention"},
}
SLOT_TITLES = {"regions": "projections", "mlp": "MLP", "fusion": "fusion"}
MSTB_PARTS = ("norms", "projections", "attention", "MLP")
HYBRID_PARTS = ("timestep", "CNN branch", *MSTB_PARTS, "fusion")
# attention's work is told apart
PROJECTIONS = "attention projections"
SCORES = "attention scores and values"
BODY_SCORES = "self-attention scores and values"


def place(model: nn.Module, path: str) -> dict[str, str]:
    """The columns path, module (class), section, block and part of a module of a model.

    Sections are embedding, encoder, middle, decoder and out, "other" for what is no U-Net of the family. Inside a
    hybrid block the part is one of `HYBRID_PARTS`, elsewhere the block.
    """
    section = next((SECTIONS[name] for name in path.split(".") if name in SECTIONS), "other")
    around = [(prefix, model.get_submodule(prefix)) for prefix in _prefixes(path)]
    blocks = [name for _, module in around for kind, name in BLOCKS.items() if isinstance(module, kind)]
    block = blocks[0] if blocks else "embedding" if section == "embedding" else "convolution"
    part = block
    for prefix, module in around:
        attribute = path.removeprefix(prefix).lstrip(".").partition(".")[0]
        part = _part_names(module).get(attribute, part)
    return {"path": path, "module": type(around[-1][1]).__name__, "section": section, "block": block, "part": part}


def _prefixes(path: str) -> list[str]:
    """The model, the ancestors of the path, outermost first, and the path itself."""
    names = path.split(".") if path else []
    return [".".join(names[:depth]) for depth in range(len(names) + 1)]


def _part_names(module: Any) -> dict[str, str]:
    """Part of each layer of a hybrid block or an MSTB, by the layer's name."""
    fixed = next((names for kind, names in LAYER_PARTS.items() if isinstance(module, kind)), None)
    if fixed is None:
        return {}
    return fixed | {layer: SLOT_TITLES[slot] for slot, layers in module.slot_layers.items() for layer in layers}
