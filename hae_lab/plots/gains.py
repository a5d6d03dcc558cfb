"""A picture of quality as an absolute number: the share of what can be gained, where the least loss is known."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hae_lab.plots.base import PALETTE, SIZE, chart, say, say_list, span, titled_axes, variant_colours
from hae_lab.plots.verdicts import KNOWN_WORSE, MEAN, cell_name, interval
from hae_lab.presets import VARIANTS
from hae_lab.study.grid import CONTROL, QUESTION

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
    own.set_xlabel("share of the possible gain\nmean and 95 % interval (seeds)")
    own.grid(axis="y", visible=False)
    return figure


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
