"""Pictures of the models themselves: the U-Net with its blocks, and hybrid blocks side by side.

Everything that is written in them comes from the rows of `profilers.anatomy`. One unit of the axes is one inch.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path

from hae_lab.checks import require, require_name
from hae_lab.plots.base import (
    INK,
    Chart,
    chart,
    has_blocks,
    missing_note,
    names_or_nothing,
    new_chart,
    ordered,
    say,
    say_list,
    short,
    title_of,
    variant_colours,
)
from hae_lab.plots.page import current_style
from hae_lab.presets import VARIANTS

SMALL = 11  # points, the smallest writing
LETTER, LINE_HEIGHT, PAD, INDENT = 0.0865, 0.2, 0.05, 0.08  # of small writing, and around it in a box
LINE = "#555555"
NO_BREAK, PADDING = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
Lines = list[tuple[str, str | None]]  # what stands at the left and at the right of a line; None centres the left


class Box(NamedTuple):
    """Where a box stands; x and y are its centre."""

    left: float
    right: float
    bottom: float
    top: float
    x: float
    y: float


def _place(left: float, top: float, width: float, height: float) -> Box:
    return Box(left, left + width, top - height, top, left + width / 2, top - height / 2)


def _height(lines: Lines) -> float:
    return LINE_HEIGHT * len(lines) + 2 * PAD


def _draw(ax: Axes, box: Box, lines: Lines, face: Any, edge: str = INK, width: float = 1, bold: bool = True) -> Box:
    """Lines of writing, the first of them bold, in the middle of a frame."""
    style = {"facecolor": face, "edgecolor": edge, "linewidth": width, "zorder": 2}
    ax.add_patch(Rectangle((box.left, box.bottom), box.right - box.left, box.top - box.bottom, **style))
    dark = sum(share * part for share, part in zip((0.3, 0.59, 0.11), to_rgb(face), strict=True)) < 0.4
    ink = {"color": "white" if dark else INK, "zorder": 3}
    for index, (text, beside) in enumerate(lines):
        y = box.y + LINE_HEIGHT * ((len(lines) - 1) / 2 - index)
        x, align = (box.x, "center") if beside is None else (box.left + INDENT, "left")
        _write(ax, x, y, text, align, fontweight="bold" if bold and index == 0 else "normal", **ink)
        _write(ax, box.right - INDENT, y, beside or "", "right", **ink)
    return box


def _write(ax: Axes, x: float, y: float, text: str, align: str = "center", **style: Any) -> None:
    ax.text(x, y, text, ha=align, va="center", **{"fontsize": SMALL} | style)


def _arrow(ax: Axes, *points: tuple[float, float], colour: str = INK, width: float = 1.5) -> None:
    """A bent line with its head at the last point."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9 + 2 * width, "shrinkA": 0, "shrinkB": 0, "joinstyle": "miter"}
    ax.add_patch(FancyArrowPatch(path=Path(points), color=colour, linewidth=width, zorder=1, **style))


def _detour(x: float, y: float, turn: float, target: Box) -> list[tuple[float, float]]:
    """From a point sideways, along x = `turn`, and into the near side of a box."""
    return [(x, y), (turn, y), (turn, target.y), (target.left if turn < target.left else target.right, target.y)]


def _canvas(title: str, width: float, height: float) -> tuple[Chart, Axes]:
    """A page with room for so much below a title of two lines, 4:3 in the talk; the origin is at the lower left."""
    tall = height + 0.72
    wide = max(8.0, width, tall * 4 / 3)
    page = current_style().canvas((wide, wide * 3 / 4))
    page = page[0], page[1] if page[0] == wide else tall
    figure = new_chart(title, page, least=width)
    figure.set_layout_engine("none")
    height = page[1] - 0.46 - 0.26 * figure.get_suptitle().count("\n")
    ax = figure.add_axes((0, 0, 1, height / page[1]), xlim=(0, page[0]), ylim=(0, height))
    ax.set_axis_off()
    return figure, ax


def _words(count: int) -> str:
    return short(count, 3, NO_BREAK)


# the U-Net: letter, colour and meaning of each kind of block; a hybrid block has the colour of its variant

