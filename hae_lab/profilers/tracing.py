"""What a model does in one forward pass: every call of a module with its shapes and operators, at no arithmetic.

The pass runs on the meta device, with meta tensors in the place of parameters and buffers. The model itself is neither
copied nor moved, and is as it was afterwards.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hae_lab.checks import HAELabError
from hae_lab.profilers import meta_kernels

aten = torch.ops.aten


def _matrix_product(left: Tensor, right: Tensor, out: Tensor) -> int:
    return out.numel() * left.shape[-1]


def _convolution(inputs: Tensor, weight: Tensor, transposed: bool, out: Tensor) -> int:
    positions = inputs if transposed else out  # a transposed kernel is laid on each input, not on each output
    return positions.numel() * weight[0].numel()


# Multiply-accumulates of an operator from its arguments and its output. Scaled dot-product attention and linear layers
# reach the meta device as matrix products.
OPERATOR_MACS: dict[Any, Callable[..., int]] = {
    aten.mm: lambda args, out: _matrix_product(args[0], args[1], out),
    aten.addmm: lambda args, out: _matrix_product(args[1], args[2], out),
    aten.bmm: lambda args, out: _matrix_product(args[0], args[1], out),
    aten.baddbmm: lambda args, out: _matrix_product(args[1], args[2], out),
    aten.convolution: lambda args, out: _convolution(args[0], args[1], args[6], out),
}

# Operators without multiply-accumulates, by the convention of this toolkit. Elementwise operators and views say so
# themselves; these do not.
_ZERO_MACS = {
    "norms": "native_group_norm native_layer_norm native_batch_norm _native_batch_norm_legit _fused_rms_norm "
    "_native_batch_norm_legit_functional cudnn_batch_norm",
    "activations": "_softmax _safe_softmax _log_softmax _prelu_kernel glu hardswish log_sigmoid_forward logsumexp",
    "randomness": "native_dropout bernoulli bernoulli_ normal_ uniform_ rand rand_like randn randn_like randint",
    "resampling": "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d_with_indices "
    "max_pool3d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d",
    "reductions": "sum mean prod amax amin max min any all argmax argmin var var_mean std linalg_vector_norm cumsum "
    "cumprod sort topk",
    "new tensors": "empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones "
    "ones_like new_ones full full_like new_full scalar_tensor arange linspace eye fill fill_ zero_",
    "copies": "clone copy_ _to_copy _unsafe_view _reshape_alias lift_fresh cat stack repeat repeat_interleave roll "
    "as_strided_ flip tril triu constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d im2col col2im pixel_shuffle pixel_unshuffle native_channel_shuffle",
    "lookups": "embedding index index_select gather take scatter scatter_ slice_scatter select_scatter index_put "
    "index_put_ index_fill masked_fill masked_fill_ one_hot",
    "questions": "_local_scalar_dense promote_types result_type is_same_size _assert_async _assert_tensor_metadata",
}
# not every version of torch has them all
ZERO_MACS = {getattr(aten, name) for names in _ZERO_MACS.values() for name in names.split() if hasattr(aten, name)}


def operator_macs(operator: Any, args: tuple[Any, ...], out: Any) -> int | None:
    """Multiply-accumulates of one operator call, or None if nobody knows them."""
    packet = operator.overloadpacket
    if packet in OPERATOR_MACS:
        return OPERATOR_MACS[packet](args, out)
    if packet in flop_registry:  # an operator whose author told torch what it costs, such as the kernel `columns`
        return flop_registry[packet](*args, out_val=out) // 2
    is_elementwise = torch.Tag.pointwise in operator.tags
    return 0 if is_elementwise or operator.is_view or packet in ZERO_MACS else None


@dataclass(eq=False)
class Call:
    """One call of a module: what went in and came out, and the work done in it but in none of its children."""

    path: str
    module: Any  # an nn.Module, whose class the reader knows
    parent: "Call | None"
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None
    macs: int = 0  # of the operators that are known
    unknown: Counter[str] = field(default_factory=Counter)  # operators that nobody counts, and how often they ran

    def chain(self) -> Iterator["Call"]:
        """The call itself, then those that it was made in, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Call]:
    """The calls of one forward pass, in the order in which they began. Tensors in the inputs may be on any device.

    Raises `HAELabError` for a model or inputs that cannot run on the meta device.
    """
    args, keywords = to_meta(args), to_meta(dict(kwargs or {}))
    state = {name: to_meta(tensor) for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    recorder = Recorder(model)
    try:
        with _unchanged(model), recorder.hooks(), torch.no_grad(), torch.device("meta"), recorder:
            functional_call(model, state, args, keywords)
    except HAELabError:
        raise
    except Exception as error:
        raise HAELabError(
            f"{type(model).__name__} cannot be traced on the meta device ({error}): its inputs must fit, its tensors "
            "must be parameters or buffers, and its forward pass must not read values (.item(), .tolist(), if tensor)"
        ) from error
    return recorder.calls


class Recorder(TorchDispatchMode):
    """Files each operator under the innermost call of a module that is running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in model.named_modules()}
        self.calls: list[Call] = []
        self.running: list[Call] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow the calls of modules by hooks, which are removed in any case."""
        # not torch's global hooks: removing these leaves an entry behind (torch 2.13)
        handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self.paths]
        handles += [module.register_forward_hook(self._leave) for module in self.paths]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        call = Call(self.paths[module], module, self.running[-1] if self.running else None, args, kwargs)
        self.calls.append(call)
        self.running.append(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while self.running[-1].module is not module:
            self._give_up(self.running.pop())
        self.running.pop().output = output

    def _give_up(self, failed: Call) -> None:
        """A call raised an exception that was caught further out: its work counts as its parent's."""
        self.calls.remove(failed)
        if failed.parent is not None:
            failed.parent.macs += failed.macs
            failed.parent.unknown += failed.unknown

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = meta_kernels.run(operator, args, kwargs or {})
        if self.running:
            macs = operator_macs(operator, args, out)
            if macs is None:
                self.running[-1].unknown[str(operator.overloadpacket)] += 1
            else:
                self.running[-1].macs += macs
        return out


def to_meta(value: Any) -> Any:
    """The value with each tensor in it, however nested, replaced by a meta tensor of the same shape and dtype."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta", requires_grad=False)
    if isinstance(value, dict):
        return {name: to_meta(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_meta(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass may set: attributes, lazily made buffers, the mode, the global random state."""
    saved = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, attributes, buffers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
