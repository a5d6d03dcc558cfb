"""Small tables for every figure, of any variants: numbers that differ from each other, so that a swap shows."""

from itertools import permutations, product

import pandas as pd
from study_rows import curve_rows, slot_rows, study_rows

from hae_lab import plots
from hae_lab.plots.compute import MASKED, RULE_COLOURS
from hae_lab.presets import DOCUMENT

FOUR = ("unet", "hae", "lite", "v2")
PRESETS = ("brats128", "wide128", "tiny")
CLAIMS = {"hae": 100.0, "lite": 70.0, "v2": 40.0}
PERCENTS = {"unet": 63.0, "hae": 100.0, "lite": 76.0, "v2": 71.0}  # of HAE
PARTS = ("timestep", "CNN branch", "norms", "projections", "attention", "MLP", "fusion")
WORK = ("body", "timestep", "CNN branch", "projections", "attention projections", MASKED, "MLP", "fusion")


def percent(variant: str, place: int = 0) -> float:
    return PERCENTS.get(variant, 50.0) + (0 if variant == "hae" else place)


def parameter_table(variants=FOUR) -> pd.DataFrame:
    rows = []
    for (place, preset), scope, name in product(enumerate(PRESETS), ("whole model", "decoder"), variants):
        row = {"preset": preset, "scope": scope, "variant": name, "claim_percent": CLAIMS.get(name)}
        rows.append(row | {"percent_of_hae": percent(name, place) - 9 * (scope != "whole model")})
    return pd.DataFrame(rows)


def published_counts(variants=DOCUMENT) -> pd.DataFrame:
    names = [name for name in variants if name in DOCUMENT]
    return pd.DataFrame(
        {
            "variant": names,
            "published_million_params": [6.5 * CLAIMS[name] for name in names],
            "published_percent": [CLAIMS[name] - place for place, name in enumerate(names)],
            "our_params": [6_543_210 * int(CLAIMS[name]) for name in names],
            "our_percent": [CLAIMS[name] + 0.3 * place for place, name in enumerate(names)],
            "our_changes": [f"placement={name}, cnn_branch=False" for name in names],
            "preset": "wide128",
        }
    )


def feasibility() -> pd.DataFrame:
    lites = {("a", "MSTB"): 14.0, ("b", "MSTB"): 15.0, ("a", "whole model"): 75.0, ("b", "whole model"): 73.0}
    rows = [{"preset": preset, "scope": scope, "lite_percent": lite} for (preset, scope), lite in lites.items()]
    rows.append({"preset": "the claim", "scope": "whole model", "lite_percent": 70.0})
    frame = pd.DataFrame(rows).assign(claimed=[False] * 4 + [True], lite_minus_v2_c2=7.5)
    frame["hae_minus_lite_c2"] = [79.0 if scope == "MSTB" else 80.0 for scope in frame["scope"]]
    frame["slope"] = frame["lite_minus_v2_c2"] / frame["hae_minus_lite_c2"]
    frame["line_v2_percent"] = frame["lite_percent"] - frame["slope"] * (100 - frame["lite_percent"])
    frame["v2_percent"] = [*(frame["line_v2_percent"][:4] + 0.01), 40.0]
    return frame.assign(off_line_points=frame["v2_percent"] - frame["line_v2_percent"])


def slot_waterfall() -> pd.DataFrame:
    saved, rows = {"regions": 40_000_000, "fusion": 1_500_000, "mlp_ratio": 6_000_000}, []
    for order in permutations(saved):
        left = 160_000_000
        for step, slot in enumerate(order, start=1):
            left -= saved[slot]
            row = {
                "preset": "brats128",
                "order": " > ".join(order),
                "step": step,
                "slot": slot,
                "change": f"{slot}=new",
            }
            rows.append(row | {"params": left, "saved_params": saved[slot]})
    return pd.DataFrame(rows)


def parameter_parts(variants=FOUR) -> pd.DataFrame:
    rows = []
    for place, name in enumerate(variants):
        hybrid = {
            part: 0 if name == "unet" else (index + 2) * 100_000 + place * 1_000 for index, part in enumerate(PARTS)
        }
        hybrid["projections"] *= 20 if name == "hae" else 1
        counts = {"embedding": 400_000, "encoder": 3_000_000 + place, "middle": 1_200_000, "out": 5_000}
        counts["hybrid blocks"] = sum(hybrid.values())
        counts["decoder"] = 4_000_000 + counts["hybrid blocks"]
        counts["model"] = sum(counts[section] for section in ("embedding", "encoder", "middle", "decoder", "out"))
        rows += [
            {"preset": preset, "variant": name, "part": part, "params": params}
            for preset, (part, params) in product(("brats128", "tiny"), (counts | hybrid).items())
        ]
    return pd.DataFrame(rows)


def what_it_would_take() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "preset": "brats128", "changes": [3, 3, 4],
            "lite_changes": ["cnn_branch=False", "num_res_blocks=1", "none"], "lite_percent": [69.7, 70.2, 70.9],
            "v2_changes": ["model_channels=112", "depth", "width"], "v2_percent": [39.9, 40.4, 41.0],
            "lite_claim_percent": 70.0, "v2_claim_percent": 40.0,
        }
    )  # fmt: skip


