"""Training: against a bare loop in plain torch, killed and resumed, refused, on two processes."""

import itertools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn

from hae_lab import HAELabError, build, config, load_checkpoint
from hae_lab.diffusion import training
from hae_lab.diffusion.data import ImageSet, phantoms
from hae_lab.diffusion.quality import denoising_loss
from hae_lab.diffusion.states import check_state
from hae_lab.diffusion.training import STATE, WEIGHTS, BatchOrder, Recipe, Trained, _Step, train
from hae_lab.models import MSTB, freeze, redraw_masks

SIZE = 8
PLAIN = config("lite", "tiny", image_size=SIZE, num_classes=None)
# all that could make a resumed run differ: labels that are dropped, dropout, a learning rate that changes
WHOLE = config("v2", "tiny", image_size=SIZE, dropout=0.3)
QUICK = Recipe(steps=9, batch_size=8, warmup_steps=3, decay="cosine", label_dropout=0.3)
HEADS = phantoms(20, SIZE, lesions=0.5)
HELD_OUT = phantoms(8, SIZE, lesions=0.5, split="held-out")


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


def measure(model: nn.Module) -> dict[str, float]:
    return denoising_loss(model, HELD_OUT, QUICK)


def quick(folder=None, model_config=WHOLE, recipe=QUICK, **options) -> Trained:
    options = {"save_every": 2, "evaluate": measure, "evaluate_every": 4} | options
    return train(model_config, HEADS, recipe, folder=folder, **options)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)


@pytest.fixture(scope="module")
def whole_run() -> Trained:
    return quick()


@pytest.fixture
def draws(monkeypatch) -> list[dict]:
    """What each step of training drew."""
    seen = []

    def spy(images, labels, *rest):
        noisy, timesteps, dropped, target = draw(images, labels, *rest)
        seen.append({"images": images, "noisy": noisy, "timesteps": timesteps, "target": target, "labels": dropped})
        return noisy, timesteps, dropped, target

    draw = training._draw
    monkeypatch.setattr(training, "_draw", spy)
    return seen


# the loop


def test_the_loss_falls():
    recipe = Recipe(steps=60, batch_size=16, warmup_steps=10, ema_decay=0.9)
    heads = phantoms(200, SIZE)
    losses = [measure(build(PLAIN))["loss"]]
    losses += [point["loss"] for point in train(PLAIN, heads, recipe, evaluate=measure, evaluate_every=20).curve]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4 * losses[0]


def signal_shares(chain: int) -> torch.Tensor:
    """The cosine schedule of Nichol & Dhariwal: what is left of the signal's variance after each step."""

    def level(part):
        return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((step + 1) / chain) / level(step / chain), 0.999) for step in range(chain)]
    return (1 - torch.tensor(betas)).cumprod(0)


def rate_factor(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup_steps:
        return step / recipe.warmup_steps
    if recipe.decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)))


