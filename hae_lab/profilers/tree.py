"""The module tree of a model with shapes and parameter counts, by torchinfo on the meta device."""

import torch
import torchinfo

from hae_lab.family import HAEConfig
from hae_lab.models import build
from hae_lab.profilers.inputs import step_inputs


def module_tree(config: HAEConfig, depth: int = 5) -> str:
    """The tree as text, down to `depth` levels, for one image.

    Multiply-adds are left out: torchinfo misses attention and counts a Linear once, whatever the number of tokens.
    """
    with torch.device("meta"):
        model = build(config).eval()
    statistics = torchinfo.summary(
        model,
        input_data=list(step_inputs(config, labels=True)),
        depth=depth,
        device="meta",
        verbose=0,
        col_names=("input_size", "output_size", "num_params"),
        row_settings=("var_names",),
    )
    lines = str(statistics).split("\n")
    return "\n".join(line for line in lines if "mult-adds" not in line)
