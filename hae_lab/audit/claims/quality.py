"""Claims on quality, from the committed studies: which version is better, and are hybrid blocks better than none."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from hae_lab.audit import quality_tables, verdicts
from hae_lab.audit.claims.base import BEYOND, PARAMETERS, QUALITY, Evidence, Finding, claim, listed
from hae_lab.audit.claims.parameters import PRESET, TABLE_TEST, whole_params
from hae_lab.audit.measured import Measured
from hae_lab.diffusion.metrics import metric_title
from hae_lab.plots.verdicts import in_percent, within
from hae_lab.presets import CONTROL, DOCUMENT
from hae_lab.study.comparisons import NONE, NOT_FOUND, STEPS
from hae_lab.study.equivalence import EQUAL

FAMILY = ["study", "data", "equal"]
NOTEBOOK, FIGURE, TABLE = "09_ablation_study", "quality_verdicts", "quality_differences"
LADDERS = {"twins": "slot_ladder", "phantoms": "slot_ladder_phantoms"}  # figures of the slots, by data
SLOTS_TEST = "test_quality_numbers.py::test_slot_effects_are_those_of_statsmodels"
BOTH_HALVES = "HAE, encoder too"  # a cell of the studies: blocks in place of all attention
METRICS = {"loss": "held-out loss", "swd": "sliced Wasserstein distance of samples"}
ORDER_TEST = "test_quality_numbers.py::test_orders_by_counting"
PAIRS_TEST = "test_quality_numbers.py::test_differences_are_those_of_statsmodels"
PAIRS = {"notebook": NOTEBOOK, "figure": FIGURE, "table": TABLE, "test": PAIRS_TEST}  # of claims on pairs of models


@claim(
    {283: "最高的生成质量", 289: "相比原版有轻微的性能损失", 294: "相比前两版有一定的性能权衡"},
    "Quality in the order HAE, HAE Lite, HAE V2",
    "HAE > Lite > V2",
    notebook=NOTEBOOK,
    figure=FIGURE,
    table="quality_order",
    test=ORDER_TEST,
)
def quality_order(measured: Measured) -> Iterator[Finding]:
    """HAE > Lite > V2: by loss, with something held equal, and by other metrics."""
    differences = measured.once(quality_tables.quality_differences)
    orders = measured.once(quality_tables.quality_order)
    losses = differences[differences["metric"] == "loss"]
    for place, order in enumerate(orders.to_dict("records")):
        pairs = _among(_of(losses, order), DOCUMENT)
        yield _finding(
            f"held-out loss at equal {order['equal']}",
            _where(order, pairs),
            f"{_beyond(pairs)}{_in_words(pairs)}; Page's trend test p = {order['p_value']:.2g}",
            verdicts.order_of_quality(pairs, order["verdict"]),
            order["controls"],
            example=place == orders["n_seeds"].argmax(),
        )
    yield from _at_equal_parameters(losses)
    at_steps = differences[(differences["equal"] == STEPS) & (differences["metric"] != "loss")]
    for metric, rows in at_steps.groupby("metric", sort=False):
        for order in orders[orders["equal"] == STEPS].to_dict("records"):
            pairs = _among(_of(rows, order), DOCUMENT)
            if len(pairs):
                found = verdicts.order_of_quality(pairs)
                where = _where(order, pairs)
                yield _finding(metric_title(str(metric)), where, _in_words(pairs), found, order["controls"])


def _at_equal_parameters(losses: pd.DataFrame) -> Iterator[Finding]:
    """V2 widened to HAE's parameters, where Lite is not widened too: then there is one pair and no order."""
    for _, rows in losses[losses["equal"] == "parameters"].groupby(FAMILY, sort=False):
        pairs = _among(rows, ("hae", "v2"))
        if len(pairs) == 1 and "lite" not in set(rows["first"]) | set(rows["second"]):
            (pair,) = pairs.to_dict("records")
            found = verdicts.first_of_pair(pair, "hae")
            reading = "held-out loss at equal parameters"
            yield _finding(reading, _where(pair, pairs), _in_words(pairs), found, pair["controls"])


