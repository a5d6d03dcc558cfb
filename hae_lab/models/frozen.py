"""A model as one plain program: what depends on the config alone is worked out beforehand, then it can be compiled."""

from hae_lab.checks import require
from hae_lab.models.hybrid import MSTB
from hae_lab.models.plans import copy_with
from hae_lab.models.unet import HAEUNet


def freeze(model: HAEUNet) -> HAEUNet:
    """A copy of a model for `torch.compile` and `torch.export`: one graph, batches of any size, the same outputs.

        fast = torch.compile(hae_lab.freeze(model), fullgraph=True, dynamic=True)

    Masks and plans become buffers that no state dict holds, for the maps of the config's image size; kernels are chosen
    for good; inputs are no longer checked. The copy shares its parameters with the model, as a compiled model does:
    training one trains the other. Move the copy itself to another device, for its buffers are its own.
    Raises `HAELabError` for anything but a model of this family.
    """
    require(isinstance(model, HAEUNet), f"freeze takes a model that hae_lab.build makes, got a {type(model).__name__}")
    frozen = copy_with(model, lambda tensor: tensor)
    frozen.checks_inputs = False
    blocks = [module for module in frozen.modules() if isinstance(module, MSTB)]  # in the order of the forward pass
    levels = model.config.hybrid_levels if blocks else ()  # a hybrid block may have no Transformer
    for block, level in zip(blocks, levels, strict=True):
        size = model.config.sizes[level]
        block.freeze(size, size)
    return frozen
