"""The registry of tables and figures, and the one writer of data/ and figures/.

A table is a function without arguments that returns rows; a figure is a function of `plots` and the tables it draws.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from hae_lab import plots
from hae_lab.audit import claims, compute_tables, parameter_tables, quality_tables
from hae_lab.audit.clone import read_table
from hae_lab.checks import HAELabError, require_name
from hae_lab.diffusion.data import phantoms
from hae_lab.explorer import MaskExplorerModel
from hae_lab.files import atomic_path
from hae_lab.masks import TokenGrid
from hae_lab.presets import VARIANTS
from hae_lab.profilers import anatomy, counters
from hae_lab.profilers.reach import visibility
from hae_lab.rules import RULES
from hae_lab.tables import write

STUDIES = ("bottleneck", "digits", "equal_parameters", "masks", "patches", "samples", "slots", "variants")
CURVES = ("variants", "digits")  # studies whose learning curves are kept
# made by `hae-lab bench` and by `hae-lab reproduce --full`
MEASURED_NAMES = (
    "latency_cpu",
    *(f"study_{name}" for name in STUDIES),
    *(f"study_{name}_curves" for name in CURVES),
    "lessons",
)


def visibility_rows() -> pd.DataFrame:
    """What pixels see under every rule, on the maps that the presets have and the one above."""
    grids = [TokenGrid(side, side) for side in (4, 8, 16, 32, 64, 128)]
    return pd.concat([visibility(grid, rule) for grid in grids for rule in RULES], ignore_index=True)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "parameters": parameter_tables.module_rows,
    "parameter_parts": parameter_tables.part_rows,
    "parameter_table": parameter_tables.parameter_table,
    "published_counts": parameter_tables.published_counts,
    "block_coefficients": parameter_tables.block_coefficients,
    "feasibility": parameter_tables.feasibility,
    "slot_waterfall": parameter_tables.slot_waterfall,
    "impossibility": parameter_tables.impossibility,
    "what_it_would_take": parameter_tables.what_it_would_take,
    "architecture": anatomy.unet_table,
    "hybrid_blocks": partial(anatomy.hybrid_family, level=2),  # the 32 x 32 map
    "macs_by_part": compute_tables.part_rows,
    "macs_by_level": compute_tables.level_rows,
    "macs_by_rule": compute_tables.rule_rows,
    "macs_per_sample": compute_tables.sampling_rows,
    "paper_formula": compute_tables.paper_formula,
    "visibility": visibility_rows,
    "counters": lambda: counters.counters(counters.counter_configs(("tiny",))),
    "variants_together": lambda: compute_tables.variants_together(read_table("latency_cpu")),
    "quality_differences": lambda: quality_tables.quality_differences(measured()),
    "quality_order": lambda: quality_tables.quality_order(measured()),
    "slot_effects": lambda: quality_tables.slot_effects(read_table("study_slots")),
    "sample_floor": lambda: quality_tables.sample_floor(read_table("study_samples")),
    "claims": lambda: claims.claims(measured()),
}
MEASURED = {name: partial(read_table, name) for name in MEASURED_NAMES}


def measured() -> dict[str, pd.DataFrame]:
    """Every measured table; studies without their prefix: "variants", "variants_curves"."""
    return {name.removeprefix("study_"): read() for name, read in MEASURED.items()}


def mask_rules_figure() -> plots.Chart:
    """Every rule's matrix, and what pixel (5, 7) of a 32 x 32 phantom sees."""
    states = [MaskExplorerModel(rule=rule, side=32, query=5 * 32 + 7) for rule in RULES]
    image = phantoms(1, size=32, seed=3).images[0, 0].numpy()
    return plots.mask_rules([state.view() for state in states], [state.matrix() for state in states], image)


def draw_forest(rows: pd.DataFrame) -> plots.Chart:
    """Paired differences of every two variants."""
    return plots.forest(rows)


def draw_pareto(rows: pd.DataFrame, latency: pd.DataFrame) -> plots.Chart:
    """Loss against parameters, MACs and the time of a training step."""
    return plots.pareto(rows.assign(ms=rows["cell"].map(quality_tables.ms_per_step(latency))))


def draw_learning_curves(curves: pd.DataFrame, latency: pd.DataFrame) -> plots.Chart:
    """Loss by steps and by seconds of the benchmark's computer."""
    return plots.learning_curves(curves, quality_tables.ms_per_step(latency))


def draw_conclusions(rows: pd.DataFrame) -> plots.Chart:
    """What 1, 3 and 10 seeds would have made us conclude."""
    promised = rows[rows["cell"].isin(quality_tables.PROMISED)]
    return plots.conclusions(promised, promised=quality_tables.PROMISED)


@dataclass(frozen=True)
class FigureSource:
    """What draws a figure, and the tables that go into it; `vector` figures are written as SVG too."""

    draw: Callable[..., plots.Chart]
    tables: tuple[str, ...]
    vector: bool = False


