"""Tables of multiply-accumulates: by part, by decoder level, by sampling run, and the paper's own formula.

Source of the formula: Lu et al. 2024, IEEE Transactions on Image Processing 33, their own estimate of the saving.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd

from hae_lab.audit.bench_attention import SHARED
from hae_lab.audit.benchmarks import MODEL_CHANNELS, NO_BLOCKS
from hae_lab.audit.measured import of_one_computer
from hae_lab.audit.parameter_tables import CLAIM_PERCENT, TABLE_PRESETS
from hae_lab.checks import require
from hae_lab.family import HAEConfig
from hae_lab.presets import VARIANTS, config
from hae_lab.profilers.macs import FLOPS, MACS, by_level, by_part, compute, per_sample, total
from hae_lab.profilers.params import parameter_formulas
from hae_lab.rules import RULES


def step_rows(variant: str, preset: str, mask_rule: str) -> pd.DataFrame:
    """`profilers.compute` of a variant on a preset, from a cache: do not change it."""
    rule = {"mask_rule": mask_rule} if VARIANTS[variant].has_blocks else {}  # without blocks all rules are one
    return _step_rows(config(variant, preset, **rule))


@lru_cache(maxsize=128)  # by config: a variant may be registered anew under its name
def _step_rows(model_config: HAEConfig) -> pd.DataFrame:
    return compute(model_config)


def part_rows(mask_rule: str = "document") -> pd.DataFrame:
    """MACs of one denoising step by part, for every variant on four presets."""
    return _stack(lambda variant, preset: by_part(step_rows(variant, preset, mask_rule)), mask_rule)


def level_rows(mask_rule: str = "document_shared") -> pd.DataFrame:
    """MACs of one denoising step by decoder level, for every variant on four presets."""
    return _stack(lambda variant, preset: by_level(step_rows(variant, preset, mask_rule)), mask_rule)


def rule_rows(preset: str = "brats128") -> pd.DataFrame:
    """MACs of one denoising step under each mask rule, whole model, for every variant with hybrid blocks."""
    rows = []
    for variant, rule in product((name for name, variant in VARIANTS.items() if variant.has_blocks), RULES):
        macs = total(step_rows(variant, preset, rule))[MACS].to_dict()
        rows.append({"preset": preset, "variant": variant, "mask_rule": rule} | macs)
    return pd.DataFrame(rows).astype(dict.fromkeys(MACS, "int64"))


def sampling_rows(preset: str = "brats128", mask_rule: str = "document_shared") -> pd.DataFrame:
    """MACs and FLOPs of whole samples: denoising steps, and twice as many passes with classifier-free guidance."""
    rows = []
    for variant in VARIANTS:
        step = int(total(step_rows(variant, preset, mask_rule))["macs_run"])
        for sampler, steps in (("one step", 1), ("DDIM", 25), ("DDPM", 1000)):
            for guidance in (False, True):
                macs = per_sample(step, steps, guidance)
                row = {"preset": preset, "variant": variant, "mask_rule": mask_rule, "sampler": sampler, "steps": steps}
                rows.append(row | {"guidance": guidance, "macs_run": macs, "flops_run": 2 * macs})
    return pd.DataFrame(rows)


def paper_formula() -> pd.DataFrame:
    """The paper's attention formula on the maps of hybrid blocks: what 2 N² C + 4 N C² -> 0.15 N² C + 3.75 N C² saves.

    N = pixels of the map, C = channels; `pixels_for_90_percent` is the N from which on the saving is 90 % at that C.
    """
    rows = []
    for preset in TABLE_PRESETS:
        model_config = config("hae", preset)
        for level in model_config.hybrid_levels:
            n, c = model_config.sizes[level] ** 2, model_config.channels[level]
            dense, reduced = 2 * n**2 * c + 4 * n * c**2, 0.15 * n**2 * c + 3.75 * n * c**2
            row = {"preset": preset, "height": model_config.sizes[level], "width": model_config.sizes[level]}
            row |= {"channels": c, "macs_dense": dense, "macs_reduced": reduced}
            # 0.15 N + 3.75 C = 0.10 (2 N + 4 C)
            rows.append(row | {"saved_percent": 100 * (1 - reduced / dense), "pixels_for_90_percent": 67 * c})
    return pd.DataFrame(rows).astype({"macs_dense": "int64", "macs_reduced": "int64"})


def _stack(profile, mask_rule: str) -> pd.DataFrame:
    keys = [(preset, variant) for preset in TABLE_PRESETS for variant in VARIANTS]
    frames = [profile(variant, preset) for preset, variant in keys]
    stacked = pd.concat(frames, keys=keys, names=["preset", "variant", None]).reset_index(["preset", "variant"])
    stacked.insert(2, "mask_rule", mask_rule)
    return stacked.astype({name: "int64" for name in (*MACS, *FLOPS) if name in stacked.columns})


def variants_together(bench_model: pd.DataFrame, preset: str = "brats128") -> pd.DataFrame:
    """Parameters, MACs and measured time of every variant, in percent of HAE; time with its quartiles.

    `bench_model` holds the rows of `hae-lab bench model`. The time is that of `document_shared`, our fastest exact rule
    that keeps the document's law; parameters and MACs are those of the full preset. The time of a variant that was not
    measured is a gap. Raises `HAELabError` if HAE was not measured.
    """
    times = of_one_computer(bench_model[bench_model["way"].isin([SHARED, NO_BLOCKS])]).set_index("variant")
    require("hae" in times.index, "no time of HAE to compare with: `hae-lab bench model` measures it")
    times = times.reindex(list(VARIANTS))
    rows = []
    for variant in VARIANTS:
        model_config = config(variant, preset)
        counts = {
            "parameters": parameter_formulas(model_config)["model"],
            "MACs": int(total(step_rows(variant, preset, SHARED))["macs_run"]),
            "time": times.loc[variant, "ms_median"],
        }
        rows += [{"variant": variant, "quantity": name, "value": value} for name, value in counts.items()]
    frame = pd.DataFrame(rows)
    hae = frame[frame["variant"] == "hae"].set_index("quantity")["value"]
    frame["percent_of_hae"] = 100 * frame["value"] / frame["quantity"].map(hae)
    for quartile in ("q1", "q3"):
        of_time = 100 * frame["variant"].map(times[f"ms_{quartile}"]) / hae["time"]
        frame[f"percent_{quartile}"] = frame["percent_of_hae"].where(frame["quantity"] != "time", of_time)
    frame["claim_percent"] = frame["variant"].map(CLAIM_PERCENT).where(frame["quantity"] == "parameters")
    timed = frame["quantity"] == "time"
    frame["model_channels"] = np.where(timed, MODEL_CHANNELS, config("hae", preset).model_channels)
    return frame