KINDS = {
    "stem": ("in", "white", ""), "residual": ("R", "#dcdcdc", "residual block"),
    "attention": ("A", "#a8a8a8", "attention block"), "hybrid": ("H", "", "hybrid block"),
    "downsample": ("↓", "white", "halve the map"), "upsample": ("↑", "white", "double the map"),
    "out": ("out", "white", ""),
}  # fmt: skip
BLOCK, STEP = (0.46, 0.5), 0.52  # width and height of a block, and from block to block
MARGIN, CENTRE, EDGE = 1.0, 2.05, 0.14  # beside the blocks; between encoder and decoder; outermost writing
HEAD, FOOT = 0.35, 1.1  # names of the sides; legend
SKIP_FROM, SKIP_STEP, FLOW = 0.12, 0.09, 0.14  # lines above the boxes, the lowest and from line to line; below them
Lanes = dict[tuple[str, int], list[dict[str, Any]]]  # (encoder, middle or decoder; level) -> its blocks


@chart
def unet(rows: pd.DataFrame, *, variant: str | None = None, palette: Mapping[str, str] | None = None) -> Chart:
    """The U-Net as a U, a box a block, its parameters in it; hybrid blocks in the variant's colour.

    Rows: `profilers.anatomy.unet_rows`, or those of one `variant` out of `unet_table`.
    """
    if variant is not None:
        require_name("variant", variant, rows["variant"].unique())
        rows = rows[rows["variant"] == variant]
    name, body = rows["variant"].iloc[0], rows[rows["section"] != "embedding"]
    sides = body["section"].replace("out", "decoder")  # the way out stands at the end of the decoder
    lanes = {key: lane.to_dict("records") for key, lane in body.groupby([sides, "level"], sort=False)}
    joins = body[body["skip_from"] != ""]
    joins = joins.assign(rise=SKIP_FROM + SKIP_STEP * joins.groupby("level").cumcount())
    longest = [max(len(lane) for (side, _), lane in lanes.items() if side == half) for half in ("encoder", "decoder")]
    height = HEAD + FOOT + body["level"].nunique() * (joins["rise"].max() + BLOCK[1] + 2 * FLOW)
    figure, ax = _canvas(_unet_title(rows), 2 * MARGIN + CENTRE + STEP * sum(longest), height)
    colours = {kind: face or variant_colours([name], palette)[name] for kind, (_, face, _) in KINDS.items()}
    boxes = _unet_boxes(ax, lanes, joins["rise"].max() - FLOW, colours)
    _flow(ax, [(side, boxes[lane[0]["path"]], boxes[lane[-1]["path"]]) for (side, _), lane in lanes.items()])
    for join in joins.itertuples():
        start, end, y = boxes[join.skip_from], boxes[join.path], boxes[join.path].top + join.rise
        _arrow(ax, (start.x, start.top), (start.x, y), (end.x, y), (end.x, end.top), colour=LINE, width=1)
    _unet_texts(ax, rows, lanes, boxes, STEP * (longest[0] - longest[1]))
    known = [kind for kind, (_, _, meaning) in KINDS.items() if meaning and (body["kind"] == kind).any()]
    labels = {kind: f"{KINDS[kind][0]}: {say(KINDS[kind][2])}" for kind in known}
    patches = [Patch(facecolor=colours[kind], edgecolor=INK, label=label) for kind, label in labels.items()]
    skip = Line2D([], [], color=LINE, marker="v", label="skip: joins the input")
    ax.legend(handles=[*patches, skip], loc="lower center", ncols=3, frameon=False)
    return figure


def _unet_title(rows: pd.DataFrame) -> str:
    total, hybrid = rows["params"].sum(), rows["kind"] == "hybrid"
    texts = (
        "{title}: no hybrid block; the decoder holds {share:.0f} % of {params} parameters",
        "{title}: {blocks} hybrid block holds {share:.0f} % of {params} parameters",
        "{title}: {blocks} hybrid blocks hold {share:.0f} % of {params} parameters",
    )
    share = 100 * rows.loc[hybrid if hybrid.any() else rows["section"] == "decoder", "params"].sum() / total
    return say(
        texts[min(hybrid.sum(), 2)],
        title=title_of(rows["variant"].iloc[0]), blocks=hybrid.sum(), share=share, params=_words(total),
    )  # fmt: skip