@claim(
    {5: "通过在编码器和解码器中使用不同的网络结构来实现更好的特征表示和生成质量"},
    "Different structures in encoder and decoder give better features and quality",
    "better than a plain U-Net",
    **PAIRS | {"figure": "gain_shares"},
)
def heterogeneous(measured: Measured) -> Iterator[Finding]:
    """Hybrid blocks in the decoder are better than the same body without them: each version, with something equal."""
    differences = measured.once(quality_tables.quality_differences)
    losses = differences[differences["metric"] == "loss"]
    families = [pairs for _, rows in losses.groupby(FAMILY, sort=False) if len(pairs := _against_control(rows))]
    most = max(range(len(families)), key=lambda place: families[place]["n_seeds"].min(), default=0)
    for place, pairs in enumerate(families):
        reading = f"held-out loss at equal {pairs['equal'].iloc[0]}"
        yield _over_control(reading, pairs, example=place == most)
    for each in _beside(measured, {("hae", BOTH_HALVES): "hae"}, "loss"):
        yield replace(each, reading=f"better than hybrid blocks in both halves: {each.reading}", example=False)
    others = differences[(differences["metric"] != "loss") & (differences["equal"] == STEPS)]
    for (metric, *_), rows in others.groupby(["metric", *FAMILY], sort=False):
        if len(pairs := _against_control(rows)):
            yield _over_control(metric_title(str(metric)), pairs)


# one version beside another


@claim(
    {27: "性能最优", 283: "最高的生成质量"},
    "HAE has the best performance, the highest quality of what is generated",
    "HAE better than Lite and V2",
    **PAIRS,
)
def best_quality(measured: Measured) -> Iterator[Finding]:
    """HAE better than Lite and than V2, by loss and by the distance of samples."""
    for metric in ("loss", "swd"):
        yield from _beside(measured, {("hae", "lite"): "hae", ("hae", "v2"): "hae"}, metric)


@claim(
    {148: "保持性能"},
    "Lite keeps the performance",
    "as good as HAE",
    **PAIRS,
)
def lite_keeps_performance(measured: Measured) -> Iterator[Finding]:
    """Lite equal to HAE within the margin, or better."""
    yield from _beside(measured, {("hae", "lite"): "lite"}, "loss", keeps=True)


@claim(
    {289: "相比原版有轻微的性能损失"},
    "Lite loses a little performance beside HAE",
    "worse than HAE",
    **PAIRS,
)
def lite_slight_loss(measured: Measured) -> Iterator[Finding]:
    """HAE better than Lite, which line 148 denies."""
    yield from _beside(measured, {("hae", "lite"): "hae"}, "loss")


@claim(
    {294: "相比前两版有一定的性能权衡"},
    "V2 trades in some performance beside the first two",
    "worse than HAE and Lite",
    **PAIRS,
)
def v2_tradeoff(measured: Measured) -> Iterator[Finding]:
    """HAE and Lite better than V2."""
    yield from _beside(measured, {("hae", "v2"): "hae", ("lite", "v2"): "lite"}, "loss")


@claim(
    {130: "平衡性能和效率", 288: "平衡的性能和效率"},
    "Lite balances performance and efficiency",
    "as good as HAE, for less",
    **PAIRS | {"figure": "quality_pareto"},
)
def lite_balance(measured: Measured) -> Iterator[Finding]:
    """Lite's cost between the others', its quality that of HAE; and is a balance needed, if V2 is as good for less?"""
    params = whole_params()
    words = listed(f"{100 * params[variant] / params['hae']:.1f} %" for variant in DOCUMENT)
    verdict = verdicts.in_order(params[variant] for variant in DOCUMENT)
    evidence = Evidence("06_parameter_table", "parameter_table", "parameter_table", TABLE_TEST)
    yield Finding("parameters between HAE's and V2's", PRESET, words, verdict, PARAMETERS, evidence=evidence)
    yield from _beside(measured, {("hae", "lite"): "lite"}, "loss", keeps=True)
    for each in _beside(measured, {("lite", "v2"): "lite"}, "loss"):
        reading = f"better than V2, which is smaller: {each.reading}"
        yield replace(each, reading=reading, claimed="better than V2", asked_of=BEYOND, example=False)


def _beside(
    measured: Measured, promised: Mapping[tuple[str, str], str], metric: str, keeps: bool = False
) -> Iterator[Finding]:
    """A reading for each study and what it holds equal that has all these pairs: is the promised cell better?

    With `keeps` it has to be as good. The example is that of the most seeds.
    """
    differences = measured.once(quality_tables.quality_differences)
    rows = differences[differences["metric"] == metric]
    wanted = {frozenset(pair): cell for pair, cell in promised.items()}
    found = []
    for _, family in rows.groupby(FAMILY, sort=False):
        cells = [frozenset(pair) in wanted for pair in zip(family["first"], family["second"], strict=True)]
        if sum(cells) == len(wanted):
            found.append(family[cells])
    most = max(range(len(found)), key=lambda place: found[place]["n_seeds"].min(), default=0)
    for place, pairs in enumerate(found):
        row, by_cell = pairs.iloc[0].to_dict(), [(pair, _promised(pair, wanted)) for pair in pairs.to_dict("records")]
        verdict = verdicts.kept(*by_cell[0]) if keeps else verdicts.all_first(by_cell)
        reading = f"{METRICS[metric]} at equal {row['equal']}"
        example = metric == "loss" and place == most
        yield _finding(reading, _where(row, pairs), _in_words(pairs), verdict, row["controls"], example)


