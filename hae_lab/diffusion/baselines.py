"""What a detector of lesions has to beat: brightness, the place in the head, the mean head, the most similar heads.

Each says how images differ from what it expects, as a restoring model does: (N, C, H, W) -> (1, N, C, H, W), for
`quality.difference_maps`. None has learned more than a look at healthy heads.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hae_lab.checks import require
from hae_lab.diffusion.lesions import inside_head

LEAST_SPREAD = 0.03  # of a pixel over heads, the noise of phantoms: in air there is none
NEIGHBOURS = 5


def brightness(images: Tensor, healthy: Tensor) -> Tensor:
    """It expects mid-grey everywhere."""
    return images[None]


def depth(images: Tensor, healthy: Tensor) -> Tensor:
    """Pixels from the nearest air, without a look at the tissue: lesions lie deep in the head."""
    from scipy.ndimage import distance_transform_edt

    heads = np.pad(inside_head(images)[:, 0].numpy(), ((0, 0), (1, 1), (1, 1)))  # beyond the picture is air
    depths = np.stack([distance_transform_edt(head)[1:-1, 1:-1] for head in heads])
    return torch.from_numpy(depths)[None, :, None].to(images.dtype).expand(1, *images.shape)


def mean_head(images: Tensor, healthy: Tensor) -> Tensor:
    """Standard deviations from the mean of healthy heads, pixel by pixel."""
    return ((images - healthy.mean(0)) / healthy.std(0).clamp_min(LEAST_SPREAD))[None]


def similar_heads(images: Tensor, healthy: Tensor) -> Tensor:
    """It expects the mean of the five healthy heads that are nearest, by the distance of all pixels."""
    require(len(healthy) >= NEIGHBOURS, f"{NEIGHBOURS} healthy images are the least, got {len(healthy)}")
    distances = torch.cdist(images.flatten(1), healthy.flatten(1))  # (N, M)
    nearest = distances.topk(NEIGHBOURS, largest=False).indices  # (N, 5)
    return (images - healthy[nearest].mean(1))[None]


Baseline = Callable[[Tensor, Tensor], Tensor]  # (images, healthy images) -> differences
BASELINES: dict[str, Baseline] = {each.__name__: each for each in (brightness, depth, mean_head, similar_heads)}
