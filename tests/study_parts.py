"""Parts as users write them in a file: a mask rule, a slot's part, data, metrics, a trial."""

import numpy as np
import torch
from torch import nn

from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.experiment import run
from hae_lab.masks import SparseMask

WIDTH = 5
SCALE = np.array([1.0, 0.5])
GATE = torch.tensor([0.25])


def diagonal(grid, sparsity, seed):
    """Every query sees `WIDTH` keys around its own."""
    row = np.arange(grid.n, dtype=np.int32)[None]
    start, stop = np.maximum(0, row - WIDTH // 2), np.minimum(grid.n, row + WIDTH // 2 + 1)
    return SparseMask(grid, start, stop, np.empty((1, grid.n, 0), np.int32), kernel="masked")


class GatedFusion(nn.Module):
    """The transformed map, and a share of the convolved one."""

    def __init__(self, channels, cnn_branch=True):
        super().__init__()
        self.gate = nn.Parameter(GATE.item() * torch.ones(channels, 1, 1))

    def forward(self, transformed, convolved=None):
        return transformed if convolved is None else transformed + self.gate * convolved


def images(size):
    return phantoms(12, size, seed=3), phantoms(6, size, seed=3, split="held-out")


def sharpness(trained, held_out):
    """Mean step between neighbours in what the model makes of the first held-out image."""
    with torch.no_grad():
        made = trained.model(held_out[0]["image"][None], torch.tensor([0]))
    return float(made.diff(dim=-1).abs().mean() * SCALE[0])


def drawn(trained, held_out):
    return torch.rand(()).item()


def macs(trained, held_out):
    return 1.0


steps = macs


def trial(experiment, folder):
    """The package's run, and the number of images."""
    return run(experiment, folder) | {"n_images": 12}
