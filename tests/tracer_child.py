"""A cold process: something traces models that have run nothing yet, then the same models run eagerly.

`python tracer_child.py TRACER FILE` keeps what the eager models gave, outputs and gradients, in FILE.
"""

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import hae_lab

# one for each kernel: columns, blocks, slices, masked
CASES = {"document": 48, "document_shared": 48, "spatial_reduction": 48, "always_regional": 16}


def build(rule: str, size: int) -> nn.Module:
    """A small model whose output is not zero, as it is before training."""
    model = hae_lab.build("v2", "tiny", image_size=size, mask_rule=rule, num_classes=None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.add_(noise.to(parameter.device), alpha=0.05)
    return model.eval()


def inputs(size: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 1, size, size, generator=generator, dtype=torch.float32, device="cpu")
    return x, torch.arange(batch, device="cpu") * 100


def export(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    torch.export.export(model, (x, timesteps))


def strict_export(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with contextlib.suppress(Exception):  # it may refuse
        torch.export.export(model, (x, timesteps), strict=True)


def compiled(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with torch.no_grad():  # half the compiling
        torch.compile(model, backend="aot_eager")(x, timesteps)


def dynamic(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    torch.compile(model, backend="eager", dynamic=True)(x, timesteps)  # aot_eager takes a minute here


def fake(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    mode = FakeTensorMode()
    state = {name: mode.from_tensor(tensor) for name, tensor in model.state_dict().items()}
    with mode:
        output = torch.func.functional_call(model, state, (mode.from_tensor(x), mode.from_tensor(timesteps)))
    assert output.fake_mode is mode
    assert output.shape == x.shape


def fake_beside_real(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(x, timesteps)


def fx(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    for mode in ("real", "fake", "symbolic"):
        make_fx(lambda *some: model(*some), tracing_mode=mode, _allow_non_fake_inputs=True)(x, timesteps)


def meta(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with torch.device("meta"):
        model(x, timesteps)
        on_meta = hae_lab.build(model.config)(torch.empty(x.shape), torch.empty(len(x)))
    assert on_meta.is_meta
    assert on_meta.shape == x.shape


def default_device(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    torch.set_default_device("meta")
    model(x, timesteps)
    torch.set_default_device(None)


def inference(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with torch.inference_mode():
        model(x, timesteps)


def vmap(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    many = torch.func.vmap(model)(x[:, None], timesteps[:, None])[:, 0]  # one image at a time
    torch.testing.assert_close(many, model(x, timesteps), rtol=0, atol=1e-5)


def grad(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with contextlib.suppress(RuntimeError):  # torch.func has no gradients of operators that bring their own
        torch.func.grad(lambda image: model(image, timesteps).sum())(x)


def functionalize(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    torch.func.functionalize(model)(x, timesteps)


def jit(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    torch.jit.trace(model, (x, timesteps), check_trace=False)


def thread(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    for tracer in (fake_beside_real, meta, inference):
        runner = threading.Thread(target=tracer, args=(model, x, timesteps))
        runner.start()
        runner.join()


def double(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with _default_dtype(torch.float64):
        model(x, timesteps)


def half(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with _default_dtype(torch.bfloat16):
        model(x, timesteps)


def autocast(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        model(x, timesteps)


def counted(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    with FakeTensorMode():
        from hae_lab.profilers.formulas import static_counts

        static_counts(model.config)


def nothing(model: nn.Module, x: Tensor, timesteps: Tensor) -> None:
    pass


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


TRACERS: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    tracer.__name__: tracer
    for tracer in (
        export, strict_export, compiled, dynamic, fake, fake_beside_real, fx, meta, default_device, inference, vmap,
        grad, functionalize, jit, thread, double, half, autocast, counted,
    )
}  # fmt: skip


def eager(model: nn.Module, x: Tensor, timesteps: Tensor) -> list[Tensor]:
    """The output, and gradients through the whole model."""
    output = model(x, timesteps)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def main(name: str, path: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    kept = {}
    for rule, size in CASES.items():
        model = build(rule, size)
        TRACERS.get(name, nothing)(model, *inputs(size))
        kept[rule] = eager(model, *inputs(size))
        assert all(type(tensor) is Tensor for tensor in kept[rule]), f"{rule}: not real after {name}"
    torch.save(kept, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