FIGURES: dict[str, FigureSource] = {
    "parameter_table": FigureSource(plots.parameter_table, ("parameter_table",)),
    "published_counts": FigureSource(plots.published_counts, ("published_counts",)),
    "where_parameters_sit": FigureSource(plots.where_parameters_sit, ("parameter_parts",)),
    "feasibility": FigureSource(plots.feasibility, ("feasibility",)),
    "slot_waterfall": FigureSource(plots.slot_waterfall, ("slot_waterfall",)),
    "what_it_would_take": FigureSource(plots.what_it_would_take, ("what_it_would_take",)),
    **{
        f"unet_{variant}": FigureSource(partial(plots.unet, variant=variant), ("architecture",), vector=True)
        for variant in VARIANTS
    },
    "hybrid_blocks": FigureSource(plots.hybrid_blocks, ("hybrid_blocks",), vector=True),
    "macs_by_part": FigureSource(plots.macs_by_part, ("macs_by_part",)),
    "macs_by_level": FigureSource(plots.macs_by_level, ("macs_by_level",)),
    "mask_rules": FigureSource(mask_rules_figure, ()),
    "density_and_reach": FigureSource(plots.density_and_reach, ("visibility",)),
    "attention_speed_up": FigureSource(plots.attention_speed_up, ("latency_cpu",)),
    "variants_together": FigureSource(plots.variants_together, ("variants_together",)),
    "quality_forest": FigureSource(draw_forest, ("study_variants",)),
    "quality_forest_digits": FigureSource(draw_forest, ("study_digits",)),
    "quality_pareto": FigureSource(draw_pareto, ("study_variants", "latency_cpu")),
    "learning_curves": FigureSource(draw_learning_curves, ("study_variants_curves", "latency_cpu")),
    "loss_by_quartile": FigureSource(plots.loss_by_quartile, ("study_variants",)),
    "slot_ladder": FigureSource(plots.slot_ladder, ("study_slots",)),
    "bottleneck_ratio": FigureSource(partial(plots.dose, x="mlp_ratio"), ("study_bottleneck",)),
    "mask_rule_quality": FigureSource(partial(plots.dose, x="mask_rule", cost="macs"), ("study_masks",)),
    "patch_size_quality": FigureSource(partial(plots.dose, x="patch_sizes", cost="macs"), ("study_patches",)),
    "how_many_seeds": FigureSource(draw_conclusions, ("study_variants",)),
}
NAMES = tuple(dict.fromkeys([*TABLES, *FIGURES]))


def reproduce(out: str | Path = ".", only: Iterable[str] = (), progress: bool = False) -> list[Path]:
    """Make the tables and figures anew under `out`/data and `out`/figures; return the paths written.

    `only` names tables or figures; none means all. Two runs write the same bytes on one computer.
    Raises `HAELabError` for an unknown name, before anything is written.
    """
    chosen = list(only) or list(NAMES)
    for name in chosen:
        require_name("table or figure", name, NAMES)
    tables = [name for name in TABLES if name in chosen]
    figures = [name for name in FIGURES if name in chosen]
    rows: dict[str, pd.DataFrame] = {}
    written = []
    bar = tqdm([*tables, *figures], disable=not progress, unit="file")
    for position, name in enumerate(bar):
        bar.set_description(name)
        if position < len(tables):
            written.append(write(_rows(name, rows), Path(out) / "data" / f"{name}.csv"))
        else:
            source = FIGURES[name]
            figure = source.draw(*(_rows(table, rows) for table in source.tables))
            written += write_figure(figure, Path(out) / "figures" / name, source.vector)
    return written


def write_figure(figure: plots.Chart, stem: Path, vector: bool = False) -> list[Path]:
    """Write `stem`.png and, if asked, `stem`.svg."""
    pictures = {".png": figure.png()} | ({".svg": figure.svg()} if vector else {})
    paths = [stem.with_suffix(suffix) for suffix in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture)
    return paths


def _rows(name: str, made: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if name not in made:
        made[name] = (TABLES | MEASURED)[name]()
    return made[name]


def parameter_summary() -> str:
    """The parameter table as text: the claim, the published counts, and like for like on each preset."""
    published = parameter_tables.published_counts().set_index("variant")
    like = parameter_tables.parameter_table().query("scope == 'whole model'")
    table = like.pivot(index="variant", columns="preset", values="percent_of_hae")[list(parameter_tables.TABLE_PRESETS)]
    table.insert(0, "claim", published["claim_percent"])
    table.insert(1, "published", published["published_percent"])
    table.insert(2, "rebuilt", published["our_percent"])
    return table.loc[list(plots.VARIANT_NAMES)].to_string(float_format="%.1f %%", na_rep="-")


def verdict() -> str:
    """What the parameter table proves, in three sentences with computed numbers."""
    published = parameter_tables.published_counts()
    points = parameter_tables.feasibility().set_index("preset")
    claim = points.loc["the claim"]
    take = parameter_tables.what_it_would_take()
    if parameter_tables.impossibility()["possible"].any():
        raise HAELabError("the bounds of `impossibility` no longer exclude the claim: the verdict must be rewritten")
    return (
        f"The published counts are real ({', '.join(f'{count:,}' for count in published['our_params'])}), but they "
        f"compare three different models: {'; '.join(published['our_changes'])}. "
        f"Like for like, Lite at {claim['lite_percent']:.0f} % forces V2 to {claim['line_v2_percent']:.1f} %, not "
        f"{claim['v2_percent']:.0f} %, at any width, depth or scope. Reaching 100/70/40 takes at least "
        f"{take['changes'].min()} changes outside the slots."
    )
