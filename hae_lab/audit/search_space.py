"""The space in which a v3 is searched: fields of the config, written so that they fit every preset's body.

A candidate is a choice of each name in `SPACE`; `changes` says what it changes on a preset, `counted` what it costs
there, `fits` whether that is what the document promises of V2: at most 40 % of HAE's parameters, and less work than V2.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from hae_lab.checks import HAELabError
from hae_lab.family import HAEConfig
from hae_lab.presets import PRESETS, config
from hae_lab.profilers.formulas import static_counts

BODIES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "preset": lambda mult: mult,
    "flat": lambda mult: (1,) * len(mult),
    "late": lambda mult: (*(1,) * (len(mult) - 1), 2),
    "shallow": lambda mult: mult[:-1],
}  # the widths of the levels in units of model_channels, from those of the preset
BRANCHES = {"both": {}, "transformer": {"cnn_branch": False}, "cnn": {"transformer_branch": False}}
SPACE: dict[str, tuple[Any, ...]] = {
    "width": (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5),  # model_channels over the preset's
    "body": tuple(BODIES),
    "num_res_blocks": (1, 2),
    "attention": ("preset", "none"),  # of the body, outside its middle
    "middle_attention": (True, False),
    "conv_resample": (True, False),
    "placement": ("upsample", "attention", "everywhere"),
    "branches": tuple(BRANCHES),
    "regions": ("linear", "pooled"),
    "mlp_ratio": (0.25, 1.0, 4.0),
    "fusion": ("concat", "mean"),
    "mask_rule": ("document", "document_shared", "spatial_reduction", "dense"),
    "mstb_heads": (4, 8),
}
BODY, LARGE = "lesson16", "brats128"  # what is trained, and what else must be small
MOST_PERCENT = 40.0  # of HAE's parameters: the document's promise for V2
SAMPLED, SEED = 3000, 0

Candidate = Mapping[str, Any]


def changes(candidate: Candidate, preset: str = BODY) -> dict[str, Any]:
    """The config fields that a candidate changes on a preset: a delta like those of the variants."""
    own = PRESETS[preset]
    mult = BODIES[candidate["body"]](own["channel_mult"])
    rates = tuple(rate for rate in own["attention_resolutions"] if rate < 2 ** len(mult))
    coarsest = (2 ** (len(mult) - 1),)  # where a body of fewer levels has none of the preset's
    plain = ("num_res_blocks", "middle_attention", "conv_resample", "placement", "regions", "mlp_ratio", "fusion")
    return {
        "model_channels": round(own["model_channels"] * candidate["width"]),
        "channel_mult": mult,
        "attention_resolutions": () if candidate["attention"] == "none" else rates or coarsest,
        **{name: candidate[name] for name in (*plain, "mask_rule", "mstb_heads")},
        **BRANCHES[candidate["branches"]],
    }


def configured(candidate: Candidate, preset: str = BODY) -> HAEConfig | None:
    """The config of a candidate; None where no model could have it, or where it has no hybrid block."""
    try:
        made = config("hae", preset, **changes(candidate, preset))
    except HAELabError:
        return None
    return made if made.hybrid_levels else None


@lru_cache
def reference_counts(variant: str, preset: str) -> dict[str, int]:
    """`static_counts` of a variant."""
    return static_counts(config(variant, preset))


def counted(candidate: Candidate) -> dict[str, float] | None:
    """Parameters and MACs in percent of HAE's on both bodies, whether it fits; None where it is no hybrid model.

    Keys: params_percent_lesson16, macs_percent_lesson16, the same of brats128, fits.
    """
    found: dict[str, float] = {}
    for preset in (BODY, LARGE):
        made = configured(candidate, preset)
        if made is None:
            return None
        own, hae = static_counts(made), reference_counts("hae", preset)
        for name in ("params", "macs"):
            found[f"{name}_percent_{preset}"] = 100 * own[name] / hae[name]
    return found | {"fits": fits(found)}


def fits(found: Mapping[str, float]) -> bool:
    """At most 40 % of HAE's parameters and fewer MACs than V2, on both bodies."""
    small = all(found[f"params_percent_{preset}"] <= MOST_PERCENT for preset in (BODY, LARGE))
    return small and all(found[f"macs_percent_{preset}"] < v2_macs_percent(preset) for preset in (BODY, LARGE))


def v2_macs_percent(preset: str) -> float:
    """V2's MACs in percent of HAE's."""
    return 100 * reference_counts("v2", preset)["macs"] / reference_counts("hae", preset)["macs"]


def sweep(count: int = SAMPLED) -> pd.DataFrame:
    """`count` candidates drawn from the space without repetition, counted on the meta device; nothing is trained.

    A row a candidate: its choices, and what `counted` says.
    """
    every = list(product(*SPACE.values()))
    rows = []
    for place in np.random.default_rng(SEED).permutation(len(every)):
        candidate = dict(zip(SPACE, every[place], strict=True))
        found = counted(candidate)
        if found is not None:
            rows.append(candidate | found)
        if len(rows) == count:
            break
    table = pd.DataFrame(rows)
    percent = [name for name in table if "_percent_" in name]
    return table.assign(**table[percent].round(2))
