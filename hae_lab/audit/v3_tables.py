"""The v3 that the search chose, beside the variants and plain U-Nets of its cost: what it costs and what it gains."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pandas as pd

from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import of_one_computer
from hae_lab.audit.search_space import BODY, LARGE, SPACE, changes
from hae_lab.checks import HAELabError
from hae_lab.diffusion.bounds import loss_bounds
from hae_lab.diffusion.patterns import PATTERNS
from hae_lab.family import HAEConfig
from hae_lab.presets import CONTROL, DOCUMENT, config
from hae_lab.profilers.formulas import static_counts
from hae_lab.study import statistics
from hae_lab.study.comparisons import STEPS
from hae_lab.study.equivalence import margin_of
from hae_lab.study.power import ALPHA

V3, TIME = "v3", "time"
OWN_BODY = "v3 without blocks"
RATES = "attention_resolutions"
STUDIES = {"twins": ("twins", "v3"), "phantoms": ("variants", "v3_phantoms")}  # by data: that of the variants, and v3's
PASSES = {"training step": "training", "forward": "denoising"}  # of `hae-lab bench v3`
Measurements = Mapping[str, pd.DataFrame]


def chosen(search: pd.DataFrame) -> dict[str, Any]:
    """The candidate that was best in the mean over the data of the longest rung."""
    last = search[search["rung"] == search["rung"].max()]
    name = last.groupby("candidate")["percent_to_hae"].mean().idxmin()
    (row,) = search[search["candidate"] == name].drop_duplicates("candidate").to_dict("records")
    return {field: row[field] for field in SPACE}


def v3_changes(preset: str = BODY) -> dict[str, Any]:
    """What v3 changes in HAE on a preset: a delta for `register_variant`, with levels for this preset's body."""
    found, hae = changes(chosen(read_table("v3_search")), preset), config("hae", preset)
    # rates go with levels, also where they are the preset's: another preset may have more of them
    return {name: value for name, value in found.items() if name == RATES or value != getattr(hae, name)}


def v3_models() -> dict[str, HAEConfig]:
    """By name: the variants, v3, and what is as large without hybrid blocks.

    That are v3's own body and the U-Net's, both as wide as has v3's parameters, and the U-Net's with HAE's.
    """
    named = {name: config(name, BODY) for name in (CONTROL, *DOCUMENT)}
    named[V3] = config("hae", BODY, **v3_changes())
    named[OWN_BODY] = as_large(named[V3].replace(placement="none"), named[V3])
    for other in (V3, "hae"):
        unet = as_large(named[CONTROL], named[other])
        named[f"U-Net, {unet.model_channels} channels"] = unet
    return named


def as_large(model_config: HAEConfig, other: HAEConfig) -> HAEConfig:
    """A config at the width at which its parameters are nearest to those of another."""
    made = []
    for width in range(4, 64, 2):
        with suppress(HAELabError):  # its heads do not divide each width
            made.append(model_config.replace(model_channels=width))
    return min(made, key=lambda each: abs(_params(each) - _params(other)))


def _params(model_config: HAEConfig) -> int:
    return static_counts(model_config)["params"]


# costs


def v3_costs(bench: pd.DataFrame) -> pd.DataFrame:
    """A row a model: parameters, MACs and times of a step, in percent of HAE's; and the verdict of its times with V2.

    Parameters on `LARGE` too, where a model is defined there. Rows of `hae-lab bench v3`, of one computer.
    """
    large = {name: config(name, LARGE) for name in (CONTROL, *DOCUMENT)} | {
        V3: config("hae", LARGE, **v3_changes(LARGE))
    }
    counts = pd.DataFrame({name: static_counts(each) for name, each in v3_models().items()}).T[["params", "macs"]]
    large_params = pd.Series({name: _params(each) for name, each in large.items()}, dtype="Int64")
    costs = counts.assign(params_brats128=large_params.reindex(counts.index))
    bench = of_one_computer(bench)
    for direction, word in PASSES.items():
        rows = bench[bench["pass"] == direction].set_index("variant")
        costs[f"{word}_ms"] = rows["ms_median"]
        costs[f"{word}_against_v2"] = rows["verdict"].fillna("")
    for name in ("params", "macs", "params_brats128", *(f"{word}_ms" for word in PASSES.values())):
        costs[f"{name.removesuffix('_ms')}_percent_of_hae"] = (100 * costs[name] / costs.loc["hae", name]).astype(float)
    return costs.rename_axis("variant").reset_index()


