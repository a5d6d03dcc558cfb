"""The mask explorer as a piece of a page that needs no kernel and no network: the masks come with it, bit by bit."""

import base64
import html
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hae_lab import rules
from hae_lab.explorer.model import FIRST_QUERY, MaskExplorerModel, maps, meaning, scales
from hae_lab.masks import SparseMask
from hae_lab.plots import masks as pictures
from hae_lab.profilers.reach import NEIGHBOURHOOD

SIDES = (16, 32)  # maps that come with the page: the second is that of the project's pictures
FOLDER = Path(__file__).parent
STYLE = """\
.hae-explorer { display: flex; flex-wrap: wrap; gap: 12px 24px; align-items: flex-start; margin: 1em 0; }
.hae-explorer .hae-picker { flex: 1 1 360px; max-width: 720px; }
.hae-explorer p { flex-basis: 100%; margin: 0; }
.hae-explorer select { font: inherit; margin: 0 1.5em 0 0.4em; }
.hae-explorer td { padding: 0.25em 1em 0.25em 0; }
.hae-explorer td + td { font-weight: bold; white-space: nowrap; }
.hae-explorer .hae-key { display: inline-block; width: 1em; height: 1em; margin: 0 0.4em -0.1em 1em; }
"""
HINT = "Click on a cell, or click and use the arrow keys; Page Up and Page Down change the grid."


def page_html(sides: Iterable[int] = SIDES) -> str:
    """Style, controls, canvas, numbers and script for square maps of these sides, sparsity 0.9, seed 0.

    It asks for nothing else: no file, no library. Raises `HAELabError` for a side that no map has.
    """
    data = json.dumps(page_data(sides), separators=(",", ":"))
    drawing = (FOLDER / "grid.js").read_text(encoding="utf-8").replace("export default { render };", "")
    state = (FOLDER / "kernelless.js").read_text(encoding="utf-8")
    begin = f"start(document.querySelector('.hae-explorer'), {data});"
    script = f'<script type="module">\n{drawing}\n{state}\n{begin}\n</script>'
    return f"<style>\n{STYLE}</style>\n{_body(sides)}\n{script}\n"


def _body(sides: Iterable[int]) -> str:
    keys = "".join(
        f'<span class="hae-key" style="background: {colour}"></span>{text}' for colour, text in pictures.LEGEND.items()
    )
    options = [(rule, rule) for rule in rules.RULES], [(str(side), f"{side} × {side}") for side in sides]
    return (
        f'<div class="hae-explorer"><p>{_choice("rule", options[0])}{_choice("map", options[1])}</p>'
        '<p class="hae-meaning"></p><div class="hae-picker"></div><table class="hae-numbers"></table>'
        f"<p>{keys}</p><p>{HINT}</p></div>"
    )


def _choice(name: str, options: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f'<option value="{value}">{html.escape(text)}</option>' for value, text in options)
    return f'<label>{name}<select name="{name}" autocomplete="off">{lines}</select></label>'


def page_data(sides: Iterable[int] = SIDES) -> dict[str, Any]:
    """What the script reads: grids and masks of each map, colours and words."""
    _, row, column = FIRST_QUERY
    colours = {"seen": pictures.SEEN, "reached": pictures.REACHED, "hidden": pictures.HIDDEN, "query": pictures.QUERY}
    return {
        "maps": {str(side): _map_data(side) for side in sides},
        "meanings": {rule: meaning(rule) for rule in rules.RULES},
        "colours": colours,
        "around": NEIGHBOURHOOD,
        "first": {"grid": 0, "row": row, "column": column},
    }


def _map_data(side: int) -> dict[str, Any]:
    models = {rule: MaskExplorerModel(rule=rule, side=side) for rule in rules.RULES}
    grid = next(iter(models.values())).grid
    starts = maps(grid, np.arange(grid.n)).values()
    return {
        "n": grid.n,
        "patches": list(scales(grid)),
        "grids": [(int(tokens[0, 0]), *tokens.shape) for tokens in starts],
        "rules": {rule: {"groups": model.mask.groups, "bits": packed(model.mask)} for rule, model in models.items()},
    }


def packed(mask: SparseMask) -> str:
    """The pairs that may see each other as text: a bit each, (groups, n, n) in order, by zlib, in base64."""
    queries = np.arange(mask.grid.n)
    allowed = np.stack([mask.allowed(queries, group) for group in range(mask.groups)])  # (groups, n, n)
    return base64.b64encode(zlib.compress(np.packbits(allowed).tobytes(), 9)).decode("ascii")
