"""One training step on the meta device, followed operator by operator: forward, loss, backward, update.

Autograd builds and runs its real graph, and the optimizer its real update, with meta tensors in the place of
everything: nothing is computed and nothing is allocated, but every storage has its size, its birth and its death. A
node of the graph belongs to the call of a module that was running when it was made, which its sequence number tells.
Fused attention runs where a CPU would take it; the model is as it was afterwards.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Generic, TypeVar
from unittest import mock
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hae_lab.checks import HAELabError, require, require_whole
from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.profilers import meta_kernels
from hae_lab.profilers.inputs import config_of
from hae_lab.profilers.tracing import Call, _unchanged, operator_macs, to_meta

aten = torch.ops.aten
T = TypeVar("T")
Loss = Callable[[Any], Tensor]
Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

FORWARD, BACKWARD, RECOMPUTED, UPDATE = "forward", "backward", "recomputed", "update"
FUSED = 1  # torch's number of the fused kernel
LOSS = "(loss)"  # the path of what runs outside the model

# operators of the backward pass without multiply-accumulates, by the convention of `tracing`
_ZERO_MACS = (
    "native_group_norm_backward native_layer_norm_backward native_batch_norm_backward _softmax_backward_data "
    "_log_softmax_backward_data embedding_dense_backward max_pool2d_with_indices_backward "
    "max_pool3d_with_indices_backward avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward "
    "_adaptive_avg_pool3d_backward upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
    "upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward upsample_linear1d_backward "
    "select_backward slice_backward diagonal_backward unfold_backward index_add index_add_ scatter_add scatter_add_ "
    "glu_backward native_dropout_backward _fused_rms_norm_backward _prelu_kernel_backward reflection_pad1d_backward "
    "reflection_pad2d_backward replication_pad1d_backward replication_pad2d_backward nll_loss_backward "
    "hardtanh_backward hardswish_backward hardsigmoid_backward log_sigmoid_backward as_strided_ squeeze_ unsqueeze_ t_ "
    "transpose_ nll_loss_forward nll_loss2d_forward nll_loss2d_backward value_selecting_reduction_backward"
).split()
ZERO_MACS = {getattr(aten, name) for name in _ZERO_MACS if hasattr(aten, name)}


def _convolution_gradients(args: Sequence[Any]) -> int:
    """As many as forward for the gradient of the input, and again for that of the weight."""
    grad, inputs, weight, transposed, (to_input, to_weight, _) = args[0], args[1], args[2], args[7], args[10]
    positions = inputs if transposed else grad
    return positions.numel() * weight[0].numel() * (to_input + to_weight)


def _attention_product(args: Sequence[Any], first: int) -> int:
    """One product of queries and keys (or values): (B, heads, m, d), (B, heads, n, d)."""
    return args[first].numel() * args[first + 1].shape[-2]


def _bag(args: Sequence[Any]) -> int:
    weighted = len(args) > 6 and args[6] is not None
    return args[1].numel() * args[0].shape[1] if weighted else 0


# operator -> its own work, and how much of it is forward work done again, because nothing of it was saved
STEP_MACS: dict[Any, Callable[[Sequence[Any]], tuple[int, int]]] = {
    aten.convolution_backward: lambda args: (_convolution_gradients(args), 0),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda args: (2 * _attention_product(args, 0), 0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda args: (
        4 * _attention_product(args, 1),
        _attention_product(args, 1),
    ),
    aten._embedding_bag: lambda args: (_bag(args), 0),
    aten._embedding_bag_forward_only: lambda args: (_bag(args), 0),
}


def step_macs(operator: Any, args: Sequence[Any], out: Any) -> tuple[int, int] | None:
    """Multiply-accumulates of one operator of a step, and those done again; None if nobody knows them."""
    packet = operator.overloadpacket
    if packet in STEP_MACS:
        return STEP_MACS[packet](args)
    macs = 0 if packet in ZERO_MACS else operator_macs(operator, tuple(args), out)
    return None if macs is None else (macs, 0)


@dataclass(eq=False)
class StepCall(Call):
    """One call of a module in a training step; work and traffic by phase."""

    parent: "StepCall | None"
    input_needs_grad: bool = False
    reached: bool = False  # a gradient came back to it
    macs_by: Counter[str] = field(default_factory=Counter)
    bytes_by: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Storage:
    """Memory that the step took, from event to event."""

    bytes: int
    path: str  # the module that saved it for the backward pass, else the one that made it
    born: int
    died: int | None = None
    saved: bool = False


@dataclass(eq=False)
class Step:
    """What one training step did."""

    model: nn.Module
    calls: list[StepCall]  # the first is not the model's: what ran outside of it, loss and update
    storages: list[Storage]
    events: list[int]  # bytes taken (above 0) and given back, in order
    ends: dict[str, int]  # phase -> number of events at its end
    inputs_bytes: int
    optimizer_bytes: dict[str, int]  # by the name of the parameter
    gradients: dict[str, int]  # by the name of the parameter, bytes; those that got one

    def kept(self) -> list[Storage]:
        """What the graph holds between the forward and the backward pass."""
        end = self.ends[FORWARD]
        return [each for each in self.storages if each.born < end and (each.died is None or each.died >= end)]

    def alive_at_peak(self) -> list[Storage]:
        """What the step itself took and still held when it held most."""
        peak = max(range(len(self.events)), key=_running(self.events).__getitem__) if self.events else 0
        return [each for each in self.storages if each.born <= peak and (each.died is None or each.died > peak)]


def _running(events: list[int]) -> list[int]:
    total, sums = 0, []
    for change in events:
        total += change
        sums.append(total)
    return sums


def prepare(
    config_or_module: HAEConfig | nn.Module, batch: int = 1, inputs: Any = None
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model, a config built on meta, and its arguments: those given, or a denoising step's for a HAE model.

    `inputs` is a tensor, a sequence of arguments, or a mapping of named ones.
    Raises `HAELabError` for a model that is none, for a foreign one without inputs, and for a shape as inputs.
    """
    model = config_or_module
    if isinstance(model, HAEConfig):
        with torch.device("meta"):
            model = build(model)
    require(isinstance(model, nn.Module), f"an HAEConfig or an nn.Module is profiled, got {model!r}")
    if isinstance(inputs, Mapping):
        return model, (), dict(inputs)
    if inputs is not None:
        arguments = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        looks_like_a_shape = len(arguments) > 1 and all(type(value) is int for value in arguments)
        require(
            not looks_like_a_shape, f"inputs are tensors, {inputs!r} is a shape: give torch.empty{tuple(arguments)}"
        )
        return model, arguments, {}
    config = config_of(model, "say what it takes, inputs=(x, ...)")
    batch = require_whole("batch", batch, 1)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    x = torch.empty(batch, config.in_channels, config.image_size, config.image_size, dtype=dtype, device="meta")
    labels = () if config.num_classes is None else (torch.empty(batch, dtype=torch.int64, device="meta"),)
    return model, (x, torch.empty(batch, device="meta"), *labels), {}