def macs_by_part(variants=FOUR) -> pd.DataFrame:
    rows = []
    for preset, (place, name), (index, part) in product(("brats128", "tiny"), enumerate(variants), enumerate(WORK)):
        if part == "body" or name != "unet":
            macs = (50 if part == "body" else 1 + index) * 10**9 + place
            rows.append({"preset": preset, "variant": name, "part": part, "macs_document": macs})
    return pd.DataFrame(rows)


def macs_by_level(variants=FOUR) -> pd.DataFrame:
    rows = []
    for (place, name), (level, side) in product(enumerate(variants), enumerate((64, 32, 16))):
        row = {"preset": "brats128", "variant": name, "mask_rule": "document_shared", "height": side, "width": side}
        macs = (9 - 2 * level) * 10**9 + place * 10**7
        blocks = name != "unet"
        row |= {
            "macs_document": macs + blocks * 6 * 10**9 // 8**level,
            "macs_dense": macs + blocks * 4 * 10**9 // 8**level,
        }
        rows.append(
            row | {"macs_run": macs + blocks * 2 * 10**9 // 8**level, "macs_kept": macs + blocks * 10**9 // 8**level}
        )
    return pd.DataFrame(rows)


def variants_together(variants=FOUR) -> pd.DataFrame:
    rows = []
    for name, (place, quantity) in product(variants, enumerate(("parameters", "MACs", "time"))):
        value = min(100.0, percent(name) + 12 * place) if name != "hae" else 100.0
        wide = 4.0 if quantity == "time" else 0.0
        row = {"variant": name, "quantity": quantity, "percent_of_hae": value, "percent_q1": value - wide}
        claim = CLAIMS.get(name) if quantity == "parameters" else None
        rows.append(row | {"percent_q3": value + 2 * wide, "claim_percent": claim})
    return pd.DataFrame(rows)


def attention(rules=tuple(RULE_COLOURS)) -> pd.DataFrame:
    """As `bench_attention` measures it: layers and cores at three sizes, one more size without baselines."""
    rows = []
    ways = ("document's layer", "SDPA with the mask, all queries", *(rule for rule in rules if rule != "dense"))
    for place, n in enumerate((276, 1104, 4416)):
        for direction, slower in (("forward", 1), ("forward + backward", 3)):
            common = {"pass": direction, "n": n, "map": f"{n}", "part": "layer"}
            rows.append(common | {"way": "dense", "ms_median": 10.0 * slower * n})
            rows += [
                common | {"way": way, "ms_median": 10.0 * slower * n / (0.4 + index) / 1.2**place}
                for index, way in enumerate(ways)
            ]
            if direction == "forward" and place == 2:
                rows.append(common | {"way": "FlexAttention, window2d", "ms_median": 8.0 * slower * n})
            core = {"part": "core", "way": "document_shared", "ms_median": 1.0 * n, "limit": 3.1 + 2 * place}
            rows.append(common | core)
    alone = {"pass": "forward", "n": 17664, "map": "128x128", "part": "layer", "ms_median": 9e5}
    rows = pd.DataFrame([*rows, *(alone | {"way": rule} for rule in ways[2:4])])
    spread = {"ms_q1": rows["ms_median"] * 0.9, "ms_q3": rows["ms_median"] * 1.2}
    return rows.assign(**spread, device_name="a CPU", threads=1, clock="CPU time", channels=256)


def visibility(rules=tuple(RULE_COLOURS)) -> pd.DataFrame:
    return pd.DataFrame(
        {"rule": rule, "n": n, "density": 0.1 + index / 10 - place / 50, "own_4_percent": 10.0 * index + place,
         "reach_1_percent": 25.0 + 9 * index - 2 * place}
        for (index, rule), (place, n) in product(enumerate(rules), enumerate((276, 1104)))
    )  # fmt: skip


# a figure of each function that shows variants, drawn from rows of these variants

OF_VARIANTS = {
    "parameter_table": lambda names: plots.parameter_table(parameter_table(names)),
    "where_parameters_sit": lambda names: plots.where_parameters_sit(parameter_parts(names)),
    "macs_by_part": lambda names: plots.macs_by_part(macs_by_part(names)),
    "variants_together": lambda names: plots.variants_together(variants_together(names)),
    "forest": lambda names: plots.forest(study_rows(names)),
    "pareto": lambda names: plots.pareto(study_rows(names)),
    "learning_curves": lambda names: plots.learning_curves(*curve_rows(names)),
    "conclusions": lambda names: plots.conclusions(study_rows(names), counts=(1, 5)),
    "loss_by_quartile": lambda names: plots.loss_by_quartile(study_rows(dict.fromkeys(["unet", *names]))),
}
# and of each that shows one variant, the document's versions, or none
OTHERS = {
    "published_counts": lambda: plots.published_counts(published_counts()),
    "feasibility": lambda: plots.feasibility(feasibility()),
    "slot_waterfall": lambda: plots.slot_waterfall(slot_waterfall()),
    "what_it_would_take": lambda: plots.what_it_would_take(what_it_would_take()),
    "macs_by_level": lambda: plots.macs_by_level(macs_by_level()),
    "attention_speed_up": lambda: plots.attention_speed_up(attention()),
    "density_and_reach": lambda: plots.density_and_reach(visibility()),
    "slot_ladder": lambda: plots.slot_ladder(slot_rows()),
}
