"""Plans: what a kernel works out of a mask before it sees a number, as tensors that are real whatever traces."""

import copy
from collections.abc import Callable
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor, nn

from hae_lab.masks import SparseMask, in_own_thread

PLANS = 16  # that are kept


class Plan(nn.Module):
    """Tensors as buffers that no state dict holds: they move, and are copied, with the layer that owns them."""

    def __init__(self, **tensors: Tensor | None) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)


MakePlan = Callable[[SparseMask, int, torch.device], nn.Module]  # of a mask, a number of heads and a device


@lru_cache(maxsize=PLANS)
def plan_of(make: MakePlan, mask: SparseMask, heads: int, device: torch.device) -> nn.Module:
    """The plan, made once, in a thread that no tracer has entered."""
    return in_own_thread(make, mask, heads, device)


def plan_beside(tensor: Tensor, make: MakePlan, mask: SparseMask, heads: int) -> nn.Module:
    """The plan for work with a tensor: on its device, and a fake copy if it is fake and bears no real ones."""
    plan = plan_of(make, mask, heads, tensor.device)
    mode = getattr(tensor, "fake_mode", None)
    return plan if mode is None or mode.allow_non_fake_inputs else copy_with(plan, mode.from_tensor)


def copy_with(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a module with other parameters and buffers."""
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(tensor): replace(tensor) for tensor in tensors})
