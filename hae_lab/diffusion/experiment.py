"""One run: which model, on which images, trained how, measured how. All of it is data that survives JSON."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from hae_lab.checks import require, require_name, require_seed, require_whole
from hae_lab.diffusion.datasets import DATA, HELD_OUT, load_data
from hae_lab.diffusion.metrics import METRICS, column_name, measure_of, measured
from hae_lab.diffusion.quality import denoising_loss, mmd, sample_gaps, sliced_wasserstein
from hae_lab.diffusion.sampling import SAMPLERS, STEPS, sample, sampling_scheduler
from hae_lab.diffusion.training import MEASURING, RECIPE_FIELDS, Recipe, Trained, stream_seed, train
from hae_lab.family import FIELDS, HAEConfig
from hae_lab.parts import SLOT_PARTS, Registry
from hae_lab.rules import RULES

OF_SAMPLES = ("swd", "mmd", "mean_gap", "spread", "mmd_matched")
OWN_METRICS = ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4", *OF_SAMPLES, "curve", "step")
STUDY_COLUMNS = (
    "study", "cell", "role", "reference", "looks", "margin_percent", "variant", "preset",
    "params", "macs", "macs_dense", "macs_kept", "key",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Model, data, recipe and seed of one run, and what to measure on it.

    `data` is a name for `load_data`; the learning curve has a point every `evaluate_every` steps; `samples` images are
    drawn at the end (0: none). `metrics` names further ones, of `metrics.METRICS`, as "dark_auroc", or as
    "module:function" or "file.py:function", a function of (trained, held_out).
    Raises `HAELabError` for a value that makes no sense.
    """

    config: HAEConfig
    recipe: Recipe = field(default_factory=Recipe)
    data: str = "phantoms"
    seed: int = 0
    samples: int = 0
    sampler: str = "ddim"
    sampling_steps: int = STEPS
    evaluate_every: int = 50
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("samples", 0, HELD_OUT),
            ("sampling_steps", 1, None),
            ("evaluate_every", 1, None),
        ):
            object.__setattr__(self, name, require_whole(name, getattr(self, name), low, high))
        object.__setattr__(self, "seed", require_seed("seed", self.seed))
        require(self.samples != 1, "samples is 0 or at least 2: one image has no distance to others")
        require_name("sampler", self.sampler, SAMPLERS)
        object.__setattr__(self, "metrics", _checked_metrics(self.metrics))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        config, recipe = HAEConfig.from_json(json.dumps(values.pop("config"))), Recipe(**values.pop("recipe"))
        return cls(config=config, recipe=recipe, **values)


def _checked_metrics(names: Any) -> tuple[str, ...]:
    listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    require(listed, f"metrics is a list of names, for example ['my_metrics.py:sharpness'], got {names!r}")
    columns = [column_name(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        measure_of(name)
        require(
            column not in OWN_METRICS, f"metric {name!r}: a study has a column {column!r} of its own; rename the metric"
        )
        require_new_column(name, column)
        require(columns.count(column) == 1, f"metric {name!r}: two metrics would fill the column {column!r}")
    return tuple(names)


def require_new_column(metric: str, column: str) -> None:
    """Raise `HAELabError` if a metric would write over a column of a study that says what a run was."""
    taken = {*STUDY_COLUMNS, *FIELDS, *RECIPE_FIELDS, *(each.name for each in fields(Experiment))}
    own = column in taken or column.startswith("margin_percent_")
    require(not own, f"metric {metric!r}: a study has a column {column!r} of its own; rename the metric")


def parts_of(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """The parts that a run is made of, kind -> name -> part: mask rule, slots, data set, further metrics."""
    model_config = experiment.config
    chosen: list[tuple[Registry[Any], str]] = [(RULES, model_config.mask_rule), (DATA, experiment.data)]
    chosen += [(registry, getattr(model_config, slot)) for slot, registry in SLOT_PARTS.items()]
    found: dict[str, dict[str, Any]] = {registry.kind: {name: registry.find(name)} for registry, name in chosen}
    return found | {METRICS.kind: {name: METRICS.find(name) for name in experiment.metrics}}


def run(
    experiment: Experiment, folder: str | Path | None = None, *, progress: bool = False, device: str | None = None
) -> dict[str, Any]:
    """Train and measure: numbers by name, and the held-out loss on the way as "curve", a list of [step, loss].

    Always "loss" and its quartiles; with `samples` also "swd", "mmd" and `sample_gaps`; and those that the experiment
    names. With a `folder`, a killed run continues from its last checkpoint there, and ends with the same numbers.
    """
    dataset, held_out = load_data(experiment.data, experiment.config.image_size)
    if experiment.samples:  # what would fail after the training
        enough = len(held_out) >= experiment.samples
        require(enough, f"samples={experiment.samples} are compared with as many held-out images of {len(held_out)}")
        sampling_scheduler(experiment.recipe, experiment.sampler, experiment.sampling_steps)
    trained = train(
        experiment.config,
        dataset,
        experiment.recipe,
        seed=experiment.seed,
        folder=folder,
        evaluate=lambda model: denoising_loss(model, held_out, experiment.recipe),
        evaluate_every=experiment.evaluate_every,
        device=device,
        progress=progress,
    )
    metrics = {name: value for name, value in trained.curve[-1].items() if name != "step"}
    if experiment.samples:
        metrics |= sample_metrics(trained, held_out, experiment)
    metrics |= named_metrics(trained, held_out, experiment)
    return metrics | {"curve": [[point["step"], point["loss"]] for point in trained.curve]}


def named_metrics(trained: Trained, held_out: Dataset, experiment: Experiment) -> dict[str, float]:
    """The metrics that an experiment names, by column; what they draw depends on its seed alone."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(stream_seed(experiment.seed, MEASURING))
        return {column_name(name): measured(name, trained, held_out) for name in experiment.metrics}


def sample_metrics(trained: Trained, held_out: Dataset, experiment: Experiment) -> dict[str, float]:
    """The "swd", "mmd" and gaps of samples to as many held-out images; one starting noise for all models."""
    count = experiment.samples
    images = torch.stack([held_out[place]["image"] for place in range(count)])
    drawn = sample(trained.model, count, trained.recipe, sampler=experiment.sampler, steps=experiment.sampling_steps)
    return {"swd": sliced_wasserstein(drawn, images), "mmd": mmd(drawn, images)} | sample_gaps(drawn, images)
