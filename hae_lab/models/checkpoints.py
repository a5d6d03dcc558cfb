"""Building models, saving and loading them, and moving weights between variants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hae_lab.checks import HAELabError, require, require_seed
from hae_lab.family import HAEConfig
from hae_lab.files import atomic_path
from hae_lab.models.layers import seeded
from hae_lab.models.unet import HAEUNet
from hae_lab.presets import config

SUFFIXES = (".safetensors", ".pt")


def build(variant_or_config: str | HAEConfig, preset: str = "brats128", seed: int = 0, **changes: Any) -> HAEUNet:
    """A model with fresh weights; the same seed gives the same weights, whatever the default device.

    Each layer is drawn by the seed and by its place in the network, so layers that two variants share start alike.

    Works under `torch.device("meta")` without allocating weights. The global random state stays untouched.
    Raises `HAELabError` for an unknown variant, preset or field, and for invalid values.
    """
    if isinstance(variant_or_config, HAEConfig):
        model_config = variant_or_config.replace(**changes)
    else:
        model_config = config(variant_or_config, preset, **changes)
    device = torch.get_default_device()
    on_meta = device.type == "meta"
    try:
        with torch.device("meta" if on_meta else "cpu"), seeded(require_seed("seed", seed)):
            model = HAEUNet(model_config)
    except (RuntimeError, MemoryError) as error:
        require(
            "allocate" not in str(error), "this model is larger than the memory: build it under torch.device('meta')"
        )
        raise
    return model if on_meta else model.to(device)


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write the state dict as `.safetensors` or `.pt`, whole or not at all. Raises `HAELabError` for other endings."""
    path = Path(path)
    _check_suffix(path)
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    require(not on_meta, "this model lives on the meta device and has no weights to save: build it without")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with atomic_path(path, size_bytes) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save(state, temporary)
    return path


def load_checkpoint(
    path_or_dict: str | Path | Mapping[str, Tensor], config: HAEConfig, *, device: str | torch.device = "cpu"
) -> HAEUNet:
    """The model of `config` with the weights of a guided-diffusion-style state dict, in eval mode.

    Takes a state dict, a `.safetensors` file or a `.pt` file (read with `weights_only=True`: it cannot run code).
    Raises `HAELabError` for an unreadable file, and for names or shapes that do not fit, all in one message.
    """
    require(isinstance(config, HAEConfig), f"config is an HAEConfig, got {config!r}: make one with hae_lab.config(...)")
    if isinstance(path_or_dict, Mapping):
        state, source = dict(path_or_dict), "the state dict"
    else:
        is_path = isinstance(path_or_dict, str | Path)
        require(is_path, f"a checkpoint is a path or a state dict, got a {type(path_or_dict).__name__}")
        state, source = _read_state(Path(path_or_dict)), repr(str(path_or_dict))
    is_state = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    require(is_state, f"{source} does not hold a state dict of tensors by name")
    with torch.device("meta"):
        model = build(config)
    expected = model.state_dict()
    _check_fits(state, expected, source)
    # copies in the model's precision: the caller's tensors stay the caller's
    weights = {name: tensor.detach().to(device, expected[name].dtype, copy=True) for name, tensor in state.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(True).eval()


def transfer_weights(source: nn.Module, target: nn.Module) -> list[str]:
    """Copy every tensor that both models hold under one name and shape; return the target's names left as they are.

    The document's advice to start with V2 and move up later: the body and the CNN branches carry over.
    """
    given = source.state_dict()
    left = []
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            if name in given and given[name].shape == tensor.shape:
                tensor.copy_(given[name])
            else:
                left.append(name)
    return left


def _check_suffix(path: Path) -> None:
    require(path.suffix in SUFFIXES, f"a checkpoint ends in {' or '.join(SUFFIXES)}, got {str(path)!r}")


def _read_state(path: Path) -> dict[str, Tensor]:
    _check_suffix(path)
    require(path.is_file(), f"no such file: {str(path)!r}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except Exception as error:  # a broken file can raise anything inside the reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HAELabError(f"{str(path)!r} is not a readable checkpoint (corrupted or truncated?): {reason}") from None
    require(
        isinstance(state, Mapping), f"{str(path)!r} does not hold a state dict of tensors, but a {type(state).__name__}"
    )
    return dict(state)


def _load_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    misshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "misshaped": misshaped,
    }
    lines = [f"  {kind} ({len(names)}): {', '.join(names)}" for kind, names in problems.items() if names]
    require(not lines, "\n".join([f"{source} does not fit this config (another variant?):", *lines]))
