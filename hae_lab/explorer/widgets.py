"""The widgets of the mask explorer: ipywidgets sliders, a canvas to click on, and the numbers beside it."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets

from hae_lab import rules
from hae_lab.checks import HAELabError, require
from hae_lab.explorer.model import MaskExplorerModel, maps
from hae_lab.explorer.page import HINT
from hae_lab.plots import masks as pictures
from hae_lab.plots.weights import weight_colours
from hae_lab.profilers.reach import NEIGHBOURHOOD

SIDES = (4, 8, 16, 32, 64)  # maps that the levels of a U-Net have
LAST_SEED = 20
ALL_GROUPS = NO_HEAD = -1  # a dropdown shows nothing for None

Action = Callable[[MaskExplorerModel, Any], None]


class GridPicker(anywidget.AnyWidget):
    """The image grid and the regional grids on a canvas. Sends {"pick": token}, {"move": direction}, {"grid": step}."""

    _esm = Path(__file__).parent / "grid.js"
    grids = traitlets.List().tag(sync=True)  # (first token, rows, columns) of each scale
    colours = traitlets.Bytes().tag(sync=True)  # red, green, blue of every token
    marks = traitlets.List().tag(sync=True)  # see `plots.masks.query_marks`
    captions = traitlets.List().tag(sync=True)
    ink = traitlets.Unicode(pictures.QUERY).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)  # for screen readers


class MaskExplorer(ipywidgets.VBox):
    """Controls above, grids and numbers below: all show one `MaskExplorerModel`."""

    def __init__(self, *, image: Any = None, **options: Any) -> None:
        self.model = MaskExplorerModel(**options)
        self.image = None if image is None else checked_image(image)
        self.controls = make_controls(self.model)
        self.picker = GridPicker(layout={"flex": "1 1 420px", "min_width": "320px", "max_width": "720px"})
        self.meaning = ipywidgets.HTML()
        self.numbers = ipywidgets.HTML(layout={"flex": "0 0 260px"})
        self._showing = False
        self.show()
        for name, control in self.controls.items():
            control.observe(self._listener(name), "value")
        self.picker.on_msg(self._on_message)
        below = ipywidgets.HBox([self.picker, self.numbers], layout={"flex_flow": "row wrap", "grid_gap": "20px"})
        super().__init__([arranged(self.controls), self.meaning, below, ipywidgets.HTML(legend_html())])
        self.add_class("hae-explorer")  # the browser test finds them by these names
        self.numbers.add_class("hae-numbers")

    def show(self, error: str = "") -> None:
        """Bring every widget to the state of the model."""
        view = self.model.view()
        self._showing = True  # what changes now is not the reader's doing
        update_controls(self.controls, self.model)
        self._showing = False
        weights = view["weights"]
        colours = pictures.token_colours(view, self.image) if weights is None else weight_colours(weights, self.image)
        with self.picker.hold_sync():
            self.picker.grids = grids(self.model)
            self.picker.colours = b"".join(colours[p].tobytes() for p in colours)
            self.picker.marks = pictures.query_marks(view)
            self.picker.captions = [caption(view, p) for p in colours]
            self.picker.label = f"{view['rule']}: {pictures.place_name(view['place'])} and the keys it sees"
        self.meaning.value = f"<i style='font-size: 14px'>{html.escape(view['meaning'])}</i>"
        self.numbers.value = numbers_html(view, error)

    def _listener(self, name: str) -> Callable[[dict], None]:
        action = CONTROL_ACTIONS.get(name, lambda model, value: model.set(**{name: value}))
        return lambda change: None if self._showing else self._do(action, change["new"])

    def _on_message(self, picker: GridPicker, message: dict, buffers: list) -> None:
        for name, value in message.items():
            self._do(MESSAGE_ACTIONS[name], value)

    def _do(self, action: Action, value: Any) -> None:
        try:
            action(self.model, value)
        except HAELabError as error:
            self.show(str(error))
        else:
            self.show()


CONTROL_ACTIONS: dict[str, Action] = {
    "query": MaskExplorerModel.pick,
    "group": lambda model, group: model.show_group(None if group == ALL_GROUPS else group),
    "head": lambda model, head: model.show_head(None if head == NO_HEAD else head),
}
MESSAGE_ACTIONS: dict[str, Action] = {
    "pick": MaskExplorerModel.pick,
    "move": MaskExplorerModel.move,
    "grid": MaskExplorerModel.switch_grid,
}


def checked_image(image: Any) -> np.ndarray:
    """A picture to lie beneath the grids, as floats. Values beyond [-1, 1] are drawn as black and white."""
    array = np.asarray(image, float)
    fits = array.ndim == 2 and array.size > 0 and np.isfinite(array).all()
    require(bool(fits), f"the image is a 2-D array of finite numbers in [-1, 1], got shape {array.shape}")
    return array


def make_controls(model: MaskExplorerModel) -> dict[str, ipywidgets.Widget]:
    """A dropdown or slider for everything that can be chosen; `update_controls` gives them their state."""
    own = model.choice
    sides = sorted({*SIDES, own.side}, key=lambda side: side if isinstance(side, tuple) else (side, side))
    options = {"style": {"description_width": "5.5em"}, "layout": {"width": "20em", "margin": "2px 8px 2px 0"}}
    heads = 0 if model.attention is None else model.attention.heads
    weights = [("none: the mask", NO_HEAD), *((f"head {head + 1}", head) for head in range(heads))]
    only_with_weights = {"head": ipywidgets.Dropdown(options=weights, description="weights", **options)}
    return {
        "rule": ipywidgets.Dropdown(options=list(rules.RULES), value=own.rule, description="rule", **options),
        "group": ipywidgets.Dropdown(options=[("all", ALL_GROUPS)], description="heads", **options),
        "side": ipywidgets.SelectionSlider(
            options=[(side_name(side), side) for side in sides], value=own.side, description="map", **options
        ),
        "sparsity": ipywidgets.FloatSlider(own.sparsity, min=0, max=0.99, step=0.01, description="sparsity", **options),
        "seed": ipywidgets.IntSlider(own.seed, min=0, max=max(LAST_SEED, own.seed), description="seed", **options),
        "query": ipywidgets.IntSlider(model.query, min=0, max=model.grid.n - 1, description="query", **options),
        **(only_with_weights if heads else {}),
    }


def side_name(side: int | tuple[int, int]) -> str:
    height, width = side if isinstance(side, tuple) else (side, side)
    return f"{height} × {width}"


def update_controls(controls: dict[str, ipywidgets.Widget], model: MaskExplorerModel) -> None:
    """Bring the controls to the state of the model; head groups can be chosen only where a rule has several."""
    for name in ("rule", "side", "sparsity", "seed"):
        controls[name].value = getattr(model.choice, name)
    controls["query"].max = model.grid.n - 1
    controls["query"].value = model.query
    groups = model.mask.groups
    options = [("all", ALL_GROUPS), *((f"{group + 1} of {groups}", group) for group in range(groups))]
    if controls["group"].options != tuple(options):
        controls["group"].options = options
    controls["group"].value = ALL_GROUPS if model.group is None else model.group
    controls["group"].disabled = groups == 1
    if "head" in controls:
        controls["head"].value = NO_HEAD if model.head is None else model.head
        controls["head"].disabled = not model.has_weights


def arranged(controls: dict[str, ipywidgets.Widget]) -> ipywidgets.Box:
    columns = [("rule", "group"), ("side", "query"), ("sparsity", "seed"), ("head",)]
    boxes = [ipywidgets.VBox([controls[name] for name in names if name in controls]) for names in columns]
    boxes = [box for box in boxes if box.children]
    return ipywidgets.HBox(boxes, layout={"flex_flow": "row wrap"})


def grids(model: MaskExplorerModel) -> list[tuple[int, int, int]]:
    """First token, rows and columns of each scale."""
    return [(int(tokens[0, 0]), *tokens.shape) for tokens in maps(model.grid, np.arange(model.grid.n)).values()]


def caption(view: dict[str, Any], patch_size: int) -> str:
    """A grid's caption, short enough for a narrow canvas."""
    return pictures.grid_caption(view, patch_size).replace(" tokens", "")


