"""Pictures of the parameter table."""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hae_lab.checks import require, require_name
from hae_lab.plots.base import (
    CLAIM_COLOUR,
    PALETTE,
    REFERENCE,
    Chart,
    chart,
    count_word,
    grouped_bars,
    has_blocks,
    legend_outside,
    mark_claim,
    measured,
    name_ticks,
    new_chart,
    of_preset,
    ordered,
    part_colours,
    reversed_legend,
    short_title,
    span,
    stacked_bars,
    title_of,
    titled_axes,
    variant_colour,
    variant_colours,
    write_note,
)
from hae_lab.plots.catalogue import say, say_list
from hae_lab.plots.page import TEXT, broken_name, current_style, wrapped
from hae_lab.presets import DOCUMENT

BODY_COLOURS = {"encoder": "#6b6b6b", "middle": "#8c8c8c", "decoder body": "#adadad", "embedding and out": "#cecece"}
HYBRID_COLOURS = {
    "timestep": PALETTE[8], "CNN branch": PALETTE[9], "norms": PALETTE[5], "projections": PALETTE[3],
    "attention": PALETTE[4], "MLP": PALETTE[1], "fusion": PALETTE[2],
}  # fmt: skip
OTHER_PARTS = "other parts"
SAVED_COLOUR = PALETTE[3]
SMALLEST, NEXT = DOCUMENT[::-1][:2]  # what the document's line of sizes is about: V2, given Lite
SLOT_WORDS = {"regions": "shared projection", "mlp_ratio": "narrow token MLP", "fusion": "mean as fusion"}