def mean_square(output: Any) -> Tensor:
    """A loss of any output: the mean square of each floating tensor in it, summed."""
    tensors = [leaf for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    require(len(tensors) > 0, f"the model puts out {type(output).__name__}, no floating tensor: give a loss=")
    return sum((tensor.square().mean() for tensor in tensors[1:]), tensors[0].square().mean())


def _plain(output: Any) -> Any:
    return dict(output) if isinstance(output, Mapping) else output


def training_step(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = torch.optim.AdamW,
    warm: bool = True,
) -> Step:
    """Follow one step of a training that has begun: the optimizer has its state, gradients are empty.

    `loss` makes a scalar of the output (default: `mean_square`); `optimizer` takes the parameters, None means none.
    `warm=False` leaves out the forward pass before, for a model that has just made one.
    The model's mode is that of its modules; parameters without `requires_grad` are frozen.
    Raises `HAELabError` for what cannot run on the meta device, and where no parameter gets a gradient.
    """
    recorder, state, arguments = _set_up(model, args, kwargs)
    trained = {name: tensor for name, tensor in state.items() if tensor.requires_grad}
    require(bool(trained), f"{type(model).__name__} has no parameter that needs a gradient: nothing is trained")

    def there_and_back(model: nn.Module) -> None:
        scalar = (loss or mean_square)(_call(model, arguments))
        recorder.end(FORWARD)
        scalar.backward()

    if warm:  # a model makes some things once, such as the plans of its masks
        inference_step(model, args, kwargs)
    with _following(recorder):
        updater = _begun(optimizer, trained)
        recorder.know(tree_leaves([] if updater is None else [updater.state[p] for p in trained.values()]))
        with recorder:
            _with_state(model, state, there_and_back)
            recorder.end(BACKWARD)
            if updater is not None:
                updater.step()
            recorder.end(UPDATE)
    gradients = {name: tensor.grad.nbytes for name, tensor in trained.items() if tensor.grad is not None}
    states = {} if updater is None else {name: _state_bytes(updater.state[p]) for name, p in trained.items()}
    return recorder.step(gradients, states, arguments)


def inference_step(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Step:
    """Follow one forward pass without gradients. Raises `HAELabError` for what cannot run on the meta device."""
    for _ in range(2):
        recorder, state, arguments = _set_up(model, args, kwargs)
        with _following(recorder), torch.no_grad(), recorder:
            _with_state(model, state, partial(_call, arguments=arguments))
            recorder.end(FORWARD)
        if not recorder.alive:
            break  # else the model made what it makes once, such as the plans of its masks
    return recorder.step({}, {}, arguments)


def _call(model: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = arguments
    return model(*args, **kwargs)


def _set_up(model: nn.Module, args: Any, kwargs: Any) -> tuple["StepRecorder", dict[str, Tensor], tuple[Any, Any]]:
    state = {name: to_meta(parameter).requires_grad_(parameter.requires_grad) for name, parameter in
             model.named_parameters()}  # fmt: skip
    owners = {id(tensor): name.rpartition(".")[0] for name, tensor in state.items()}
    state |= {name: to_meta(buffer) for name, buffer in model.named_buffers()}
    arguments = to_meta(tuple(args)), to_meta(dict(kwargs or {}))
    return StepRecorder(model, owners, [*state.values(), *tree_leaves(arguments)]), state, arguments


@contextmanager
def _following(recorder: "StepRecorder") -> Iterator[None]:
    try:
        with (
            _unchanged(recorder.model),
            recorder.hooks(),
            FusedAttention(recorder),
            torch.enable_grad(),
        ):
            yield
    except HAELabError:
        raise
    except Exception as error:
        kind = type(recorder.model).__name__
        raise HAELabError(
            f"a step of {kind} cannot be followed on the meta device ({error}): its inputs must fit, its tensors must "
            "be parameters or buffers, and neither model nor loss may read values (.item(), .tolist())"
        ) from error


class _Around(nn.Module):
    """A model and what is done with it, so that its parameters are replaced during the backward pass too."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self) -> Any:
        return self.run(self.model)


def _with_state(model: nn.Module, state: Mapping[str, Tensor], run: Callable[[nn.Module], Any]) -> Any:
    """`run(model)` on the meta device, with other tensors in the place of parameters and buffers."""
    with torch.device("meta"):
        return functional_call(_Around(model, run), {f"model.{name}": tensor for name, tensor in state.items()}, ())


def _begun(optimizer: Optimizer | None, trained: Mapping[str, Tensor]) -> torch.optim.Optimizer | None:
    """An optimizer that has made a step already, so that its state is there."""
    if optimizer is None:
        return None
    made = optimizer(list(trained.values()))
    for tensor in trained.values():
        tensor.grad = torch.empty_like(tensor, requires_grad=False)
    with meta_kernels.Remembering():
        made.step()
    made.zero_grad(set_to_none=True)
    return made


def _state_bytes(state: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))


class Marks(Generic[T]):
    """Who was running when a node of the autograd graph was made, by the sequence numbers of nodes."""

    def __init__(self, outside: T) -> None:
        self.numbers, self.owners = [0], [outside]

    def add(self, owner: T) -> None:
        """From here on nodes are this owner's."""
        self.numbers.append(torch._C._autograd._get_sequence_nr())
        self.owners.append(owner)

    def owner(self, node: Any) -> T:
        return self.owners[bisect_right(self.numbers, node._sequence_nr()) - 1]


class StepRecorder(TorchDispatchMode):
    """Files operators and storages under the call of a module that runs, or whose node of the graph runs."""

    def __init__(self, model: nn.Module, owners: Mapping[int, str], known: Iterable[Any]) -> None:
        super().__init__()
        self.model = model
        self.paths = {module: path for path, module in model.named_modules()}
        self.owners = owners  # id of a parameter -> path of the module that has it
        self.outside = StepCall(LOSS, nn.Module(), None, (), {})
        self.calls = [self.outside]
        self.first_calls: dict[str, StepCall] = {}  # by path
        self.running = [self.outside]
        self.again: StepCall | None = None  # whose function a checkpoint runs again
        self.marks = Marks(self.outside)
        self.events: list[int] = []
        self.storages: list[Storage] = []
        self.known: set[int] = set()  # storages that are there before the step
        self.know(known)
        self.alive: dict[int, tuple[Storage, Any]] = {}
        self.ends: dict[str, int] = {}
        self.blind = False

    def know(self, values: Iterable[Any]) -> None:
        self.known |= {_storage_key(value) for value in values if isinstance(value, Tensor)}

    def end(self, phase: str) -> None:
        self.ends[phase] = len(self.events)

    def step(self, gradients: dict[str, int], states: dict[str, int], arguments: Any) -> Step:
        tensors = {_storage_key(leaf): leaf.nbytes for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
        sums = sum(tensors.values())
        return Step(self.model, self.calls, self.storages, self.events, self.ends, sums, states, gradients)

    # whose work it is

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow the calls of modules, those that an exception ends too, and what autograd saves."""
        handles = [module.register_forward_pre_hook(self._enter, with_kwargs=True) for module in self.paths]
        handles += [module.register_forward_hook(self._leave, always_call=True) for module in self.paths]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda packed: packed):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if FORWARD in self.ends:  # a checkpoint runs it again, called by the module that ran it first
            call = self._first_call(self.paths[module])
            if len(self.running) == 1:
                self.again = call.parent
        else:
            call = StepCall(self.paths[module], module, self.running[-1], args, kwargs)
            call.input_needs_grad = any(_needs_grad(leaf) for leaf in tree_leaves((args, dict(kwargs))))
            self.calls.append(call)
            self.first_calls.setdefault(call.path, call)
        self.running.append(call)
        self.marks.add(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        while self.running[-1].module is not module:
            self.running.pop()
        call = self.running.pop()
        if FORWARD not in self.ends:
            with self.unseen():  # stand-ins, for a tensor that is kept here would never die
                call.args, call.kwargs, call.output = map(to_meta, (call.args, dict(call.kwargs), output))
        self.marks.add(self.running[-1])

    def _owner(self) -> StepCall:
        if len(self.running) > 1 or FORWARD not in self.ends:
            return self.running[-1]
        if torch.is_grad_enabled() and self.again is not None:
            return self.again
        node = torch._C._current_autograd_node()
        if node is None:
            return self.outside
        if hasattr(node, "variable"):  # a gradient arrives at a parameter
            return self._first_call(self.owners.get(id(node.variable), LOSS))
        call = self.marks.owner(node)
        call.reached = True
        return call

    def _first_call(self, path: str) -> StepCall:
        return self.first_calls.get(path, self.outside)

    def _phase(self) -> str:
        if FORWARD not in self.ends:
            return FORWARD
        if BACKWARD in self.ends:
            return UPDATE
        return RECOMPUTED if torch.is_grad_enabled() else BACKWARD

    # what it does

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = meta_kernels.run(operator, args, kwargs or {})
        if self.blind or meta_kernels.is_view(operator):
            return out
        call, phase = self._owner(), self._phase()
        if phase != UPDATE:
            macs = step_macs(operator, args, out)
            if macs is None:
                call.unknown[str(operator.overloadpacket)] += 1
            else:
                self.credit(call, phase, *macs)
            touched = {_storage_key(t): _touched(t) for t in (*_tensors(args), *_tensors(kwargs or ()), *_tensors(out))}
            call.bytes_by[phase] += sum(touched.values())
        for tensor in _tensors(out):
            if tensor.is_meta:
                self._see(tensor, call.path)
        return out

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Operators of our own."""
        self.blind = True
        try:
            yield
        finally:
            self.blind = False

    def credit(self, call: StepCall, phase: str, macs: int, again: int = 0) -> None:
        call.macs_by[phase] += macs
        call.macs_by[RECOMPUTED] += again
        if phase == FORWARD:
            call.macs += macs

    # what it holds

    def _see(self, tensor: Tensor, path: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in self.alive:
            return
        record = Storage(storage.nbytes(), path, len(self.events))
        self.storages.append(record)
        self.events.append(record.bytes)
        self.alive[key] = record, ref(storage, lambda _: self._gone(key))

    def _gone(self, key: int) -> None:
        record, _ = self.alive.pop(key)
        record.died = len(self.events)
        self.events.append(-record.bytes)

    def _save(self, tensor: Tensor) -> Tensor:
        record, _ = self.alive.get(_storage_key(tensor), (None, None))
        if record is not None and not record.saved and FORWARD not in self.ends:
            record.saved, record.path = True, self.running[-1].path
        return tensor.detach()  # the tensor itself would hold the node that saves it


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what an operator takes or gives: a tensor, or flat lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _touched(tensor: Tensor) -> int:
    """Bytes of the elements that a tensor shows, each once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in sizes if stride)


def _needs_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class FusedAttention(TorchFunctionMode):
    """On meta, scaled dot-product attention by the kernel that a CPU would take; the meta device has only the plain."""

    def __init__(self, recorder: StepRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.plain = F.scaled_dot_product_attention

    def __enter__(self) -> "FusedAttention":
        # torch calls no mode for what its own attention layer calls
        self.patch = mock.patch.object(F, "scaled_dot_product_attention", self._attend)
        self.patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.stop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = self._attend if function is self.plain else function
        return chosen(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        with self.recorder.unseen():
            tokens = (_as_on_cpu(query), _as_on_cpu(key), _as_on_cpu(value))
            mask = None if attn_mask is None else _as_on_cpu(attn_mask)
            fused = torch._fused_sdp_choice(*tokens, mask, dropout_p, is_causal, **options) == FUSED
        if not fused:
            with torch._C.DisableTorchFunction():
                return self.plain(query, key, value, attn_mask, dropout_p, is_causal, **options)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
        scale = options.get("scale")
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]


def _as_on_cpu(tensor: Tensor) -> Tensor:
    """A CPU tensor of the same shape that takes no memory."""
    row = tensor.shape[-1] if tensor.dim() and tensor.stride(-1) == 1 else 1
    last = torch.empty(row, dtype=tensor.dtype, device="cpu", requires_grad=tensor.requires_grad)
    return last.expand(tensor.shape)