def bare_loop(recipe: Recipe, seed: int) -> nn.Module:
    """Training in plain torch: own schedule, noise, clipping, AdamW and moving average; returns the averaged model."""
    model, average = build(PLAIN, seed=seed).train(), build(PLAIN, seed=seed).eval()
    shares = signal_shares(recipe.timesteps)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    places = np.concatenate([np.random.default_rng((seed, 0, epoch)).permutation(len(HEADS)) for epoch in range(9)])
    for step in range(recipe.steps):
        images = HEADS.images[places[step * recipe.batch_size :][: recipe.batch_size]]
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, 1, step)).generate_state(1)[0]))
        noise = torch.randn(images.shape, generator=generator)
        timesteps = torch.randint(recipe.timesteps, (len(images),), generator=generator)
        signal_part, noise_part = (part[timesteps].sqrt()[:, None, None, None] for part in (shares, 1 - shares))
        target = {
            "epsilon": noise,
            "v_prediction": signal_part * noise - noise_part * images,
            "sample": images,
        }[recipe.prediction]
        output = model(signal_part * images + noise_part * noise, timesteps)
        gradients = torch.autograd.grad((output - target).square().mean(), model.parameters(), allow_unused=True)
        norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients if g is not None))
        clip = min(1.0, recipe.max_grad_norm / norm)
        rate, count = recipe.learning_rate * rate_factor(recipe, step), step + 1
        decay = 0.0 if step == 0 else min(recipe.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for p, mean, gradient, (m, v) in zip(
                model.parameters(), average.parameters(), gradients, moments, strict=True
            ):
                if gradient is not None:
                    m.mul_(0.9).add_(0.1 * clip * gradient)
                    v.mul_(0.999).add_(0.001 * (clip * gradient) ** 2)
                    p.mul_(1 - rate * 0.01)
                    p.sub_(rate * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8))
                mean.mul_(decay).add_((1 - decay) * p)
    return average


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": "v_prediction"},
        {"prediction": "epsilon", "decay": "cosine"},
        {"prediction": "sample", "timesteps": 100, "warmup_steps": 0, "max_grad_norm": 0.05},
    ],
    ids=lambda changes: changes["prediction"],
)
def test_a_bare_loop_in_plain_torch_ends_with_the_same_weights(changes):
    recipe = Recipe(**{"steps": 6, "batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-3} | changes)
    trained, bare = train(PLAIN, HEADS, recipe, seed=3).model, bare_loop(recipe, 3)
    start = build(PLAIN, seed=3)
    gaps, moves = [], []
    for ours, theirs, first in zip(trained.parameters(), bare.parameters(), start.parameters(), strict=True):
        gaps.append((ours - theirs).detach().abs().flatten())
        moves.append((ours - first).detach().abs().flatten())
    gaps, moves = torch.cat(gaps), torch.cat(moves)
    assert moves.mean() > 2e-4
    assert gaps.mean() < 1e-3 * moves.mean()
    assert gaps.max() < 2e-4  # where a gradient is around 0, rounding decides its sign, and AdamW steps by the sign


def test_what_is_evaluated_and_returned_is_the_average_in_eval_mode():
    seen = []

    def look(model):
        seen.append((model.training, {name: value.clone() for name, value in model.state_dict().items()}))
        return {"share": np.float64(0.5)}

    trained = quick(evaluate=look)
    assert [mode for mode, _ in seen] == [False] * 3
    assert not trained.model.training
    assert all(torch.equal(value, seen[-1][1][name]) for name, value in trained.model.state_dict().items())
    assert trained.curve == tuple({"step": step, "share": 0.5} for step in (4, 8, 9))
    assert all(type(point["share"]) is float for point in trained.curve)


def test_one_seed_is_one_result_and_another_differs(whole_run):
    again = quick()
    assert same(again.model, whole_run.model)
    assert again.curve == whole_run.curve
    other = quick(seed=1)
    assert not same(other.model, whole_run.model)
    assert other.curve != whole_run.curve


def test_global_random_states_are_untouched_and_do_not_matter(whole_run, random_states, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = random_states()
        trained = quick(tmp_path)
        quick(tmp_path)
        assert random_states() == before
    assert same(trained.model, whole_run.model)


def test_variants_of_one_seed_see_the_same_images_timesteps_and_noise(draws):
    recipe = Recipe(steps=4, batch_size=6)
    for variant, placement in (("unet", "none"), ("hae", "upsample"), ("v2", "everywhere")):
        train(config(variant, "tiny", image_size=SIZE, placement=placement), HEADS, recipe, seed=2)
    for first, second, third in zip(draws[:4], draws[4:8], draws[8:], strict=True):
        for name in first:
            assert torch.equal(first[name], second[name])
            assert torch.equal(first[name], third[name])
    assert len({step["timesteps"][0].item() for step in draws[:4]}) == 4


def test_noise_is_standard_normal_and_timesteps_are_uniform(draws):
    train(PLAIN, HEADS, Recipe(steps=30, batch_size=32, prediction="epsilon"))
    noise, timesteps = (torch.cat([step[name] for step in draws]) for name in ("target", "timesteps"))
    assert noise.mean().abs() < 0.02
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert timesteps.float().mean() == pytest.approx(499.5, abs=40)


def test_dropout_draws_from_a_stream_of_its_own(monkeypatch):
    seeds = {"noise": [], "dropout": []}

    def spy_draw(*arguments):
        seeds["noise"].append(training.stream_seed(0, training.DRAWS, arguments[5]))
        seeds["dropout"].append(torch.initial_seed())
        return draw(*arguments)

    draw = training._draw
    monkeypatch.setattr(training, "_draw", spy_draw)
    quick(evaluate=None)
    assert len({*seeds["noise"], *seeds["dropout"]}) == 2 * QUICK.steps


def test_masks_are_redrawn_at_each_step_if_asked(monkeypatch, tmp_path):
    sparse = config("hae", "tiny", image_size=SIZE, num_classes=None, sparsity=0.3)
    recipe = Recipe(steps=4, batch_size=8, warmup_steps=3, redraw_mask=True)
    seen = []
    monkeypatch.setattr(MSTB, "forward", seeing(MSTB.forward, seen))
    options = {"model_config": sparse, "recipe": recipe}
    redrawn = quick(evaluate=None, **options)
    assert len(set(seen)) == len(seen) == 4
    assert {block.mask_seed for block in redrawn.model.modules() if isinstance(block, MSTB)} == {sparse.mask_seed}
    fixed = quick(model_config=sparse, recipe=Recipe(steps=4, batch_size=8, warmup_steps=3))
    assert not same(redrawn.model, fixed.model)
    assert seen[4:8] == [sparse.mask_seed] * 4
    monkeypatch.setattr(_Step, "_descend", dying(_Step._descend, 3))
    with pytest.raises(Killed):
        quick(tmp_path, **options)
    monkeypatch.undo()
    assert same(quick(tmp_path, **options).model, redrawn.model)


def seeing(forward, seen):
    def see(block, x):
        seen.append(block.mask_seed)
        return forward(block, x)

    return see


def dying(descend, call):
    def descend_or_die(step, loss):
        if step.state.step == call:
            raise Killed
        descend(step, loss)

    return descend_or_die


def test_a_frozen_model_keeps_its_masks():
    with refused("a frozen model keeps its masks"):
        redraw_masks(freeze(build(PLAIN)), 1)


def test_labels_are_hidden_at_the_asked_share_and_otherwise_kept(draws):
    known = {image.numpy().tobytes(): int(label) for image, label in zip(HEADS.images, HEADS.labels, strict=True)}
    train(WHOLE, HEADS, Recipe(steps=25, batch_size=32, label_dropout=0.3))
    labels = torch.cat([step["labels"] for step in draws])
    true = torch.tensor([known[image.numpy().tobytes()] for step in draws for image in step["images"]])
    hidden = labels == -1
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.06)
    assert torch.equal(labels[~hidden], true[~hidden])
    for label in (0, 1):  # of each class the same share
        assert hidden[true == label].float().mean() == pytest.approx(0.3, abs=0.1)
    draws.clear()
    train(WHOLE, HEADS, Recipe(steps=2, batch_size=32, label_dropout=0))
    assert all((step["labels"] >= 0).all() for step in draws)
    draws.clear()
    train(PLAIN, HEADS, Recipe(steps=1, batch_size=4))
    assert draws[0]["labels"] is None


# batches


@pytest.mark.parametrize(("count", "batch_size"), [(20, 8), (7, 7), (3, 8), (1, 4)])
def test_every_image_comes_once_an_epoch_in_a_new_order(count, batch_size):
    recipe = Recipe(steps=12, batch_size=batch_size)
    batches = list(BatchOrder(count, recipe, seed=5))
    assert [len(batch) for batch in batches] == [batch_size] * 12
    places = list(itertools.chain(*batches))
    epochs = [places[start : start + count] for start in range(0, len(places) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 7 or epochs[0] != epochs[1]
    assert count < 7 or batches != list(BatchOrder(count, recipe, seed=6))


def test_an_order_continues_and_is_shared():
    recipe = Recipe(steps=12, batch_size=6)
    batches = list(BatchOrder(20, recipe, seed=5))
    assert list(BatchOrder(20, recipe, 5, start=7)) == batches[7:]
    assert len(BatchOrder(20, recipe, 5, start=7)) == 5
    shares = [list(BatchOrder(20, recipe, 5, share=slice(process, None, 2))) for process in range(2)]
    for batch, first, second in zip(batches, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)
        assert len(first) == len(second)


def test_a_batch_may_be_larger_than_the_dataset():
    few = HEADS.select(range(3))
    assert train(PLAIN, few, Recipe(steps=3, batch_size=8)).model is not None


@pytest.mark.slow
def test_workers_change_nothing(whole_run):
    assert same(quick(workers=1).model, whole_run.model)


# killed and resumed


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        (training, "_draw", 1),
        (training, "_draw", 4),
        (training, "_draw", 9),
        (training, "save_checkpoint", 1),
        (training, "save_checkpoint", 5),
        (torch, "save", 1),  # between the weights and the state
        (torch, "save", 3),
        (torch, "save", 5),
    ],
    ids=lambda value: value if isinstance(value, str | int) else "",
)
def test_a_run_that_dies_anywhere_ends_with_the_same_bits(whole_run, monkeypatch, tmp_path, module, function, call):
    original, calls = getattr(module, function), itertools.count(1)

    def die(*arguments, **options):
        if next(calls) == call:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, die)
        with pytest.raises(Killed):
            quick(tmp_path)
    resumed = quick(tmp_path)
    assert same(resumed.model, whole_run.model)
    assert same(load_checkpoint(tmp_path / WEIGHTS, WHOLE), whole_run.model)
    assert resumed.curve == whole_run.curve
    assert resumed.seconds > 0


def test_the_weights_of_a_checkpoint_are_the_average_at_its_step(monkeypatch, tmp_path):
    constant = {"batch_size": 8, "warmup_steps": 3}
    original, calls = training._draw, itertools.count(1)

    def die(*arguments):
        if next(calls) == 6:  # one step after the checkpoint of step 4
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_draw", die)
        with pytest.raises(Killed):
            quick(tmp_path, recipe=Recipe(steps=9, **constant), evaluate=None)
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 4
    assert same(load_checkpoint(tmp_path / WEIGHTS, WHOLE), quick(recipe=Recipe(steps=4, **constant)).model)


def test_a_state_of_a_version_with_fewer_fields_continues(tmp_path):
    constant = Recipe(steps=4, batch_size=8, warmup_steps=3)
    quick(tmp_path, recipe=constant, evaluate=None)
    state = torch.load(tmp_path / STATE, weights_only=True)
    identity = json.loads(state["identity"])
    assert identity.pop("mlp") == "gelu"  # which version 0.1.0 did not have
    del state["sha256"]  # nor this
    torch.save(state | {"identity": json.dumps(identity)}, tmp_path / STATE)
    longer = Recipe(steps=9, batch_size=8, warmup_steps=3)
    assert same(quick(tmp_path, recipe=longer, evaluate=None).model, quick(recipe=longer, evaluate=None).model)


KILLED_RUN = """
import itertools
import sys
import threading
import torch
torch.set_num_threads(1)
calls = itertools.count(1)
sys.path.insert(0, {tests!r})
import test_training

def measure(model):
    if next(calls) == 10:  # after 40 of 60 steps it waits to be killed
        threading.Event().wait()
    return test_training.measure(model)

test_training.quick({folder!r}, recipe=test_training.Recipe(**{recipe!r}), evaluate=measure)
"""


@pytest.mark.slow
def test_kill_minus_nine(tmp_path):
    long = {"steps": 60, "batch_size": 8, "warmup_steps": 10, "label_dropout": 0.3}
    script = KILLED_RUN.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"), recipe=long)
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        while not (tmp_path / "killed" / STATE).exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)  # some steps further
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = torch.load(tmp_path / "killed" / STATE, weights_only=True)["step"]
    assert 0 < done < 60
    resumed = quick(tmp_path / "killed", recipe=Recipe(**long))
    straight = quick(tmp_path / "straight", recipe=Recipe(**long))
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("killed", "straight"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert resumed.curve == straight.curve


def test_a_finished_run_is_read_and_not_repeated(whole_run, tmp_path):
    quick(tmp_path)
    asked = []
    again = quick(tmp_path, evaluate=asked.append)
    assert same(again.model, whole_run.model)
    assert again.curve == whole_run.curve
    assert not asked


def test_a_run_of_constant_rate_can_be_made_longer_and_not_shorter(tmp_path):
    short, long = (Recipe(steps=steps, batch_size=8, warmup_steps=3) for steps in (4, 8))
    quick(tmp_path, recipe=short)
    longer, straight = quick(tmp_path, recipe=long), quick(recipe=long)
    assert same(longer.model, straight.model)
    assert longer.curve == straight.curve
    with refused("holds 8 steps of this run, more than steps=4"):
        quick(tmp_path, recipe=short)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"recipe": Recipe(steps=9, batch_size=4)}, "batch_size is 8 there and 4 here"),
        ({"seed": 7}, "seed is 0 there and 7 here"),
        ({"model_config": WHOLE.replace(mlp_ratio=4)}, "mlp_ratio is 0.25 there and 4 here"),
        ({"recipe": Recipe(**vars(QUICK) | {"steps": 10})}, "steps is 9 there and 10 here"),  # of the cosine
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, changes, difference):
    quick(tmp_path, evaluate=None)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with refused(difference):
        quick(tmp_path, **changes)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_folder_of_other_images_is_refused(tmp_path):
    quick(tmp_path, evaluate=None)
    with refused("data is 'phantoms v1: count=20"):
        train(WHOLE, phantoms(21, SIZE, lesions=0.5), QUICK, folder=tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("kind", ["garbage", "empty", "truncated", "another file", "code"])
def test_a_broken_state_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    quick(tmp_path / "run", evaluate=None)
    path = tmp_path / "run" / STATE
    if kind == "another file":
        torch.save({"model": torch.zeros(3)}, path)
    else:
        whole = path.read_bytes()
        path.write_bytes(
            {"garbage": b"abc", "empty": b"", "truncated": whole[: len(whole) // 2], "code": pickle.dumps(Bomb())}[kind]
        )
    with refused(f"{str(path)!r} is no readable training state"):
        quick(tmp_path / "run")
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The state of a short run."""
    folder = tmp_path_factory.mktemp("kept")
    quick(folder, evaluate=None)
    return folder / STATE


def alike(first, second) -> bool:
    """Whether two trees of dictionaries, lists, tensors and numbers are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(alike(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(alike, first, second))
    return type(first) is type(second) and first == second


def test_no_flipped_bit_of_a_state_is_resumed(kept, tmp_path):
    whole, states = kept.read_bytes(), torch.load(kept, weights_only=True)
    generator, refused_flips, path = np.random.default_rng(0), 0, tmp_path / STATE
    for place in generator.integers(len(whole), size=150):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(broken))
        try:
            found = torch.load(path, weights_only=True)
            check_state(found)
        except Exception:  # whatever the reader meets
            refused_flips += 1
        else:
            assert alike(found, states)  # it was in a gap between the parts of the file
    assert refused_flips > 75


def with_part(name, change):
    return lambda state: {**state, name: change(state[name])}


DAMAGED = {
    "no step": (lambda state: {name: state[name] for name in state if name != "step"}, "it holds curve, ema"),
    "another part": (lambda state: {**state, "extra": 1}, "it holds curve, ema, extra"),
    "no dictionary": (lambda state: list(state), "it holds list, a state holds"),
    "a text for a step": (with_part("step", str), "its step is a whole number from 0, got '9'"),
    "negative": (with_part("step", lambda step: -step), "its step is a whole number from 0, got -9"),
    "late": (with_part("step", lambda step: step + 99), "holds 108 steps of this run, more than steps=9"),
    "seconds": (with_part("seconds", lambda _: float("nan")), "its seconds is a number from 0 on, got nan"),
    "curve": (with_part("curve", lambda _: [3]), "its curve is no list of steps with their numbers"),
    "fewer averages": (
        with_part("ema", lambda ema: {**ema, "shadow_params": ema["shadow_params"][1:]}),
        "does not fit this model: its averages are of",
    ),
    "other moments": (
        with_part(
            "optimizer",
            lambda o: {**o, "state": {n: {**s, "exp_avg": s["exp_avg"][:1]} for n, s in o["state"].items()}},
        ),
        "does not fit this model: exp_avg of parameter",
    ),
    "no moments": (with_part("optimizer", lambda o: {**o, "state": {0: {}}}), "does not fit this model"),
    "no optimizer": (with_part("optimizer", lambda _: None), "does not fit this model"),
    "no schedule": (with_part("schedule", lambda _: {}), "does not fit this model: its schedule lacks or adds"),
    "other weights": (
        with_part("model", lambda model: {name: tensor[:1] for name, tensor in model.items()}),
        "does not fit this model: Error(s) in loading state_dict",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_state_that_is_damaged_inside_is_named(kept, tmp_path, damage, message):
    state = torch.load(kept, weights_only=True)
    del state["sha256"]  # as one of version 0.1.0, or of somebody who knows how it is made
    torch.save(damage(state), tmp_path / STATE)
    with refused(message) as error:
        quick(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_with_a_changed_number_is_refused(kept, tmp_path):
    state = torch.load(kept, weights_only=True)
    next(iter(state["model"].values())).flatten()[0] += 1e-6
    torch.save(state, tmp_path / STATE)
    with refused("is no readable training state (it is not what was written"):
        quick(tmp_path)


def test_only_whole_files_are_left(tmp_path):
    quick(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [WEIGHTS, STATE]


# refused


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_kept(tmp_path):
    recipe = Recipe(steps=6, batch_size=8, learning_rate=1e30, warmup_steps=0)
    with refused("the loss is ") as caught:
        quick(tmp_path, recipe=recipe, save_every=1, evaluate=None)
    assert "at step 2 with learning rate 1e+30: lower learning_rate" in str(caught.value)
    assert torch.load(tmp_path / STATE, weights_only=True)["step"] == 1


def test_the_message_names_the_learning_rate_of_that_step():
    recipe = Recipe(steps=6, batch_size=8, learning_rate=1e30, warmup_steps=4)
    with refused("at step 3 with learning rate 5e+29"):  # step 1 has rate 0, step 2 a quarter
        quick(recipe=recipe, evaluate=None)


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(monkeypatch, tmp_path):
    calls = itertools.count(1)

    def flat(output, target):
        loss = (output - target).square().mean()
        return loss if next(calls) < 3 else (0 * loss).sqrt()  # 0, with an infinite slope

    monkeypatch.setattr(training.F, "mse_loss", flat)
    with refused("the loss is 0.0 and the norm of its gradient nan at step 3"):
        quick(tmp_path, save_every=1, evaluate=None)
    saved = torch.load(tmp_path / STATE, weights_only=True)
    assert saved["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (phantoms(4, 16), "image_size=8"),
        (ImageSet(images=HEADS.images), "has no label"),
        (ImageSet(images=HEADS.images, labels=torch.full((20,), 3)), "allows 0 to 2"),
        ([{"image": torch.full((1, SIZE, SIZE), math.nan), "label": 0}], "values in [-1, 1]"),
    ],
    ids=["size", "no labels", "labels", "nan"],
)
def test_images_that_do_not_fit_are_refused(dataset, message):
    with refused(message):
        train(WHOLE, dataset, QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
        ({"save_every": 0}, "save_every is a whole number from 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every is a whole number from 1, got 0"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "mps"}, "device='mps' is not there: accelerate finds"),
        ({"recipe": Recipe(precision="fp16"), "device": "cpu"}, "precision='fp16' needs a GPU"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options, message):
    with refused(message):
        quick(**options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps is a whole number from 1, got 0"),
        ("batch_size", 2.5, "batch_size is a whole number from 1, got 2.5"),
        ("warmup_steps", -1, "warmup_steps is a whole number from 0, got -1"),
        ("learning_rate", 0, "learning_rate is a number above 0, got 0"),
        ("learning_rate", math.nan, "learning_rate is a number above 0, got nan"),
        ("ema_decay", 1, "ema_decay is in [0, 1), got 1"),
        ("label_dropout", "none", "label_dropout is in [0, 1), got 'none'"),
        ("prediction", "eps", "unknown prediction 'eps': did you mean 'epsilon'?"),
        ("precision", "fp32", "unknown precision 'fp32'"),
        ("redraw_mask", 1, "redraw_mask is True or False, got 1"),
    ],
)
def test_a_recipe_refuses(field, value, message):
    with refused(message):
        Recipe(**{field: value})


# precision, progress, processes


def test_a_process_can_change_its_precision(whole_run):
    half = quick(recipe=Recipe(**vars(QUICK) | {"precision": "bf16"}))
    assert not same(half.model, whole_run.model)
    assert half.curve[-1]["loss"] == pytest.approx(whole_run.curve[-1]["loss"], rel=0.05)
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    assert same(quick(device="cpu").model, whole_run.model)


def test_a_bar_shows_loss_and_speed_if_asked(capfd):
    quick(progress=True)
    shown = capfd.readouterr().err
    assert "9/9" in shown
    assert re.search(r"images_per_s=\d+", shown)
    assert re.search(r"loss=\d\.\d{4}", shown)
    quick()
    assert capfd.readouterr() == ("", "")


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    # before 1.13 accelerate looks for the others on a CPU too, and asks where they are
    looks = Version(version("accelerate")) < Version("1.13")
    with refused("`MASTER_ADDR` env was not set" if looks else "of 2 processes accelerate joins 1"):
        quick()


TWO_PROCESSES = """
import os
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import test_training
from test_training import HAELabError, Recipe, quick, train
folder, rank = Path({folder!r}), os.environ["RANK"]
for variant in ("hae", "v2"):
    trained = quick(folder / variant, test_training.two_process_config(variant), Recipe(**{recipe!r}), device="cpu")
    torch.save([trained.model.state_dict(), trained.curve], folder / f"{{variant}}-{{rank}}.pt")
try:
    quick(recipe=Recipe(steps=1, batch_size=3), device="cpu")
except HAELabError as error:
    (folder / f"refused-{{rank}}.txt").write_text(str(error))
torch.distributed.destroy_process_group()
"""


def two_process_config(variant: str):
    """hae has dead parameters here: patches of 8 pixels on a map of 4."""
    return config(variant, "tiny", image_size=SIZE, num_classes=2)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_train_as_one_does(tmp_path):
    recipe = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "label_dropout": 0.3}
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path), recipe=recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for variant in ("hae", "v2"):
        alone = quick(None, two_process_config(variant), Recipe(**recipe), device="cpu")
        (first, curve), (second, same_curve) = (
            torch.load(tmp_path / f"{variant}-{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        assert curve == same_curve
        gaps = []
        for name, value in alone.model.state_dict().items():
            assert torch.equal(first[name], second[name])
            gaps.append((first[name] - value).abs().flatten())
        assert torch.cat(gaps).mean() < 1e-5
        assert torch.cat(gaps).max() < 1e-3  # AdamW's sign where a gradient is around 0
        for point, expected in zip(curve, alone.curve, strict=True):
            assert point == pytest.approx(expected, rel=1e-5)
        # one wrote, and one process continues what two began
        assert sorted(file.name for file in (tmp_path / variant).iterdir()) == [WEIGHTS, STATE]
        longer = Recipe(**recipe | {"steps": 8})
        resumed = quick(tmp_path / variant, two_process_config(variant), longer, device="cpu")
        assert [point["step"] for point in resumed.curve] == [4, 6, 8]
        straight = quick(None, two_process_config(variant), longer, device="cpu")
        assert resumed.curve[-1] == pytest.approx(straight.curve[-1], rel=1e-4)
    for rank in (0, 1):
        assert "batch_size=3 does not divide over 2 processes" in (tmp_path / f"refused-{rank}.txt").read_text()