@chart
def parameter_table(
    rows: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Parameters of the variants in percent of HAE, a group a preset, with the claimed lines.

    Rows, one a preset, scope and variant: preset, scope, variant, percent_of_hae, claim_percent (a gap where nothing is
    claimed); those of the scope "whole model" are drawn.
    """
    whole = rows[rows["scope"] == "whole model"]
    shown, note = measured(whole, "percent_of_hae", order)
    claims = whole.drop_duplicates("variant").set_index("variant")["claim_percent"].astype(float)
    claims = claims.reindex([variant for variant in shown if variant != REFERENCE]).dropna()
    figure, own = titled_axes(_table_title(whole, shown, claims), ax)
    every = variant_colours(shown, palette)
    colours, presets = {variant: every[variant] for variant in shown}, whole["preset"].nunique()
    grouped_bars(own, whole, "preset", "percent_of_hae", colours)
    beside = ax is not None or not current_style().is_narrow  # else the claims are named in the legend
    for variant, percent in claims.items():
        label = say("claimed\n{name} {percent:.0f} %", name=title_of(variant), percent=percent)
        named = {} if beside else {"label": label.replace("\n", " ")}
        own.axhline(percent, color=colours[variant], linestyle="--", linewidth=2, **named)
        if beside:
            own.text(presets - 0.5, percent - 1, label, va="top", fontsize=12)
    own.set(xlabel="preset (body of the U-Net)", ylabel="parameters, % of HAE on the same body")
    own.set(xlim=(-0.5, presets - 0.5 + beside), ylim=(0, 1.08 * max(100, whole["percent_of_hae"].max())))
    legend_outside(figure, ax, "lower center", ncols=4)
    write_note(own, note)
    return figure


def _table_title(whole: pd.DataFrame, shown: Sequence[str], claims: pd.Series) -> str:
    """What the variants with a claim keep; without any claim, what the versions keep."""
    told = list(claims.index) or [name for name in shown if has_blocks(name) and name != REFERENCE]
    if not told:
        return "Parameters on the same body, in percent of HAE"
    spans = {name: span(whole.loc[whole["variant"] == name, "percent_of_hae"]) for name in told}
    keeps = say("{name} keeps {percents} %", name=short_title(told[0]), percents=spans.pop(told[0]))
    kept = say_list([keeps, *(f"{short_title(name)} {percents} %" for name, percents in spans.items())])
    not_so = say(", not {claims}", claims=say_list([f"{percent:.0f} %" for percent in claims])) if len(claims) else ""
    return say("Like for like, {kept} of HAE's parameters", kept=kept) + not_so


@chart
def published_counts(
    rows: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The published counts beside our models that reproduce them.

    Rows, one a version of the document: variant, published_million_params, published_percent, our_params, our_percent,
    our_changes, and the preset.
    """
    shown, note = measured(rows, "published_million_params", order, expected=DOCUMENT)
    rows = rows.set_index("variant").loc[shown].reset_index()
    figure, own = titled_axes(_counts_title(rows), ax)
    place, every = np.arange(len(rows)), variant_colours(shown, palette)
    colours = [every[variant] for variant in shown]
    own.bar(place - 0.2, rows["published_million_params"], 0.38, color=colours, alpha=0.45, label="published")
    bars = own.bar(place + 0.2, rows["our_params"] / 1e6, 0.38, color=colours, label="our model")
    labels = [
        f"{params:,}\n{percent:.1f} %" for params, percent in zip(rows["our_params"], rows["our_percent"], strict=True)
    ]
    own.bar_label(bars, labels, fontsize=11, padding=2)
    name_ticks(own, place, map(_name_and_changes, shown, rows["our_changes"]))
    own.set(ylabel="parameters, million", ylim=(0, 1.18 * rows["our_params"].max() / 1e6))
    own.grid(axis="x", visible=False)
    body = say("preset {presets}; ", presets=say_list(rows["preset"].unique())) if "preset" in rows else ""
    title = body + say("pale: as published, full: counted here")
    legend_outside(figure, ax, "lower center", ncols=2, title=title)
    write_note(own, note)
    return figure


def _counts_title(rows: pd.DataFrame) -> str:
    """How many models the published percentages compare, and what differs between them besides the slots."""
    percents = " / ".join(f"{percent:.0f}" for percent in rows["published_percent"])
    changes = [dict(change.split("=", 1) for change in text.split(", ")) for text in rows["our_changes"]]
    differ = [name for name in dict.fromkeys(chain(*changes)) if len({each.get(name) for each in changes}) > 1]
    if not differ:
        return say("The published {percents} % compares one", percents=percents)
    return say(
        "The published {percents} % compares {models} models that differ in {fields} too, not in slots alone",
        percents=percents, models=say(count_word(rows["our_changes"].nunique())), fields=say_list(differ),
    )  # fmt: skip


def _name_and_changes(variant: str, changes: str) -> str:
    return f"{title_of(variant)}\n" + changes.replace(", ", "\n")


@chart
def feasibility(rows: pd.DataFrame, *, ax: Axes | None = None) -> Figure:
    """V2 against Lite, both in percent of HAE: the line that every like-for-like family lies on, and the claim.

    Rows, one a preset and scope, and one for the claim (column claimed): preset, scope, lite_percent, v2_percent,
    slope, line_v2_percent, off_line_points; lite_minus_v2_c2 and hae_minus_lite_c2 write the slope as a fraction.
    """
    is_claim = rows["claimed"] if "claimed" in rows else rows["preset"] == "the claim"
    families, claims = rows[~is_claim], rows[is_claim]
    require(len(families) > 0, "no family in the rows: all are the claim")
    figure, own = titled_axes(_feasibility_title(families, claims), ax)
    lines = families if claims.empty else claims
    slope, lite = lines["slope"].iloc[0], np.array([0, 100])
    own.plot(lite, lite - slope * (100 - lite), color="black", zorder=1, label=_line_label(families, lines.iloc[0]))
    for (scope, group), marker in zip(families.groupby("scope", sort=False), cycle("^sDovX")):
        text = "{scope}, {count} presets" if len(group) > 1 else "{scope}, {count} preset"
        label = say(text, scope=say(scope), count=len(group))
        style = {"marker": marker, "s": 80, "color": "#555555"}
        own.scatter(group["lite_percent"], group["v2_percent"], label=label, **style)
    for claim in claims.to_dict("records"):
        _claimed_point(own, claim)
    next_title, title = title_of(NEXT), title_of(SMALLEST)
    percent_of_hae = "{name}, parameters in % of HAE"
    own.set(xlabel=say(percent_of_hae, name=next_title), ylabel=say(percent_of_hae, name=title))
    own.set(xlim=(0, 100), ylim=(0, 100))
    if ax is None and current_style().is_narrow:
        legend_outside(figure, ax, "lower center", ncols=2)
    else:
        own.legend(loc="upper left", frameon=True)
    return figure


def _feasibility_title(families: pd.DataFrame, claims: pd.DataFrame) -> str:
    off = families["off_line_points"].abs().max()
    start = say("Every like-for-like family lies on one line (within {off:.2f} points)", off=off)
    if claims.empty:
        return start
    points = claims["off_line_points"].iloc[0]
    side = say("below" if points < 0 else "above")
    return start + say("; the claim lies {points:.0f} points {side} it", points=abs(points), side=side)


def _line_label(families: pd.DataFrame, line: Mapping[str, Any]) -> str:
    """The line in words, and the scopes that have another slope."""
    others = families[families["slope"] != line["slope"]].drop_duplicates("scope")
    apart = "".join(f"; {say(row['scope'])}: {_slope(row)}" for row in others.to_dict("records"))
    lite = short_title(NEXT)
    return f"{short_title(SMALLEST)} = {lite} − {_slope(line)} (100 − {lite}){apart}"


def _slope(row: Mapping[str, Any]) -> str:
    if "lite_minus_v2_c2" in row:
        return f"{row['lite_minus_v2_c2']:g}/{row['hae_minus_lite_c2']:g}"
    return f"{row['slope']:.3g}"


def _claimed_point(ax: Axes, claim: Mapping[str, Any]) -> None:
    lite, v2, line = claim["lite_percent"], claim["v2_percent"], claim["line_v2_percent"]
    label = say("the claim: {lite:.0f} / {v2:.0f}", lite=lite, v2=v2)
    ax.scatter(lite, v2, marker="*", s=400, color=CLAIM_COLOUR, zorder=3, label=label)
    ax.plot([lite] * 2, [v2, line], ":", color=CLAIM_COLOUR, linewidth=2)
    note = say(
        "at {next} {lite:.0f} %\n{smallest} must be {line:.1f} %",
        next=short_title(NEXT), lite=lite, smallest=short_title(SMALLEST), line=line,
    )  # fmt: skip
    ax.annotate(note.replace(" be ", " be\n") if current_style().is_narrow else note, (lite, line), (lite + 2, v2 + 8))


@chart
def slot_waterfall(rows: pd.DataFrame, *, orders: Sequence[str] | None = None) -> Chart:
    """What each slot change saves on the way HAE -> V2, a panel an order; by default the first, and the way back.

    Rows, one an order and step: preset, order, step, slot, change, params (after the step), saved_params.
    """
    orders = orders or _there_and_back(rows)
    for order in orders:
        require_name("order", order, rows["order"].unique())
    saved = rows[rows["order"] == orders[0]].set_index("slot")["saved_params"]
    largest, by_slot = saved.idxmax(), rows.groupby("slot")["saved_params"]
    same = (by_slot.max() - by_slot.min()).max() <= 0.01 * saved.sum()
    start = say(
        "The {slot} alone makes {share:.0f} % of the saving from {first} to {last}; ",
        slot=say(SLOT_WORDS.get(largest, largest)), share=100 * saved[largest] / saved.sum(),
        first=short_title(DOCUMENT[0]), last=short_title(SMALLEST),
    )  # fmt: skip
    figure = new_chart(start + say("the order does not matter" if same else "what a slot saves depends on the order"))
    top = (rows["params"] + rows["saved_params"]).max()
    shape = (len(orders), 1) if current_style().is_narrow else (1, len(orders))
    axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax, order in zip(axes, orders, strict=True):
        _waterfall(ax, rows[rows["order"] == order].sort_values("step"))
        ax.set(title=order.replace(" > ", " → "), ylim=(0, (1.3 if current_style().is_narrow else 1.1) * top / 1e6))
    presets = say_list(rows["preset"].unique())
    figure.supylabel(say("parameters of the whole model, million ({presets})", presets=presets), fontsize=13)
    return figure


def _there_and_back(rows: pd.DataFrame) -> list[str]:
    """The first order of the rows, and the one that takes its slots from behind, if there is one."""
    slots = {order: tuple(part.sort_values("step")["slot"]) for order, part in rows.groupby("order", sort=False)}
    first = next(iter(slots))
    return [first, *(order for order, way in slots.items() if order != first and way == slots[first][::-1])]


def _waterfall(ax: Axes, steps: pd.DataFrame) -> None:
    first = steps.iloc[0]
    end = len(steps) + 1
    totals = {0: first["params"] + first["saved_params"], end: steps["params"].min()}
    for place, variant in ((0, DOCUMENT[0]), (end, SMALLEST)):
        ax.bar(place, totals[place] / 1e6, color=variant_colour(variant))
        ax.text(place, totals[place] / 1e6 + 2, f"{totals[place] / 1e6:.1f}", ha="center")
    for place, (saved, left) in enumerate(zip(steps["saved_params"], steps["params"], strict=True), start=1):
        ax.bar(place, saved / 1e6, bottom=left / 1e6, color=SAVED_COLOUR)
        ax.text(place, (left + saved) / 1e6 + 2, f"−{saved / 1e6:.1f}", ha="center")
    changes = [broken_name(change.replace("=", "=\n"), 0.6, 11) for change in steps["change"]]
    ax.set_xticks(range(end + 1), [short_title(DOCUMENT[0]), *changes, short_title(SMALLEST)], fontsize=11)
    ax.grid(axis="x", visible=False)


@chart
def where_parameters_sit(
    rows: pd.DataFrame,
    *,
    preset: str | None = None,
    order: Sequence[str] | None = None,
    palette: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A bar a variant, split into the body's sections and the parts of the hybrid blocks; `palette` colours parts.

    Rows, one a variant and part: preset, variant, part, params; "model" is the sum of all.
    """
    rows = of_preset(rows, preset)
    shown, note = measured(rows, "params", order)
    table = rows.pivot(index="part", columns="variant", values="params")[shown].astype(float)
    heights = _disjoint_parts(table)
    figure, own = titled_axes(_sit_title(table), ax)
    colours = part_colours(heights.index, BODY_COLOURS | HYBRID_COLOURS) | dict(palette or {})
    stacked_bars(own, heights / 1e6, colours)
    legend_outside(figure, ax, "right center", **reversed_legend(own), title="body: grey\nhybrid: coloured")
    own.set_ylabel(say("parameters, million ({preset})", preset=rows["preset"].iloc[0]))
    write_note(own, note)
    return figure


def _sit_title(table: pd.DataFrame) -> str:
    """What HAE's patch projections hold, and which versions keep less than a twentieth of them."""
    if REFERENCE not in table:
        return say("Where the parameters of {names} sit", names=say_list(list(map(title_of, table.columns))))
    held, whole = table.loc["projections"], table.loc["model", REFERENCE]
    share = 100 * held[REFERENCE] / whole
    start = say("HAE's patch projections hold {share:.0f} % of its parameters", share=share)
    dropped = [short_title(name) for name in held.index if has_blocks(name) and held[name] < held[REFERENCE] / 20]
    text = "; {names} drop almost all of them" if len(dropped) > 1 else "; {names} drops almost all of them"
    return start + say(text, names=say_list(dropped)) if dropped else start


def _disjoint_parts(table: pd.DataFrame) -> pd.DataFrame:
    """Parts that share nothing and sum to the model; what the rows do not break down is the last."""
    parts = {
        "encoder": table.loc["encoder"],
        "middle": table.loc["middle"],
        "decoder body": table.loc["decoder"] - table.loc["hybrid blocks"],
        "embedding and out": table.loc["embedding"] + table.loc["out"],
        **{part: table.loc[part] for part in HYBRID_COLOURS if part in table.index},
    }
    rest = table.loc["model"] - sum(parts.values())
    return pd.DataFrame(parts | ({OTHER_PARTS: rest} if rest.any() else {})).T


@chart
def what_it_would_take(
    rows: pd.DataFrame, *, palette: Mapping[str, str] | None = None, ax: Axes | None = None
) -> Figure:
    """The families that reach the claimed percentages, with their own changes, a group of bars a family.

    Rows, one a family: preset, changes (their number), and <variant>_percent, <variant>_changes and
    <variant>_claim_percent for each version that changes.
    """
    shown = ordered(name for name in DOCUMENT if f"{name}_percent" in rows)
    require(len(shown) > 0 and len(rows) > 0, "no family in the rows: they have no <variant>_percent")
    claims = {name: rows[f"{name}_claim_percent"].iloc[0] for name in shown if f"{name}_claim_percent" in rows}
    goal = " / ".join(f"{percent:.0f}" for percent in (100, *claims.values())) if claims else "The claim"
    figure, own = titled_axes(
        say(
            "{goal} needs at least {changes} changes that {names} make for themselves, outside the slots"
            if len(shown) > 1
            else "{goal} needs at least {changes} changes that {names} makes for itself, outside the slots",
            goal=goal,
            changes=rows["changes"].min(),
            names=say_list(list(map(short_title, shown))),
        ),
        ax,
    )
    place, colours = np.arange(len(rows)), variant_colours(shown, palette)
    for index, variant in enumerate(shown):
        offset = 0.4 * (index - (len(shown) - 1) / 2)
        percents, changes = rows[f"{variant}_percent"], rows[f"{variant}_changes"]
        style = {"color": colours[variant], "label": title_of(variant)}
        bars = own.barh(place + offset, percents, 0.38, **style)
        room = 0.5 * figure.get_figwidth()  # right of the longest bar
        changes = [wrapped(change, room, current_style().settings["legend.fontsize"], TEXT) for change in changes]
        labels = [f"{percent:.1f} %\n{change}" for percent, change in zip(percents, changes, strict=True)]
        own.bar_label(bars, labels, fontsize=11, padding=4)
        for height in (place + offset)[: len(rows) * (variant in claims)]:
            mark_claim(own, [claims[variant]] * 2, [height - 0.19, height + 0.19])
    mark_claim(own, [], [], label="claimed")
    own.set_yticks(place, [say("set {number}", number=index + 1) for index in place])
    own.invert_yaxis()
    presets = say_list(rows["preset"].unique())
    own.set(xlabel=say("parameters, % of HAE ({presets})", presets=presets), xlim=(0, 135))
    own.grid(axis="y", visible=False)
    legend_outside(figure, ax, "lower center", ncols=3)
    return figure
