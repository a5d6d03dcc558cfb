"""An exported model in onnxruntime, which is called, measured and sampled from as the model itself."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hae_lab.checks import HAELabError, require
from hae_lab.family import HAEConfig

EXTRA = ("onnx", "onnxscript", "onnxruntime")  # modules of the extra [deploy]


def require_extra(what: str) -> None:
    """Raise `HAELabError` unless the extra [deploy] is installed."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    command = "python -m pip install 'hae-lab[deploy]', in a clone -e '.[deploy]'"
    require(not missing, f"{what} needs {', '.join(missing)}: install the extra, {command}")


class OnnxModel(nn.Module):
    """An ONNX file of `export`, of a model of this config: (B, C, H, W), (B,), (B,) or None -> (B, C, H, W).

    Runs on the CPU, without gradients; `threads` are torch's by default. `denoise`, `sample` and
    `denoising_loss` take it for a model. Raises `HAELabError` for a missing extra and a file that is no such program.
    """

    def __init__(self, path: str | Path, config: HAEConfig, threads: int | None = None) -> None:
        super().__init__()
        require_extra("running an ONNX file")
        self.config = config
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # samplers ask a model where it is
        self.session = _session(Path(path), threads or torch.get_num_threads())
        self.names = [each.name for each in self.session.get_inputs()]
        right = ["x", "timesteps"] + ["y"] * (config.num_classes is not None)
        fits = self.names == right
        require(fits, f"{str(path)!r} takes {', '.join(self.names)}; a model of this config {', '.join(right)}")

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        given = [x, timesteps.float()]
        if "y" in self.names:
            given.append(torch.full((len(x),), -1) if y is None else y.long())
        arrays = {name: tensor.numpy() for name, tensor in zip(self.names, given, strict=True)}
        return torch.from_numpy(self.session.run(None, arrays)[0])


def _session(path: Path, threads: int) -> Any:  # an onnxruntime.InferenceSession, which has no types
    import onnxruntime

    require(path.is_file(), f"no file {str(path)!r}: `hae-lab export` makes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each, and no common one
        raise HAELabError(f"{str(path)!r} is no ONNX program that onnxruntime can run: {error}") from None