def _promised(pair: Mapping[str, Any], wanted: Mapping[frozenset[str], str]) -> str:
    return wanted[frozenset((pair["first"], pair["second"]))]


def readings_kept(measured: Measured, slot: str, reading: str) -> Iterator[Finding]:
    """Whether a change of one slot keeps the quality, in the mean over the other two."""
    effects = measured.once(_slot_effects)
    for row in effects[effects["factor"] == slot].to_dict("records"):
        scope = f"{row['data']}, study slots, {row['n_seeds']} seeds"
        evidence = Evidence(NOTEBOOK, LADDERS[row["data"]], "slot_effects", SLOTS_TEST)
        found = _finding(reading, scope, _pair_in_words(row), verdicts.kept(row, row["first"]), row["controls"])
        yield replace(found, evidence=evidence)


def readings_without(
    measured: Measured, study: str, piece: str, whole: str, reading: str, figure: str
) -> Iterator[Finding]:
    """Whether trained models are better than the same without a piece: the loss, on each data set of a study."""
    rows = measured.once(quality_tables.quality_differences)
    rows = rows[(rows["study"] == study) & (rows["metric"] == "loss")]
    evidence = Evidence(NOTEBOOK, figure, TABLE, PAIRS_TEST)
    for _, pair in rows[(rows["first"] == piece) & (rows["second"] == whole)].groupby(FAMILY, sort=False):
        row = pair.iloc[0].to_dict()
        found = verdicts.first_of_pair(row, whole)
        each = _finding(reading, _where(row, pair), _in_words(pair), found, row["controls"])
        yield replace(each, claimed="better than without", evidence=evidence)


def _slot_effects(measured: Measured) -> pd.DataFrame:
    return quality_tables.slot_effects(measured.slots)


# pairs of studies, and their words


def _against_control(rows: pd.DataFrame) -> pd.DataFrame:
    """The comparisons of the document's versions with the plain U-Net."""
    return _among(rows, (CONTROL, *DOCUMENT))[lambda pairs: pairs[["first", "second"]].eq(CONTROL).any(axis=1)]


def _over_control(reading: str, pairs: pd.DataFrame, example: bool = False) -> Finding:
    """Whether the document's version is the better one of each of these pairs with the control."""
    row = pairs.iloc[0].to_dict()
    found = verdicts.all_first((pair, _version(pair)) for pair in pairs.to_dict("records"))
    return _finding(reading, _where(row, pairs), _in_words(pairs), found, row["controls"], example=example)


def _version(pair: Mapping[str, Any]) -> str:
    return str(pair["first"] if pair["second"] == CONTROL else pair["second"])


def _of(rows: pd.DataFrame, family: Mapping[str, Any]) -> pd.DataFrame:
    return rows[(rows[FAMILY] == pd.Series({name: family[name] for name in FAMILY})).all(axis=1)]


def _among(rows: pd.DataFrame, cells: tuple[str, ...]) -> pd.DataFrame:
    return rows[rows["first"].isin(cells) & rows["second"].isin(cells)]


def _where(family: Mapping[str, Any], pairs: pd.DataFrame) -> str:
    return f"{family['data']}, study {family['study']}, {pairs['n_seeds'].min()} seeds"


def _finding(reading: str, scope: str, computed: str, verdict: str, controls: str, example: bool = False) -> Finding:
    notes = {NOT_FOUND: "a control that is known to be worse was not found; ", NONE: ""}
    computed = notes.get(controls, "") + computed
    return Finding(reading, scope, computed, verdicts.valid(verdict, controls), QUALITY, example=example)


def _beyond(pairs: pd.DataFrame) -> str:
    """What it means for an order that all of its pairs are equal."""
    equal = (pairs["verdict"] == EQUAL).all()
    return f"no order beyond {pairs['margin_percent'].iloc[0]:g} %: " if equal else ""


def _in_words(pairs: pd.DataFrame) -> str:
    return "; ".join(map(_pair_in_words, pairs.to_dict("records")))


def _pair_in_words(pair: Mapping[str, Any]) -> str:
    percent = in_percent(pair)
    difference = f"{percent['mean_difference']:+.2f} % [{percent['ci_low']:+.2f}, {percent['ci_high']:+.2f}]"
    found = verdicts.better(pair)
    said = within(pair) if found == EQUAL else f"{found} better" if found else verdicts.OPEN
    return f"{pair['first']} - {pair['second']} {difference}, {said}"
