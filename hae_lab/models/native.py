"""Attention kernel `native`: the whole of a sparse softmax in one pass of compiled C++, for those who ask for it.

`HAE_LAB_NATIVE=1` in the environment asks for it. Then it takes the place of `blocks` and `columns` on a CPU, in single
precision and without dropout, where heads have 8 to 128 channels. All else runs torch's kernels: traced, exported,
compiled and frozen models, and everything where no C++ compiler is found. The source is compiled once a process and
width of heads, in about two seconds. Outputs equal those of the other kernels up to rounding.
"""

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from hae_lab.checks import HAELabError, require
from hae_lab.masks import PAD, SparseMask
from hae_lab.models.column_operator import one_by_one
from hae_lab.models.kernels import merge_heads, split_heads
from hae_lab.models.plans import Plan, plan_of

ASKED = "HAE_LAB_NATIVE"
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILERS = ("g++", "clang++")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
LANES, BLOCK = 16, 32  # numbers of a vector and queries of a block, as in the source
NARROWEST, WIDEST = 8, 128  # channels of a head; those of the lessons are narrower, so their numbers never change
OWN_COST = 2.5  # time of a key that a query reads alone beside one that a block reads together, measured at n = 4416


class NativePlan(Plan):
    """The keys that each block of 32 queries reads together, and those that each query reads alone; int32 and int8."""

    keys: Tensor  # (K,) places in `mask.span`, one block after another
    begins: Tensor  # (blocks + 1,) where those of each block begin
    hidden: Tensor  # (K, 32) int8, -1 for what a query of the block may not see
    columns: Tensor  # (n_local, r) keys of a query's own, -1 for none; r is a multiple of 16


def native(q: Tensor, kv: Tensor, plans: nn.ModuleList, heads: int, dropout: float = 0.0) -> Tensor:
    """Blocks of queries and single columns under one softmax, compiled; see the head of this file."""
    require(not dropout, "attention kernel 'native' has no dropout: take another one, or dropout 0")
    require(q.dtype != torch.float64, "attention kernel 'native' computes in single precision: take another one")
    qs = q.chunk(len(plans), dim=-1)  # (B, n_local, C/G)
    kvs = kv.unflatten(-1, (2, len(plans), -1)).unbind(3)  # (B, m, 2, C/G)
    parts = [_run_plan(*group, heads // len(plans)) for group in zip(qs, kvs, plans, strict=True)]
    return torch.cat(parts, dim=-1)


def native_pairs(mask: SparseMask, heads: int) -> int:
    plans = plan_of(native_plans, mask, heads, torch.device("cpu"))
    return heads // mask.groups * sum(plan.hidden.numel() + plan.columns.numel() for plan in plans)


def runs_natively(q: Tensor, heads: int, dropout: float) -> bool:
    """Whether `native` is asked for, and fits queries (B, n_local, C) that a layer is about to attend with."""
    if os.environ.get(ASKED) != "1" or dropout:
        return False
    width = q.shape[-1] // heads
    plain = type(q) is Tensor and q.device.type == "cpu" and q.dtype == torch.float32  # no tracer's tensor
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return plain and not traced and NARROWEST <= width <= WIDEST and _is_there(width + -width % LANES)


def _run_plan(q: Tensor, kv: Tensor, plan: NativePlan, heads: int) -> Tensor:
    """(B, n_local, C), (B, m, 2, C) -> (B, n_local, C)."""
    width = q.shape[-1] // heads
    inputs = [split_heads(x, heads).flatten(0, 1).float() for x in (q / math.sqrt(width), *kv.unbind(2))]
    inputs = [F.pad(x, (0, -width % LANES)).contiguous() for x in inputs]  # (B heads, ., d)
    attended = attend(*inputs, plan.keys, plan.begins, plan.hidden, plan.columns)[..., :width]
    return merge_heads(attended.unflatten(0, (q.shape[0], heads))).to(q.dtype)


# The plan


def native_plans(mask: SparseMask, heads: int, device: torch.device) -> nn.ModuleList:
    """The plan of each head group."""
    return nn.ModuleList(_plan(mask, group) for group in range(mask.groups)).to(device)


def _plan(mask: SparseMask, group: int) -> NativePlan:
    """Extra columns are read by the block or by each query alone, whichever takes less time."""
    first, m = mask.span[0], mask.grid.n_local
    blocks = np.split(np.arange(m), range(BLOCK, m, BLOCK))
    together, own = mask, np.full((m, 0), PAD)
    without = replace(mask, extra=np.empty((1, len(mask.extra[0]), 0), np.int32))
    extra = mask.new_columns(np.arange(m), group)
    if OWN_COST * extra.size < BLOCK * (_reads(mask, blocks, group) - _reads(without, blocks, group)):
        together, own = without, np.pad(extra, ((0, 0), (0, -extra.shape[1] % LANES)), constant_values=PAD)
    keys, hidden = [], []
    for queries in blocks:
        keys.append(np.flatnonzero(together.seen(queries, group)))
        hides = ~together.allowed(queries, group, keys[-1])
        hidden.append(np.pad(hides, ((0, BLOCK - len(queries)), (0, 0)), constant_values=True).T)
    arrays = {
        "keys": np.concatenate(keys) - first, "begins": np.cumsum([0, *map(len, keys)]),
        "columns": np.where(own == PAD, -1, own - first),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(array.astype(np.int32)) for name, array in arrays.items()}
    return NativePlan(**tensors, hidden=torch.from_numpy(-np.concatenate(hidden).astype(np.int8)))


def _reads(mask: SparseMask, blocks: list[np.ndarray], group: int) -> int:
    return sum(int(mask.seen(queries, group).sum()) for queries in blocks)


# The operator

PLAN = "Tensor keys, Tensor begins, Tensor hidden, Tensor columns"
SCHEMA = f"(Tensor q, Tensor k, Tensor v, {PLAN}) -> Tensor"
BACKWARD = f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, {PLAN}) -> (Tensor, Tensor, Tensor)"


@torch.library.custom_op("hae_lab::native", mutates_args=(), schema=SCHEMA)
def attend(q, k, v, keys, begins, hidden, columns):
    """Scaled queries (N, m, d), keys and values (N, n, d), d a multiple of 16 -> (N, m, d)."""
    out = torch.empty_like(q)
    _call("hae_forward", (keys, begins, hidden, columns), q, k, v, out)
    return out


@torch.library.custom_op("hae_lab::native_backward", mutates_args=(), schema=BACKWARD)
def attend_backward(grad, q, k, v, out, keys, begins, hidden, columns):
    """The gradients of queries, keys and values; the weights are computed anew."""
    grads = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    _call("hae_backward", (keys, begins, hidden, columns), grad.contiguous(), q, k, v, out, *grads)
    return grads


@attend.register_fake
def _(q, *rest):
    return torch.empty_like(q)


@attend_backward.register_fake
def _(grad, q, k, v, *rest):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], output)
    ctx.plan = inputs[3:]  # lives as long as the mask: no memory of this step


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*attend_backward(grad, *ctx.saved_tensors, *ctx.plan), None, None, None, None)


