"""Pictures of masks: who sees whom under each rule, and what one query sees. Views come from `explorer`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle

from hae_lab.plots.base import PALETTE, Chart, chart, legend_outside, new_chart, say, say_list

View = dict[str, Any]  # `MaskExplorerModel.view()`

SEEN, REACHED, HIDDEN, QUERY = PALETTE[9], "#f0e05a", "#dedede", PALETTE[3]
LEGEND = {SEEN: "a key it sees", REACHED: "in a patch whose token it sees", QUERY: "the query and its patches"}
MATRIX_SHADES = LinearSegmentedColormap.from_list("seen", ["white", SEEN, "#0b2e45"])
TALL = (10.0, 7.5)  # still 4:3
TINT = 0.62, 0.35  # share of the colour where an image lies beneath it: of marked tokens, of hidden ones
BLACK = 0.3  # an image's black is drawn as this grey, so that the tint stays visible


def token_colours(view: View, image: np.ndarray | None = None) -> dict[int, np.ndarray]:
    """Colour of every token: patch size -> (rows, columns, 3) uint8; an image in [-1, 1] shines through."""
    seen, reached, hidden = (np.array(to_rgb(colour)) for colour in (SEEN, REACHED, HIDDEN))
    height, width = view["visible"][1].shape
    colours = {}
    for p, visible in view["visible"].items():
        carried = view["reached"] if p == 1 else np.zeros_like(visible)
        flat = np.where(visible[..., None], seen, np.where(carried[..., None], reached, hidden))
        if image is not None:
            grey = (1 + np.clip(resample(image, height // p, width // p), -1, 1)) / 2
            share = np.where(visible | carried, TINT[0], TINT[1])[..., None]
            flat = share * flat + (1 - share) * (BLACK + (1 - BLACK) * grey[..., None])
        colours[p] = (255 * flat).round().astype(np.uint8)
    return colours


def resample(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """An image at another size: the mean of what falls into each cell, or the nearest pixel where nothing does."""
    for axis, count in ((0, rows), (1, columns)):
        size = image.shape[axis]
        edges = np.arange(count) * size // count
        widths = np.maximum(np.diff(np.append(edges, size)), 1)
        image = np.add.reduceat(image, edges, axis=axis) / np.expand_dims(widths, 1 - axis)
    return image


def place_name(place: tuple[int, int, int]) -> str:
    """A token in words: "pixel (5, 7)" or "4 × 4 token (1, 2)"."""
    patch_size, row, column = place
    return f"{grid_name(patch_size)} ({row}, {column})"


def grid_name(patch_size: int) -> str:
    return say("pixel") if patch_size == 1 else say("{size} × {size} token", size=patch_size)


def grid_names(patch_size: int) -> str:
    return say("pixels") if patch_size == 1 else say("{size} × {size} tokens", size=patch_size)


def grid_caption(view: View, patch_size: int) -> str:
    """How many tokens of a scale the query sees."""
    seen, count = view["keys_seen_of_scale"][patch_size], view["keys_of_scale"][patch_size]
    return say("{names}: {seen:,} of {all:,}", names=grid_names(patch_size), seen=seen, all=count)


def query_marks(view: View) -> list[dict[str, Any]]:
    """Rectangles, in cells of a grid, that show the query and the patches which hold it; drawn in this order.

    Each has grid (0 is the pixels), row, column, size and query (True for the query itself).
    """
    patch_size, row, column = view["place"]
    marks = []
    for index, p in enumerate(view["visible"]):
        _, own_row, own_column = view["own"][p]
        if p > 1 and patch_size == 1:  # the patch on the image
            marks.append({"grid": 0, "row": p * own_row, "column": p * own_column, "size": p, "query": False})
        if p == 1 and patch_size > 1:  # likewise for a regional query
            mark = {"row": patch_size * row, "column": patch_size * column, "size": patch_size}
        else:
            mark = {"row": own_row, "column": own_column, "size": 1}
        marks.append({"grid": index, **mark, "query": p == patch_size})
    return sorted(marks, key=lambda mark: mark["query"])


def _tokens(ax: Axes, view: View, index: int, colours: np.ndarray, line: float = 2.0) -> None:
    """One scale's grid, with the query and the patches that hold it."""
    rows, columns = colours.shape[:2]
    ax.imshow(colours, interpolation="nearest")
    ax.set(xticks=np.arange(columns + 1) - 0.5, yticks=np.arange(rows + 1) - 0.5, xticklabels=[], yticklabels=[])
    ax.tick_params(length=0)
    ax.grid(visible=max(rows, columns) <= 32, color="white", linewidth=0.4 if columns > 16 else 0.8)
    for mark in query_marks(view):
        if mark["grid"] == index:
            corner, size = (mark["column"] - 0.5, mark["row"] - 0.5), mark["size"]
            shape = {"width": size, "height": size, "zorder": 3}
            ax.add_patch(Rectangle(corner, **shape, fill=False, edgecolor="white", linewidth=2 * line))
            ax.add_patch(Rectangle(corner, **shape, fill=mark["query"], color=QUERY, linewidth=line))


