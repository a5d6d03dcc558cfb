"""Pictures of the parameter table."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from hae_lab.plots.base import (
    CLAIM_COLOUR,
    PALETTE,
    VARIANT_COLOURS,
    VARIANT_NAMES,
    Chart,
    chart,
    grouped_bars,
    new_chart,
    span,
    stacked_bars,
)

PART_COLOURS = {
    "encoder": "#6b6b6b", "middle": "#8c8c8c", "decoder body": "#adadad", "embedding and out": "#cecece",
    "timestep": PALETTE[8], "CNN branch": PALETTE[9], "norms": PALETTE[5], "projections": PALETTE[3],
    "attention": PALETTE[4], "MLP": PALETTE[1], "fusion": PALETTE[2],
}  # fmt: skip


@chart
def parameter_table(rows: pd.DataFrame) -> Chart:
    """Parameters of the variants in percent of HAE, a group a preset, with the claimed lines.

    Rows: `profilers.parameter_table.parameter_table`.
    """
    whole = rows[rows["scope"] == "whole model"]
    kept = {variant: span(whole.loc[whole["variant"] == variant, "percent_of_hae"]) for variant in VARIANT_NAMES}
    claim = whole.drop_duplicates("variant").set_index("variant")["claim_percent"]
    figure = new_chart(
        f"Like for like, Lite keeps {kept['lite']} % and V2 {kept['v2']} % of HAE's parameters, "
        f"not {claim['lite']:.0f} % and {claim['v2']:.0f} %"
    )
    ax = figure.subplots()
    grouped_bars(ax, whole, "preset", "percent_of_hae")
    for variant in ("lite", "v2"):
        ax.axhline(claim[variant], color=VARIANT_COLOURS[variant], linestyle="--", linewidth=2)
        label = f"claimed {VARIANT_NAMES[variant]} {claim[variant]:.0f} %"
        ax.text(3.5, claim[variant] - 1, label.replace(" ", "\n", 1), va="top", fontsize=12)
    ax.set(xlabel="preset (body of the U-Net)", ylabel="parameters, % of HAE on the same body", ylim=(0, 118))
    ax.set_xlim(-0.5, 4.5)
    ax.legend(ncols=4, loc="upper center", frameon=False)
    return figure


@chart
def published_counts(rows: pd.DataFrame) -> Chart:
    """The published counts beside our models that reproduce them. Rows: `parameter_table.published_counts`."""
    figure = new_chart(
        "The published 100 / 69 / 40 % compares three different models: the blocks stand elsewhere in each"
    )
    ax = figure.subplots()
    place = np.arange(len(rows))
    colours = [VARIANT_COLOURS[variant] for variant in rows["variant"]]
    ax.bar(place - 0.2, rows["published_million_params"], 0.38, color=colours, alpha=0.45, label="published")
    bars = ax.bar(place + 0.2, rows["our_params"] / 1e6, 0.38, color=colours, label="our model")
    labels = [
        f"{params:,}\n{percent:.1f} %" for params, percent in zip(rows["our_params"], rows["our_percent"], strict=True)
    ]
    ax.bar_label(bars, labels, fontsize=11, padding=2)
    names = [
        f"{VARIANT_NAMES[variant]}\n" + changes.replace(", ", "\n")
        for variant, changes in zip(rows["variant"], rows["our_changes"], strict=True)
    ]
    ax.set_xticks(place, names)
    ax.set(ylabel="parameters, million", ylim=(0, 1.18 * rows["our_params"].max() / 1e6))
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False, title="preset wide128; pale: as published, full: counted here")
    return figure


@chart
def feasibility(rows: pd.DataFrame) -> Chart:
    """V2 against Lite, both in percent of HAE: the line that every like-for-like family lies on, and the claim.

    Rows: `profilers.parameter_table.feasibility`.
    """
    families, claim = rows[rows["preset"] != "the claim"], rows[rows["preset"] == "the claim"].iloc[0]
    off = families["off_line_points"].abs().max()
    figure = new_chart(
        f"Every like-for-like family lies on one line (within {off:.2f} points); "
        f"the claim lies {abs(claim['off_line_points']):.0f} points below it"
    )
    ax = figure.subplots()
    lite = np.array([0, 100])
    ax.plot(
        lite,
        lite - claim["slope"] * (100 - lite),
        color="black",
        zorder=1,
        label="V2 = Lite − 7.5/80 (100 − Lite); MSTB: 7.5/79",
    )
    markers = dict(zip(families["scope"].unique(), "^sDo", strict=True))
    for scope, group in families.groupby("scope", sort=False):
        label = f"{scope}, {len(group)} presets"
        ax.scatter(
            group["lite_percent"], group["v2_percent"], marker=markers[scope], s=80, color="#555555", label=label
        )
    ax.scatter(
        claim["lite_percent"],
        claim["v2_percent"],
        marker="*",
        s=400,
        color=CLAIM_COLOUR,
        zorder=3,
        label="the claim: 70 / 40",
    )
    ax.plot(
        [claim["lite_percent"]] * 2,
        [claim["v2_percent"], claim["line_v2_percent"]],
        ":",
        color=CLAIM_COLOUR,
        linewidth=2,
    )
    note = f"at Lite {claim['lite_percent']:.0f} %\nV2 must be {claim['line_v2_percent']:.1f} %"
    ax.annotate(note, (claim["lite_percent"], claim["line_v2_percent"]), (72, 48))
    ax.set(
        xlabel="HAE Lite, parameters in % of HAE", ylabel="HAE V2, parameters in % of HAE", xlim=(0, 100), ylim=(0, 100)
    )
    ax.legend(loc="upper left", frameon=True)
    return figure


@chart
def slot_waterfall(rows: pd.DataFrame, orders: tuple[str, str] | None = None) -> Chart:
    """What each slot change saves on the way HAE -> V2, in two orders. Rows: `parameter_table.slot_waterfall`."""
    orders = orders or (rows["order"].iloc[0], rows["order"].iloc[-1])
    last = rows[rows["order"] == orders[0]].set_index("slot")["saved_params"]
    share = 100 * last["regions"] / last.sum()
    figure = new_chart(
        f"The shared projection alone makes {share:.0f} % of the saving from HAE to V2; the order does not matter"
    )
    top = (rows["params"] + rows["saved_params"]).max()
    for ax, order in zip(figure.subplots(1, 2, sharey=True), orders, strict=True):
        _waterfall(ax, rows[rows["order"] == order])
        ax.set(title=order.replace(" > ", " → "), ylim=(0, 1.1 * top / 1e6))
    figure.axes[0].set_ylabel(f"parameters of the whole model, million ({rows['preset'].iloc[0]})")
    return figure


def _waterfall(ax: Axes, steps: pd.DataFrame) -> None:
    start = steps["params"].iloc[0] + steps["saved_params"].iloc[0]
    totals = [start, *steps["params"]]
    ax.bar(0, start / 1e6, color=VARIANT_COLOURS["hae"])
    ax.bar(len(steps) + 1, totals[-1] / 1e6, color=VARIANT_COLOURS["v2"])
    for index, (saved, left) in enumerate(zip(steps["saved_params"], steps["params"], strict=True), start=1):
        ax.bar(index, saved / 1e6, bottom=left / 1e6, color=CLAIM_COLOUR)
        ax.text(index, (left + saved) / 1e6 + 2, f"−{saved / 1e6:.1f}", ha="center")
    for index in (0, len(steps) + 1):
        ax.text(
            index, totals[min(index, len(steps))] / 1e6 + 2, f"{totals[min(index, len(steps))] / 1e6:.1f}", ha="center"
        )
    changes = [change.replace("=", "=\n") for change in steps["change"]]
    ax.set_xticks(range(len(steps) + 2), ["HAE", *changes, "V2"], fontsize=10, rotation=40, ha="right")
    ax.grid(axis="x", visible=False)


@chart
def where_parameters_sit(rows: pd.DataFrame, preset: str = "brats128") -> Chart:
    """A bar a variant, split into the body's sections and the parts of the hybrid blocks. Rows: `part_rows`."""
    rows = rows[rows["preset"] == preset]
    table = rows.pivot(index="part", columns="variant", values="params")
    heights = _disjoint_parts(table)
    projections = 100 * table.loc["projections", "hae"] / table.loc["model", "hae"]
    figure = new_chart(
        f"HAE's patch projections hold {projections:.0f} % of its parameters; Lite and V2 drop almost all of them"
    )
    ax = stacked_bars(figure, pd.DataFrame(heights).T / 1e6, PART_COLOURS, "body: grey\nhybrid: coloured")
    ax.set_ylabel(f"parameters, million ({preset})")
    return figure


