"""Pictures of images: data, samples, anomaly maps."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from hae_lab.checks import require
from hae_lab.plots.base import PALETTE, SIZE, Chart, chart, new_chart
from hae_lab.plots.page import TEXT, current_style, wrapped

MASK_COLOUR = PALETTE[1]  # orange: far from every grey, for colour-blind eyes too


@chart
def image_grid(
    images: np.ndarray,
    titles: Sequence[str] | None = None,
    title: str = "",
    *,
    columns: int | None = None,
    row_titles: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
    scale: tuple[float, float] = (-1, 1),
) -> Chart:
    """Rows of images on one shared scale, without axes; tensors on the CPU will do.

    images (N, 1 or 3, H, W) from `scale[0]` (black) to `scale[1]` (white), filled in row by row; `titles` one an image,
    or one a column; `row_titles` one a row; masks (N, 1, H, W) bool are outlined. Raises `HAELabError` otherwise.
    """
    images = np.asarray(images, np.float32)
    is_batch = images.ndim == 4 and len(images) > 0 and images.shape[1] in (1, 3)
    require(is_batch, f"images are (N, 1 or 3, H, W) with N above 0, got {images.shape}")
    count, _, height, width = images.shape
    columns = columns or _columns(count, titles, row_titles)
    rows = math.ceil(count / columns)
    _check_count("titles", titles, {count, columns})
    _check_count("row_titles", row_titles, {rows})
    page_width, page_height = current_style().canvas(SIZE)
    title_lines = 0 if not titles else rows if len(titles) == count else 1
    strip = page_width * rows * height / (columns * width) + 0.3 * title_lines + 0.6  # few rows need no whole page
    figure = new_chart(title, (page_width, min(page_height, strip)))
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    for ax, image in zip(axes.flat, images, strict=False):
        _draw(ax, image, scale)
    for ax, text in zip(axes.flat, titles or (), strict=False):
        ax.set_title(text, fontsize=13)
    for ax, text in zip(axes[:, 0], row_titles or (), strict=False):
        ax.set_ylabel(wrapped(text, 0.8 * figure.get_figheight() / rows, mpl.rcParams["axes.labelsize"], TEXT))
    if masks is not None:
        masks = np.asarray(masks, bool)
        right = (count, 1, height, width)
        require(masks.shape == right, f"masks are one an image, {right}, got {masks.shape}")
        for ax, mask in zip(axes.flat, masks[:, 0], strict=False):
            _outline(ax, mask)
    return figure


def _columns(count: int, titles: Sequence[str] | None, row_titles: Sequence[str] | None) -> int:
    """As the titles say, else so many that square images fill a 4:3 page."""
    if row_titles:
        return math.ceil(count / len(row_titles))
    if titles and len(titles) < count:
        return len(titles)
    return min(count, math.ceil(math.sqrt(4 / 3 * count)))


def _draw(ax: Axes, image: np.ndarray, scale: tuple[float, float]) -> None:
    low, high = scale
    shares = np.clip((image - low) / (high - low), 0, 1)
    colours = np.broadcast_to(shares, (3, *shares.shape[1:])).transpose(1, 2, 0)  # (H, W, 3)
    ax.imshow(colours, interpolation="nearest")


def _check_count(name: str, titles: Sequence[str] | None, right: set[int]) -> None:
    counts = " or ".join(map(str, sorted(right)))
    require(titles is None or len(titles) in right, f"{name}: {counts} of them, got {len(titles or ())}")


def _outline(ax: Axes, mask: np.ndarray) -> None:
    """Draw the pixels' own edges around a mask."""
    padded = np.pad(mask, 1).astype(int)
    for axis, draw in ((0, ax.hlines), (1, ax.vlines)):
        before, after = np.nonzero(np.diff(padded, axis=axis))
        # in the padded picture, the edge after pixel i stands at i + 0.5, which is i - 0.5 in the picture
        edge, start = (before - 0.5, after - 1.5) if axis == 0 else (after - 0.5, before - 1.5)
        draw(edge, start, start + 1, color=MASK_COLOUR, linewidth=2)
