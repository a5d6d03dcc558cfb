"""Pictures of the models themselves: the U-Net with its blocks, and hybrid blocks side by side.

Everything that is written in them comes from the rows of `profilers.architecture`. One unit of the axes is one inch.
"""

import textwrap
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.path import Path

from hae_lab.plots.base import Chart, chart, new_chart, variant_colour
from hae_lab.presets import variant_title

SMALL = 11  # points, the smallest writing
INK, LINE = "#222222", "#555555"
NO_BREAK = "\N{NO-BREAK SPACE}"
Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, width, height
Places = dict[str, Point]  # path of a block -> its centre
Lanes = dict[tuple[str, int], pd.DataFrame]  # (encoder, middle or decoder; level) -> its blocks

# the U-Net: letter, colour and meaning of each kind of block; a hybrid block has the colour of its variant
KINDS = {
    "stem": ("in", "white", ""), "residual": ("R", "#dcdcdc", "residual block"),
    "attention": ("A", "#a8a8a8", "attention block"), "hybrid": ("H", "", "hybrid block"),
    "downsample": ("↓", "white", "halve the map"), "upsample": ("↑", "white", "double the map"),
    "out": ("out", "white", ""),
}  # fmt: skip
BOX_WIDTH, BOX_HEIGHT = 0.46, 0.5
STEP = 0.52  # from box to box
MARGIN, CENTRE = 1.0, 2.1  # left and right of the boxes; between encoder and decoder
EDGE = 0.14  # outermost writing
HEAD, FOOT = 0.35, 1.1  # names of the sides; legend
SKIP_FROM, SKIP_STEP = 0.12, 0.09  # lowest skip line above the boxes, and from line to line
FLOW = 0.14  # from the boxes to the line that leads to the next level


@chart
def unet(rows: pd.DataFrame, variant: str | None = None) -> Chart:
    """The U-Net as a U, a box a block, its parameters in it; hybrid blocks in the variant's colour.

    Rows: `profilers.architecture.unet_rows`, or those of one `variant` out of `unet_table`.
    """
    rows = rows if variant is None else rows[rows["variant"] == variant]
    lanes = _lanes(rows)
    figure = new_chart(_unet_title(rows), _unet_size(lanes))
    ax = _canvas(figure)
    places = _unet_places(lanes, ax.get_xlim()[1], ax.get_ylim()[1])
    colour = variant_colour(rows["variant"].iloc[0])
    for row in rows[rows["section"] != "embedding"].itertuples():
        letter, face, _ = KINDS[row.kind]
        _block(ax, places[row.path], letter, short(row.params), face or colour)
    _flow(ax, lanes, places)
    _skips(ax, rows, places)
    _heads(ax, rows)
    _level_texts(ax, lanes, places)
    _unet_legend(ax, rows, colour)
    return figure


