"""The roofline: every layer of a model against what the machine allows."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hae_lab.checks import require
from hae_lab.plots.base import PALETTE, Chart, chart, new_chart, say, write_legend
from hae_lab.plots.compute import machine

KIND_STYLES = {
    "convolution": (PALETTE[0], "o"), "linear": (PALETTE[2], "s"), "sparse attention": (PALETTE[3], "*"),
    "attention": (PALETTE[1], "D"), "resampling": (PALETTE[9], "^"), "other": (PALETTE[7], "X"),
}  # fmt: skip


@chart
def roofline(rows: pd.DataFrame) -> Chart:
    """Work a second against work a byte, a point a layer, as large as its time. Rows: `profilers.time_by_layer`.

    Layers without multiply-accumulates have no place on it; the legend says what share of the time they and the others
    take.
    """
    require(len(rows) > 0, "no layer to draw: the rows are empty")
    figure = new_chart(_title(rows))
    ax = figure.subplots()
    working = rows[(rows["macs"] > 0) & (rows["ms"] > 0)]
    for kind, layers in working.groupby("kind", sort=False):
        colour, marker = KIND_STYLES.get(kind, KIND_STYLES["other"])
        share = rows.loc[rows["kind"] == kind, "share_percent"].sum()
        ax.scatter(
            layers["flops_per_byte"],
            layers["gflops_per_second"],
            s=20 + 60 * layers["share_percent"],
            color=colour,
            marker=marker,
            alpha=0.75,
            edgecolors="white",
            linewidths=0.5,
            label=say("{kind}, {share:.0f} % of the time", kind=say(kind), share=share),
        )
    _draw_roof(ax, rows, working)
    idle = rows.loc[rows["macs"] == 0, "share_percent"].sum()
    ax.plot([], [], " ", label=say("without MACs, {share:.0f} % of the time", share=idle))
    ax.set(xscale="log", yscale="log", xlabel="FLOPs a byte moved", ylabel="GFLOP/s")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    legend = write_legend(figure, loc="outside lower center", ncols=2)
    for handle in legend.legend_handles[: working["kind"].nunique()]:
        handle.set_sizes([70])
    where = rows.iloc[0]
    note = say("{machine}; hooks cost {percent:.0f} %", machine=machine(where), percent=where["overhead_percent"])
    figure.text(0.99, 0.005, note, ha="right", fontsize=10)
    return figure


def _draw_roof(ax: Axes, rows: pd.DataFrame, working: pd.DataFrame) -> None:
    peak, bandwidth = rows["peak_gflops_per_second"].iloc[0], rows["gbytes_per_second"].iloc[0]
    ridge = peak / bandwidth
    reach = [ridge, *working["flops_per_byte"]]
    intensity = np.geomspace(min(reach) / 2, max(reach) * 2, 200)
    ax.plot(intensity, np.minimum(peak, intensity * bandwidth), color="black", linewidth=1.5)
    arithmetic = say("arithmetic: {peak:,.0f} GFLOP/s", peak=peak)
    ax.annotate(arithmetic, (intensity[-1], peak), xytext=(0, 6), textcoords="offset points", ha="right")
    below_ridge = np.sqrt(intensity[0] * ridge)
    ax.annotate(
        say("memory: {bandwidth:,.0f} GB/s", bandwidth=bandwidth),
        (below_ridge, below_ridge * bandwidth),
        xytext=(-8, 4),
        textcoords="offset points",
        ha="right",
    )


def _title(rows: pd.DataFrame) -> str:
    """Which kind of part takes the time, and what attention does, sparse if there is some."""
    shares = rows[rows["kind"] != "outside"].groupby("kind")["share_percent"].sum().sort_values(ascending=False)
    first = shares.index[0]
    words = say("{kind} takes {share:.0f} % of the time", kind=say(first).capitalize(), share=shares.iloc[0])
    second = next((kind for kind in ("sparse attention", "attention") if kind in shares and kind != first), None)
    second = second or next((kind for kind in shares.index[1:]), None)
    if second is None:
        return words
    most = rows[(rows["kind"] == first) & (rows["macs"] > 0)]
    reached = 2 * most["macs"].sum() / most["ms"].sum() / 1e6 if len(most) else 0.0
    percent = 100 * reached / rows["peak_gflops_per_second"].iloc[0]
    at = say(", at {percent:.0f} % of the machine's peak", percent=percent) if reached else ""
    return words + at + say("; {kind} takes {share:.0f} %", kind=say(second), share=shares[second])
