"""Pictures of work and time: multiply-accumulates by part and level, speed-ups, the variants side by side."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hae_lab.plots.base import (
    CLAIM_COLOUR,
    PALETTE,
    VARIANT_COLOURS,
    VARIANT_NAMES,
    Chart,
    chart,
    new_chart,
    stacked_bars,
)

ACCOUNTS = {
    "macs_document": ("as published, all n queries", "#555555"),
    "macs_dense": ("dense, local queries", PALETTE[7]),
    "macs_run": ("run by our kernel", PALETTE[0]),
    "macs_kept": ("kept by the mask", PALETTE[9]),
}
WORK_COLOURS = {
    "body": "#adadad", "timestep": PALETTE[8], "CNN branch": PALETTE[9], "projections": PALETTE[3],
    "attention projections": PALETTE[6], "attention scores and values": PALETTE[4], "MLP": PALETTE[1],
    "fusion": PALETTE[2],
}  # fmt: skip
RULE_COLOURS = {
    "document": PALETTE[3], "document_shared": PALETTE[1], "always_regional": PALETTE[4],
    "spatial_reduction": PALETTE[2], "window2d": PALETTE[0], "dense": PALETTE[7],
}  # fmt: skip
RULE_MARKERS = dict(zip(RULE_COLOURS, "osD^vX", strict=True))


@chart
def macs_by_part(rows: pd.DataFrame, preset: str = "brats128") -> Chart:
    """A bar a variant, split into the parts that work. Rows: `profilers.compute_table.part_rows`."""
    rows = rows[rows["preset"] == preset]
    table = rows.pivot(index="part", columns="variant", values="macs_document").fillna(0) / 1e9
    share = 100 * table.loc["attention scores and values", "hae"] / table["hae"].sum()
    figure = new_chart(f"The attention that the mask thins out is {share:.0f} % of HAE's work; the body does the most")
    ax = stacked_bars(figure, table, WORK_COLOURS)
    ax.set_ylabel(f"GMACs of one denoising step, as published ({preset})")
    return figure


@chart
def macs_by_level(rows: pd.DataFrame, preset: str = "brats128", variant: str = "hae") -> Chart:
    """MACs of each decoder level in four accounts. Rows: `profilers.compute_table.level_rows`."""
    rows = rows[(rows["preset"] == preset) & (rows["variant"] == variant)]
    saved = 100 * (1 - rows["macs_run"].sum() / rows["macs_document"].sum())
    finest = rows.loc[(rows["macs_document"] - rows["macs_run"]).idxmax()]
    figure = new_chart(
        f"Sparse attention saves {saved:.0f} % of {VARIANT_NAMES[variant]}'s decoder, nearly all of it on the "
        f"{finest['height']} × {finest['width']} map"
    )
    ax = figure.subplots()
    place = np.arange(len(rows))
    for index, (column, (label, colour)) in enumerate(ACCOUNTS.items()):
        ax.bar(place + 0.2 * (index - 1.5), rows[column] / 1e9, 0.19, color=colour, label=label)
    names = [f"{height} × {width}" for height, width in zip(rows["height"], rows["width"], strict=True)]
    ax.set_xticks(place, names)
    rule = rows["mask_rule"].iloc[0]
    ax.set(xlabel=f"map of the decoder level, pixels ({preset}, {rule})", ylabel="GMACs of one denoising step")
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False)
    return figure


@chart
def attention_speed_up(rows: pd.DataFrame) -> Chart:
    """Measured speed-up of the whole attention layer against n, over both baselines. Rows: `data/latency_cpu.csv`."""
    rows = rows[(rows["benchmark"] == "attention") & (rows["pass"] == "forward")]
    layers, cores = rows[rows["case"].isin(RULE_COLOURS)], rows[rows["limit"].gt(1)]
    best = layers[(layers["case"] == "document_shared") & layers["speed_up"].notna()].nlargest(1, "n").iloc[0]
    figure = new_chart(
        f"Shared random columns make the layer {best['speed_up']:.0f} times faster than the document's, "
        f"{best['speed_up_sdpa']:.1f} times faster than a fused kernel (n = {best['n']:,.0f})"
    )
    left, right = figure.subplots(1, 2, sharex=True)
    _speed_up_lines(left, layers, "speed_up", "speed-up over the document's layer")
    _speed_up_lines(right, layers, "speed_up_sdpa", "speed-up over SDPA with the mask")
    right.plot(cores["n"], cores["limit"], "k--", label="limit n² / (n_local K),\ndocument_shared")
    right.plot(cores["n"], cores["speed_up_sdpa"], "k:", marker="*", label="its core, no projections")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.text(0.99, 0.005, f"{best['device_name']}, 1 thread, CPU time, C = 256", ha="right", fontsize=10)
    return figure


def _speed_up_lines(ax: Axes, rows: pd.DataFrame, column: str, label: str) -> None:
    for rule, colour in RULE_COLOURS.items():
        line = rows[(rows["case"] == rule) & rows[column].notna()].sort_values("n")
        ax.plot(line["n"], line[column], marker=RULE_MARKERS[rule], color=colour, label=rule)
    ax.axhline(1, color="black", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="tokens n", ylabel=label)
    sizes = sorted(rows.loc[rows[column].notna(), "n"].unique())
    ax.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
    ax.minorticks_off()
    ax.set_yticks([ticks for ticks in (0.5, 1, 2, 5, 10, 20, 50, 100) if ticks <= 1.5 * rows[column].max()])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@chart
def variants_together(rows: pd.DataFrame) -> Chart:
    """Parameters, MACs and time of the variants, in percent of HAE. Rows: `compute_table.variants_together`."""
    quantities = list(rows["quantity"].unique())
    table = {quantity: part.set_index("variant") for quantity, part in rows.groupby("quantity")}
    figure = new_chart(
        f"V2 holds {table['parameters'].loc['v2', 'percent_of_hae']:.0f} % of HAE's parameters, but does "
        f"{table['MACs'].loc['v2', 'percent_of_hae']:.0f} % of its work; {_time_in_words(table['time'])}"
    )
    ax = figure.subplots()
    for index, (variant, name) in enumerate(VARIANT_NAMES.items()):
        mine = rows[rows["variant"] == variant].set_index("quantity").loc[quantities]
        place = np.arange(len(quantities)) + 0.2 * (index - 1.5)
        ax.bar(place, mine["percent_of_hae"], 0.19, color=VARIANT_COLOURS[variant], label=name)
        errors = mine[["percent_q1", "percent_q3"]].sub(mine["percent_of_hae"], axis=0).abs().to_numpy().T
        ax.errorbar(place, mine["percent_of_hae"], yerr=errors, fmt="none", color="black", capsize=3)
        for x, value, top in zip(place, mine["percent_of_hae"], mine["percent_q3"], strict=True):
            ax.text(x, max(value, top) + 1.5, f"{value:.0f}", ha="center", fontsize=11)
    for index, percent in ((2, 70), (3, 40)):
        x = 0.2 * (index - 1.5)
        label = "claimed parameters" if index == 2 else None
        ax.plot([x - 0.095, x + 0.095], [percent] * 2, color=CLAIM_COLOUR, linewidth=4, label=label)
    ax.set_xticks(range(len(quantities)), quantities)
    ax.set(ylabel="% of HAE; lower is cheaper", ylim=(0, 132))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="upper center", frameon=False)
    return figure


def _time_in_words(times: pd.DataFrame) -> str:
    """What quartiles that overlap allow to say about the three."""
    three = times.loc[["hae", "lite", "v2"]]
    if three["percent_q1"].max() <= three["percent_q3"].min():
        return "the times of the three cannot be told apart"
    return f"it takes {times.loc['v2', 'percent_of_hae']:.0f} % of its time"


@chart
def density_and_reach(rows: pd.DataFrame) -> Chart:
    """What a rule keeps, and how far it sees, against the number of tokens. Rows: `profilers.visibility.visibility`."""
    largest = rows[rows["n"] == rows["n"].max()].set_index("rule")
    figure = new_chart(
        f"The document's mask keeps {100 * largest.loc['document', 'density']:.0f} % of the pairs, and "
        f"{largest.loc['document', 'own_4_percent']:.0f} % of the pixels see their own 4 × 4 patch"
    )
    axes = figure.subplots(1, 2, sharex=True)
    panels = (("density", 100, "pairs kept, %"), ("own_4_percent", 1, "pixels that see their own 4 × 4 patch, %"))
    for ax, (column, factor, label) in zip(axes, panels, strict=True):
        for rule, line in rows.groupby("rule", sort=False):
            line = line.sort_values("n")
            style = {"marker": RULE_MARKERS.get(rule, "."), "color": RULE_COLOURS.get(rule), "alpha": 0.9}
            ax.plot(line["n"], factor * line[column], label=rule, **style)
        ax.set(xscale="log", xlabel="tokens n", ylabel=label, ylim=(-3, 103))
        sizes = sorted(rows["n"].unique())
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes], rotation=40)
        ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
