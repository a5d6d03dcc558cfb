"""Building models, saving and loading them, and moving weights between variants."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hae_lab.checks import HAELabError, require, require_seed
from hae_lab.family import HAEConfig
from hae_lab.files import atomic_path
from hae_lab.models.layers import seeded
from hae_lab.models.unet import HAEUNet
from hae_lab.presets import config

SUFFIXES = (".safetensors", ".pt")
NOTES = "hae_lab"  # one key of a file's metadata: the order of several would change from run to run
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which others keep a state dict
PARALLEL = "module."  # what DataParallel puts before every name


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


def save_checkpoint(model: nn.Module, path: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write the state dict as `.safetensors` or `.pt`, whole or not at all. Raises `HAELabError` for other endings.

    A `.safetensors` file carries the model's config, so that `load_checkpoint(path)` needs nothing else, and the
    `notes`, which survive JSON. A `.pt` file is the bare state dict, as other code expects it.
    """
    path = Path(path)
    _check_suffix(path)
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    require(not on_meta, "this model lives on the meta device and has no weights to save: build it without")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with atomic_path(path, size_bytes) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary, {NOTES: json.dumps(_own_notes(model) | dict(notes or {}), sort_keys=True)})
        else:
            torch.save(state, temporary)
    return path


def _own_notes(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {"config": asdict(config)} if isinstance(config, HAEConfig) else {}


def load_checkpoint(
    path_or_dict: str | Path | Mapping[str, Any],
    config: HAEConfig | None = None,
    *,
    device: str | torch.device = "cpu",
) -> HAEUNet:
    """The model with the weights of a guided-diffusion-style state dict, in eval mode.

    Takes a state dict, a `.safetensors` file or a `.pt` file (read with `weights_only=True`: it cannot run code).
    `config` may be left out where the file carries it. A state dict that lies under "state_dict", has names that start
    with "module.", or lacks the `encoder_kv` that a model without classes never uses, loads with a warning.
    Raises `HAELabError` for an unreadable file, and for names or shapes that do not fit, all in one message.
    """
    is_config = config is None or isinstance(config, HAEConfig)
    require(is_config, f"config is an HAEConfig, got {config!r}: make one with hae_lab.config(...)")
    if isinstance(path_or_dict, Mapping):
        state, source = dict(path_or_dict), "the state dict"
    else:
        is_path = isinstance(path_or_dict, str | Path)
        require(is_path, f"a checkpoint is a path or a state dict, got a {type(path_or_dict).__name__}")
        state, source = _read_state(Path(path_or_dict)), repr(str(path_or_dict))
        config = config or checkpoint_config(path_or_dict)
    if config is None:
        raise HAELabError(f"{source} does not say which model it is of: pass config=hae_lab.config(variant, preset)")
    state = _unwrapped(state, source)
    is_state = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    require(is_state, f"{source} does not hold a state dict of tensors by name")
    with torch.device("meta"):
        model = build(config)
    expected = model.state_dict()
    state |= _unused(state, expected, config, source)
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


def checkpoint_notes(path: str | Path) -> dict[str, Any]:
    """What a checkpoint carries beside its weights: config and notes by name; nothing if others wrote it.

    Raises `HAELabError` for a file that cannot be read.
    """
    path = Path(path)
    _check_suffix(path)
    require(path.is_file(), f"no such file: {str(path)!r}")
    if path.suffix == ".pt":
        return {}
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {}).get(NOTES, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise HAELabError(f"{str(path)!r} is not a readable checkpoint: {error}") from None
    require(isinstance(notes, dict), f"{str(path)!r} carries notes that are no object of fields: {notes!r}")
    return notes


def checkpoint_config(path: str | Path) -> HAEConfig | None:
    """The config of the model in a checkpoint; None if it carries none."""
    found = checkpoint_notes(path).get("config")
    return None if found is None else HAEConfig.from_json(json.dumps(found))


def _unwrapped(state: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The state dict by the names of its own model, out of what others put around it."""
    key = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
    if key is not None:
        warnings.warn(f"{source}: the state dict under {key!r} is taken, and nothing else of it", stacklevel=3)
        state = state[key]
    if state and all(isinstance(name, str) and name.startswith(PARALLEL) for name in state):
        warnings.warn(f"{source}: {PARALLEL!r} before every name is left out", stacklevel=3)
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return dict(state)


def _unused(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: HAEConfig, source: str
) -> dict[str, Tensor]:
    """Zeros for what a model without classes holds and never uses, if the state dict has none of it."""
    names = [name for name in expected if ".encoder_kv." in name]
    if config.num_classes is not None or not names or any(name in state for name in names):
        return {}
    warnings.warn(f"{source}: no encoder_kv, which a model without classes never uses; set to zero", stacklevel=3)
    return {name: torch.zeros(expected[name].shape, dtype=expected[name].dtype) for name in names}


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