def short(count: int, digits: int = 2, space: str = "") -> str:
    """A count in thousands or millions with that many digits, or all those before the point: 7478016 -> "7.5M"."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{max(0, digits - len(str(int(value))))}f}{space}{unit}"
    return str(count)


def _words(count: int) -> str:
    return short(count, 3, NO_BREAK)


def _unet_title(rows: pd.DataFrame) -> str:
    variant, total = rows["variant"].iloc[0], _words(rows["params"].sum())
    hybrid = rows[rows["kind"] == "hybrid"]
    if hybrid.empty:
        share = rows.loc[rows["section"] == "decoder", "share_percent"].sum()
        return f"{_name(variant)}: no hybrid block; the decoder holds {share:.0f} % of {total} parameters"
    blocks = "hybrid block holds" if len(hybrid) == 1 else "hybrid blocks hold"
    return f"{_name(variant)}: {len(hybrid)} {blocks} {hybrid['share_percent'].sum():.0f} % of {total} parameters"


def _name(variant: str) -> str:
    return variant_title(variant)


def _canvas(figure: Chart) -> Axes:
    """Axes below the title, one unit an inch, the origin at the lower left."""
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    below_title = height - 0.2 - 0.26 * len(figure.get_suptitle().split("\n"))
    ax = figure.add_axes((0, 0, 1, below_title / height))
    ax.set(xlim=(0, width), ylim=(0, below_title))
    ax.set_axis_off()
    return ax


def _lanes(rows: pd.DataFrame) -> Lanes:
    """The blocks of each side and level; the way out stands at the end of the decoder."""
    body = rows[rows["section"] != "embedding"]
    return dict(list(body.groupby([body["section"].replace("out", "decoder"), "level"], sort=False)))


def _longest(lanes: Lanes, side: str) -> int:
    return max(len(lane) for (lane_side, _), lane in lanes.items() if lane_side == side)


def _lane_heights(lanes: Lanes) -> tuple[float, float]:
    """What a lane needs above and below the centre of its boxes."""
    skips = max((lane["skip_from"] != "").sum() for lane in lanes.values())
    return BOX_HEIGHT / 2 + SKIP_FROM + SKIP_STEP * (skips - 1), BOX_HEIGHT / 2 + FLOW


def _unet_size(lanes: Lanes) -> tuple[float, float]:
    """4:3, wide enough for the longest lanes and high enough for all levels and their skips."""
    levels = 1 + max(level for _, level in lanes)
    width = 2 * MARGIN + CENTRE + STEP * (_longest(lanes, "encoder") + _longest(lanes, "decoder"))
    height = 0.46 + HEAD + FOOT + levels * (sum(_lane_heights(lanes)) + FLOW)
    width = max(8.0, width, height * 4 / 3)
    return width, width * 3 / 4


def _unet_places(lanes: Lanes, width: float, height: float) -> Places:
    """The centre of each block: encoder at the left, decoder at the right, the middle between them at the bottom."""
    bottom = max(level for _, level in lanes)
    pitch = (height - HEAD - FOOT) / (bottom + 1)
    above, below = _lane_heights(lanes)
    lengths = {key: STEP * len(lane) for key, lane in lanes.items()}
    gap = width - 2 * MARGIN - sum(lengths[side, bottom] for side in ("encoder", "middle", "decoder"))
    places = {}
    for (side, level), lane in lanes.items():
        right = width - MARGIN - lengths[side, level]
        left = {"encoder": MARGIN, "middle": MARGIN + lengths["encoder", bottom] + gap / 2, "decoder": right}[side]
        y = height - HEAD - pitch * (level + 0.5) - (above - below) / 2
        places |= {path: (left + STEP * (index + 0.5), y) for index, path in enumerate(lane["path"])}
    return places


def _block(ax: Axes, place: Point, letter: str, params: str, face: str) -> None:
    x, y = place
    corner = (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2)
    ax.add_patch(Rectangle(corner, BOX_WIDTH, BOX_HEIGHT, facecolor=face, edgecolor=INK, linewidth=1, zorder=2))
    ink = _ink_on(face)
    ax.text(x, y + 0.11, letter, ha="center", va="center", fontsize=13, fontweight="bold", color=ink, zorder=3)
    ax.text(x, y - 0.13, params, ha="center", va="center", fontsize=SMALL, color=ink, zorder=3)


def _ink_on(face: str) -> str:
    """Dark or white, whichever is easier to read on a colour."""
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04 else c / 12.92 for c in to_rgb(face)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def _arrow(ax: Axes, points: list[Point], colour: str = INK, width: float = 1.5) -> None:
    """A bent line with its head at the last point."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9 + 2 * width, "shrinkA": 0, "shrinkB": 0, "joinstyle": "miter"}
    ax.add_patch(FancyArrowPatch(path=Path(points), color=colour, linewidth=width, zorder=1, **style))


def _flow(ax: Axes, lanes: Lanes, places: Places) -> None:
    """From block to block, lane by lane, in the order of the forward pass."""
    ends = [(side, places[lane["path"].iloc[0]], places[lane["path"].iloc[-1]]) for (side, _), lane in lanes.items()]
    for _, (first, y), (last, _) in ends:
        ax.plot([first, last], [y, y], color=INK, linewidth=1.5, zorder=1)
    half, low = BOX_WIDTH / 2, BOX_HEIGHT / 2
    for (side, _, (x, y)), (next_side, (to_x, to_y), _) in pairwise(ends):
        if side == next_side == "encoder":
            turn, left = y - low - FLOW, to_x - half - FLOW
            points = [(x, y - low), (x, turn), (left, turn), (left, to_y), (to_x - half, to_y)]
        elif side == next_side == "decoder":
            turn, right = to_y - low - FLOW, x + half + FLOW
            points = [(x + half, y), (right, y), (right, turn), (to_x, turn), (to_x, to_y - low)]
        else:
            points = [(x + half, y), (to_x - half, to_y)]
        _arrow(ax, points)


def _skips(ax: Axes, rows: pd.DataFrame, places: Places) -> None:
    """From each output of the encoder to the decoder's block that takes it, nested above the boxes."""
    joins = rows[rows["skip_from"] != ""]
    joins = joins.assign(nested=joins.groupby("level").cumcount())
    for join in joins.itertuples():
        (x, y), (to_x, to_y) = places[join.skip_from], places[join.path]
        turn = y + BOX_HEIGHT / 2 + SKIP_FROM + SKIP_STEP * join.nested
        _arrow(ax, [(x, y + BOX_HEIGHT / 2), (x, turn), (to_x, turn), (to_x, to_y + BOX_HEIGHT / 2)], LINE, 1.0)


