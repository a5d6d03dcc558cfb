"""The pictures that any study has: what its cells differ by, how a single factor acts, how the loss fell."""

from collections.abc import Callable, Iterator

import pandas as pd

from hae_lab.checks import HAELabError
from hae_lab.diffusion.training import RECIPE_FIELDS
from hae_lab.family import FIELDS
from hae_lab.plots.ablations import dose
from hae_lab.plots.costs import learning_curves
from hae_lab.plots.page import Chart
from hae_lab.plots.studies import forest
from hae_lab.presets import CONTROL
from hae_lab.study.statistics import question

Drawing = Callable[[], Chart]


def study_figures(rows: pd.DataFrame, curves: pd.DataFrame) -> tuple[dict[str, Chart], list[str]]:
    """Figures of `Study.results` and `Study.curves` by name, and why others cannot be drawn.

    "forest" has the differences of all pairs, "dose" the levels of the field that varies, if it is one field, "curves"
    the loss by steps. A study on several data sets has each of them for each, with its name behind.
    """
    figures: dict[str, Chart] = {}
    left_out = []
    for name, draw in _drawings(rows, curves):
        try:
            figures[name] = draw()
        except HAELabError as error:  # as of a single cell, or a single seed
            left_out.append(f"{name}: {error}")
    return figures, left_out


def _drawings(rows: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[str, Drawing]]:
    sets = list(rows["data"].unique())
    for data in sets:
        part, curve = rows[rows["data"] == data], curves[curves["data"] == data]
        curve = _declared(curve, part)
        behind = f"_{data}" if len(sets) > 1 else ""
        if "loss" in part:
            yield f"forest{behind}", lambda part=part: forest(part)
            factor = single_factor(part)
            if factor is not None:
                yield f"dose{behind}", lambda part=part, factor=factor: dose(part, x=factor, cost=_cost(part))
        if len(curve):
            yield f"curves{behind}", lambda curve=curve: learning_curves(curve)


def _declared(curves: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Curves of the cells that are asked about, with what the study declares on them."""
    cells = question(rows).drop_duplicates("cell")
    columns = cells.columns.intersection(["cell", "role", "reference", "margin_percent", "looks"])
    return curves.merge(cells[columns], on="cell")


def single_factor(rows: pd.DataFrame) -> str | None:
    """The one field of config or recipe that varies between the cells that are asked about; None if none or several."""
    asked = question(rows)
    asked = asked[asked["cell"] != CONTROL]
    varying = [name for name in asked.columns if name in (*FIELDS, *RECIPE_FIELDS) and asked[name].nunique() > 1]
    return varying[0] if len(varying) == 1 else None


def _cost(rows: pd.DataFrame) -> str:
    """Parameters where the cells differ in them, else MACs."""
    return "params" if question(rows)["params"].nunique() > 1 else "macs"
