"""What `hae-lab bench` measures: masks, attention, models, training, deployment; a table and a file each.

A row is what one way takes; `speed_up` is the time of the baseline's way over it, on the same map, or of the same
variant.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hae_lab import rules, tables
from hae_lab.audit.baselines import document_mask_loop, the_documents_way
from hae_lab.audit.bench_attention import SHARED, bench_attention, on_map, speed_up
from hae_lab.audit.bench_compile import bench_compile
from hae_lab.audit.bench_deployment import bench_deployment
from hae_lab.audit.bench_faster_training import bench_faster_training
from hae_lab.audit.bench_layers import bench_layers
from hae_lab.audit.bench_v3 import bench_v3
from hae_lab.checks import require, require_name
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.training import Recipe, train
from hae_lab.masks import TokenGrid
from hae_lab.models import build
from hae_lab.models.native import ASKED as NATIVE_ASKED
from hae_lab.presets import CONTROL, VARIANTS, config
from hae_lab.profilers.paired import FEWEST, compare
from hae_lab.profilers.timing import check_device, environment, interleaved, predict, rounds, step_inputs, summary

DOCUMENTS_WAY, NO_BLOCKS = "document's way", ""  # of a model; one without hybrid blocks has one way alone
MODEL_CHANNELS = 64  # of the models that are timed: half of the preset, so that a CPU can wait for them
BARE_LOOP, OUR_LOOP = "bare loop", "hae_lab"
MASK_LOOP, MASK_INDEX = "document's row loop", "index form"
COLUMNS = (
    "variant", "preset", "part", "mask_rule", "way", "pass", "map", "batch", "n", "channels", "heads", "path", "module",
    "kind", "calls", "forward_ms", "backward_ms", "ms", "share_percent", "macs", "bytes_moved", "flops_per_byte",
    "gflops_per_second", "peak_gflops_per_second", "gbytes_per_second", "step_ms", "overhead_percent", "ms_median",
    "ms_q1", "ms_q3", "speed_up", "speed_up_q1", "speed_up_q3", "compile_s", "speed_up_sdpa", "speed_up_dense",
    "steps", "against", "faster_percent", "p_value", "equal_within_percent", "verdict", "limit", "peak_bytes",
    "file_bytes", "process_bytes", "loss", "loss_percent", "largest_difference", "loss_change_percent", "repeats",
    "threads", "clock", "device", "device_name", "system", "python", "torch", "numpy",
)  # fmt: skip

Case = Callable[[], object]
Pair = tuple[str, str]  # variant and way
FASTEST = "v2"  # by the document: the others are compared with it
TIMED_STEPS = {"lesson16": 20, "lesson32": 6}  # of one timed training run


def bench_masks(device: str = "cpu") -> pd.DataFrame:
    """Building the document's mask: its row loop against the index form, for square maps."""
    frames = []
    for side in (16, 32, 64):
        grid = TokenGrid(side, side)
        cases = {MASK_LOOP: partial(document_mask_loop, grid.n), MASK_INDEX: partial(rules.document, grid, 0.9, 0)}
        rows = on_map(interleaved(cases, repeats=7 if side == 64 else 15), side)
        frames.append(rows.assign(speed_up=speed_up(rows, "map", MASK_LOOP)))
    return pd.concat(frames, ignore_index=True)


def bench_model(device: str = "cpu", repeats: int = FEWEST) -> pd.DataFrame:
    """Each variant of `brats128` at 64 channels, eval, batch 1: the document's way, and ours with two mask rules."""
    models = {pair: model for variant in VARIANTS for pair, model in _ways_of(variant, device).items()}
    x, timesteps = step_inputs(models[CONTROL, NO_BLOCKS].config, 1, device)
    cases = {pair: partial(predict, model, x, timesteps) for pair, model in models.items()}
    rows = _of_variants(cases, _first_variant(cases, "document"), repeats, device)
    size = config(CONTROL, "brats128").image_size
    rows["speed_up"] = speed_up(rows, "variant", DOCUMENTS_WAY, NO_BLOCKS)
    return rows.assign(**{"pass": "forward"}, map=f"{size}x{size}")


def _ways_of(variant: str, device: str) -> dict[tuple[str, str], nn.Module]:
    """The models of a variant that are timed, by variant and way."""
    ways = ("document", SHARED) if VARIANTS[variant].has_blocks else (NO_BLOCKS,)
    models = {}
    for way in ways:
        rule = {"mask_rule": way} if way else {}
        models[variant, way] = build(variant, "brats128", model_channels=MODEL_CHANNELS, **rule).eval().to(device)
    if VARIANTS[variant].has_blocks:
        models[variant, DOCUMENTS_WAY] = the_documents_way(models[variant, "document"])
    return models