def _heads(ax: Axes, rows: pd.DataFrame) -> None:
    """Parameters of the sides and, between them, of the embedding."""
    (_, width), (_, height) = ax.get_xlim(), ax.get_ylim()
    params = rows.groupby("section")["params"].sum()
    y = height - 0.15
    for side, x, align in (("encoder", EDGE, "left"), ("decoder", width - EDGE, "right")):
        ax.text(x, y, f"{side}: {_words(params[side])} parameters", ha=align, va="center", fontsize=13)
    inputs = "t and class" if rows["path"].eq("class_emb").any() else "t"
    text = f"embedding of {inputs}: {_words(params['embedding'])}"
    ax.text(width / 2, y, text, ha="center", va="center", fontsize=SMALL)


def _level_texts(ax: Axes, lanes: Lanes, places: Places) -> None:
    """Parameters of each side at a level in the margins, shape of the level's maps between them."""
    bottom, width = max(level for _, level in lanes), ax.get_xlim()[1]
    middle = sum(places[path][0] for path in lanes["middle", bottom]["path"].iloc[[0, -1]]) / 2
    # between the longest lanes, so that all shapes stand in one column
    centre = (width + STEP * (_longest(lanes, "encoder") - _longest(lanes, "decoder"))) / 2
    for (side, level), lane in lanes.items():
        inside, y = lane[lane["section"] != "out"], places[lane["path"].iloc[0]][1]
        own, shape = _words(inside["params"].sum()), _level_shape(lanes, side, level)
        if side == "middle":
            y -= BOX_HEIGHT / 2 + 0.26
            ax.text(middle, y, f"middle: {own}\n" + ", ".join(shape), ha="center", va="center", fontsize=12)
            continue
        x, align = (EDGE, "left") if side == "encoder" else (width - EDGE, "right")
        ax.text(x, y, own, ha=align, va="center", fontsize=SMALL)
        if side == "decoder" and level < bottom:
            ax.text(centre, y, "\n".join(shape), ha="center", va="center", fontsize=12)


def _level_shape(lanes: Lanes, side: str, level: int) -> tuple[str, str]:
    """Channels and pixels of a level's maps; with the image's channels where it comes in and goes out."""
    last = lanes[side, level].query("section != 'out'").iloc[-1]
    channels = f"{last['channels_out']}"
    if level == 0:
        image, out = lanes["encoder", 0]["channels_in"].iloc[0], lanes["decoder", 0]["channels_out"].iloc[-1]
        channels = f"{image} → {channels} → {out}"
    return f"{channels} channels", f"{last['size_out']} × {last['size_out']}"


