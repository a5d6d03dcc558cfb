"""What the claims on slots try out: small parts with arbitrary weights, an arbitrary map, how far results differ."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import EXPRESSION, Finding
from hae_lab.models.layers import drawn_as, seeded

CHANNELS, SIDE, PATCHES = 16, 8, (4, 8)  # small enough to try things out on
CLOSE = 1e-5  # relative, of two ways of one sum in single precision


@lru_cache(maxsize=1)
def some_map() -> Tensor:
    """An arbitrary map (1, C, H, W): do not change it."""
    return torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=8)
def part(kind: type[nn.Module], *options: object) -> nn.Module:
    """A part of a slot with arbitrary weights, the global random state untouched: do not change it."""
    with seeded(0), drawn_as(kind.__name__):
        return kind(CHANNELS, *options).eval().requires_grad_(False)


def error_of(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((found - expected).norm() / expected.norm())


def in_words(error: float) -> str:
    """An error as it is told: rounding differs from computer to computer, and says nothing."""
    return f"missed by {100 * error:.0f} % of its norm" if error > CLOSE else "equal up to rounding"


def expressed(reading: str, error: float, scope: str) -> Finding:
    """A reading that two ways come to one."""
    return Finding(reading, scope, in_words(error), verdicts.at_most(error, CLOSE), EXPRESSION)