# quality


def v3_quality(studies: Measurements) -> pd.DataFrame:
    """A row a model, data set and what is held equal: its loss and its share of the possible gain, beside HAE's.

    Seeds are those of v3. At equal time every model had the time of HAE's steps, with which it is compared. Columns:
    variant, data, equal, steps, n_seeds, loss_mean, loss_ci_low, loss_ci_high, the gain shares (twins), against,
    percent, percent_low, percent_high and verdict of the paired difference; v3 is compared with the U-Net too.
    """
    parts = [_at(data, equal, runs) for data in STUDIES for equal, runs in v3_runs(studies, data).items()]
    return pd.concat(parts, ignore_index=True)


def v3_runs(studies: Measurements, data: str) -> dict[str, pd.DataFrame]:
    """By what is held equal, the runs of all models on some data, with their names for cells, on the seeds of v3."""
    known, own = (studies[name] for name in STUDIES[data])
    runs = pd.concat([own, known], ignore_index=True).drop_duplicates(["cell", "seed"])  # they share runs
    runs = runs[runs["seed"].isin(own["seed"])]
    names, found = list(v3_models()), {}
    for equal, ending in ((STEPS, ""), (TIME, " at HAE's time")):
        labels = {f"{name}{ending}": name for name in names} | {"hae": "hae"}
        here = runs[runs["cell"].isin(labels)]
        here = here.assign(cell=here["cell"].map(labels))
        found[equal] = here.sort_values("cell", key=lambda cells: cells.map(names.index), kind="stable")
    return found


def _at(data: str, equal: str, runs: pd.DataFrame) -> pd.DataFrame:
    names = list(runs["cell"].unique())
    losses = statistics.summary(runs).set_index("cell")
    found = pd.DataFrame(
        {
            "data": data,
            "equal": equal,
            "steps": _steps_of(runs),
            "n_seeds": losses["n_seeds"],
            "loss_mean": losses["mean"],
            "loss_ci_low": losses["ci_low"],
            "loss_ci_high": losses["ci_high"],
        }
    )
    if data in PATTERNS:
        shares = statistics.summary(runs.assign(share=runs["loss"].map(loss_bounds(data).gain_share)), "share")
        for name in ("mean", "ci_low", "ci_high"):
            found[f"gain_share_{name}"] = shares.set_index("cell")[name]
    pairs = [(name, "hae") for name in names if name != "hae"]
    if V3 in names:
        pairs += [(V3, name) for name in names if name not in (V3, "hae") and equal == TIME]
    return _with_pairs(found.rename_axis("variant").reset_index(), runs, pairs)


def _steps_of(runs: pd.DataFrame) -> pd.Series:
    return runs.groupby("cell", sort=False)["steps"].first()


def _with_pairs(found: pd.DataFrame, runs: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    contrasts = statistics.pair_contrasts(statistics.seed_table(runs), pairs)
    tested = statistics.compared(contrasts, True, 1 - ALPHA, margin_of(runs), ALPHA)
    percent = tested[["mean_difference", "ci_low", "ci_high"]].mul(100 / tested["mean_second"], axis=0)
    compared = pd.DataFrame(
        {
            "variant": tested["first"],
            "against": tested["second"],
            "percent": percent["mean_difference"],
            "percent_low": percent["ci_low"],
            "percent_high": percent["ci_high"],
            "equal_within_percent": tested["equal_within_percent"],
            "verdict": tested["verdict"],
        }
    )
    return found.merge(compared, on="variant", how="left")