def _unet_legend(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """What the letters and lines mean, in three columns; kinds of blocks that the model lacks are left out."""
    kinds = [kind for kind in KINDS if (rows["kind"] == kind).any()]
    entries = [KINDS[kind] for kind in kinds if KINDS[kind][2]] + [("", "", "skip: joins the input")]
    column = (ax.get_xlim()[1] - EDGE) / 3
    for index, (letter, face, meaning) in enumerate(entries):
        x, y = EDGE + 0.15 + column * (index % 3), FOOT - 0.52 - 0.34 * (index // 3)
        if letter:
            corner = (x - 0.15, y - 0.14)
            ax.add_patch(Rectangle(corner, 0.3, 0.28, facecolor=face or colour, edgecolor=INK))
            ink = _ink_on(face or colour)
            ax.text(x, y, letter, ha="center", va="center", color=ink, fontsize=12, fontweight="bold")
        else:
            _arrow(ax, [(x - 0.15, y + 0.08), (x + 0.08, y + 0.08), (x + 0.08, y - 0.12)], LINE, 1.0)
        ax.text(x + 0.25, y, meaning, va="center", fontsize=SMALL)


# hybrid blocks side by side

COLUMN = 3.65  # least width of a diagram, its free edges included
SIDE, GAP = 0.17, 0.16  # free edges of a diagram; between boxes
CNN_WIDTH, HEADER = 1.2, 0.36
LINE_HEIGHT, PAD = 0.19, 0.06
LETTERS = {"CNN": 12, "Transformer": 20, "both": 34}  # that fit into a line
PARAMS_LETTERS = 4  # of a line that go to the parameters
TITLES = {"timestep": "timestep", "CNN branch": "CNN", "attention": "attention"}  # slots say what they hold instead
WIDE = ("timestep", "fusion", "residual")  # boxes of both branches
Lines = list[tuple[str, str]]  # what stands at the left of a line and, as parameters, at its right


@dataclass(frozen=True)
class Card:
    """A box of a diagram: its lines, the slot it shows, and whether that slot differs from the diagram at its left."""

    lines: Lines
    titled: bool
    slot: str
    changed: bool

    @property
    def height(self) -> float:
        return LINE_HEIGHT * len(self.lines) + 2 * PAD


@chart
def hybrid_blocks(rows: pd.DataFrame) -> Chart:
    """The hybrid block of each variant side by side, slots framed, the slot that changed in the variant's colour.

    Rows: `profilers.architecture.hybrid_table` or `hybrid_family`.
    """
    blocks = {variant: _cards(block) for variant, block in rows.groupby("variant", sort=False)}
    heights = _card_heights(blocks)
    height = 0.8 + HEADER + sum(heights.values()) + GAP * (len(heights) + 1) + 0.35
    width = max(8.0, COLUMN * len(blocks), height * 4 / 3)
    figure = new_chart(_blocks_title(rows), (width, width * 3 / 4))
    ax = _canvas(figure)
    totals = rows.groupby("variant", sort=False)["params"].sum()
    column = width / len(blocks)
    for index, (variant, cards) in enumerate(blocks.items()):
        left, right = index * column + SIDE, (index + 1) * column - SIDE
        _diagram(ax, left, right, variant, cards, heights)
        header = f"{_name(variant)}: {_words(totals[variant])}"
        ink = _ink_on(variant_colour(variant))
        place = ((left + right) / 2, ax.get_ylim()[1] - HEADER / 2)
        ax.text(*place, header, ha="center", va="center_baseline", fontsize=14, fontweight="bold", color=ink)
    caption = "framed: the three slots; coloured: differs from the block at its left; numbers: parameters"
    ax.text(width / 2, 0.18, caption, ha="center", va="center", fontsize=SMALL)
    return figure


def _blocks_title(rows: pd.DataFrame) -> str:
    """What changes from block to block, and what it does to the parameters."""
    changed = rows[rows["changed"]].groupby("variant", sort=False)["slot"].unique()
    changes = [f"{_name(variant)} changes {' and '.join(slots)}" for variant, slots in changed.items()]
    sizes = " → ".join(_words(params) for params in rows.groupby("variant", sort=False)["params"].sum())
    shape = rows["shape_out"].iloc[0].replace(" ", NO_BREAK)
    return f"{', '.join(changes) or 'No slot changes'}: {sizes} parameters a block on {shape}"


def _cards(block: pd.DataFrame) -> dict[str, Card]:
    """The boxes of one diagram by step; the steps of the slot `regions` share one."""
    boxes = block["step"].mask(block["slot"] == "regions", "tokens")
    cards = {}
    for key, steps in block[block["step"] != "input"].groupby(boxes, sort=False):
        first = steps.iloc[0]
        title = f"{first['slot']}: {first['choice']}" if first["slot"] else TITLES.get(key, "")
        if title and key != "tokens":
            lines = [(title, short(first["params"])), *_step_lines(first, beside="")]
        else:
            lines = [(title, "")] * bool(title)
            lines += [line for _, step in steps.iterrows() for line in _step_lines(step, short(step["params"]))]
        cards[key] = Card(lines, title != "", first["slot"], first["changed"])
    return cards


def _step_lines(step: pd.Series, beside: str) -> Lines:
    """What a step does, and something beside the first line; no parameters are not worth a word."""
    beside, letters = "" if beside == "0" else beside, LETTERS[step["branch"]]
    texts = _wrapped(_step_text(step), letters, letters - PARAMS_LETTERS * bool(beside))
    return [(text, beside if index == 0 else "") for index, text in enumerate(texts)]


def _step_text(step: pd.Series) -> str:
    before, after = (step[shape].split(" × ")[0] for shape in ("shape_in", "shape_out"))
    if step["step"] == "pixels":
        return f"{after} pixels"
    if step["step"].endswith("patches"):
        size = step["step"].split()[0]
        return f"{after} patches {size}, {step['operation']}".lstrip()
    return step["operation"] + (f", {before} → {after} tokens" if step["step"] == "attention" else "")


def _wrapped(operation: str, letters: int, first: int) -> list[str]:
    """Lines that break after commas and, where a part is too long, at spaces. `first`: letters of the first line."""
    lines = [""]
    for part in operation.split(", "):
        joined = f"{lines[-1]}, {part}".removeprefix(", ")
        if len(joined) <= (first if len(lines) == 1 else letters):
            lines[-1] = joined
        else:
            lines += textwrap.wrap(part, letters if lines[-1] else first)
    return [line for line in lines if line]


def _card_heights(blocks: dict[str, dict[str, Card]]) -> dict[str, float]:
    """Height of each box in the order from top to bottom, the same in all diagrams. The CNN branch fills its side."""
    heights: dict[str, float] = {}
    for cards in blocks.values():
        for key, card in cards.items():
            if key != "CNN branch":
                heights[key] = max(card.height, heights.get(key, 0))
    return heights


def _diagram(
    ax: Axes, left: float, right: float, variant: str, cards: dict[str, Card], heights: dict[str, float]
) -> None:
    """One block from top to bottom: timestep, the two branches beside each other, fusion, residual."""
    colour, top = variant_colour(variant), ax.get_ylim()[1]
    ax.add_patch(Rectangle((left, top - HEADER), right - left, HEADER, facecolor=colour))
    split = left + CNN_WIDTH + GAP  # where the Transformer branch begins
    y = top - HEADER - GAP
    boxes: dict[str, Box] = {}
    for key, height in heights.items():
        start = left if key in WIDE else split
        boxes[key] = (start, y - height, right - start, height)
        y -= height + GAP
    if "CNN branch" in cards:
        bottom, above = boxes["sums"][1], boxes["tokens"][1] + boxes["tokens"][3]
        boxes["CNN branch"] = (left, bottom, CNN_WIDTH, above - bottom)
    for key, card in cards.items():
        _card(ax, boxes[key], card, colour)
    _block_flow(ax, boxes, "CNN branch" in cards)


def _card(ax: Axes, box: Box, card: Card, colour: str) -> None:
    x, y, width, height = box
    edge, line = (colour, 3) if card.changed else (INK, 1.8) if card.slot else ("#9a9a9a", 1)
    face = _tint(colour) if card.changed else "white" if card.slot else "#efefef"
    ax.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=edge, linewidth=line, zorder=2))
    text_y = y + height / 2 + LINE_HEIGHT * (len(card.lines) - 1) / 2
    for index, (text, params) in enumerate(card.lines):
        weight = "bold" if card.titled and index == 0 else "normal"
        ax.text(x + 0.08, text_y, text, va="center", fontsize=SMALL, fontweight=weight, zorder=3)
        ax.text(x + width - 0.08, text_y, params, ha="right", va="center", fontsize=SMALL, zorder=3)
        text_y -= LINE_HEIGHT