def _unet_boxes(ax: Axes, lanes: Lanes, lift: float, colours: Mapping[str, str]) -> dict[str, Box]:
    """Draw a box a block: encoder at the left, decoder at the right, the middle between them at the bottom."""
    (_, width), (_, height) = ax.get_xlim(), ax.get_ylim()
    bottom = max(level for _, level in lanes)
    lengths = {key: STEP * len(lane) for key, lane in lanes.items()}
    middle = (width + lengths["encoder", bottom] - lengths["decoder", bottom] - lengths["middle", bottom]) / 2
    pitch, boxes = (height - HEAD - FOOT) / (bottom + 1), {}
    for (side, level), lane in lanes.items():
        left = {"encoder": MARGIN, "middle": middle}.get(side, width - MARGIN - lengths[side, level])
        top = height - HEAD - pitch * (level + 0.5) + (BLOCK[1] - lift) / 2
        for index, block in enumerate(lane):
            texts = [(KINDS[block["kind"]][0], None), (short(block["params"]), None)]
            place = _place(left + STEP * index + (STEP - BLOCK[0]) / 2, top, *BLOCK)
            boxes[block["path"]] = _draw(ax, place, texts, colours[block["kind"]])
    return boxes


def _flow(ax: Axes, ends: Sequence[tuple[str, Box, Box]]) -> None:
    """From block to block, lane by lane (side, first and last block), in the order of the forward pass."""
    for _, first, last in ends:
        ax.plot([first.x, last.x], [first.y, last.y], color=INK, linewidth=1.5, zorder=1)
    for (side, _, last), (next_side, first, _) in pairwise(ends):
        if side != next_side:
            _arrow(ax, (last.right, last.y), (first.left, first.y))
        elif side == "encoder":
            way = _detour(last.x, last.bottom - FLOW, first.left - FLOW, first)
            _arrow(ax, (last.x, last.bottom), *way)
        else:
            way = _detour(first.x, first.bottom - FLOW, last.right + FLOW, last)
            _arrow(ax, *way[::-1], (first.x, first.bottom))


def _unet_texts(ax: Axes, rows: pd.DataFrame, lanes: Lanes, boxes: Mapping[str, Box], shift: float) -> None:
    """Parameters of the sides, of each level in the margins, and the shape of its maps between them."""
    (_, width), (_, height) = ax.get_xlim(), ax.get_ylim()
    params, margins = (
        rows.groupby("section")["params"].sum(),
        {"encoder": (EDGE, "left"), "decoder": (width - EDGE, "right")},
    )
    for side, (x, align) in margins.items():
        text = say("{side}: {params} parameters", side=say(side), params=_words(params[side]))
        _write(ax, x, height - 0.15, text, align, fontsize=13)
    with_class = rows["path"].eq("class_emb").any()
    text = "embedding of t and class: {params}" if with_class else "embedding of t: {params}"
    _write(ax, width / 2, height - 0.15, say(text, params=_words(params["embedding"])))
    for (side, level), lane in lanes.items():
        inside = [block for block in lane if block["section"] != "out"]
        own, first, last = (
            _words(sum(block["params"] for block in inside)),
            boxes[lane[0]["path"]],
            boxes[lane[-1]["path"]],
        )
        channels, size = [inside[-1]["channels_out"]], inside[-1]["size_out"]
        if level == 0:  # where the image comes in and goes out
            channels = [lanes["encoder", 0][0]["channels_in"], *channels, lanes["decoder", 0][-1]["channels_out"]]
        shape = say("{channels} channels", channels=" → ".join(map(str, channels))), f"{size} × {size}"
        if side == "middle":
            text = say("middle: {params}\n{shape}", params=own, shape=say(", ").join(shape))
            _write(ax, (first.x + last.x) / 2, first.bottom - 0.26, text, fontsize=12)
        else:
            _write(ax, margins[side][0], first.y, own, margins[side][1])
        if side == "decoder" and ("middle", level) not in lanes:  # between the longest lanes: in one column
            _write(ax, (width + shift) / 2, first.y, "\n".join(shape), fontsize=12)