def numbers_html(view: dict[str, Any], error: str = "") -> str:
    """The numbers of a view as a table."""
    own = {f"own {pictures.grid_name(p)}": "seen" if seen else "hidden" for p, seen in view["own_seen"].items()}
    rows = {
        "query": pictures.place_name(view["place"]),
        "sees": f"{view['keys_seen']:,} of {view['keys']:,}",
        **own,
        f"{NEIGHBOURHOOD} × {NEIGHBOURHOOD} pixels around": f"{view['neighbourhood_percent']:.0f} % seen",
        "reach, 1 block": f"{view['reach_1_percent']:.1f} %",
        "reach, 2 blocks": f"{view['reach_2_percent']:.1f} %",
        "density of the mask": f"{view['density_percent']:.1f} %",
        **({} if view["weights"] is None else weight_numbers(view)),
    }
    notes = [error] if error else []
    if view["weights"] is not None:
        notes.append("Colours: this head's weights, the brightest where it looks most, each grid by its own largest.")
    if view["place"][0] > 1:
        notes.append("The block throws away what regional queries compute: this row of the mask has no effect.")
    lines = [
        f"<tr><td style='padding-right: 1em'>{name}</td><td><b>{html.escape(value)}</b></td></tr>"
        for name, value in rows.items()
    ]
    table = f"<table style='white-space: nowrap'>{''.join(lines)}</table>"
    text = "".join(f"<p style='line-height: 1.3; margin-top: 0.5em'>{html.escape(note)}</p>" for note in notes)
    return f"<div style='font-size: 15px; line-height: 1.9; margin-top: 20px'>{table}{text}</div>"


def weight_numbers(view: dict[str, Any]) -> dict[str, str]:
    """Where the chosen head looks: its share of each scale, and the token with most of it."""
    shares = {p: 100 * float(scale.sum()) for p, scale in view["weights"].items()}
    p, scale = max(view["weights"].items(), key=lambda item: item[1].max())
    row, column = np.unravel_index(int(scale.argmax()), scale.shape)
    head, most = f"head {view['head'] + 1}", pictures.place_name((p, int(row), int(column)))
    return {
        **{f"{head} on {pictures.grid_name(size)}s": f"{share:.1f} %" for size, share in shares.items()},
        f"{head} most of all on": f"{most}: {100 * float(scale.max()):.1f} %",
    }


def legend_html() -> str:
    """Colours and what they mean, and how to move."""
    square = (
        "<span style='display: inline-block; width: 1em; height: 1em; vertical-align: -0.1em; background: {}'></span>"
    )
    parts = [f"{square.format(colour)}&ensp;{text}" for colour, text in pictures.LEGEND.items()]
    return f"<div style='font-size: 14px; line-height: 1.6'>{'&emsp;'.join(parts)}<br>{HINT}</div>"