attend.register_autograd(_backward, setup_context=_keep)
if hasattr(attend, "register_vmap"):  # torch 2.4 has none
    attend.register_vmap(one_by_one(attend))
    attend_backward.register_vmap(one_by_one(attend_backward))


@register_flop_formula(torch.ops.hae_lab.native)
def _flops(q: torch.Size, k: Any, v: Any, keys: Any, begins: Any, hidden: Any, columns: Any, **_: Any) -> int:
    """Two products over all pairs, scores and values, 2 FLOPs each."""
    return 2 * 2 * q[0] * q[2] * (math.prod(hidden) + math.prod(columns))


@register_flop_formula(torch.ops.hae_lab.native_backward)
def _backward_flops(grad: Any, q: torch.Size, k: Any, v: Any, out: Any, keys: Any, begins: Any, *pairs: Any, **_: Any):
    """Five products over all pairs: the scores, made anew, and the gradients of weights, queries, keys and values."""
    return 2 * 5 * q[0] * q[2] * sum(map(math.prod, pairs))


# The library


class _Plan(ctypes.Structure):
    """`Plan` of the source."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("m", "n", "r", "blocks")),
        *((name, ctypes.c_void_p) for name in ("begins", "keys", "hidden", "columns")),
    ]  # fmt: skip


@lru_cache
def library(width: int) -> ctypes.CDLL:
    """The compiled source for heads of so many channels. Raises `HAELabError` if no compiler makes it."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    require(
        compiler is not None, f"attention kernel 'native' needs a C++ compiler: none of {', '.join(COMPILERS)} is here"
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "native.so"
        command = [compiler, *OPTIONS, f"-DWIDTH={width // LANES}", "-o", str(made), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        require(done.returncode == 0, f"{compiler} cannot compile attention kernel 'native': {done.stderr[:500]}")
        return ctypes.CDLL(str(made))


@lru_cache
def _is_there(width: int) -> bool:
    try:
        library(width)
    except HAELabError as error:
        warnings.warn(f"{ASKED} is set, but {error}; torch's kernels run instead", stacklevel=2)
        return False
    return True


def _call(name: str, plan: tuple[Tensor, ...], *tensors: Tensor) -> None:
    """Run a function of the library on shares of the heads, as many as torch has threads."""
    keys, begins, hidden, columns = (x.contiguous() for x in plan)
    (count, _, width), n = tensors[-1].shape, tensors[-2].shape[1]
    function = getattr(library(width), name)
    numbers = (columns.shape[0], n, columns.shape[1], len(begins) - 1)
    shape = _Plan(*numbers, *(x.data_ptr() for x in (begins, keys, hidden, columns)))

    def run(some: tuple[Tensor, ...]) -> None:
        function(len(some[0]), shape, *(ctypes.c_void_p(x.data_ptr()) for x in some))

    shares = list(zip(*(x.tensor_split(min(torch.get_num_threads(), count)) for x in tensors), strict=True))
    _in_threads(run, shares)


def _in_threads(run: Callable[[tuple[Tensor, ...]], None], shares: list[tuple[Tensor, ...]]) -> None:
    if len(shares) == 1:
        run(shares[0])
        return
    with ThreadPoolExecutor(len(shares)) as threads:
        list(threads.map(run, shares))