def _disjoint_parts(table: pd.DataFrame) -> dict[str, pd.Series]:
    hybrid = ["timestep", "CNN branch", "norms", "projections", "attention", "MLP", "fusion"]
    return {
        "encoder": table.loc["encoder"],
        "middle": table.loc["middle"],
        "decoder body": table.loc["decoder"] - table.loc["hybrid blocks"],
        "embedding and out": table.loc["embedding"] + table.loc["out"],
        **{part: table.loc[part] for part in hybrid},
    }


@chart
def what_it_would_take(rows: pd.DataFrame) -> Chart:
    """The families that reach 100/70/40, with their own changes. Rows: `parameter_table.what_it_would_take`."""
    fewest = rows["changes"].min()
    figure = new_chart(
        f"100 / 70 / 40 needs at least {fewest} changes that Lite and V2 make for themselves, outside the slots"
    )
    ax = figure.subplots()
    place = np.arange(len(rows))
    for offset, variant in ((-0.2, "lite"), (0.2, "v2")):
        bars = ax.barh(
            place + offset,
            rows[f"{variant}_percent"],
            0.38,
            color=VARIANT_COLOURS[variant],
            label=VARIANT_NAMES[variant],
        )
        labels = [
            f" {percent:.1f} %: {changes}"
            for percent, changes in zip(rows[f"{variant}_percent"], rows[f"{variant}_changes"], strict=True)
        ]
        ax.bar_label(bars, labels, fontsize=10)
    for percent in (70, 40):
        ax.axvline(percent, color="grey", linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(place, [f"set {index + 1}" for index in place])
    ax.invert_yaxis()
    ax.set(xlabel=f"parameters, % of HAE ({rows['preset'].iloc[0]})", xlim=(0, 135))
    ax.grid(axis="y", visible=False)
    ax.legend(loc="upper right", frameon=True)
    return figure
