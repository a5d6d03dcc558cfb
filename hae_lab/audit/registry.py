"""The registry: what makes each table of data/ and draws each figure of figures/.

A table is a function without arguments that returns rows; a figure is a function of the tables that it draws, as they
are read from their files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from hae_lab import plots
from hae_lab.audit import (
    compute_tables,
    deployment_tables,
    gain_tables,
    lesion_tables,
    parameter_tables,
    profile_tables,
    quality_tables,
    search_space,
    v3_tables,
)
from hae_lab.audit.claims import ledger
from hae_lab.audit.clone import read_table
from hae_lab.audit.measured import Measured, of_one_computer
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.patterns import PATTERNS
from hae_lab.explorer import MaskExplorerModel
from hae_lab.masks import TokenGrid
from hae_lab.presets import DOCUMENT, PRESETS, VARIANTS
from hae_lab.profilers import anatomy, counters
from hae_lab.profilers.reach import visibility
from hae_lab.rules import RULES
from hae_lab.study.statistics import question


def visibility_rows() -> pd.DataFrame:
    """What pixels see under every rule, on the maps that the presets have and the one above."""
    grids = [TokenGrid(side, side) for side in (4, 8, 16, 32, 64, 128)]
    rows = [visibility(grid, rule).assign(dropped=_patches(grid.dropped)) for grid in grids for rule in RULES]
    return pd.concat(rows, ignore_index=True)


def _patches(sizes: tuple[int, ...]) -> str:
    """Patch sizes as text that no reader takes for a number: "4 x 4 and 8 x 8"."""
    return " and ".join(f"{size} x {size}" for size in sizes)


def counter_rows() -> pd.DataFrame:
    """What every counter makes of the small models."""
    return counters.counters(counters.counter_configs(("tiny",)))


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "parameters": parameter_tables.module_rows,
    "parameter_parts": parameter_tables.part_rows,
    "parameter_table": parameter_tables.parameter_table,
    "published_counts": parameter_tables.published_counts,
    "block_coefficients": parameter_tables.block_coefficients,
    "feasibility": parameter_tables.feasibility,
    "slot_waterfall": parameter_tables.slot_waterfall,
    "impossibility": parameter_tables.impossibility,
    "slopes": parameter_tables.slopes,
    "what_it_would_take": parameter_tables.what_it_would_take,
    "one_change_less": parameter_tables.one_change_less,
    "architecture": anatomy.unet_table,
    "hybrid_blocks": partial(anatomy.hybrid_family, level=2),  # the 32 x 32 map
    "macs_by_part": compute_tables.part_rows,
    "macs_by_level": compute_tables.level_rows,
    "macs_by_rule": compute_tables.rule_rows,
    "macs_per_sample": compute_tables.sampling_rows,
    "paper_formula": compute_tables.paper_formula,
    "visibility": visibility_rows,
    "counters": counter_rows,
    "public_counts": profile_tables.public_counts,
    "training_memory": profile_tables.training_memory_rows,
    "training_memory_by_rule": profile_tables.training_memory_by_rule,
    "variants_together": lambda: compute_tables.variants_together(Measured().bench_model),
    "deployment": lambda: deployment_tables.deployment(Measured()),
    "quality_differences": lambda: quality_tables.quality_differences(Measured()),
    "gain_shares": lambda: gain_tables.gain_shares(Measured()),
    "quality_controls": lambda: quality_tables.quality_controls(Measured()),
    "quality_order": lambda: quality_tables.quality_order(Measured()),
    "slot_effects": lambda: quality_tables.slot_effects(Measured().slots),
    "sample_floor": lambda: quality_tables.sample_floor(Measured().samples),
    "v3_sweep": search_space.sweep,
    "v3": lambda: v3_tables.v3_costs(Measured().bench_v3),
    "v3_quality": lambda: v3_tables.v3_quality(Measured().studies),
    "claims": lambda: ledger.rows(Measured()),
}

# minutes each, of the lesson models: made if they are asked for by name, and by `reproduce --full`
SLOW_TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "lesion_sweep": lesion_tables.lesion_sweep,
    "lesion_detection": lambda: lesion_tables.lesion_detection(read_table("lesion_sweep")),
    "brain_lesion_sweep": lambda: lesion_tables.lesion_sweep(lesion_tables.BRAIN),
    "brain_lesion_detection": lambda: lesion_tables.lesion_detection(
        read_table("brain_lesion_sweep"), lesion_tables.BRAIN
    ),
    "what_a_model_uses": lesion_tables.what_a_model_uses,
}

# tables that share no counts with the others, longest first: a second process can make them meanwhile
APART = ("public_counts", "sample_floor", "counters", "visibility", "v3_sweep", "quality_differences")


def mask_rules_figure() -> plots.Chart:
    """Every rule's matrix, and what pixel (5, 7) of a 32 x 32 phantom sees."""
    states = [MaskExplorerModel(rule=rule, side=32, query=5 * 32 + 7) for rule in RULES]
    image = phantoms(1, size=32, seed=3).images[0, 0].numpy()
    return plots.mask_rules([state.view() for state in states], [state.matrix() for state in states], image)


