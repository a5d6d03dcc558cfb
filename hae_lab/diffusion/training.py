"""Training: the denoising objective, one loop for every variant, and checkpoints from which a killed run continues.

Noise schedules and the moving average are diffusers', device, precision and processes are accelerate's. What happens
at a step depends on (seed, step) alone, so all variants of one seed see the same batches, timesteps and noise.
Sources: Ho et al. 2020, https://arxiv.org/abs/2006.11239; Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
(cosine schedule); Salimans & Ho 2022, https://arxiv.org/abs/2202.00512 (v); Ho & Salimans 2022,
https://arxiv.org/abs/2207.12598 (label dropout).
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from hae_lab.checks import (
    HAELabError,
    require,
    require_flag,
    require_name,
    require_number,
    require_seed,
    require_whole,
)
from hae_lab.diffusion.data import check_batch, check_dataset, data_key
from hae_lab.diffusion.process import stops_between_steps, threads, threads_for
from hae_lab.diffusion.states import check_shapes, check_state, with_sha256
from hae_lab.family import HAEConfig
from hae_lab.files import atomic_path
from hae_lab.models import HAEUNet, build, checkpoint_notes, redraw_masks, save_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

CHOICES = {
    "prediction": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": ("squaredcos_cap_v2", "linear", "scaled_linear"),
    "decay": ("constant", "cosine"),
    "precision": ("no", "bf16", "fp16"),
}
# least and most of each: more would not fit in memory, or not end
WHOLE = {"steps": (1, 10**9), "batch_size": (1, 2**16), "timesteps": (1, 10**5), "warmup_steps": (0, 10**9)}
ORDER, DRAWS, DROPOUT, SAMPLING, MEASURING, MASKS = range(6)  # streams of one seed: none repeats the numbers of another
STATE, WEIGHTS = "state.pt", "model.safetensors"
Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. Raises `HAELabError` for a value that makes no sense."""

    steps: int = 300
    batch_size: int = 32  # images of one step, over all processes
    learning_rate: float = 2e-3  # of AdamW
    warmup_steps: int = 50
    decay: str = "constant"  # of the learning rate after the warm-up
    max_grad_norm: float = 1.0
    ema_decay: float = 0.99  # of the moving average of the weights, which is what is evaluated and kept
    prediction: str = "v_prediction"  # what the network's output means; names are diffusers'
    beta_schedule: str = "squaredcos_cap_v2"
    timesteps: int = 1000
    label_dropout: float = 0.1  # share of labels hidden, so that guidance has a model without label
    precision: str = "no"
    redraw_mask: bool = False  # at each step, as the document does; what is evaluated has the mask of the config

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {}
        for name, (low, most) in WHOLE.items():
            checked[name] = require_whole(name, getattr(self, name), low, most=most)
        for name, choices in CHOICES.items():
            require_name(name, getattr(self, name), choices)
        for name in ("learning_rate", "max_grad_norm"):
            checked[name] = require_number(name, getattr(self, name), 0, low_open=True)
        for name in ("ema_decay", "label_dropout"):
            checked[name] = require_number(name, getattr(self, name), 0, 1, high_open=True)
        checked["redraw_mask"] = require_flag("redraw_mask", self.redraw_mask)
        for name, value in checked.items():  # numpy's numbers as Python's
            object.__setattr__(self, name, value)


RECIPE_FIELDS = tuple(field.name for field in fields(Recipe))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a training run ends with: the averaged weights, in eval mode, and the learning curve."""

    model: HAEUNet
    recipe: Recipe
    curve: tuple[dict[str, float], ...]  # {"step": ..., and what `evaluate` returned}
    seconds: float  # spent on training steps, without evaluation


def noise_scheduler(recipe: Recipe) -> "DDPMScheduler":
    """The forward process of a recipe: `add_noise`, `get_velocity`, `alphas_cumprod`."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=recipe.timesteps, beta_schedule=recipe.beta_schedule, prediction_type=recipe.prediction
    )


def known_labels(config: HAEConfig, batch: dict[str, Tensor]) -> Tensor | None:
    """The labels (B,) of a batch, for a model that takes them. Raises `HAELabError` if there are none."""
    if config.num_classes is None:
        return None
    require("label" in batch, f"the model has num_classes={config.num_classes}, but the images have no labels")
    return batch["label"]


