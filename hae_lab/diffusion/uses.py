"""What a trained model uses: parts of its hybrid blocks are exchanged or silenced, and it is left as it was.

If the held-out loss does not change, the model does not use the part. If it grows, this model has come to rely on it;
what a model that was trained without the part would reach is another question.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from hae_lab.checks import require, require_name
from hae_lab.diffusion.quality import image_losses
from hae_lab.diffusion.training import Recipe
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models import MSTB, HAEUNet, HybridBlock, redraw_masks
from hae_lab.rules import made_mask


@contextmanager
def tokens_swapped(model: nn.Module) -> Iterator[None]:
    """Regional tokens are those of the next image of the batch; pixels keep their own."""

    def swapped(block: MSTB) -> Callable[..., Tensor]:
        own = block.tokens

        def tokens(x: Tensor, scales: tuple[int, ...] | None = None) -> Tensor:
            require(len(x) > 1, "tokens are swapped between images: take batches of at least 2")
            pixels, regions = own(x, scales).tensor_split([x[0, 0].numel()], dim=1)  # (B, HW, C), (B, n - HW, C)
            return torch.cat([pixels, regions.roll(1, 0)], 1)

        return tokens

    with _replaced(_parts(model, MSTB), "tokens", swapped):
        yield


@contextmanager
def mask_redrawn(model: nn.Module) -> Iterator[None]:
    """Masks are drawn from another seed; those of the document are at every call."""
    blocks = _parts(model, MSTB)
    seeds = [block.mask_seed for block in blocks]
    try:
        for block, seed in zip(blocks, seeds, strict=True):
            redraw_masks(block, seed + 1)
        yield
    finally:
        for block, seed in zip(blocks, seeds, strict=True):
            redraw_masks(block, seed)


@contextmanager
def itself_only(model: nn.Module) -> Iterator[None]:
    """Every pixel sees itself and no other token."""

    def own_mask(block: MSTB) -> Callable[[int, int], tuple[SparseMask, tuple[int, ...]]]:
        def mask(height: int, width: int) -> tuple[SparseMask, tuple[int, ...]]:
            grid = block.grid(height, width)
            return made_mask(itself, grid, 0.0, 0), grid.scales

        return mask

    with _replaced(_parts(model, MSTB), "_mask", own_mask):
        yield


def itself(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """The mask of tokens that see themselves alone."""
    own = np.arange(grid.n, dtype=np.int32)[None]
    return SparseMask(grid, own, own + 1, np.empty((1, grid.n, 0), np.int32))


@contextmanager
def transformer_silenced(model: nn.Module) -> Iterator[None]:
    """The Transformer branch hands its input on."""
    with _replaced(_parts(model, MSTB), "forward", lambda block: lambda x: x):
        yield


@contextmanager
def cnn_silenced(model: nn.Module) -> Iterator[None]:
    """The CNN branch is zero everywhere."""
    branches = [block.conv_branch for block in _parts(model, HybridBlock) if "conv_branch" in block.branches]
    with _replaced(branches, "forward", lambda branch: torch.zeros_like):
        yield


Change = Callable[[nn.Module], AbstractContextManager[None]]
CHANGES: dict[str, Change] = {
    change.__name__: change
    for change in (tokens_swapped, mask_redrawn, itself_only, transformer_silenced, cnn_silenced)
}


def uses(
    model: HAEUNet,
    dataset: Dataset,
    recipe: Recipe | None = None,
    *,
    changes: tuple[str, ...] = tuple(CHANGES),
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """How the loss on held-out images grows with each change, a row each, on the same timesteps and noise.

    Columns: change, n_images, loss, changed_loss, and percent with percent_low and percent_high, the 95 % interval over
    images of the ratio of the two losses (delta method). Raises `HAELabError` for an unknown change.
    """
    for change in changes:
        require_name("change", change, CHANGES)
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    before = image_losses(model, dataset, recipe, **options).numpy()
    rows = []
    for change in changes:
        with CHANGES[change](model):
            after = image_losses(model, dataset, recipe, **options).numpy()
        rows.append({"change": change, "n_images": len(before)} | growth(before, after))
    return pd.DataFrame(rows)


def growth(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Mean losses of the same images (N,), N above 1, before and after, and the growth in percent with its interval."""
    from scipy.stats import t

    ratio = after.mean() / before.mean()
    error = (after - ratio * before).std(ddof=1) / before.mean() / len(before) ** 0.5
    half = t.ppf(0.975, len(before) - 1) * error
    percent = {"percent": ratio - 1, "percent_low": ratio - half - 1, "percent_high": ratio + half - 1}
    losses = {"loss": before.mean(), "changed_loss": after.mean()}
    return {name: float(value) for name, value in (losses | {name: 100 * x for name, x in percent.items()}).items()}


def _parts(model: nn.Module, kind: type[Any]) -> list[Any]:
    """The parts of a kind. Raises `HAELabError` for a model without any and for a frozen one."""
    found = [module for module in model.modules() if isinstance(module, kind)]
    require(bool(found), f"this model has no {kind.__name__}, so nothing can be taken from one")
    frozen = any(getattr(module, "frozen", None) is not None for module in model.modules())
    require(not frozen, "a frozen model cannot be changed: take the one that was frozen")
    return found


@contextmanager
def _replaced(parts: list[Any], name: str, make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Each part with a method of its own."""
    before = [vars(part).get(name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, make(part))
        yield
    finally:
        for part, earlier in zip(parts, before, strict=True):
            if earlier is None:
                vars(part).pop(name, None)
            else:
                setattr(part, name, earlier)