# hybrid blocks side by side

COLUMN, CNN_WIDTH = 3.6, 1.0  # least width of a diagram, its free edges included; of the CNN branch
SIDE, GAP, HEADER = 0.14, 0.16, 0.36  # free edges of a diagram; between boxes; the variant's name
CNN, TOKENS = "CNN branch", "tokens"
TITLES = {"timestep": "timestep", CNN: "CNN", "attention": "attention"}  # slots say what they hold instead
WIDE = ("timestep", "fusion", "residual")  # boxes of both branches
Card = tuple[Lines, dict[str, Any]]  # what is written in a box, and the options of `_draw`


@chart
def hybrid_blocks(
    rows: pd.DataFrame, *, order: Sequence[str] | None = None, palette: Mapping[str, str] | None = None
) -> Chart:
    """The hybrid block of each variant side by side, slots framed, the slot that changed in the variant's colour.

    Rows: `profilers.anatomy.hybrid_table` or `hybrid_family`, whose column changed looks at the block before.
    """
    names, colours = ordered(rows["variant"], order or [*rows["variant"]]), variant_colours(rows["variant"], palette)
    require(len(names) > 0, f"no block to draw: order is {order}, the rows are of {names_or_nothing(rows)}")
    blocks = {name: rows[(rows["variant"] == name) & (rows["step"] != "input")] for name in names}
    cards = {name: _cards(block, colours[name]) for name, block in blocks.items()}
    whole = all(TOKENS in diagram for diagram in cards.values())
    require(whole, "a block without its Transformer is two convolutions; hybrid_blocks draws blocks that have one")
    keys = [key for key in dict.fromkeys(key for diagram in cards.values() for key in diagram) if key != CNN]
    heights = {key: max(_height(diagram[key][0]) for diagram in cards.values() if key in diagram) for key in keys}
    height = HEADER + sum(heights.values()) + GAP * (len(heights) + 1) + 0.35
    figure, ax = _canvas(_blocks_title(rows, blocks), COLUMN * len(blocks), height)
    column = ax.get_xlim()[1] / len(blocks)
    for index, (name, block) in enumerate(blocks.items()):
        header = _place(index * column + SIDE, ax.get_ylim()[1], column - 2 * SIDE, HEADER)
        total = f"{title_of(name)}: {_words(block['params'].sum())}"
        _draw(ax, header, [(total, None)], colours[name], edge="none")
        _block_flow(ax, header, _diagram(ax, header, heights, cards[name]))
    caption = say("framed: the three slots; coloured: differs from the block at its left; numbers: parameters")
    versions = [name for name in VARIANTS if has_blocks(name)]
    of_variants = order is None and len(set(versions).intersection(names)) > 1
    absent = missing_note(versions, names, "not drawn: {names}") if of_variants else ""
    _write(ax, ax.get_xlim()[1] / 2, 0.18, say("; ").join(filter(None, [caption, absent])))
    return figure


def _blocks_title(rows: pd.DataFrame, blocks: Mapping[str, pd.DataFrame]) -> str:
    """What changes from block to block, and what it does to the parameters."""
    slots = {name: block.loc[block["changed"], "slot"].unique() for name, block in blocks.items()}
    changes = [
        say("{name} changes {slots}", name=title_of(name), slots=say_list(list(changed)))
        for name, changed in slots.items()
        if len(changed)
    ]
    sizes = " → ".join(_words(block["params"].sum()) for block in blocks.values())
    shape = rows["shape_out"].iloc[0].replace(" ", NO_BREAK)
    what = say(", ").join(changes) or say("No slot changes")
    return say("{what}: {sizes} parameters a block on {shape}", what=what, sizes=sizes, shape=shape)


def _cards(block: pd.DataFrame, colour: str) -> dict[str, Card]:
    """What stands in each box of a diagram by step; the steps of the slot `regions` share one."""
    keys = block["step"].mask(block["slot"] == "regions", TOKENS)
    return {key: _card(key, steps.to_dict("records"), colour) for key, steps in block.groupby(keys, sort=False)}


