"""Pictures of work and time: multiply-accumulates by part and level, speed-ups, the variants side by side."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from hae_lab.checks import require, require_name
from hae_lab.plots.base import (
    INK,
    PALETTE,
    REFERENCE,
    SIZE,
    Chart,
    bar_places,
    bar_step,
    chart,
    commas,
    count_word,
    has_blocks,
    legend_outside,
    mark_claim,
    measured,
    name_ticks,
    new_chart,
    of_preset,
    ordered,
    short_title,
    subject_of,
    title_of,
    titled_axes,
    variant_colours,
    write_note,
)
from hae_lab.plots.catalogue import say, say_list
from hae_lab.plots.page import TEXT, broken_name, wrapped

ACCOUNTS = {
    "macs_document": ("as published, all n queries", "#555555"),
    "macs_dense": ("dense, local queries", PALETTE[7]),
    "macs_run": ("run by our kernel", PALETTE[0]),
    "macs_kept": ("kept by the mask", PALETTE[9]),
}
MASKED = "attention scores and values"  # the part of the work that a mask thins out
RULE_COLOURS = {
    "document": PALETTE[3], "document_shared": PALETTE[1], "always_regional": PALETTE[4],
    "spatial_reduction": PALETTE[2], "window2d": PALETTE[0], "dense": PALETTE[7],
}  # fmt: skip
RULE_MARKERS = "osD^vXP*<>"
SHARED = "document_shared"  # our fastest rule that keeps the document's law
DENSE = "dense"  # the rule that hides nothing, the denominator
LAYER, CORE = "layer", "core"  # what a row of the benchmark measures


def rule_styles(rules: Iterable[str], palette: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """Colour and marker of each mask rule: ours in colours of their own, a user's in what is left."""
    names = list(dict.fromkeys([*RULE_COLOURS, *rules]))
    spare = cycle(colour for colour in PALETTE if colour not in RULE_COLOURS.values())
    colours = {name: RULE_COLOURS.get(name) or next(spare) for name in names} | dict(palette or {})
    return {name: {"color": colours[name], "marker": mark} for name, mark in zip(names, cycle(RULE_MARKERS))}


def rules_in_order(rules: Iterable[str], order: Sequence[str] | None = None) -> list[str]:
    """The mask rules that are drawn: those of `order`, or ours and then a user's. An unknown one is an error."""
    found = list(dict.fromkeys(rules))
    for rule in order or ():
        require_name("mask rule", rule, found)
    ours = [rule for rule in RULE_COLOURS if rule in found]
    return list(order or [*ours, *(rule for rule in found if rule not in ours)])


