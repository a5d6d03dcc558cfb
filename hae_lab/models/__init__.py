"""The models: parts (`layers`, `attention`), the hybrid block (`hybrid`), the U-Net (`unet`), and their weights."""

from hae_lab.models.checkpoints import build, checkpoint_notes, load_checkpoint, save_checkpoint, transfer_weights
from hae_lab.models.flex import mask_mod
from hae_lab.models.frozen import freeze
from hae_lab.models.hybrid import (
    MSTB,
    HybridBlock,
    HybridCNNTransformerBlock,
    HybridCNNTransformerBlockLite,
    HybridCNNTransformerBlockV2,
    MultiScaleSparseTransformerBlock,
    MultiScaleSparseTransformerBlockLite,
    MultiScaleSparseTransformerBlockV2,
    redraw_masks,
)
from hae_lab.models.slots import BottleneckMLP
from hae_lab.models.unet import HAEUNet, HAEUNetModel, HAEUNetModelLite, HAEUNetModelV2

__all__ = [
    "MSTB",
    "BottleneckMLP",
    "HAEUNet",
    "HAEUNetModel",
    "HAEUNetModelLite",
    "HAEUNetModelV2",
    "HybridBlock",
    "HybridCNNTransformerBlock",
    "HybridCNNTransformerBlockLite",
    "HybridCNNTransformerBlockV2",
    "MultiScaleSparseTransformerBlock",
    "MultiScaleSparseTransformerBlockLite",
    "MultiScaleSparseTransformerBlockV2",
    "build",
    "checkpoint_notes",
    "freeze",
    "load_checkpoint",
    "mask_mod",
    "redraw_masks",
    "save_checkpoint",
    "transfer_weights",
]
