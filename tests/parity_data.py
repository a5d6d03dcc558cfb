"""The published input/output pairs in `data/`, and the rule that makes their weights.

The rule gives every layer weights that matter, zero-initialised ones included, so other tests use it too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hae_lab.family import HAEConfig
from hae_lab.masks import SparseMask, TokenGrid

DATA = Path(__file__).parent / "data"
PARITY = json.loads((DATA / "parity.json").read_text())
ARRAYS = np.load(DATA / "parity.npz")
COUNTS = json.loads((DATA / "param_counts.json").read_text())


def parity_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights behind the published outputs, for parameters of these names and shapes."""
    generator = torch.Generator().manual_seed(11)
    return {name: _weight(name, torch.randn(shapes[name], generator=generator)) for name in sorted(shapes)}


def _weight(name: str, r: Tensor) -> Tensor:
    if r.dim() > 1:
        return r / r[0].numel() ** 0.5
    return 1 + 0.2 * r if name.endswith(".weight") else 0.2 * r


def with_parity_weights(model: nn.Module) -> nn.Module:
    """The model in eval mode with weights by the rule, in the model's precision."""
    model.load_state_dict(parity_weights({name: tuple(w.shape) for name, w in model.state_dict().items()}))
    return model.eval()


def parity_mask(name: str, grid: TokenGrid) -> SparseMask:
    """The mask that every multi-scale block with this many tokens used."""
    packed = ARRAYS[f"{name}/mask_{grid.n}"]
    return SparseMask.from_blocked(np.unpackbits(packed, axis=1)[:, : grid.n].astype(bool), grid)


def sample_inputs(config: HAEConfig, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """Keyword arguments of a forward pass: noise, different timesteps, different labels if the model takes any."""
    generator = torch.Generator().manual_seed(5)
    size = config.image_size
    return {
        "x": torch.randn(batch, config.in_channels, size, size, generator=generator).to(dtype),
        "timesteps": 37 + 300 * torch.arange(batch),
        "y": None if config.num_classes is None else torch.arange(batch) % config.num_classes,
    }
