"""A model as a file that runs without this package: ONNX, as it is or with eight bits a weight, or torch's pt2.

The program takes x (B, C, H, W), timesteps (B,) and, if the model has classes, y (B,) with -1 for "no label"; batches
of any size up to `LARGEST_BATCH`. It has the masks of the config's image size inside.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hae_lab.checks import require, require_name
from hae_lab.deploy.runtime import OnnxModel, require_extra
from hae_lab.diffusion.sampling import eval_mode
from hae_lab.files import atomic_path
from hae_lab.models import HAEUNet, freeze
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.models.kernels import masked
from hae_lab.models.plans import Plan, copy_with

FORMATS = {"onnx": ".onnx", "int8": ".onnx", "pt2": ".pt2"}  # and how their files end
LARGEST_BATCH = 4096
CHECKED_BATCHES = (1, 3)
ROWS = 512  # queries of which a program keeps scores at once
MATRIX_KERNELS = (KERNELS["columns"], KERNELS["masked"], KERNELS["reference"])
TOLERANCE = 1e-4  # largest difference that an exported program may have, of outputs near 1
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "root")  # loggers that say what needs no action


class Exported(NamedTuple):
    """A file, how large it is, how far its outputs are from the model's, and how large these are."""

    path: Path
    file_bytes: int
    difference: float
    largest_output: float


def export(model: HAEUNet, path: str | Path, format: str = "onnx") -> Exported:
    """Write a model, in eval mode, as a program of its own; run it, and compare its outputs with the model's.

    Formats: "onnx", "pt2" (`torch.export.load`), and "int8", ONNX whose weights have eight bits, which are not the
    model's any more: its difference is told, and may be anything. The model stays as it is.
    Raises `HAELabError` for an unknown format, a path that ends otherwise, a missing extra, a model that is not of this
    family or has no weights, and a program that does not compute what the model does.
    """
    path = Path(path)
    require_name("format", format, FORMATS)
    ending = FORMATS[format]
    require(path.suffix == ending, f"{format} files end in {ending!r}, got {str(path)!r}")
    if format != "pt2":
        require_extra(f"the format {format}")
    program = program_of(model)
    with atomic_path(path) as temporary:
        if format == "pt2":
            with _quiet():
                torch.export.save(program, temporary)
        else:
            _write_onnx(program, temporary)
        if format == "int8":
            quantize(temporary, temporary)
        difference, largest = _compare(model, temporary, format)
        close = format == "int8" or difference <= TOLERANCE * max(1.0, largest)
        require(close, f"the {format} program differs from the model by {difference:.2g}, in outputs to {largest:.2g}")
    return Exported(path, path.stat().st_size, difference, largest)


def program_of(model: HAEUNet) -> ExportedProgram:
    """The model as a program for batches of any size, of torch's own operators alone."""
    frozen = portable(model)
    arguments, batch = example_inputs(model, 2), Dim("batch", min=1, max=LARGEST_BATCH)
    with torch.no_grad(), _quiet():
        return torch.export.export(frozen, arguments, dynamic_shapes=[{0: batch}] * len(arguments), strict=False)


def portable(model: HAEUNet) -> HAEUNet:
    """A frozen copy on the CPU in eval mode without operators of this package: every mask as a matrix, row by row."""
    require(isinstance(model, HAEUNet), f"export takes a model that hae_lab.build makes, got a {type(model).__name__}")
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    require(not on_meta, "this model lives on the meta device and has no weights to export: build it without")
    frozen = freeze(copy_with(model, _fixed)).eval()
    for layer in frozen.modules():
        if isinstance(layer, SparseMultiheadAttention) and layer.frozen and layer.frozen.kernel in MATRIX_KERNELS:
            layer.kernel = "masked"
            layer.freeze(layer.frozen.mask)
            layer.frozen = layer.frozen._replace(kernel=layer.frozen.kernel._replace(attend=masked_by_rows))
    return frozen


def masked_by_rows(q: Tensor, kv: Tensor, plan: Plan, heads: int, dropout: float = 0.0) -> Tensor:
    """Kernel `masked`, `ROWS` queries after another: runtimes without fused attention keep all scores of a call.

    On a map of 64 x 64 these are 0.6 GB an image. (B, n_local, C), (B, m, 2C) -> (B, n_local, C).
    """
    portions = zip(q.split(ROWS, dim=1), plan.allowed.split(ROWS, dim=1), strict=True)
    return torch.cat([masked(some, kv, Plan(allowed=rows), heads, dropout) for some, rows in portions], dim=1)


def _fixed(tensor: Tensor) -> Tensor:
    """The numbers of a parameter or buffer, on the CPU, no longer trained."""
    values = tensor.detach().cpu()
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def example_inputs(model: HAEUNet, batch: int) -> tuple[Tensor, ...]:
    """Noise, timesteps over the chain, and labels of which the first says "none": (B, C, H, W), (B,), (B,)."""
    config = model.config
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.out[-1].weight.dtype)
    timesteps = torch.linspace(10, 990, batch)
    if config.num_classes is None:
        return x, timesteps
    return x, timesteps, torch.arange(batch) % (config.num_classes + 1) - 1


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    names = ["x", "timesteps", "y"][: len(program.graph_signature.user_inputs)]
    with torch.no_grad(), _quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names, output_names=["output"])
        made.save(path)


def quantize(source: Path, target: Path) -> None:
    """An ONNX file with weights of eight bits; what goes into a product is rounded to as many while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, _quiet():
        made = Path(folder, "int8.onnx")
        quantize_dynamic(source, made, weight_type=QuantType.QUInt8)
        target.write_bytes(made.read_bytes())


def _compare(model: HAEUNet, path: Path, format: str) -> tuple[float, float]:
    """The largest difference to the model's outputs, and the largest of these."""
    run = torch.export.load(path).module() if format == "pt2" else OnnxModel(path, model.config)
    device, difference, largest = next(model.parameters()).device, 0.0, 0.0
    for batch in CHECKED_BATCHES:
        arguments = example_inputs(model, batch)
        with torch.no_grad(), eval_mode(model):
            right = model(*(each.to(device) for each in arguments)).cpu()
            found = run(*arguments)
        difference = max(difference, (found - right).abs().max().item())
        largest = max(largest, right.abs().max().item())
    return difference, largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the exporters, about which a user can do nothing."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
