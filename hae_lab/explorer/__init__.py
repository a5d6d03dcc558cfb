"""The mask explorer: choose a rule and a token, see which keys the token may see. A class, and widgets around it."""

from typing import TYPE_CHECKING, Any

from hae_lab.explorer.model import MaskExplorerModel

if TYPE_CHECKING:
    from hae_lab.explorer.widgets import MaskExplorer

__all__ = ["MaskExplorerModel", "explore"]


def explore(**options: Any) -> "MaskExplorer":
    """The explorer as a widget for JupyterLab: sliders, three grids to click on, and the numbers of the chosen query.

    Takes the options of `MaskExplorerModel` (rule, side, sparsity, seed, query, patch_sizes, attention), and `image`, a
    2-D array in [-1, 1] that is drawn beneath the grids. With `attention=block_attention(model, inputs, path)`, of
    `hae_lab.profilers.attention_maps`, a further list chooses a head, whose weights are drawn on the image.
    Raises `HAELabError` for values that no mask could have.
    """
    from hae_lab.explorer.widgets import MaskExplorer  # ipywidgets and anywidget load here

    return MaskExplorer(**options)