def _matrix(ax: Axes, cells: np.ndarray) -> None:
    ax.imshow(cells, cmap=MATRIX_SHADES, vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)


def _legend(figure: Chart, **options: Any) -> None:
    handles = [Patch(facecolor=colour, label=text) for colour, text in LEGEND.items()]
    options |= {"ncols": 3, "handlelength": 1, "handleheight": 1, "title_fontsize": 13}
    legend_outside(figure, None, "lower center", handles=handles, **options)


@chart
def visible_keys(view: View, image: np.ndarray | None = None) -> Chart:
    """What one query sees: its keys on the image and on each regional grid, and the numbers.

    A view of `MaskExplorerModel.view`; an image in [-1, 1] is drawn beneath.
    """
    figure = new_chart(
        say(
            "Under the rule {rule}, {place} sees {seen:,} of {all:,} tokens: {own}",
            rule=view["rule"], place=place_name(view["place"]), seen=view["keys_seen"], all=view["keys"],
            own=own_tokens(view),
        )
    )  # fmt: skip
    colours = token_colours(view, image)
    slots = max(2, len(colours) - 1)
    grid = figure.add_gridspec(slots, 2, width_ratios=[slots, 1])
    places = [grid[:, 0], *(grid[slot, 1] for slot in range(len(colours) - 1))]
    for index, (place, (p, tokens)) in enumerate(zip(places, colours.items(), strict=True)):
        ax = figure.add_subplot(place)
        _tokens(ax, view, index, tokens)
        ax.set_title(grid_caption(view, p))
    _legend(figure, title=numbers_text(view))
    return figure


def own_tokens(view: View) -> str:
    """In words, which of the tokens of its own patches the query sees."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for p, seen in view["own_seen"].items():
        names[seen].append(f"{p} × {p}")
    shown, hidden = names[True], names[False]
    if not view["own_seen"]:
        return say("this map has no regional tokens")
    if not shown:
        text = "not its own {sizes} token" if len(hidden) == 1 else "neither its own {sizes} token"
        return say(text, sizes=say(" nor ").join(hidden))
    seen = say("its own {sizes} token", sizes=say(" and ").join(shown))
    return seen + (say(", not its own {sizes} token", sizes=say(" or ").join(hidden)) if hidden else "")


def numbers_text(view: View) -> str:
    """The numbers of a view on two lines."""
    return say(
        "It sees {near:.0f} % of the 7 × 7 pixels around it; the mask keeps {density:.1f} % of all pairs.\n"
        "Attention reaches {once:.1f} % of the pixels in 1 block, {twice:.1f} % in 2.",
        near=view["neighbourhood_percent"], density=view["density_percent"],
        once=view["reach_1_percent"], twice=view["reach_2_percent"],
    )  # fmt: skip


@chart
def mask_rules(views: Sequence[View], matrices: Sequence[np.ndarray], image: np.ndarray | None = None) -> Chart:
    """Every rule in a row: its matrix, and what one query sees on the image and on each regional grid.

    `MaskExplorerModel.view` and `.matrix` of each rule, for the same query.
    """
    hidden = [view["rule"] for view in views if not all(view["own_seen"].values())]
    title = say(
        "{place} sees the tokens of its own patches under {seen} of {all} rules",
        place=place_name(views[0]["place"]).capitalize(), seen=len(views) - len(hidden), all=len(views),
    )  # fmt: skip
    not_so = say(", not under {rules}", rules=say_list(hidden)) if hidden else ""
    figure = new_chart(title + not_so, TALL, least=TALL[0])
    scales = list(views[0]["visible"])
    axes = figure.subplots(len(views), 2 + len(scales), squeeze=False, width_ratios=[2] + [1] * (1 + len(scales)))
    for row, view, cells in zip(axes, views, matrices, strict=True):
        _rule_text(row[0], view)
        _matrix(row[1], cells)
        for index, (ax, tokens) in enumerate(zip(row[2:], token_colours(view, image).values(), strict=True)):
            _tokens(ax, view, index, tokens, line=1.2)
    for ax, name in zip(axes[0, 1:], ["the mask", *map(grid_names, scales)], strict=True):
        ax.set_title(name)
    axes[-1, 1].set(xlabel="keys →", ylabel="← queries")
    _legend(figure)
    return figure


def _rule_text(ax: Axes, view: View) -> None:
    lines = (
        say("sees {seen:,} of {all:,} tokens", seen=view["keys_seen"], all=view["keys"]),
        say("reaches {percent:.0f} % of the pixels", percent=view["reach_1_percent"]),
        say("density of the mask {percent:.1f} %", percent=view["density_percent"]),
    )
    ax.axis("off")
    ax.text(0, 1, view["rule"], va="top", fontweight="bold", fontsize=15, transform=ax.transAxes)
    ax.text(0, 0.72, "\n".join(lines), va="top", fontsize=12.5, transform=ax.transAxes)
