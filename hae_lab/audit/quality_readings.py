"""The readings of the promised order of quality, from the committed studies."""

from collections.abc import Iterator

import pandas as pd

from hae_lab.audit import quality_tables, verdicts
from hae_lab.audit.measured import Measured
from hae_lab.audit.readings import QUALITY, Finding
from hae_lab.presets import DOCUMENT

QUALITY_SOURCE = "data/quality_differences.csv, notebook 09"
OTHER_METRICS = {
    "swd": "sliced Wasserstein distance of samples",
    "mmd": "maximum mean discrepancy of samples",
    "auroc": "AUROC of anomaly maps",
    "dice": "Dice of anomaly maps",
}


def quality(measured: Measured) -> Iterator[Finding]:
    """HAE > Lite > V2: by loss, with something held equal, and by other metrics."""
    differences, orders = quality_tables.quality_differences(measured), quality_tables.quality_order(measured)
    times = quality_tables.step_times(measured.bench_training)
    for order in orders.to_dict("records"):
        data, equal = order["data"], order["equal"]
        pairs = _promised_pairs(differences, data, equal, "loss")
        found, note = verdicts.order_of_quality(pairs, order["verdict"]), ""
        if equal == "compute time":
            found = verdicts.order_at_equal_time(pairs, order["verdict"], times)
            if not verdicts.times_differ(times):
                note = "; but the times of a step, on which this rests, cannot be told apart"
        yield Finding(
            f"held-out loss after equal {equal}, {data}, lesson16, {order['n_seeds']} seeds",
            f"{_in_words(pairs)}; Page's trend test p = {order['p_value']:.2g}{note}",
            found,
            "data/quality_differences.csv, data/quality_order.csv, notebook 09",
            QUALITY,
            example=(data, equal) == ("phantoms", "steps"),
        )
    yield _at_equal_parameters(differences, measured.equal_parameters)
    for metric, name in OTHER_METRICS.items():
        pairs = _promised_pairs(differences, "phantoms", "steps", metric)
        scope = f"{name}, phantoms, lesson16, {pairs['n_seeds'].min()} seeds"
        yield Finding(scope, _in_words(pairs), verdicts.order_of_quality(pairs), QUALITY_SOURCE, QUALITY)


def _at_equal_parameters(differences: pd.DataFrame, runs: pd.DataFrame) -> Finding:
    wide = differences[differences["equal"] == "parameters"]
    (pair,) = wide.to_dict("records")
    size = runs.groupby("cell")[["params", "macs"]].first()
    percent = 100 * size.loc[quality_tables.WIDE_V2] / size.loc["hae"]
    return Finding(
        "held-out loss at about equal parameters, phantoms, lesson16: V2 widened to "
        f"{percent['params']:.0f} % of HAE's parameters and {percent['macs']:.0f} % of its MACs",
        _in_words(wide),
        verdicts.first_of_pair(pair, promised="hae"),
        QUALITY_SOURCE,
        QUALITY,
    )


def _promised_pairs(differences: pd.DataFrame, data: str, equal: str, metric: str) -> pd.DataFrame:
    rows = differences[
        (differences["data"] == data) & (differences["equal"] == equal) & (differences["metric"] == metric)
    ]
    return rows[rows["first"].isin(DOCUMENT) & rows["second"].isin(DOCUMENT)]


def _in_words(pairs: pd.DataFrame) -> str:
    return "; ".join(
        f"{row['first']} - {row['second']} {row['mean_difference']:+.2g} [{row['ci_low']:+.2g}, {row['ci_high']:+.2g}]"
        for row in pairs.to_dict("records")
    )