def draw_pareto(rows: pd.DataFrame, training: pd.DataFrame) -> plots.Chart:
    """Loss against parameters, MACs and the time of a training step."""
    return plots.pareto(rows.assign(ms=rows["cell"].map(quality_tables.ms_per_step(training))))


def draw_learning_curves(curves: pd.DataFrame, rows: pd.DataFrame, training: pd.DataFrame) -> plots.Chart:
    """Loss by steps and by seconds of the benchmark's computer, of the variants alone."""
    asked = curves[curves["cell"].isin(question(rows)["cell"]) & curves["cell"].isin(list(VARIANTS))]
    return plots.learning_curves(asked, quality_tables.ms_per_step(training))


def draw_roofline(rows: pd.DataFrame) -> plots.Chart:
    """The layers of a denoising step of V2 under the document's rule, on one computer."""
    step = rows[(rows["pass"] == "forward") & (rows["mask_rule"] == "document")]
    return plots.roofline(of_one_computer(step))


def draw_gain_shares(rows: pd.DataFrame) -> plots.Chart:
    """The shares of the study of twins."""
    return plots.gain_shares(rows[rows["study"] == "twins"])


def draw_reach(rows: pd.DataFrame) -> plots.Chart:
    """The shares of the study of reach, whose images are those of `lesson16`, by the distance of a cell's copy."""
    rows, size = rows[rows["study"] == "reach"], PRESETS["lesson16"]["image_size"]
    apart = {data: gain_tables.mean_distance_px(PATTERNS[data](size)) for data in rows["data"].unique()}
    return plots.gain_by_distance(rows.assign(apart_px=rows["data"].map(apart)))


def draw_conclusions(rows: pd.DataFrame) -> plots.Chart:
    """What 1, 3 and 10 seeds would have made us conclude."""
    rows = rows[rows["cell"].isin(DOCUMENT)]
    has_all = rows["cell"].nunique() == len(DOCUMENT)
    return plots.conclusions(rows, promised=DOCUMENT if has_all else ())


draw_bottlenecks = partial(plots.dose, x="mlp_ratio")
draw_masks = partial(plots.dose, x="mask_rule", cost="macs")
draw_patches = partial(plots.dose, x="patch_sizes", cost="macs")
draw_brain_lesions = partial(plots.lesions_found, heads="slices of one average brain")


@dataclass(frozen=True)
class FigureSource:
    """What draws a figure, and the tables that go into it, of one data set's runs alone if `data` names it.

    `vector` figures are written as SVG too.
    """

    draw: Callable[..., plots.Chart]
    tables: tuple[str, ...]
    vector: bool = False
    data: str | None = None