def stream_seed(*parts: int) -> int:
    """A seed for torch that depends on all parts: usually seed, stream and place in it."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class BatchOrder(Sampler[list[int]]):
    """The places of each batch from step `start` on, and of these the share of one process.

    Every image comes once an epoch, in an order that depends on (seed, epoch) alone.
    """

    def __init__(self, count: int, recipe: Recipe, seed: int, start: int = 0, share: slice = slice(None)) -> None:
        self.count, self.seed, self.share = count, seed, share
        self.steps, self.batch_size = range(start, recipe.steps), recipe.batch_size

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        known: tuple[int, np.ndarray] | None = None
        for step in self.steps:
            batch = []
            for number in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, place = divmod(number, self.count)
                if known is None or known[0] != epoch:
                    known = epoch, np.random.default_rng((self.seed, ORDER, epoch)).permutation(self.count)
                batch.append(int(known[1][place]))
            yield batch[self.share]


@dataclass(kw_only=True)
class _State:
    """Everything that changes while training."""

    model: nn.Module  # bare: as prepared for several processes it is another module with the same parameters
    optimizer: Any
    schedule: Any
    ema: "EMAModel"
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]]

    def save(self, folder: Path, identity: str, weights: HAEUNet, recipe: Recipe) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule", "ema")}
        progress = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "identity": identity}
        notes = {"recipe": asdict(recipe), "steps": self.step}
        save_checkpoint(weights, folder / WEIGHTS, notes)  # first: killed in between, a run does these steps again
        with atomic_path(folder / STATE) as temporary:
            torch.save(with_sha256(parts | progress), temporary)

    def load(self, path: Path, identity: str, steps: int) -> None:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            check_state(saved)
            changed = _difference(saved["identity"], identity)
        except Exception as error:  # a broken file can raise anything inside the reader
            reason = str(error) if isinstance(error, HAELabError) else type(error).__name__
            raise HAELabError(f"{str(path)!r} is no readable training state ({reason})") from None
        require(not changed, f"{str(path.parent)!r} holds another run: {changed}; take another folder")
        done = saved["step"]
        require(done <= steps, f"{str(path.parent)!r} holds {done} steps of this run, more than steps={steps}")
        try:
            check_shapes(saved, list(self.model.parameters()), self.schedule.state_dict())
            for name in ("model", "optimizer", "schedule", "ema"):
                getattr(self, name).load_state_dict(saved[name])
        except Exception as error:  # so does one that is damaged inside
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HAELabError(f"{str(path)!r} does not fit this model: {reason}; remove it to begin anew") from None
        self.ema.to(next(self.model.parameters()).device)
        self.step, self.seconds, self.curve = saved["step"], saved["seconds"], saved["curve"]


def train(
    config: HAEConfig,
    dataset: Dataset,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    save_every: int = 100,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 50,
    workers: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> Trained:
    """Train a fresh model of `config` on a map-style dataset.

    `evaluate(model)` sees the averaged weights every `evaluate_every` steps and at the end. With a `folder` the state
    is kept there every `save_every` steps, and a killed run continues from it: on a CPU to the same bits. `workers`
    load images; `device` None lets accelerate choose. The global random state stays untouched. A small model takes one
    thread of a CPU, unless OMP_NUM_THREADS is set. Ctrl-C lets the step end, keeps the state, and raises
    KeyboardInterrupt, which says how to go on.
    Raises `HAELabError` for data that do not fit, a folder that holds another run, and a loss that is not finite.
    """
    recipe = recipe or Recipe()
    seed = require_seed("seed", seed)
    save_every = require_whole("save_every", save_every, 1)
    evaluate_every = require_whole("evaluate_every", evaluate_every, 1)
    check_dataset(dataset, config)
    accelerator = _accelerator(recipe, device)
    place = None if folder is None else Path(folder)
    identity = _identity(config, recipe, seed, dataset)
    averaged = build(config, seed=seed).to(accelerator.device).eval()
    state, model = _fresh_state(config, recipe, seed, accelerator)
    if place is not None and (place / STATE).exists():
        state.load(place / STATE, identity, recipe.steps)
    step = _Step(config, recipe, seed, accelerator, model, state)
    loader = _loader(dataset, recipe, seed, state.step, step.share, workers)
    shown = progress and accelerator.is_main_process
    bar = tqdm(loader, initial=state.step, total=recipe.steps, disable=not shown, unit="step")
    alone, few = accelerator.num_processes == 1, threads_for(config, accelerator.device)
    # dropout draws from the global state
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        stops_between_steps(alone) as asked,
        threads(few),
    ):
        for batch in bar:
            loss, seconds = step.take(batch)
            bar.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{recipe.batch_size / seconds:.0f}", refresh=False)
            last = state.step == recipe.steps
            if evaluate is not None and (last or state.step % evaluate_every == 0):
                state.ema.copy_to(averaged.parameters())
                found = {name: float(value) for name, value in evaluate(averaged).items()}
                state.curve.append({"step": state.step} | found)
            stop = asked.is_set() and not last
            if place is not None and accelerator.is_main_process and (last or stop or state.step % save_every == 0):
                state.ema.copy_to(averaged.parameters())
                state.save(place, identity, averaged, recipe)
            if stop:
                raise KeyboardInterrupt(_stopped(state.step, recipe, place))
    state.ema.copy_to(averaged.parameters())
    return Trained(model=averaged, recipe=recipe, curve=tuple(state.curve), seconds=state.seconds)


def _stopped(step: int, recipe: Recipe, folder: Path | None) -> str:
    kept = f"kept in {str(folder)!r}, where the same run continues" if folder else "nothing is kept without a folder"
    return f"stopped after step {step:,} of {recipe.steps:,}; {kept}"


def saved_recipe(path: str | Path) -> Recipe:
    """The recipe that a checkpoint of `train` carries. Raises `HAELabError` for one that carries none."""
    found = checkpoint_notes(path).get("recipe")
    fits = isinstance(found, dict) and set(found) <= set(RECIPE_FIELDS)
    require(fits, f"{str(path)!r} carries no recipe: pass the Recipe with which it was trained")
    return Recipe(**found)


def _loader(dataset: Dataset, recipe: Recipe, seed: int, start: int, share: slice, workers: int) -> DataLoader:
    """Batches from a step on, of which one process takes its share."""
    order = BatchOrder(len(dataset), recipe, seed, start, share)
    draws = torch.Generator()  # the loader would take its workers' seed from the global state
    return DataLoader(dataset, batch_sampler=order, num_workers=workers, generator=draws)


class _Step:
    """One step of training in this process, again and again."""

    def __init__(
        self,
        config: HAEConfig,
        recipe: Recipe,
        seed: int,
        accelerator: "Accelerator",
        model: nn.Module,  # as prepared for this process
        state: _State,
    ) -> None:
        self.config, self.recipe, self.seed = config, recipe, seed
        self.accelerator, self.model, self.state = accelerator, model, state
        self.share = slice(accelerator.process_index, None, accelerator.num_processes)
        self.scheduler = noise_scheduler(recipe)

    def take(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        """Learn from a batch; the loss, and the seconds it took."""
        started = time.perf_counter()
        check_batch(batch, self.state.step + 1)
        torch.manual_seed(stream_seed(self.seed, DROPOUT, self.state.step, self.accelerator.process_index))
        if self.recipe.redraw_mask:
            redraw_masks(self.state.model, stream_seed(self.seed, MASKS, self.state.step))
        loss = self._loss(batch)
        self._descend(loss)
        seconds = time.perf_counter() - started
        self.state.seconds += seconds
        return loss.item(), seconds

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        device, labels = self.accelerator.device, known_labels(self.config, batch)
        noisy, timesteps, labels, target = _draw(
            batch["image"], labels, self.scheduler, self.recipe, self.seed, self.state.step, self.share
        )
        inputs = (part if part is None else part.to(device) for part in (noisy, timesteps, labels))
        with self.accelerator.autocast():
            output = self.model(*inputs)
        return F.mse_loss(output.float(), target.to(device))

    def _descend(self, loss: Tensor) -> None:
        state = self.state
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        # fp16 alone may overflow: its scaler then skips the step
        _check_finite(loss, loss if self.recipe.precision == "fp16" else norm, state)
        state.optimizer.step()
        state.schedule.step()
        state.optimizer.zero_grad()
        state.ema.step(self.model.parameters())
        state.step += 1


def _accelerator(recipe: Recipe, device: str | None) -> "Accelerator":
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    require_name("device", device, (None, "cpu", "cuda", "mps"))
    # else the first precision and device of a process would be its only ones
    AcceleratorState._reset_state(reset_partial_state=True)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a scale coarser than the map has dead ones
    try:
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=recipe.precision, kwargs_handlers=[unused])
    except ValueError as error:  # a precision that the device does not have
        raise HAELabError(f"precision={recipe.precision!r}: {error}") from None
    found, processes = accelerator.device.type, accelerator.num_processes
    require(device in (None, found), f"device={device!r} is not there: accelerate finds {found!r}")
    half = recipe.precision == "fp16" and found == "cpu"
    require(not half, "precision='fp16' needs a GPU: on a CPU accelerate would leave it out unsaid; take 'bf16'")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # else each would train alone and write over the others
    together = launched == processes
    require(together, f"of {launched} processes accelerate joins {processes}: on a CPU pass device='cpu'")
    whole = recipe.batch_size % processes == 0
    require(whole, f"batch_size={recipe.batch_size} does not divide over {processes} processes: take a multiple")
    return accelerator


def _fresh_state(config: HAEConfig, recipe: Recipe, seed: int, accelerator: "Accelerator") -> tuple[_State, nn.Module]:
    """The state at step 0 and the model as prepared for this process."""
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    model = build(config, seed=seed).train()
    fused = accelerator.device.type in ("cpu", "cuda")  # one kernel for all parameters: a step is 6 % shorter on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, fused=fused)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    name = "constant_with_warmup" if recipe.decay == "constant" else recipe.decay
    schedule = get_scheduler(name, optimizer, num_warmup_steps=recipe.warmup_steps, num_training_steps=recipe.steps)
    ema = EMAModel(model.parameters(), decay=recipe.ema_decay, foreach=True)
    return _State(model=model, optimizer=optimizer, schedule=schedule, ema=ema, curve=[]), prepared


def _draw(
    images: Tensor,
    labels: Tensor | None,
    scheduler: "DDPMScheduler",
    recipe: Recipe,
    seed: int,
    step: int,
    share: slice,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(noisy images, timesteps, labels or None, target) of one process; drawn on the CPU, so alike on every device."""
    generator = torch.Generator().manual_seed(stream_seed(seed, DRAWS, step))
    whole = recipe.batch_size
    noise = torch.randn((whole, *images.shape[1:]), generator=generator)[share]
    timesteps = torch.randint(recipe.timesteps, (whole,), generator=generator)[share]
    hidden = torch.rand(whole, generator=generator)[share] < recipe.label_dropout
    labels = None if labels is None else labels.masked_fill(hidden, -1)
    target = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: scheduler.get_velocity(images, noise, timesteps),
        "sample": lambda: images,
    }[recipe.prediction]()
    return scheduler.add_noise(images, noise, timesteps), timesteps, labels, target


def _check_finite(loss: Tensor, norm: Tensor, state: _State) -> None:
    rate = state.schedule.get_last_lr()[0]
    require(
        isfinite(loss.item()) and isfinite(norm.item()),
        f"the loss is {loss.item()} and the norm of its gradient {norm.item()} at step {state.step + 1} with learning "
        f"rate {rate:.3g}: lower learning_rate or raise warmup_steps",
    )


def _identity(config: HAEConfig, recipe: Recipe, seed: int, dataset: Dataset) -> str:
    """What a run must share with a state to continue from it; a run of constant rate may be made longer."""
    known = asdict(recipe)
    if recipe.decay == "constant":
        known.pop("steps")
    return json.dumps(asdict(config) | known | {"seed": seed, "data": data_key(dataset)}, sort_keys=True)


def _difference(saved: str, asked: str) -> str:
    new = json.loads(asked)
    # a field that the older version did not have did what its default does
    defaults = {each.name: each.default for each in (*fields(HAEConfig), *fields(Recipe)) if each.name in new}
    old = defaults | json.loads(saved)
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in changed)
