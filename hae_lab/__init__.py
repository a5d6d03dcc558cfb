"""hae_lab: an executable, audited paper on the HAE family of diffusion U-Nets."""

from importlib import import_module
from typing import Any

from hae_lab.checks import HAELabError
from hae_lab.family import HAEConfig
from hae_lab.presets import PRESETS, VARIANTS, config, register_variant

__version__ = "0.2.0"

# torch is imported when one of these is first used, so that `hae-lab --help` answers at once
_LAZY = {
    "hae_lab.models": (
        "HAEUNet build freeze load_checkpoint mask_mod save_checkpoint transfer_weights BottleneckMLP "
        "HAEUNetModel HAEUNetModelLite HAEUNetModelV2 "
        "HybridCNNTransformerBlock HybridCNNTransformerBlockLite HybridCNNTransformerBlockV2 "
        "MultiScaleSparseTransformerBlock MultiScaleSparseTransformerBlockLite MultiScaleSparseTransformerBlockV2"
    ).split(),
    "hae_lab.profilers.report": ["profile"],
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}

__all__ = ["PRESETS", "VARIANTS", "HAEConfig", "HAELabError", "config", "register_variant", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hae_lab' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