@chart
def macs_by_part(
    rows: pd.DataFrame,
    *,
    preset: str | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A row a part that works, a mark a variant, on a logarithmic axis: the parts differ by five orders of magnitude.

    Rows, one a variant and part: preset, variant, part, macs_document. Beside each part stands its share of HAE's work.
    """
    rows = of_preset(rows, preset)
    shown, note = measured(rows, "macs_document", order)
    table = rows.pivot(index="part", columns="variant", values="macs_document")[shown].fillna(0) / 1e9
    subject = subject_of(shown)
    table = table.sort_values(subject, ascending=False)
    shares = 100 * table[subject] / table[subject].sum()
    figure, own = titled_axes(
        say(
            "The attention that the mask thins out is {share:.0f} % of {name}'s work; the {part} does the most",
            share=shares.get(MASKED, 0), name=title_of(subject), part=say(shares.idxmax()),
        ),
        ax,
    )  # fmt: skip
    colours, steps = variant_colours(shown, palette), bar_places(len(table), len(shown))
    for variant, places, mark in zip(shown, steps, cycle("osD^vXP*<>")):
        works = table[variant].to_numpy() > 0
        style = {"color": colours[variant], "marker": mark, "label": title_of(variant)}
        own.plot(table.loc[works, variant], places[works], linestyle="", markersize=8, **style)
    names = [say("{part}, {share:.2g} %", part=say(part), share=share) for part, share in shares.items()]
    own.set_yticks(range(len(table)), [wrapped(name, 1.9, 13, TEXT) for name in names])
    own.set(xscale="log", ylim=(len(table) - 0.5, -0.5))
    own.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    own.minorticks_off()
    own.set_xlabel(say("GMACs of one denoising step,\nas published ({preset})", preset=rows["preset"].iloc[0]))
    own.set_ylabel(say("part, and its share of {name}'s work", name=title_of(subject)))
    legend_outside(figure, ax, "lower center", ncols=4)
    write_note(own, note)
    return figure


@chart
def macs_by_level(
    rows: pd.DataFrame,
    *,
    preset: str | None = None,
    variant: str | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """MACs of each decoder level of one variant in four accounts; `palette` colours accounts.

    By default of HAE, or else of the first of the rows that has hybrid blocks.

    Rows, one a variant and level: preset, variant, mask_rule, height, width, and the columns of `ACCOUNTS`.
    """
    rows = of_preset(rows, preset)
    variant = variant or subject_of(ordered(rows["variant"]))
    require_name("variant", variant, rows["variant"].unique())
    rows = rows[rows["variant"] == variant]
    figure, own = titled_axes(_level_title(rows, variant), ax)
    for place, (column, (label, colour)) in zip(bar_places(len(rows), len(ACCOUNTS)), ACCOUNTS.items(), strict=True):
        width = 0.95 * bar_step(len(ACCOUNTS))
        own.bar(place, rows[column] / 1e9, width, color=(palette or {}).get(column, colour), label=label)
    names = [f"{height} × {width}" for height, width in zip(rows["height"], rows["width"], strict=True)]
    name_ticks(own, range(len(rows)), names)
    rule, preset = rows["mask_rule"].iloc[0], rows["preset"].iloc[0]
    own.set_xlabel(say("map of the decoder level, pixels ({preset}, {rule})", preset=preset, rule=rule))
    own.set_ylabel("GMACs of one denoising step")
    own.grid(axis="x", visible=False)
    own.legend(frameon=False)
    return figure


def _level_title(rows: pd.DataFrame, variant: str) -> str:
    saved = rows["macs_document"] - rows["macs_run"]
    if not saved.sum() > 0:
        return say("Sparse attention saves nothing in the decoder of {name}", name=title_of(variant))
    percent, most = 100 * saved.sum() / rows["macs_document"].sum(), rows.loc[saved.idxmax()]
    amount = "nearly all" if saved.max() >= 0.85 * saved.sum() else "most" if 2 * saved.max() > saved.sum() else "much"
    return say(
        "Sparse attention saves {percent:.0f} % of {name}'s decoder, {amount} of it on the {height} × {width} map",
        percent=percent, name=title_of(variant), amount=say(amount), height=most["height"], width=most["width"],
    )  # fmt: skip


@chart
def attention_speed_up(
    rows: pd.DataFrame, *, order: Sequence[str] | None = None, palette: Mapping[str, str] | None = None
) -> Chart:
    """Measured speed-up of the whole attention layer over dense SDPA against n; `order` and `palette`: ways.

    Rows, one a measurement: part ("layer" or "core"), way (a mask rule, a second way of one, or a baseline), pass, n,
    ms_median, ms_q1, ms_q3, limit, device_name, threads, clock, channels, and mask_rule where there are second ways of
    a rule: they are dashed. Bars span the quartiles of a way's own time. Drawn are the first computer, and the maps
    where `dense` was measured.
    """
    rows = rows[rows["device_name"] == rows["device_name"].iloc[0]]
    layers = over_dense(rows[rows["part"] == LAYER])
    require(not layers.empty, "no layer in the rows was measured beside the rule dense")
    styles = rule_styles(layers["way"], palette)
    for way, rule in layers.loc[layers["mask_rule"] != layers["way"], ["way", "mask_rule"]].dropna().values:
        styles[way] |= {"color": styles[rule]["color"], "linestyle": "--"}
    figure = new_chart(_speed_up_title(layers), least=SIZE[0])
    axes = figure.subplots(1, 2, sharex=True, sharey=True, squeeze=False)[0]
    for ax, direction in zip(axes, ("forward", "forward + backward"), strict=True):
        here = layers[layers["pass"] == direction]
        for way in rules_in_order(layers["way"], order):
            _speed_up_line(ax, here[here["way"] == way].sort_values("n"), way, styles[way])
        core = rows[(rows["part"] == CORE) & (rows["pass"] == direction) & rows["limit"].gt(1)].sort_values("n")
        for way, its in core.groupby("way", sort=False):
            label = say("limit of {way}, n / K:\nK keys that its kernel reads a query", way=way)
            ax.plot(its["n"], its["limit"], "k--", label=label)
        sizes = sorted(layers["n"].unique())
        ax.set(xscale="log", yscale="log", xlabel=say("tokens n, {direction}", direction=say(direction)))
        ax.set_xticks(sizes, [f"{n:,.0f}" for n in sizes])
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("speed-up over dense SDPA, local queries")
    handles, labels = axes[0].get_legend_handles_labels()
    legend_outside(figure, None, "lower center", handles=handles, labels=labels, ncols=3)
    figure.text(0.99, 0.005, _conditions(rows.iloc[0]), ha="right", fontsize=10)
    return figure


def over_dense(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of layers measured beside `dense`, with faster, low and high: dense's time over this one's.

    The rule of a way, `mask_rule`, is the way itself where no column tells, and a gap for a baseline.
    """
    dense = rows[rows["way"] == DENSE].set_index(["pass", "n"])["ms_median"].rename("dense_ms")
    rows = rows.join(dense, on=["pass", "n"], how="inner")
    ends = {"faster": "ms_median", "low": "ms_q3", "high": "ms_q1"}
    if "mask_rule" not in rows:
        rows["mask_rule"] = rows["way"].where(rows["way"].isin(RULE_COLOURS))
    rows["mask_rule"] = rows["mask_rule"].replace("", None)  # as text reads a gap back
    return rows.assign(**{name: rows["dense_ms"] / rows[column] for name, column in ends.items()})


def _speed_up_line(ax: Axes, line: pd.DataFrame, way: str, style: Mapping[str, str]) -> None:
    spread = [line["faster"] - line["low"], line["high"] - line["faster"]]
    ax.errorbar(line["n"], line["faster"], spread, label="dense SDPA" if way == DENSE else way, capsize=3, **style)


def _speed_up_title(layers: pd.DataFrame) -> str:
    """The fastest rule that keeps the document's law, on the largest map; dense SDPA is the strongest if it is."""
    forward = layers[layers["pass"] == "forward"]
    largest = forward[forward["n"] == forward["n"].max()].set_index("way")
    rule = SHARED if SHARED in largest.index else "document"
    if rule not in largest.index:
        return "Attention layers beside dense SDPA"
    beaten = largest.loc[largest["mask_rule"].isna(), "faster"].max() > 1
    return say(
        "Shared random columns make the layer {times:.1f} times faster than {baseline} (n = {n:,.0f})"
        if rule == SHARED
        else "{rule} makes the layer {times:.1f} times faster than {baseline} (n = {n:,.0f})",
        rule=rule,
        times=largest.loc[rule, "faster"],
        baseline=say("dense SDPA" if beaten else "dense SDPA, the strongest baseline"),
        n=largest.loc[rule, "n"],
    )


def _conditions(row: Mapping[str, Any]) -> str:
    return say("{machine}, C = {channels:.0f}", machine=machine(row), channels=row["channels"])


def machine(row: Mapping[str, Any]) -> str:
    """Where a measurement was made: device_name, threads, clock."""
    one = row["threads"] == 1
    text = "{device}, {threads:.0f} thread, {clock}" if one else "{device}, {threads:.0f} threads, {clock}"
    return say(text, device=row["device_name"], threads=row["threads"], clock=say(row["clock"]))


@chart
def variants_together(
    rows: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """What the variants cost, a group a quantity, in percent of HAE; time with its quartiles, claims as lines.

    Rows, one a variant and quantity: variant, quantity, percent_of_hae, percent_q1, percent_q3, and claim_percent where
    something is claimed. A variant without a quantity, or with a gap for it, is named below the axis.
    """
    shown, note = measured(rows, "percent_of_hae", order)
    quantities = list(rows["quantity"].unique())
    table = rows.set_index(["variant", "quantity"])
    table = table.reindex(pd.MultiIndex.from_product([shown, quantities], names=table.index.names))
    figure, own = titled_axes(_together_title(table["percent_of_hae"].unstack(), table), ax)
    colours, width = variant_colours(shown, palette), 0.95 * bar_step(len(shown))
    gaps = [note] if note else []
    for variant, places in zip(shown, bar_places(len(quantities), len(shown)), strict=True):
        mine = table.loc[variant].loc[quantities]
        own.bar(places, mine["percent_of_hae"], width, color=colours[variant], label=title_of(variant))
        spread = mine[["percent_q1", "percent_q3"]].sub(mine["percent_of_hae"], axis=0).abs()
        timed = spread.gt(0).any(axis=1).to_numpy()  # a count has no spread
        style = {"fmt": "none", "color": INK, "capsize": 3}
        own.errorbar(places[timed], mine.loc[timed, "percent_of_hae"], spread[timed].to_numpy(float).T, **style)
        for x, (quantity, row) in zip(places, mine.iterrows(), strict=True):
            if np.isnan(row["percent_of_hae"]):
                gaps.append(say("not measured: {quantity} of {name}", quantity=say(quantity), name=title_of(variant)))
            else:
                top = np.nanmax([row["percent_of_hae"], row["percent_q3"]])
                own.text(x, top + 1.5, f"{row['percent_of_hae']:.0f}", ha="center", fontsize=11)
    _claims(own, table, width)
    name_ticks(own, range(len(quantities)), _quantity_names(rows, quantities))
    tallest = np.nanmax(table[["percent_of_hae", "percent_q3"]].to_numpy(float))
    own.set(ylabel="% of HAE; lower is cheaper", ylim=(0, 1.08 * tallest))
    own.grid(axis="x", visible=False)
    legend_outside(figure, ax, "lower center", ncols=5)
    write_note(own, "\n".join(gaps))
    return figure


def _quantity_names(rows: pd.DataFrame, quantities: Sequence[str]) -> list[str]:
    """Quantities with the width of the model that they were taken of, where the rows say it."""
    if "model_channels" not in rows:
        return list(quantities)
    widths = rows.dropna(subset=["percent_of_hae"]).groupby("quantity")["model_channels"].unique()
    return [
        say("{name}\nat {widths} channels", name=say(name), widths=say_list(list(map(str, widths.get(name, [])))))
        for name in quantities
    ]


def _claims(ax: Axes, table: pd.DataFrame, width: float) -> None:
    """A line across the bar of each claim; HAE itself is the 100 % of the others."""
    if "claim_percent" not in table:
        return
    labels: set[str] = set()
    variants, quantities = (list(table.index.unique(level)) for level in ("variant", "quantity"))
    places = bar_places(len(quantities), len(variants))
    for (variant, quantity), percent in table["claim_percent"].dropna().items():
        if variant != REFERENCE:
            x = places[variants.index(variant), quantities.index(quantity)]
            label = say("claimed {quantity}", quantity=say(quantity))
            mark_claim(ax, [x - width / 2, x + width / 2], [percent] * 2, label=None if label in labels else label)
            labels.add(label)


def _together_title(percent: pd.DataFrame, table: pd.DataFrame) -> str:
    """What the version with the fewest parameters saves, in each quantity that was measured for it."""
    others = percent.loc[[name for name in percent.index if has_blocks(name) and name != REFERENCE]]
    if others.empty or "parameters" not in others:
        return "What the variants cost, in percent of HAE"
    least = others["parameters"].fillna(np.inf).idxmin()
    mine = others.loc[least]
    words = say("{name} holds {percent:.0f} % of HAE's parameters", name=short_title(least), percent=mine["parameters"])
    if not np.isnan(mine.get("MACs", np.nan)):
        words += say(", but does {percent:.0f} % of its work", percent=mine["MACs"])
    if np.isnan(mine.get("time", np.nan)):
        return words
    return words + _time_in_words(table.xs("time", level="quantity"), least)


def _time_in_words(times: pd.DataFrame, variant: str) -> str:
    """What quartiles that overlap allow to say about the versions with hybrid blocks."""
    versions = times.loc[list(filter(has_blocks, times.index))].dropna(subset=["percent_q1", "percent_q3"])
    if len(versions) > 1 and versions["percent_q1"].max() <= versions["percent_q3"].min():
        return say("; the times of the {count} cannot be told apart", count=say(count_word(len(versions))))
    return say("; it takes {percent:.0f} % of its time", percent=times.loc[variant, "percent_of_hae"])


REACH = {  # column -> factor to percent, and what it says
    "density": (100, "pairs that the mask keeps"),
    "own_4_percent": (1, "pixels that see their own 4 × 4 patch"),
    "reach_1_percent": (1, "of the map that reaches a pixel in one block"),
}


@chart
def density_and_reach(
    rows: pd.DataFrame, *, order: Sequence[str] | None = None, palette: Mapping[str, str] | None = None
) -> Chart:
    """What a rule keeps, and how far it sees: a panel a measure, a row a rule, in it a mark a map, the largest lowest.

    Rows, one a rule and map: rule, n, density, own_4_percent, reach_1_percent. `order` and `palette`: mask rules.
    """
    rules = rules_in_order(rows["rule"], order)
    figure = new_chart(_reach_title(rows, rules))
    axes = figure.subplots(1, len(REACH), sharey=True, sharex=True)
    styles, sizes = rule_styles(rules, palette), sorted(rows["n"].unique())
    steps = bar_places(len(rules), len(sizes))
    for ax, (column, (factor, label)) in zip(axes, REACH.items(), strict=True):
        for place, rule in enumerate(rules):
            line = rows[rows["rule"] == rule].sort_values("n")
            heights = [steps[sizes.index(n), place] for n in line["n"]]
            ax.plot(factor * line[column], heights, label=rule, linewidth=1, **styles[rule])
        ax.set(xlim=(-6, 106), ylim=(len(rules) - 0.5, -0.5), xticks=(0, 50, 100))
        label = say("{label}, %", label=say(label))
        ax.set_xlabel(wrapped(label, 0.28 * figure.get_figwidth(), mpl.rcParams["axes.labelsize"], TEXT))
    points = mpl.rcParams["ytick.labelsize"]
    axes[0].set_yticks(range(len(rules)), [broken_name(rule, 0.1 * points, points) for rule in rules])
    tokens = commas(f"{n:,}" for n in sizes)
    caption = say("in each row from top to bottom: n = {tokens} tokens", tokens=tokens)
    figure.supxlabel(wrapped(caption, figure.get_figwidth(), mpl.rcParams["legend.fontsize"], TEXT), fontsize=11)
    return figure


def _reach_title(rows: pd.DataFrame, rules: Sequence[str]) -> str:
    """What the document's rule, or the first, keeps and reaches on the largest map."""
    rule = "document" if "document" in rules else rules[0]
    found = rows[rows["n"] == rows["n"].max()].set_index("rule").loc[rule]
    return say(
        "{whose}'s mask keeps {density:.0f} % of the pairs: one block reaches {reach:.0f} % of the map, "
        "and {own:.0f} % of pixels see their own patch",
        whose=say("The document") if rule == "document" else rule,
        density=100 * found["density"], reach=found["reach_1_percent"], own=found["own_4_percent"],
    )  # fmt: skip