def _tint(colour: str) -> tuple[float, ...]:
    return tuple(0.3 * c + 0.7 for c in to_rgb(colour))


def _block_flow(ax: Axes, boxes: dict[str, Box], cnn_branch: bool) -> None:
    """Arrows from box to box, and the three sums as lines around what they skip."""
    down = [key for key in boxes if key not in ("timestep", "residual", "CNN branch")]
    left, right = boxes["timestep"][0], sum(boxes["timestep"][::2])
    middle = (left + right) / 2
    branch = boxes["tokens"][0] + boxes["tokens"][2] / 2
    for key in down:
        _drop(ax, branch, boxes[key])
    for key in ("timestep", "residual"):
        _drop(ax, middle, boxes[key])
    if cnn_branch:
        for key in ("CNN branch", "fusion"):
            _drop(ax, left + CNN_WIDTH / 2, boxes[key])
    _around(ax, (middle, "timestep"), left - 0.08, "residual", boxes)
    _around(ax, (branch, "tokens"), right + 0.08, "sums", boxes)
    _around(ax, (branch, "norm out"), boxes["tokens"][0] - GAP / 2, "sums", boxes)


def _drop(ax: Axes, x: float, box: Box) -> None:
    """An arrow into a box from the one above it."""
    top = box[1] + box[3]
    _arrow(ax, [(x, top + GAP), (x, top)], INK, 1.2)


def _around(ax: Axes, start: tuple[float, str], x: float, target: str, boxes: dict[str, Box]) -> None:
    """A line from above one box, along x, into the side of another."""
    from_x, key = start
    y = boxes[key][1] + boxes[key][3] + GAP * 0.7
    box = boxes[target]
    to_x, to_y = box[0] if x < box[0] else box[0] + box[2], box[1] + box[3] / 2
    _arrow(ax, [(from_x, y), (x, y), (x, to_y), (to_x, to_y)], LINE, 1.0)
