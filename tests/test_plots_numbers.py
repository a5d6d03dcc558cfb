"""Every figure against its table: where bars, points, lines and labels stand, computed here from the rows."""

import numpy as np
import pandas as pd
import plot_rows
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from scipy import stats
from study_rows import curve_rows, slot_rows, study_rows

from hae_lab import HAELabError, plots
from hae_lab.plots.base import CLAIM_COLOUR, PALETTE, missing_note
from hae_lab.plots.compute import ACCOUNTS, RULE_COLOURS
from hae_lab.study import statistics

TITLES = {"unet": "U-Net (control)", "hae": "HAE", "lite": "HAE Lite", "v2": "HAE V2"}
COLOURS = {"unet": "#525252", "hae": PALETTE[0], "lite": PALETTE[1], "v2": PALETTE[2]}


def title_of(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def bars(ax) -> list[tuple]:
    """(left, bottom, width, height, colour) of every bar, in the order of drawing."""
    patches = [patch for container in ax.containers if isinstance(container, BarContainer) for patch in container]
    return [(*patch.get_bbox().bounds, to_hex(patch.get_facecolor())) for patch in patches]


def groups(ax) -> dict[str, list[tuple]]:
    """(left, bottom, width, height) of the bars of each label."""
    found = {}
    for container in ax.containers:
        if isinstance(container, BarContainer):
            found[container.get_label()] = [patch.get_bbox().bounds for patch in container]
    return found


def intervals(ax) -> list[tuple[float, float, float, float]]:
    """(x, y, low, high) of every marked interval, upright or lying."""
    found = []
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, arms = container
            (start, end) = arms[0].get_segments()[0]
            axis = 1 if start[0] == end[0] else 0
            found.append((line.get_xdata()[0], line.get_ydata()[0], start[axis], end[axis]))
    return found


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def t_interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean, low and high, from scipy's own t distribution."""
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return values.mean(), low, high


def claimed_at(ax) -> list[tuple[tuple, tuple]]:
    """Where the black lines of the claims run: ((x, x), (y, y)), to six digits."""
    black = [line for line in ax.lines if to_hex(line.get_color()) == CLAIM_COLOUR and line.get_linestyle() == "-"]
    drawn = [line for line in black if len(line.get_xdata())]
    ends = [np.round(line.get_xydata().T.astype(float), 6).tolist() for line in drawn]
    return [(tuple(x), tuple(y)) for x, y in ends]


# parameters


def test_parameter_table_draws_each_percentage_in_its_group_and_each_claim_in_its_colour():
    rows = plot_rows.parameter_table()
    figure = plots.parameter_table(rows)
    (ax,) = figure.axes
    whole = rows[rows["scope"] == "whole model"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(TITLES.values())
    drawn = bars(ax)
    for place, (variant, colour) in enumerate(COLOURS.items()):
        expected = whole.loc[whole["variant"] == variant, "percent_of_hae"].tolist()
        mine = [bar for bar in drawn if bar[4] == colour]
        assert [bar[3] for bar in mine] == pytest.approx(expected)
        assert [bar[0] for bar in mine] == pytest.approx([group - 0.4 + 0.2 * place for group in range(3)])
        assert {bar[1] for bar in mine} == {0}
        assert texts(ax)[3 * place : 3 * place + 3] == [f"{value:.0f}" for value in expected]
    lines = {to_hex(line.get_color()): line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"}
    assert lines == {COLOURS["lite"]: 70, COLOURS["v2"]: 40}
    assert {"claimed\nHAE Lite 70 %", "claimed\nHAE V2 40 %"} <= set(texts(ax))
    beside = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert (beside["claimed\nHAE Lite 70 %"], beside["claimed\nHAE V2 40 %"]) == (69, 39)
    assert title_of(figure) == (
        "Like for like, Lite keeps 76–78 % and V2 71–73 % of HAE's parameters, not 70 % and 40 %"
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list(plot_rows.PRESETS)


def test_published_counts_stand_beside_ours():
    rows = plot_rows.published_counts()
    figure = plots.published_counts(rows)
    (ax,) = figure.axes
    drawn = groups(ax)
    assert [bar[3] for bar in drawn["published"]] == [650, 455, 260]
    assert [bar[3] for bar in drawn["our model"]] == pytest.approx([654.321, 458.0247, 261.7284])
    for name, offset in (("published", -0.2), ("our model", 0.2)):
        centres = [bar[0] + bar[2] / 2 for bar in drawn[name]]
        assert centres == pytest.approx([place + offset for place in range(3)])
    assert texts(ax) == ["654,321,000\n100.0 %", "458,024,700\n70.3 %", "261,728,400\n40.6 %"]
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == [f"{TITLES[name]}\nplacement={name}\ncnn_branch=False" for name in ("hae", "lite", "v2")]
    assert title_of(figure) == (
        "The published 100 / 69 / 38 % compares three models that differ in placement too, not in slots alone"
    )
    assert figure.legends[0].get_title().get_text().startswith("preset wide128;")
    both = rows.assign(our_changes=["placement=a", "placement=b", "placement=b, cnn_branch=False"])
    assert "models that differ in placement and cnn_branch too" in title_of(plots.published_counts(both))
    same = rows.assign(our_changes="placement=a")
    assert title_of(plots.published_counts(same)) == "The published 100 / 69 / 38 % compares one"


def test_feasibility_draws_families_on_the_line_and_the_claim_off_it():
    rows = plot_rows.feasibility()
    figure = plots.feasibility(rows)
    (ax,) = figure.axes
    line, drop = ax.lines
    assert line.get_ydata() == pytest.approx([-100 * 7.5 / 80, 100])
    points = {marks.get_label(): marks.get_offsets().tolist() for marks in ax.collections}
    for scope in ("MSTB", "whole model"):
        group = rows[(rows["scope"] == scope) & ~rows["claimed"]]
        assert points[f"{scope}, 2 presets"] == group[["lite_percent", "v2_percent"]].to_numpy().tolist()
    assert points["the claim: 70 / 40"] == [[70, 40]]
    on_line = 70 - 30 * 7.5 / 80
    assert drop.get_xydata() == pytest.approx(np.array([[70, 40], [70, on_line]]))
    assert line.get_label() == "V2 = Lite − 7.5/80 (100 − Lite); MSTB: 7.5/79"
    assert texts(ax) == [f"at Lite 70 %\nV2 must be {on_line:.1f} %"]
    assert title_of(figure).endswith(f"the claim lies {on_line - 40:.0f} points below it")
    plain = plots.feasibility(rows.drop(columns=["lite_minus_v2_c2", "hae_minus_lite_c2"]))
    assert plain.axes[0].lines[0].get_label() == "V2 = Lite − 0.0938 (100 − Lite); MSTB: 0.0949"


def test_waterfall_steps_down_from_hae_to_v2():
    figure = plots.slot_waterfall(plot_rows.slot_waterfall())
    saved = {"regions": 40, "fusion": 1.5, "mlp_ratio": 6}
    orders = (("regions", "fusion", "mlp_ratio"), ("mlp_ratio", "fusion", "regions"))
    for ax, order in zip(figure.axes, orders, strict=True):
        assert ax.get_title() == " → ".join(order)
        tops = 160 - np.cumsum([0, *(saved[slot] for slot in order)])
        expected = {0: (0, 160), 4: (0, tops[3])}
        expected |= {place: (tops[place], saved[slot]) for place, slot in enumerate(order, 1)}
        found = {round(left + width / 2): (bottom, height) for left, bottom, width, height, _ in bars(ax)}
        assert found == {place: pytest.approx(bar) for place, bar in expected.items()}
        assert sorted(texts(ax)) == sorted(["160.0", "112.5", *(f"−{saved[slot]:.1f}" for slot in order)])
        ends = [colour for left, _, _, _, colour in bars(ax) if left < 0 or left > 3]
        assert ends == [COLOURS["hae"], COLOURS["v2"]]
        ticks = [tick.get_text() for tick in ax.get_xticklabels()]
        assert [tick.replace("\n", "") for tick in ticks] == ["HAE", *(f"{slot}=new" for slot in order), "V2"]
    assert title_of(figure).startswith("The shared projection alone makes 84 % of the saving from HAE to V2; the order")


def check_stack(ax, table: pd.DataFrame, unit: float) -> None:
    """Each part (row) of each variant (column) stands on the parts before it, and the sum is written above."""
    drawn = groups(ax)
    bottom = np.zeros(len(table.columns))
    assert set(drawn) == set(table.index)
    for part, found in drawn.items():
        assert [bar[1] for bar in found] == pytest.approx(bottom)
        assert [bar[3] for bar in found] == pytest.approx(table.loc[part] / unit)
        bottom = bottom + table.loc[part].to_numpy(float) / unit
    assert texts(ax) == [f"{top:.1f}" for top in bottom]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [TITLES[name] for name in table.columns]


def test_parameters_are_stacked_to_the_whole_model():
    rows = plot_rows.parameter_parts()
    figure = plots.where_parameters_sit(rows)
    table = rows[rows["preset"] == "brats128"].pivot(index="part", columns="variant", values="params")[list(TITLES)]
    expected = table.loc[["encoder", "middle", *plot_rows.PARTS]]
    expected.loc["decoder body"] = table.loc["decoder"] - table.loc["hybrid blocks"]
    expected.loc["embedding and out"] = table.loc["embedding"] + table.loc["out"]
    assert (expected.sum() == table.loc["model"]).all()
    check_stack(figure.axes[0], expected, 1e6)
    share = 100 * table.loc["projections", "hae"] / table.loc["model", "hae"]
    assert title_of(figure).startswith(f"HAE's patch projections hold {share:.0f} % of its parameters")


def test_parameters_of_no_known_part_are_stacked_too():
    rows = plot_rows.parameter_parts()
    rows.loc[rows["part"] == "model", "params"] += 700_000
    drawn = groups(plots.where_parameters_sit(rows).axes[0])
    assert [bar[3] for bar in drawn["other parts"]] == pytest.approx([0.7] * 4)


def test_families_that_would_do_are_drawn_beside_the_claim():
    rows = plot_rows.what_it_would_take()
    figure = plots.what_it_would_take(rows)
    (ax,) = figure.axes
    for variant, offset in (("lite", -0.2), ("v2", 0.2)):
        drawn = groups(ax)[TITLES[variant]]
        assert [bar[2] for bar in drawn] == rows[f"{variant}_percent"].tolist()
        assert [bar[1] + bar[3] / 2 for bar in drawn] == pytest.approx([place + offset for place in range(3)])
        both = zip(rows[f"{variant}_percent"], rows[f"{variant}_changes"], strict=True)
        assert {f"{percent:.1f} %\n{changes}" for percent, changes in both} <= set(texts(ax))
    lites = [((70, 70), pytest.approx((place - 0.39, place - 0.01))) for place in range(3)]
    assert claimed_at(ax) == lites + [((40, 40), pytest.approx((place + 0.01, place + 0.39))) for place in range(3)]
    assert title_of(figure).startswith("100 / 70 / 40 needs at least 3 changes that Lite and V2 make for themselves")
    moved = plots.what_it_would_take(rows.assign(lite_claim_percent=65.0))
    assert {x for x, _ in claimed_at(moved.axes[0])} == {(65, 65), (40, 40)}


# work and time


def test_every_part_that_works_has_a_mark_a_variant_and_its_share():
    rows = plot_rows.macs_by_part()
    figure = plots.macs_by_part(rows)
    (ax,) = figure.axes
    table = rows[rows["preset"] == "brats128"].pivot(index="part", columns="variant", values="macs_document")
    largest_first = table["hae"].sort_values(ascending=False)
    shares = 100 * largest_first / largest_first.sum()
    ticks = [" ".join(tick.get_text().split()) for tick in ax.get_yticklabels()]
    assert ticks == [f"{part}, {share:.2g} %" for part, share in shares.items()]
    for place, (variant, title) in enumerate(TITLES.items()):
        (marks,) = [line for line in ax.lines if line.get_label() == title]
        mine = table.loc[largest_first.index, variant].dropna()
        assert marks.get_xdata() == pytest.approx(mine / 1e9)
        rows_of_parts = [list(largest_first.index).index(part) + 0.2 * (place - 1.5) for part in mine.index]
        assert marks.get_ydata() == pytest.approx(rows_of_parts)
        assert to_hex(marks.get_color()) == COLOURS[variant]
    low, high = ax.get_xlim()
    assert low < table.min().min() / 1e9
    assert table.max().max() / 1e9 < high
    share = 100 * table.loc["attention scores and values", "hae"] / table["hae"].sum()
    assert title_of(figure) == (
        f"The attention that the mask thins out is {share:.0f} % of HAE's work; the body does the most"
    )


def test_macs_by_level_draws_each_account_from_its_own_column():
    rows = plot_rows.macs_by_level()
    figure = plots.macs_by_level(rows, variant="lite")
    mine = rows[rows["variant"] == "lite"]
    drawn = groups(figure.axes[0])
    assert list(drawn) == [label for label, _ in ACCOUNTS.values()]
    columns = ("macs_document", "macs_dense", "macs_run", "macs_kept")
    labels = ("as published, all n queries", "dense, local queries", "run by our kernel", "kept by the mask")
    for place, (column, label) in enumerate(zip(columns, labels, strict=True)):
        assert [bar[3] for bar in drawn[label]] == pytest.approx(mine[column] / 1e9)
        centres = [bar[0] + bar[2] / 2 for bar in drawn[label]]
        assert centres == pytest.approx([level + 0.2 * (place - 1.5) for level in range(3)])
    saved = 100 * (1 - mine["macs_run"].sum() / mine["macs_document"].sum())
    start = f"Sparse attention saves {saved:.0f} % of HAE Lite's decoder, nearly all of it on the 64 × 64 map"
    assert title_of(figure) == start
    control = title_of(plots.macs_by_level(rows, variant="unet"))
    assert control == "Sparse attention saves nothing in the decoder of U-Net (control)"


def test_speed_ups_stand_at_their_sizes_between_their_quartiles():
    rows = plot_rows.attention()
    figure = plots.attention_speed_up(rows)
    layers = rows[rows["part"] == "layer"].set_index(["pass", "way", "n"]).sort_index()
    for ax, direction in zip(figure.axes, ("forward", "forward + backward"), strict=True):
        drawn = {bars.get_label(): bars for bars in ax.containers}
        ways = list(layers.loc[direction].index.unique("way"))
        assert set(drawn) >= {"dense SDPA" if way == "dense" else way for way in ways}
        for way in ways:
            bars = drawn["dense SDPA" if way == "dense" else way]
            (line, _, (segments,)) = bars
            sizes = [n for n in layers.loc[(direction, way)].index if n != 17664]
            assert line.get_xdata().tolist() == sizes
            for n, y, ((_, low), (_, high)) in zip(sizes, line.get_ydata(), segments.get_segments(), strict=True):
                mine, dense = layers.loc[(direction, way, n)], layers.loc[(direction, "dense", n), "ms_median"]
                ends = [dense / mine[name] for name in ("ms_median", "ms_q3", "ms_q1")]
                assert [y, low, high] == pytest.approx(ends)
            if way in RULE_COLOURS:
                assert line.get_color() == RULE_COLOURS[way]
        limit = next(line for line in ax.lines if str(line.get_label()).startswith("limit of document_shared, n / K"))
        assert limit.get_ydata().tolist() == [3.1, 5.1, 7.1]
    shared = layers.loc[("forward", "document_shared", 4416), "ms_median"]
    times = layers.loc[("forward", "dense", 4416), "ms_median"] / shared
    assert title_of(figure) == (
        f"Shared random columns make the layer {times:.1f} times faster than dense SDPA (n = 4,416)"
    )  # here two of the baselines are faster than dense SDPA
    slow = rows[rows["way"].isin(RULE_COLOURS)]
    assert "than dense SDPA, the strongest baseline (n" in title_of(plots.attention_speed_up(slow))
    assert "a CPU, 1 thread, CPU time, C = 256" in [text.get_text() for text in figure.texts]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"document's layer", "SDPA with the mask, all queries", "FlexAttention, window2d", "dense SDPA"} <= legend


def test_a_second_way_of_a_rule_is_dashed_in_its_colour_and_no_baseline():
    rows = plot_rows.attention(("document", "document_shared", "dense"))
    rows = rows[rows["way"].isin(["document", "document_shared", "dense"])]
    fast = rows[rows["way"] == "document"].assign(way="document, native", ms_q1=1.0, ms_median=1.0, ms_q3=1.0)
    rows = pd.concat([rows.assign(mask_rule=rows["way"]), fast.assign(mask_rule="document")])
    figure = plots.attention_speed_up(rows)
    (line, *_) = next(bars for bars in figure.axes[0].containers if bars.get_label() == "document, native")
    assert (to_hex(line.get_color()), line.get_linestyle()) == (to_hex(RULE_COLOURS["document"]), "--")
    assert "the strongest baseline" in title_of(figure)


def test_variants_together_draws_every_cost_its_quartiles_and_its_claim():
    rows = plot_rows.variants_together()
    figure = plots.variants_together(rows)
    (ax,) = figure.axes
    drawn, table = groups(ax), rows.set_index(["variant", "quantity"])
    spread = {}
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            spread |= {round(x, 6): (low, high) for (x, low), (_, high) in container[2][0].get_segments()}
    for place, (variant, title) in enumerate(TITLES.items()):
        centres = [group + 0.2 * (place - 1.5) for group in range(3)]
        assert [bar[0] + bar[2] / 2 for bar in drawn[title]] == pytest.approx(centres)
        mine = table.loc[variant].loc[["parameters", "MACs", "time"]]
        assert [bar[3] for bar in drawn[title]] == mine["percent_of_hae"].tolist()
        for x, (quantity, row) in zip(centres, mine.iterrows(), strict=True):
            if quantity != "time":
                assert round(x, 6) not in spread  # a count is exact
                continue
            low, high = (abs(row[f"percent_{end}"] - row["percent_of_hae"]) for end in ("q1", "q3"))
            expected = row["percent_of_hae"] - low, row["percent_of_hae"] + high
            assert spread[round(x, 6)] == pytest.approx(expected)
    assert [(pytest.approx(np.mean(x)), y) for x, y in claimed_at(ax)] == [(0.1, (70, 70)), (0.3, (40, 40))]
    assert texts(ax)[0] == f"{table.loc[('unet', 'parameters'), 'percent_of_hae']:.0f}"
    assert title_of(figure) == (
        "V2 holds 71 % of HAE's parameters, but does 83 % of its work; the times of the three cannot be told apart"
    )
    apart = rows.assign(percent_q3=rows["percent_of_hae"], percent_q1=rows["percent_of_hae"])
    assert title_of(plots.variants_together(apart)).endswith("; it takes 95 % of its time")


def test_density_and_reach_stand_at_their_sizes():
    rows = plot_rows.visibility()
    figure = plots.density_and_reach(rows)
    columns = ("density", "own_4_percent", "reach_1_percent")
    for ax, column, factor in zip(figure.axes, columns, (100, 1, 1), strict=True):
        for place, (rule, line) in enumerate(zip(RULE_COLOURS, ax.lines, strict=True)):
            mine = rows[rows["rule"] == rule].sort_values("n")
            assert line.get_label() == rule
            assert line.get_xdata() == pytest.approx(factor * mine[column])
            assert line.get_ydata() == pytest.approx([place - 0.2, place + 0.2])  # the larger map is the lower
    assert title_of(figure) == (
        "The document's mask keeps 8 % of the pairs: one block reaches 23 % of the map, "
        "and 1 % of pixels see their own patch"
    )
    assert "n = 276, 1,104 tokens" in " ".join(figure.get_supxlabel().split())


def test_quantities_say_the_width_that_they_are_of():
    rows = plot_rows.variants_together()
    rows["model_channels"] = [64 if quantity == "time" else 128 for quantity in rows["quantity"]]
    (ax,) = plots.variants_together(rows).axes
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert names == ["parameters\nat 128 channels", "MACs\nat 128 channels", "time\nat 64 channels"]


# studies


def test_forest_draws_every_seed_and_the_interval_of_their_mean():
    rows = study_rows()
    ax = plots.forest(rows).axes[0]
    by_seed = rows.pivot(index="seed", columns="cell", values="loss")
    pairs = [("hae", "unet"), ("lite", "unet"), ("v2", "unet"), ("lite", "hae"), ("v2", "hae"), ("v2", "lite")]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert sorted(names) == sorted(f"{TITLES[first]} − {TITLES[second]}" for first, second in pairs)
    dots = [marks.get_offsets() for marks in ax.collections if isinstance(marks, PathCollection)]
    for first, second in pairs:
        place = names.index(f"{TITLES[first]} − {TITLES[second]}")
        differences = by_seed[first] - by_seed[second]
        assert sorted(dots[place][:, 0]) == pytest.approx(sorted(differences))
        mean, low, high = t_interval(differences)
        assert intervals(ax)[place] == pytest.approx((mean, place - 0.1, low, high))


def test_forest_takes_statistics_that_were_computed_before():
    rows = study_rows()
    found = statistics.paired_differences(rows, baseline="unet")
    assert plots.forest(rows, stats=found).png() == plots.forest(rows, baseline="unet").png()
    assert plots.forest(rows, stats=found).png() != plots.forest(rows).png()


def test_pareto_puts_each_mean_over_each_cost():
    rows = study_rows()
    figure = plots.pareto(rows)
    for ax, cost, divisor in zip(figure.axes, ("params", "macs", "ms"), (1e6, 1e6, 1), strict=True):
        for (cell, mine), found in zip(rows.groupby("cell", sort=False), intervals(ax), strict=True):
            mean, low, high = t_interval(mine["loss"])
            assert found == pytest.approx((mine[cost].iloc[0] / divisor, mean, low, high)), cell
    (times,) = [
        [segment[:, 0].tolist() for lines in figure.axes[2].collections if isinstance(lines, LineCollection)
         for segment in lines.get_segments() if segment[0][1] == segment[1][1]]
    ]  # fmt: skip
    ends = rows.drop_duplicates("cell")[["ms_q1", "ms_q3"]].to_numpy().tolist()
    assert [pytest.approx(end) for end in ends] == times


def test_learning_curves_draw_means_over_steps_and_over_seconds():
    rows, ms_per_step = curve_rows()
    left, right = plots.learning_curves(rows, ms_per_step).axes
    for place, (cell, mine) in enumerate(rows.groupby("cell", sort=False)):
        means = mine.groupby("step")["loss"].mean()
        assert left.lines[place].get_xdata().tolist() == means.index.tolist()
        assert left.lines[place].get_ydata() == pytest.approx(means)
        assert right.lines[place].get_xdata() == pytest.approx(means.index * ms_per_step[cell] / 1000)
        band = left.collections[place].get_paths()[0].vertices
        assert {mine["loss"].min(), mine["loss"].max()} <= set(band[:, 1])
    assert left.lines[-1].get_xdata() == [300, 300]
    assert len(right.lines) == rows["cell"].nunique()


def test_quartiles_draw_differences_in_percent_of_the_baseline():
    rows = study_rows()
    ax = plots.loss_by_quartile(rows).axes[0]
    found = iter(intervals(ax))
    seeds = (marks for marks in ax.collections if isinstance(marks, PathCollection))
    for quartile in range(4):
        by_seed = rows.pivot(index="seed", columns="cell", values=f"loss_q{quartile + 1}")
        for place, cell in enumerate(("hae", "lite", "v2")):
            percents = 100 * (by_seed[cell] - by_seed["unet"]) / by_seed["unet"].mean()
            x = quartile + 0.75 * ((place + 0.5) / 3 - 0.5)
            assert next(found) == pytest.approx((x - 0.02, *t_interval(percents)))
            dots = np.array(next(seeds).get_offsets().tolist())
            assert dots[:, 0] == pytest.approx([x + 0.05] * 5)
            assert sorted(dots[:, 1]) == pytest.approx(sorted(percents))
        tick = ax.get_xticklabels()[quartile].get_text()
        assert tick == f"q{quartile + 1}\n{by_seed['unet'].mean():.2g}"


def test_ladder_draws_the_mean_and_parameters_of_each_rung_and_each_main_effect():
    rows = slot_rows()
    figure = plots.slot_ladder(rows)
    top, bottom, right = figure.axes
    rungs = [("linear", 4, "concat"), ("pooled", 4, "concat"), ("pooled", 4, "mean"), ("pooled", 0.25, "mean")]
    for place, (regions, ratio, fusion) in enumerate(rungs):
        mine = rows[(rows["regions"] == regions) & (rows["mlp_ratio"] == ratio) & (rows["fusion"] == fusion)]
        mean, low, high = t_interval(mine["loss"])
        assert intervals(top)[place] == pytest.approx((place, mean, low, high))
        left, base, width, height, _ = bars(bottom)[place]
        assert (left + width / 2, base, height) == pytest.approx((place, 0, mine["params"].iloc[0] / 1e6))
        assert texts(bottom)[place] == f"{mine['params'].iloc[0] / 1e6:.2f}"
    changes = (("regions", "linear", "pooled"), ("mlp_ratio", 4, 0.25), ("fusion", "concat", "mean"))
    for place, (slot, old, new) in enumerate(changes):
        means = rows.groupby(["seed", slot])["loss"].mean().unstack()
        mean, low, high = t_interval(100 * (means[new] - means[old]) / means[old].mean())
        assert intervals(right)[place] == pytest.approx((mean, place, low, high))


def test_rungs_without_rows_are_named():
    rows = slot_rows().query("regions == 'linear' or mlp_ratio == 0.25 or fusion == 'concat'")
    figure = plots.slot_ladder(rows, stats=statistics.main_effects(slot_rows(), ("regions", "mlp_ratio", "fusion")))
    assert len(bars(figure.axes[1])) == 3
    assert figure.legends[0].get_title().get_text().endswith("not measured: fusion mean = HAE Lite")


def test_dose_draws_levels_the_control_and_their_costs():
    ratios = {"mlp_ratio=1": 1.0, "mlp_ratio=2": 2.0, "mlp_ratio=4": 4.0}
    rows = study_rows(("unet", *ratios))
    rows = rows.assign(mlp_ratio=rows["cell"].map(ratios))
    top, bottom = plots.dose(rows).axes
    for found, (cell, ratio) in zip(intervals(top), ratios.items(), strict=True):
        mean, low, high = t_interval(rows.loc[rows["cell"] == cell, "loss"])
        assert found == pytest.approx((ratio, mean, low, high))
    control = rows.loc[rows["cell"] == "unet"]
    (line,) = [line for line in top.lines if line.get_linestyle() == "--"]
    assert line.get_ydata() == pytest.approx([control["loss"].mean()] * 2)
    params = rows.drop_duplicates("cell").set_index("cell")["params"] / 1e6
    assert bottom.lines[0].get_ydata() == pytest.approx(params[list(ratios)])
    assert bottom.lines[1].get_ydata() == pytest.approx([params["unet"]] * 2)


def test_conclusions_draw_single_seeds_and_the_interval_of_all():
    rows = study_rows(("hae", "v2"), seeds=4)
    by_seed = rows.pivot(index="seed", columns="cell", values="loss")
    single, four = plots.conclusions(rows, counts=(1, 4)).axes
    marks = [line for line in single.lines if line.get_marker() == "o"]
    expected = 100 * (by_seed["v2"] - by_seed["hae"]) / by_seed["hae"]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx(expected)
    places = [0.8 * ((seed + 0.5) / 4 - 0.5) for seed in range(4)]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx(places)
    mean, low, high = t_interval(100 * (by_seed["v2"] - by_seed["hae"]) / by_seed["hae"].mean())
    assert intervals(four) == [pytest.approx((mean, 0, low, high))]


# what the rows cannot give


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.macs_by_part(plot_rows.macs_by_part(), preset="bratz"), "unknown preset 'bratz'"),
        (lambda: plots.where_parameters_sit(plot_rows.parameter_parts(), preset="x"), "unknown preset 'x'"),
        (lambda: plots.macs_by_level(plot_rows.macs_by_level(), variant="v3"), "unknown variant 'v3'"),
        (lambda: plots.parameter_table(plot_rows.parameter_table(), order=["v3"]), "no variant in the rows has a"),
        (lambda: plots.forest(study_rows(), order=["v3"]), "no cell to draw"),
        (lambda: plots.slot_waterfall(plot_rows.slot_waterfall(), orders=["a > b"]), "unknown order 'a > b'"),
        (lambda: plots.attention_speed_up(plot_rows.attention(), order=["densest"]), "unknown mask rule 'densest'"),
        (lambda: plots.feasibility(plot_rows.feasibility()[4:]), "all are the claim"),
    ],
)
def test_bad_rows_and_options_are_named(draw, message):
    with pytest.raises(HAELabError, match=message):
        draw()


def test_what_was_not_measured_is_named_and_nothing_else():
    assert missing_note(["hae", "lite", "v2"], ["lite"]) == "not measured: HAE, HAE V2"
    assert missing_note(["v2"], [], "no time: {names}") == "no time: HAE V2"
    assert missing_note(["v2"], ["v2", "hae"]) == ""
