"""Rows in, figure out: every picture of the project. Nothing is computed here beyond choosing words for a title."""

from hae_lab.plots.ablations import dose, slot_ladder
from hae_lab.plots.answers import quality_verdicts
from hae_lab.plots.architecture import hybrid_blocks, unet
from hae_lab.plots.attention import attention_heads
from hae_lab.plots.base import Chart, only, variant_colour
from hae_lab.plots.compute import attention_speed_up, density_and_reach, macs_by_level, macs_by_part, variants_together
from hae_lab.plots.costs import learning_curves, pareto
from hae_lab.plots.gains import gain_by_distance, gain_shares
from hae_lab.plots.images import image_grid
from hae_lab.plots.ledger import claims_overview
from hae_lab.plots.lesions import lesions_found, what_a_model_needs
from hae_lab.plots.masks import mask_rules, visible_keys
from hae_lab.plots.of_study import study_figures
from hae_lab.plots.page import FORMATS, TWO_COLUMNS, TooNarrow, style
from hae_lab.plots.parameters import (
    feasibility,
    parameter_table,
    published_counts,
    slot_waterfall,
    what_it_would_take,
    where_parameters_sit,
)
from hae_lab.plots.rooflines import roofline
from hae_lab.plots.searches import searched
from hae_lab.plots.studies import conclusions, forest, loss_by_quartile
from hae_lab.presets import VARIANTS, variant_title


def __getattr__(name: str) -> dict[str, str]:
    if name == "VARIANT_NAMES":  # the titles of all variants, of those too that are registered later
        return {variant: variant_title(variant) for variant in VARIANTS}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FORMATS",
    "TWO_COLUMNS",
    "Chart",
    "TooNarrow",
    "attention_heads",
    "attention_speed_up",
    "claims_overview",
    "conclusions",
    "density_and_reach",
    "dose",
    "feasibility",
    "forest",
    "gain_by_distance",
    "gain_shares",
    "hybrid_blocks",
    "image_grid",
    "learning_curves",
    "lesions_found",
    "loss_by_quartile",
    "macs_by_level",
    "macs_by_part",
    "mask_rules",
    "only",
    "parameter_table",
    "pareto",
    "published_counts",
    "quality_verdicts",
    "roofline",
    "searched",
    "slot_ladder",
    "slot_waterfall",
    "study_figures",
    "style",
    "unet",
    "variant_colour",
    "variant_title",
    "variants_together",
    "visible_keys",
    "what_a_model_needs",
    "what_it_would_take",
    "where_parameters_sit",
]