def bench_training(device: str = "cpu", repeats: int = FEWEST, steps: Mapping[str, int] = TIMED_STEPS) -> pd.DataFrame:
    """A training step of each variant of the lesson presets, batch 32: our loop, with all it does, and a bare loop."""
    return pd.concat([_training(preset, count, device, repeats) for preset, count in steps.items()], ignore_index=True)


def _training(preset: str, steps: int, device: str, repeats: int) -> pd.DataFrame:
    size = config(CONTROL, preset).image_size
    images = phantoms(steps * Recipe().batch_size, size)
    cases: dict[tuple[str, str], Case] = {}
    for variant in VARIANTS:
        cases[variant, BARE_LOOP] = partial(bare_loop, variant, preset, images.images, steps, device)
        cases[variant, OUR_LOOP] = partial(our_loop, variant, preset, images, steps, device)
    rows = _of_variants(cases, _first_variant(cases, BARE_LOOP), repeats, device)
    rows[["ms_median", "ms_q1", "ms_q3"]] /= steps
    rows["speed_up"] = speed_up(rows, "variant", BARE_LOOP)
    return rows.assign(**{"pass": "training step"}, preset=preset, map=f"{size}x{size}")


def our_loop(variant: str, preset: str, images: ImageSet, steps: int, device: str = "cpu") -> None:
    """A short training run with moving average, clipping and checks."""
    train(config(variant, preset), images, Recipe(steps=steps), device=device)


def bare_loop(variant: str, preset: str, images: Tensor, steps: int, device: str = "cpu") -> None:
    """As many steps of the same model by hand: forward, backward, AdamW, nothing else."""
    model = build(variant, preset).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), Recipe().learning_rate)
    generator = torch.Generator().manual_seed(0)
    for batch in images.split(Recipe().batch_size)[:steps]:
        noise = torch.randn(batch.shape, generator=generator)
        timesteps = torch.randint(1000, (len(batch),), generator=generator)
        output = model((batch + noise).to(device), timesteps.to(device))
        F.mse_loss(output, noise.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()


BENCHMARKS: dict[str, Callable[[str], pd.DataFrame]] = {
    "masks": bench_masks,
    "attention": bench_attention,
    "model": bench_model,
    "training": bench_training,
    "faster_training": bench_faster_training,
    "layers": bench_layers,
    "v3": bench_v3,
    "compile": bench_compile,
    "deployment": bench_deployment,
}


def bench(what: str, folder: str | Path = "data", device: str = "cpu") -> tuple[Path, pd.DataFrame]:
    """Measure and keep the rows in `folder`/bench_<what>_<device>.csv; return the path and the new rows.

    Rows of other computers stay as they are. Raises `HAELabError` for an unknown benchmark, a device that is not there
    or kernels that the environment exchanges, before anything is measured, and for a file that is not such a table.
    """
    require_name("benchmark", what, BENCHMARKS)
    check_device(device)
    require(
        os.environ.get(NATIVE_ASKED) != "1", f"rows name what ran: unset {NATIVE_ASKED}, `native` has rows of its own"
    )
    path = Path(folder) / f"bench_{what}_{device}.csv"
    kept = tables.read(path) if path.exists() else pd.DataFrame(columns=["device_name"])
    rows = BENCHMARKS[what](device).assign(**environment(device))
    rows = rows[[name for name in COLUMNS if name in rows.columns]]
    others = kept[~kept["device_name"].isin(rows["device_name"])]
    tables.write(pd.concat([others, rows], ignore_index=True) if len(others) else rows, path)
    return path, rows


def _first_variant(cases: Mapping[Pair, Case], first_way: str) -> dict[Pair, Pair]:
    """With which case each is compared: the same way of V2; what V2 has not, and its other ways, with its first."""
    first = (FASTEST, first_way)
    same = {case: (FASTEST, case[1]) for case in cases if case[0] != FASTEST}
    others = {case: first for case in cases if case[0] == FASTEST and case != first}
    return {case: other if other in cases else first for case, other in (same | others).items()}


def _of_variants(cases: Mapping[Pair, Case], against: Mapping[Pair, Pair], repeats: int, device: str) -> pd.DataFrame:
    """A row a variant and way, compared round by round."""
    names = {pair: f"{pair[0]} {pair[1]}" for pair in cases}
    ms = rounds({names[pair]: run for pair, run in cases.items()}, repeats=repeats, device=device)
    found = compare(ms, {names[pair]: names[other] for pair, other in against.items()})
    rows = summary(ms, device=device).join(found, on="case").drop(columns="case")
    return rows.assign(**pd.DataFrame(list(cases), columns=["variant", "way"]))