FIGURES: dict[str, FigureSource] = {
    "claims_overview": FigureSource(plots.claims_overview, ("claims",)),
    "parameter_table": FigureSource(plots.parameter_table, ("parameter_table",)),
    "published_counts": FigureSource(plots.published_counts, ("published_counts",)),
    "where_parameters_sit": FigureSource(plots.where_parameters_sit, ("parameter_parts",)),
    "feasibility": FigureSource(plots.feasibility, ("feasibility",)),
    "slot_waterfall": FigureSource(plots.slot_waterfall, ("slot_waterfall",)),
    "what_it_would_take": FigureSource(plots.what_it_would_take, ("what_it_would_take",)),
    "hybrid_blocks": FigureSource(plots.hybrid_blocks, ("hybrid_blocks",), vector=True),
    "macs_by_part": FigureSource(plots.macs_by_part, ("macs_by_part",)),
    "macs_by_level": FigureSource(plots.macs_by_level, ("macs_by_level",)),
    "mask_rules": FigureSource(mask_rules_figure, ()),
    "density_and_reach": FigureSource(plots.density_and_reach, ("visibility",)),
    "attention_speed_up": FigureSource(plots.attention_speed_up, ("bench_attention_cpu",)),
    "roofline": FigureSource(draw_roofline, ("bench_layers_cpu",)),
    "variants_together": FigureSource(plots.variants_together, ("variants_together",)),
    "quality_verdicts": FigureSource(plots.quality_verdicts, ("quality_differences",)),
    "quality_forest": FigureSource(plots.forest, ("study_variants",)),
    "quality_forest_digits": FigureSource(plots.forest, ("study_digits",)),
    "quality_forest_scales": FigureSource(plots.forest, ("study_scales",)),
    "quality_forest_mri": FigureSource(plots.forest, ("study_mri",)),
    "gain_shares": FigureSource(draw_gain_shares, ("gain_shares",)),
    "gain_by_distance": FigureSource(draw_reach, ("gain_shares",)),
    "quality_pareto": FigureSource(draw_pareto, ("study_variants", "bench_training_cpu")),
    "learning_curves": FigureSource(
        draw_learning_curves, ("study_variants_curves", "study_variants", "bench_training_cpu")
    ),
    "loss_by_quartile": FigureSource(plots.loss_by_quartile, ("study_variants",)),
    "slot_ladder": FigureSource(plots.slot_ladder, ("study_slots",), data="twins"),
    "slot_ladder_phantoms": FigureSource(plots.slot_ladder, ("study_slots",), data="phantoms"),
    "bottleneck_ratio": FigureSource(draw_bottlenecks, ("study_bottleneck",), data="twins"),
    "bottleneck_ratio_phantoms": FigureSource(draw_bottlenecks, ("study_bottleneck",), data="phantoms"),
    "mask_rule_quality": FigureSource(draw_masks, ("study_masks",), data="twins"),
    "mask_rule_quality_phantoms": FigureSource(draw_masks, ("study_masks",), data="phantoms"),
    "patch_size_quality": FigureSource(draw_patches, ("study_patches",), data="twins"),
    "patch_size_quality_phantoms": FigureSource(draw_patches, ("study_patches",), data="phantoms"),
    "how_many_seeds": FigureSource(draw_conclusions, ("study_twins",)),
    "v3": FigureSource(plots.searched, ("v3", "v3_quality")),
    "lesions_found": FigureSource(plots.lesions_found, ("lesion_detection",)),
    "brain_lesions_found": FigureSource(draw_brain_lesions, ("brain_lesion_detection",)),
    "what_a_model_needs": FigureSource(plots.what_a_model_needs, ("what_a_model_uses",)),
}


def figures() -> dict[str, FigureSource]:
    """Every figure: `FIGURES`, and a picture of the U-Net of each variant that is registered now."""
    unets = {
        f"unet_{variant}": FigureSource(partial(plots.unet, variant=variant), ("architecture",), vector=True)
        for variant in VARIANTS
    }
    return FIGURES | unets


def names() -> tuple[str, ...]:
    """What `reproduce` can make, tables first; a table and a figure may share a name."""
    return tuple(dict.fromkeys([*TABLES, *SLOW_TABLES, *figures()]))