def _card(key: str, steps: Sequence[Mapping[str, Any]], colour: str) -> Card:
    """Parameters stand by the title; where several steps share a box, by the steps that have them."""
    first, taken = steps[0], {CNN: COLUMN - 2 * SIDE - CNN_WIDTH}.get(key, 0 if key in WIDE else CNN_WIDTH + GAP)
    letters = int((COLUMN - 2 * SIDE - 2 * INDENT - taken) / LETTER)
    title = f"{first['slot']}: {first['choice']}" if first["slot"] else say(TITLES.get(key, ""))
    in_title = title != "" and key != TOKENS
    lines = _wrapped(title, short(first["params"]) if in_title else "", letters)
    for step in steps:
        lines += _wrapped(_step_text(step), short(step["params"]) if step["params"] and not in_title else "", letters)
    tint = tuple(0.3 * part + 0.7 for part in to_rgb(colour))
    face, edge, width = (tint, colour, 3) if first["changed"] else ("white", INK, 1.8)
    return lines, {"bold": title != ""} | (
        {"face": face, "edge": edge, "width": width} if first["slot"] else {"face": "#efefef", "edge": "#9a9a9a"}
    )


def _step_text(step: Mapping[str, Any]) -> str:
    """What a step does; with the shape of its tokens where they are made, and where attention drops some."""
    before, after = (step[shape].replace(" ", NO_BREAK) for shape in ("shape_in", "shape_out"))
    operation = ", ".join(map(say, step["operation"].split(", ")))
    if step["slot"] == "regions" and (before != after or not after):
        return f"{say(step['step'])}: " + ", ".join(filter(None, [after, operation]))
    return operation + (f", {before} →{NO_BREAK}{after}" if step["step"] == "attention" else "")


def _wrapped(text: str, beside: str, letters: int) -> Lines:
    """Lines that break after commas or, where a part is too long, at spaces; `beside` stands by the first that fits."""
    lines: list[str] = []
    text = re.sub("([\u3000-\uffff])", rf"\1{PADDING}", text)  # a Chinese letter is as wide as two
    for line in textwrap.wrap(re.sub("(?<!,) (?!→)", NO_BREAK, text), letters, break_long_words=False):
        lines += [line] if len(line.rstrip(",")) <= letters else textwrap.wrap(line.replace(NO_BREAK, " "), letters)
    place = next((index for index, line in enumerate(lines) if len(line) + len(beside) < letters), 0)
    lines = [line.rstrip(",").replace(NO_BREAK, " ").replace(PADDING, "") for line in lines]
    return [(line, beside if index == place else "") for index, line in enumerate(lines)]


def _diagram(ax: Axes, header: Box, heights: Mapping[str, float], cards: Mapping[str, Card]) -> dict[str, Box]:
    """Draw one block from top to bottom: timestep, the two branches beside each other, fusion, residual."""
    split, y, boxes = header.left + CNN_WIDTH + GAP, header.bottom - GAP, {}  # where the Transformer branch begins
    for key, height in heights.items():
        left = header.left if key in WIDE else split
        boxes[key] = _place(left, y, header.right - left, height)
        y -= height + GAP
    if CNN in cards:
        boxes[CNN] = _place(header.left, boxes[TOKENS].top, CNN_WIDTH, boxes[TOKENS].top - boxes["sums"].bottom)
    for key, (lines, style) in cards.items():
        _draw(ax, boxes[key], lines, **style)
    return boxes


def _block_flow(ax: Axes, header: Box, boxes: Mapping[str, Box]) -> None:
    """Arrows from box to box, and the three sums as lines around what they skip."""
    tokens, into = boxes[TOKENS], [(box.x, box) for key, box in boxes.items() if key != "fusion"]
    into += [(x, boxes["fusion"]) for x in {tokens.x, boxes.get(CNN, tokens).x}]
    for x, box in into:
        _arrow(ax, (x, box.top + GAP), (x, box.top), width=1.2)
    skips = (
        (header.x, "timestep", header.left - 0.08, "residual"),
        (tokens.x, TOKENS, header.right + 0.08, "sums"),
        (tokens.x, "norm out", tokens.left - GAP / 2, "sums"),
    )
    for x, start, turn, end in skips:
        _arrow(ax, *_detour(x, boxes[start].top + 0.7 * GAP, turn, boxes[end]), colour=LINE, width=1)
