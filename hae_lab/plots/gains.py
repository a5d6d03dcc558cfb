"""Pictures of quality as an absolute number: the share of what can be gained, where the least loss is known."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hae_lab.plots.base import PALETTE, SIZE, chart, say, say_list, span, titled_axes, variant_colours
from hae_lab.plots.verdicts import KNOWN_WORSE, MEAN, cell_name, cell_styles, cells_legend, interval
from hae_lab.presets import VARIANTS, variant_title
from hae_lab.study.grid import CONTROL, QUESTION

SHARE = "share of the possible gain\nmean and 95 % interval (seeds)"
AT_COST = PALETTE[4]  # cells at equal cost: the same colour for all, since their names say what they are


@chart
def gain_shares(rows: pd.DataFrame, *, palette: Mapping[str, str] | None = None, ax: Axes | None = None) -> Figure:
    """A line a cell of one study on one data set: mean and 95 % interval of the share of the possible gain.

    Rows: data, cell, role, n_seeds, gain_share_mean, gain_share_ci_low, gain_share_ci_high. Cells of the question come
    first, then those at equal cost, then the controls.
    """
    order = rows["role"].map({QUESTION: 0, CONTROL: 2}).fillna(1)
    rows = rows.assign(order=order).sort_values("order", kind="stable").reset_index(drop=True)
    figure, own = titled_axes(_title(rows), ax, least=SIZE[0])
    colours = _colours(rows, palette)
    for place, row in enumerate(rows.to_dict("records")):
        shown = {name: row[f"gain_share_{name}"] for name in ("mean", "ci_low", "ci_high")}
        interval(own, place, shown, centre="mean", lying=True, color=colours[row["cell"]], marker="o")
    for place in rows.index[rows["order"].diff() > 0]:
        own.axhline(place - 0.5, color="black", linewidth=0.6)
    own.set_yticks(rows.index, [_name(row.cell, row.n_seeds) for row in rows.itertuples()])
    own.invert_yaxis()
    own.set_xlim(0, max(0.5, rows["gain_share_ci_high"].max() * 1.1))
    own.set_xlabel(SHARE)
    own.grid(axis="y", visible=False)
    return figure


@chart
def gain_by_distance(rows: pd.DataFrame, *, palette: Mapping[str, str] | None = None, ax: Axes | None = None) -> Figure:
    """A line a cell of the question: the share of the possible gain by how far away the copy is, with 95 % intervals.

    Rows: those of `gain_shares` of one study on several data sets, and apart_px.
    """
    rows = rows[rows["role"] == QUESTION].sort_values("apart_px", kind="stable")
    figure, own = titled_axes(_distance_title(rows), ax, least=SIZE[0])
    places = {apart: place for place, apart in enumerate(rows["apart_px"].unique())}
    cells = list(rows["cell"].unique())
    titled = {variant_title(name): colour for name, colour in variant_colours().items()}
    styles = cell_styles(cells, {**titled, **(palette or {})})
    for shift, cell in zip(np.linspace(-0.15, 0.15, len(cells)), cells, strict=True):
        here = rows[rows["cell"] == cell]
        x = here["apart_px"].map(places) + shift  # side by side, so that no interval hides another
        mean = here["gain_share_mean"]
        arms = [mean - here["gain_share_ci_low"], here["gain_share_ci_high"] - mean]
        own.errorbar(x, mean, yerr=arms, capsize=3, linewidth=1.5, markersize=7, **styles[cell])
    own.set_xticks(list(places.values()), [f"{apart:g}" for apart in places])
    own.set_xlabel("from a cell to its copy, pixels")
    own.set_ylabel(SHARE)
    own.grid(axis="x", visible=False)
    cells_legend(figure, styles, "", ax)
    return figure


def _distance_title(rows: pd.DataFrame) -> str:
    """What the cells gain that gain least and most where the copy is farthest, there and where it is nearest."""
    means = rows.pivot_table(index="cell", columns="apart_px", values="gain_share_mean", sort=False)
    near, far = means.columns.min(), means.columns.max()
    named = dict.fromkeys([means[far].idxmax(), means[far].idxmin()])
    gains = [f"{cell_name(cell)} {means.loc[cell, near]:.2f}→{means.loc[cell, far]:.2f}" for cell in named]
    return say(
        "Gain from copies {near} → {far} pixels away: {gains} ({seeds} seeds)",
        near=f"{near:g}", far=f"{far:g}", gains=say("; ").join(gains), seeds=span(rows["n_seeds"]),
    )  # fmt: skip


def _name(cell: str, seeds: int) -> str:
    return say("{cell} ({seeds})", cell=cell_name(cell), seeds=seeds)


def _colours(rows: pd.DataFrame, palette: Mapping[str, str] | None) -> dict[str, str]:
    """Of each cell: a variant has its own, all others that of what they are for."""
    variants, roles = variant_colours(palette=palette), {QUESTION: MEAN, CONTROL: KNOWN_WORSE}
    return {row.cell: variants.get(row.cell, roles.get(row.role, AT_COST)) for row in rows.itertuples()}


def _title(rows: pd.DataFrame) -> str:
    """What the variants gain, and the cells of the question that gain least and most."""
    means = rows[rows["role"] == QUESTION].set_index("cell")["gain_share_mean"]
    named = [*(cell for cell in VARIANTS if cell in means), means.idxmin(), means.idxmax()]
    shares = [f"{cell_name(cell)} {means[cell]:.2f}" for cell in dict.fromkeys(named)]
    return say(
        "Of what can be gained on {data} the models gain: {shares} ({seeds} seeds)",
        data=say_list(list(rows["data"].unique())), shares=say("; ").join(shares), seeds=span(rows["n_seeds"]),
    )  # fmt: skip
