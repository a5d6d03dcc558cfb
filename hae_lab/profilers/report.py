"""One profile of any model: parameters, MACs, memory and time in one tree, in the terminal, in Jupyter, and as rows.

    import hae_lab
    hae_lab.profile(model, torch.zeros(1, 3, 224, 224))

Nothing is computed and no weights are allocated, unless time is asked for; see `profilers.steps`.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hae_lab.checks import require, require_name, require_whole
from hae_lab.family import HAEConfig
from hae_lab.files import atomic_path, require_file
from hae_lab.parts import load
from hae_lab.profilers.backward import MACS, backward_rows
from hae_lab.profilers.layer_times import time_by_layer
from hae_lab.profilers.memory import memory_rows, totals_of
from hae_lab.profilers.steps import LOSS, Loss, Optimizer, Step, inference_step, prepare, training_step
from hae_lab.tables import write

TIMES = ["forward_ms", "backward_ms", "ms"]
SHOWN = {"params": "parameters", "macs_forward": "MACs", "saved_bytes": "kept for backward", "ms": "time"}
KEPT = (".csv", ".parquet", ".html")
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """What a model costs, module by module; shows itself as a tree.

    `frame` has a row a module, in the order of the tree, with the module's own amounts, those of its children left out,
    so every column sums to the model's: path, module, depth, calls, shape_out, params, params_dead (that no gradient
    reached), macs_forward, macs_backward, macs_recomputed, saved_bytes (what autograd keeps for the backward pass),
    peak_bytes (what is there when the step holds most), forward_ms, backward_ms, ms if time was asked for, and note.
    `totals` has the sums, and the peaks of `profilers.memory_totals`.
    """

    frame: pd.DataFrame
    totals: pd.Series
    inputs: str  # the shapes that went in
    clock: str = ""  # how time was taken, if it was

    def largest(self, column: str = "saved_bytes", count: int = 5) -> pd.DataFrame:
        """The modules that have most of something themselves, their children left out, with their share of it.

        Raises `HAELabError` for a column that is no amount.
        """
        amounts = [name for name in self.frame.columns if name.startswith(("params", "macs", "saved", "peak"))]
        require_name("amount", column, [*amounts, *(name for name in TIMES if name in self.frame)])
        rows = self.frame.nlargest(require_whole("count", count, 1), column)
        rows = rows[rows[column] > 0]
        share = 100 * rows[column] / max(self.frame[column].sum(), 1e-12)
        return rows[["path", "module", "shape_out", column]].assign(share_percent=share).reset_index(drop=True)

    def tree(self) -> pd.DataFrame:
        """`frame` with the children's amounts in their parents', so the first row is the whole model."""
        amounts = [name for name in self.frame.columns if name.startswith(("params", "macs", "saved", "peak", *TIMES))]
        sums = {name: _with_children(self.frame["path"], self.frame[name]) for name in amounts}
        return self.frame.assign(**sums)

    def summary(self) -> str:
        """The whole model in some words."""
        totals = self.totals
        words = [f"{_short(totals['params'])} parameters"]
        words.append(f"{_short(totals['macs_forward'])} MACs forward, {_short(totals['macs_backward'])} backward")
        if totals["macs_recomputed"]:
            words.append(f"{_short(totals['macs_recomputed'])} again")
        words.append(f"{_short(totals['saved_bytes'], 'B')} kept for backward")
        words.append(f"{_short(totals['training_peak_bytes'], 'B')} at the peak of a training step")
        if "ms" in totals:
            words.append(f"{totals['ms']:,.1f} ms ({self.clock})")
        return f"{self.frame['module'].iloc[0]} on {self.inputs}: " + "; ".join(words)

    def text(self, depth: int = 3) -> str:
        """The tree as text, down to `depth` levels."""
        tree = self.tree()
        tree = tree[tree["depth"] <= depth]
        names = [f"{'  ' * level}{_name(path)}" for path, level in zip(tree["path"], tree["depth"], strict=True)]
        shown = {"module": names, "class": tree["module"].tolist(), "shape out": tree["shape_out"].tolist()}
        for column, title in self._columns().items():
            shown[title] = [_amount(value, column) for value in tree[column]]
        lines = _aligned(shown)
        notes = [f"{path or 'model'}: {note}" for path, note in zip(tree["path"], tree["note"], strict=True) if note]
        return "\n".join([self.summary(), "", *lines, *([""] if notes else []), *notes])

    def write(self, path: str | Path) -> Path:
        """Keep the rows as .csv or .parquet, or the tree as a page, .html; return the path."""
        path = Path(path)
        require_file(path, KEPT)
        if path.suffix != ".html":
            return write(self.frame, path)
        page = f"<!doctype html><meta charset='utf-8'><title>{escape(self.summary())}</title>{self._repr_html_()}"
        with atomic_path(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return path

    def _columns(self) -> dict[str, str]:
        return {column: title for column, title in SHOWN.items() if column in self.frame}

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Profile: {self.summary()}>"

    def _repr_html_(self) -> str:
        """The tree as nested <details>, which fold without a script; names are escaped."""
        tree = self.tree()
        columns = self._columns()
        wholes = {column: max(tree.loc[tree["depth"] == 0, column].sum(), 1e-12) for column in columns}
        head = "".join(f"<b>{title}</b>" for title in ("module", "shape out", *columns.values()))
        rows = [_html_row(row, columns, wholes) for row in tree.to_dict("records")]
        body = _nest(rows, tree["depth"].tolist())
        style = STYLE.replace("COLUMNS", str(len(columns)))
        summary = escape(self.summary())
        return f"<div class='hae-profile'>{style}<p>{summary}</p><div class='r h'>{head}</div>{body}</div>"


def profile(
    model: HAEConfig | nn.Module,
    inputs: Any = None,
    *,
    batch: int = 1,
    training: bool = True,
    loss: Loss | None = None,
    optimizer: Optimizer | None = torch.optim.AdamW,
    time: bool = False,
    repeats: int = 5,
    threads: int = 1,
    device: str = "cpu",
) -> Profile:
    """Parameters, MACs and memory of one training step of any module, or of an `HAEConfig`; time if asked for.

    `inputs` is a tensor, a sequence of arguments or a mapping of named ones; values do not matter, shapes do. A HAE
    model makes its own, for `batch` images. `training=False` looks at a forward pass without gradients alone, and so
    does a model with nothing to train. `time=True` runs the model on `device`, `repeats` times.
    Raises `HAELabError` for missing inputs, and for a model or inputs that cannot run on the meta device.
    """
    built, args, kwargs = prepare(model, batch, inputs)
    training = training and any(parameter.requires_grad for parameter in built.parameters())
    inference = inference_step(built, args, kwargs)
    step = inference
    if training:
        step = training_step(built, args, kwargs, loss=loss, optimizer=optimizer, warm=False)
    frame, clock = _frame(step), ""
    if time:
        options = {"batch": batch, "inputs": inputs, "loss": loss, "repeats": repeats, "threads": threads}
        times = time_by_layer(model, backward=training, device=device, **options)
        milliseconds = times.set_index("path")[TIMES].reindex(frame["path"]).fillna(0.0)
        frame = frame.assign(**{name: milliseconds[name].to_numpy() for name in TIMES})
        clock = f"{times['clock'].iloc[0]}, {threads} thread{'s' if threads > 1 else ''}"
    frame["note"] = frame.pop("note")
    amounts = [name for name in ("params", "params_dead", *MACS, *TIMES) if name in frame]
    totals = pd.concat([frame[amounts].sum(skipna=False), totals_of(step, inference)])
    return Profile(frame, totals, _shapes((args, kwargs)), clock)


def load_model(target: str) -> tuple[nn.Module | HAEConfig, Any]:
    """The model that a "module:function" returns, and its inputs, None if it returns the model alone.

    Raises `HAELabError` for a function that cannot be imported, and for another result.
    """
    made = load(target, "model")
    made = made() if callable(made) and not isinstance(made, nn.Module) else made
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    fits = isinstance(model, nn.Module | HAEConfig)
    require(fits, f"{target!r} returned {type(made).__name__}: a model or (model, inputs) is needed")
    return model, inputs


# the rows


def _frame(step: Step) -> pd.DataFrame:
    macs = backward_rows(step)
    counted = macs[macs["counted_by"] != "nobody"].set_index("path")[MACS]
    notes = macs[macs["counted_by"] == "nobody"].set_index("path")["note"]
    memory = memory_rows(step).set_index("path")
    params, dead = _parameters(step)
    calls = Counter(call.path for call in step.calls)
    shapes = {call.path: _shapes(call.output) for call in step.calls}
    modules = {path: type(module).__name__ for path, module in step.model.named_modules()} | {LOSS: "loss"}
    frame = pd.DataFrame({"path": list(modules), "module": list(modules.values())})
    paths = frame["path"]
    frame["depth"] = [path.count(".") + 1 if path and path != LOSS else 0 for path in paths]
    frame["calls"] = [calls[path] for path in paths]
    frame["shape_out"] = [shapes.get(path, "") for path in paths]
    frame["params"], frame["params_dead"] = [params[path] for path in paths], [dead[path] for path in paths]
    for name in MACS:
        frame[name] = counted[name].reindex(paths).fillna(0).astype("int64").to_numpy()
        frame[name] = frame[name].where(~paths.isin(notes.index), float("nan"))
    for name in ("saved_bytes", "peak_bytes"):
        frame[name] = memory[name].reindex(paths).fillna(0).astype("int64").to_numpy()
    never = pd.Series(["" if calls[path] or not params[path] else "never called" for path in paths], paths)
    frame["note"] = notes.reindex(paths).fillna(never).to_numpy()
    return frame


def _parameters(step: Step) -> tuple[Counter[str], Counter[str]]:
    """Parameters of each module itself, a shared one at its first owner; and those that no gradient reached."""
    params, dead = Counter[str](), Counter[str]()
    for name, parameter in step.model.named_parameters():
        path = name.rpartition(".")[0]
        params[path] += parameter.numel()
        if step.gradients and parameter.requires_grad and name not in step.gradients:
            dead[path] += parameter.numel()
    return params, dead


def _shapes(value: Any) -> str:
    shapes = [f"({', '.join(map(str, leaf.shape))})" for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else "")


def _with_children(paths: pd.Series, values: pd.Series) -> list[Any]:
    """Each value with those of all modules below."""
    sums = dict.fromkeys(paths, 0)
    for path, value in zip(paths, values, strict=True):
        sums[path] += value
        while path and path != LOSS:
            path = path.rpartition(".")[0]
            sums[path] += value
    return list(sums.values())


# words and pictures


def _short(value: float, unit: str = "") -> str:
    """Three digits and a letter: 25.6 M."""
    if value != value:
        return "unknown"
    for size, letter in UNITS:
        if abs(value) >= size:
            return (
                f"{value / size:.3g} {letter}{unit}"
                if abs(value) < 999.5 * size
                else f"{value / size:.0f} {letter}{unit}"
            )
    return f"{value:.0f} {unit}".rstrip()


def _amount(value: float, column: str) -> str:
    if column in TIMES:
        return f"{value:.2f} ms" if value else ""
    return _short(value, "B" if column.endswith("bytes") else "") if value else ""


def _name(path: str) -> str:
    return path.rpartition(".")[2] or "model"


def _aligned(columns: dict[str, list[str]]) -> list[str]:
    """Columns of text: the first three to the left, amounts to the right."""
    widths = {title: max(map(len, [title, *cells])) for title, cells in columns.items()}
    left = list(columns)[:3]

    def line(cells: dict[str, str]) -> str:
        padded = [cell.ljust(widths[t]) if t in left else cell.rjust(widths[t]) for t, cell in cells.items()]
        return "  ".join(padded).rstrip()

    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [line({title: title for title in columns}), *map(line, rows)]


STYLE = """<style>
.hae-profile{font-size:13px;overflow-x:auto}
.hae-profile .r{display:grid;grid-template-columns:minmax(22em,1fr) 12em repeat(COLUMNS,10em);gap:0 4px;min-width:76em}
.hae-profile .r>*{padding:1px 4px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;font-weight:normal}
.hae-profile .r>b{text-align:right}
.hae-profile .h>b{font-weight:bold;border-bottom:1px solid}
.hae-profile .h>b:first-child{text-align:left}
.hae-profile i{background:linear-gradient(90deg,rgba(1,115,178,.35) var(--p),transparent var(--p));font-style:normal;
text-align:right}
.hae-profile summary{cursor:pointer}
.hae-profile span::before{content:"\\2003";display:inline-block;width:1em}
.hae-profile summary span::before{content:"\\25B8"}
.hae-profile details[open]>summary span::before{content:"\\25BE"}
.hae-profile em{opacity:.65}
</style>"""


def _html_row(row: Mapping[Hashable, Any], columns: dict[str, str], wholes: dict[str, float]) -> str:
    """One line of the tree: name and class, shape, amounts with a bar for their share of the whole."""
    note = f" title='{escape(row['note'])}'" if row["note"] else ""
    name = f"{escape(_name(row['path']))} <em>{escape(row['module'])}</em>{' (!)' if note else ''}"
    cells = [
        f"<span style='padding-left:{1.1 * row['depth']:.1f}em'{note}>{name}</span><b>{escape(row['shape_out'])}</b>"
    ]
    for column in columns:
        share = 100 * row[column] / wholes[column]
        width = f"{share:.1f}%" if share == share else "0%"
        cells.append(f"<i style='--p:{width}'>{_amount(row[column], column)}</i>")
    return "".join(cells)


def _nest(rows: list[str], depths: list[int]) -> str:
    """Lines in the order of the tree -> nested <details>; the first level is open."""
    html: list[str] = []
    open_depths: list[int] = []
    for index, (row, depth) in enumerate(zip(rows, depths, strict=True)):
        while open_depths and open_depths[-1] >= depth:
            html.append("</details>")
            open_depths.pop()
        if index + 1 < len(depths) and depths[index + 1] > depth:
            html.append(f"<details{' open' if depth == 0 else ''}><summary class='r'>{row}</summary>")
            open_depths.append(depth)
        else:
            html.append(f"<div class='r'>{row}</div>")
    return "".join([*html, *("</details>" for _ in open_depths)])
