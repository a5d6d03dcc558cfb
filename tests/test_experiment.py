"""One run as data: it survives JSON, loads its images by name, and gives the same numbers again."""

import json
import math
import re
import sys

import numpy as np
import pytest
import study_parts
import torch

from hae_lab import HAELabError, config
from hae_lab.diffusion import experiment as experiments
from hae_lab.diffusion.data import ImageSet, data_key, digits, phantoms
from hae_lab.diffusion.datasets import DATA, HELD_OUT, load_data
from hae_lab.diffusion.experiment import Experiment, run, sample_metrics
from hae_lab.diffusion.metrics import METRICS, Metric
from hae_lab.diffusion.quality import denoising_loss, mmd, sample_gaps, sliced_wasserstein
from hae_lab.diffusion.sampling import sample
from hae_lab.diffusion.training import STATE, WEIGHTS, Recipe, Trained, train

SIZE = 8
TINY = config("v2", "tiny", image_size=SIZE, num_classes=None)
QUICK = Experiment(config=TINY, recipe=Recipe(steps=5, batch_size=4, warmup_steps=2), evaluate_every=2)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


def changed(**changes) -> Experiment:
    return Experiment(**vars(QUICK) | changes)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The same data by name, fewer of them."""
    few = {
        "phantoms": lambda size: (phantoms(30, size), phantoms(12, size, split="held-out")),
        "lesions": lambda size: (phantoms(30, size, lesions=0.5), phantoms(12, size, lesions=0.5, split="held-out")),
    }
    for name, pair in few.items():
        monkeypatch.setitem(DATA, name, pair)


# data by name


@pytest.mark.slow
def test_data_by_name(monkeypatch):
    for name, lesions in (("phantoms", 0), ("lesions", 0.5)):
        monkeypatch.setitem(DATA, name, DATA.own[name])
        train_set, held_out = load_data(name, SIZE)
        assert (len(train_set), len(held_out)) == (4000, HELD_OUT)
        assert train_set.labels.float().mean() == pytest.approx(lesions, abs=0.05)
        assert "split=train" in data_key(train_set)
        assert "split=held-out" in data_key(held_out)
    train_set, held_out = load_data("digits", SIZE)
    assert len(train_set) + len(held_out) == len(digits(SIZE)) == 1797
    assert load_data("digits", SIZE)[0] is train_set  # read once a process


def test_data_by_function(monkeypatch, tmp_path):
    (tmp_path / "my_images.py").write_text(
        "from hae_lab.diffusion.data import phantoms\n"
        "def pair(size):\n    return phantoms(8, size, seed=5), phantoms(6, size, seed=6)\n"
        "def broken(size):\n    return size.no_such_thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    train_set, held_out = load_data("my_images:pair", SIZE)
    assert torch.equal(train_set.images, phantoms(8, SIZE, seed=5).images)
    assert len(held_out) == 6
    numbers = run(changed(data="my_images:pair"))
    assert math.isfinite(numbers["loss"])
    with pytest.raises(HAELabError, match=r"broken gives no data at size 8: AttributeError: .*no_such_thing") as error:
        load_data("my_images:broken", SIZE)
    assert isinstance(error.value.__cause__, AttributeError)  # whoever wrote it finds the line
    sys.modules.pop("my_images")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phantom", "unknown data set 'phantom': did you mean 'phantoms'?"),
        ("no_such_module:pair", "data set 'no_such_module:pair' cannot be imported here: ModuleNotFoundError"),
        ("math:no_such_function", "cannot be imported here: 'math' has no 'no_such_function'"),
        (":pair", "'module:name' or 'file.py:name' is needed"),
        (".relative:pair", "cannot be imported here: TypeError"),
    ],
)
def test_data_that_cannot_be_loaded_are_refused(name, message):
    with refused(message):
        load_data(name, SIZE)


# an experiment is data


@pytest.mark.parametrize(
    "experiment",
    [
        QUICK,
        changed(seed=3, samples=4, data="lesions", evaluate_every=7, sampler="ddpm", sampling_steps=10),
        Experiment(config=config("hae", "brats128", dropout=0.2, patch_sizes=(1, 2)), recipe=Recipe(decay="cosine")),
    ],
    ids=["quick", "changed", "brats"],
)
def test_an_experiment_survives_json(experiment):
    text = experiment.to_json()
    again = Experiment.from_json(text)
    assert again == experiment
    assert again.to_json() == text
    assert json.loads(text)["recipe"]["steps"] == experiment.recipe.steps
    assert changed(seed=8).to_json() != QUICK.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
        ({"samples": HELD_OUT + 1}, "samples is a whole number from 0 to 2,048, got 2049"),
        ({"samples": 1}, "samples is 0 or at least 2"),
        ({"evaluate_every": 0}, "evaluate_every is a whole number from 1, got 0"),
        ({"sampler": "euler"}, "unknown sampler 'euler'"),
        ({"metrics": "sharpness"}, "metrics is a list of names"),
        ({"metrics": ["sharpnes"]}, "unknown metric 'sharpnes'"),
        ({"metrics": ["loss"]}, "metric 'loss' is measured anyway"),
        ({"metrics": ["math:pi"]}, "metric 'math:pi' is a function of (trained, held_out), got 3.14"),
        ({"metrics": ["study_parts:sharpness", "study_parts:sharpness"]}, "two metrics would fill the column"),
        ({"metrics": ["study_parts:macs"]}, "a study has a column 'macs' of its own; rename the metric"),
        ({"metrics": ["study_parts:steps"]}, "a study has a column 'steps' of its own; rename the metric"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_an_experiment_refuses(changes, message):
    with refused(message):
        changed(**changes)


def test_json_of_a_recipe_that_makes_no_sense_is_refused():
    with refused("steps is a whole number from 1, got 0"):
        Experiment.from_json(QUICK.to_json().replace('"steps": 5', '"steps": 0'))


# a run


def test_a_run_is_training_and_its_held_out_loss():
    train_set, held_out = experiments.DATA["phantoms"](SIZE)
    trained = train(TINY, train_set, QUICK.recipe)
    numbers = run(QUICK)
    expected = denoising_loss(trained.model, held_out, QUICK.recipe)
    assert numbers == expected | {"curve": numbers["curve"]}
    assert [step for step, _ in numbers["curve"]] == [2, 4, 5]
    assert numbers["curve"][-1][1] == numbers["loss"]
    assert json.loads(json.dumps(numbers)) == numbers


def test_two_runs_are_equal_and_another_seed_differs():
    whole = changed(samples=4)
    first = run(whole)
    assert run(Experiment.from_json(whole.to_json())) == first
    other = run(changed(samples=4, seed=1))
    assert all(other[name] != value for name, value in first.items())


def test_a_run_continues_in_its_folder(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def die(*arguments, **options):
        raise Killed

    whole = changed(samples=4)
    expected = run(whole)
    with monkeypatch.context() as patch:  # after the training, before the samples
        patch.setattr(experiments, "sample_metrics", die)
        with pytest.raises(Killed):
            run(whole, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [WEIGHTS, STATE]
    assert run(whole, tmp_path) == expected
    assert run(whole, tmp_path) == expected
    with refused("seed is 0 there and 1 here"):
        run(changed(samples=4, seed=1), tmp_path)


def test_samples_are_measured_where_asked():
    losses = {"loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4", "curve"}
    assert set(run(changed(samples=4))) == losses | {"swd", "mmd", "mean_gap", "spread", "mmd_matched"}
    assert set(run(QUICK)) == losses


def test_the_numbers_of_samples_by_hand():
    train_set, held_out = experiments.DATA["phantoms"](SIZE)
    trained = train(TINY, train_set, QUICK.recipe, seed=2)
    numbers = run(changed(samples=5, seed=2))
    drawn, images = sample(trained.model, 5, QUICK.recipe), held_out.images[:5]
    assert numbers["swd"] == sliced_wasserstein(drawn, images)
    assert numbers["mmd"] == mmd(drawn, images)
    assert sample_gaps(drawn, images).items() <= numbers.items()


def test_an_experiment_chooses_its_sampler():
    train_set, held_out = experiments.DATA["phantoms"](SIZE)
    model = train(TINY, train_set, QUICK.recipe).model
    numbers = run(changed(samples=5, sampler="ddpm", sampling_steps=8))
    drawn = sample(model, 5, QUICK.recipe, sampler="ddpm", steps=8)
    assert numbers["swd"] == sliced_wasserstein(drawn, held_out.images[:5])


def test_real_images_are_nearer_than_samples_of_an_untrained_model():
    train_set, held_out = experiments.DATA["phantoms"](SIZE)
    model = train(TINY, train_set, QUICK.recipe).model
    trained = Trained(model=model, recipe=QUICK.recipe, curve=(), seconds=0.0)
    found = sample_metrics(trained, held_out, changed(samples=12))
    real = phantoms(12, SIZE, seed=1).images
    assert found["swd"] > 2 * sliced_wasserstein(real, held_out.images)
    assert found["mmd"] > mmd(real, held_out.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 13}, "samples=13 are compared with as many held-out images of 12"),
        ({"samples": 4, "recipe": Recipe(timesteps=30)}, "steps=25 does not divide the chain of 30"),
        ({"samples": 4, "sampling_steps": 7}, "steps=7 does not divide the chain of 1000"),
        ({"config": config("v2", "tiny", image_size=SIZE, in_channels=2)}, "in_channels=2"),
    ],
    ids=["few", "chain", "steps", "channels"],
)
def test_what_would_fail_later_fails_before_the_training(changes, message, tmp_path):
    with refused(message):
        run(changed(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_the_global_random_states(random_states):
    before = random_states()
    run(changed(samples=4, metrics=["study_parts:drawn"]))
    assert random_states() == before


def test_metrics_of_a_user_are_measured_on_the_trained_model(monkeypatch):
    monkeypatch.setitem(METRICS, "largest", Metric("largest weight", measure=largest_weight))
    whole = changed(metrics=["largest", "study_parts:sharpness", "study_parts:drawn"])
    assert Experiment.from_json(whole.to_json()) == whole
    numbers = run(whole)
    train_set, held_out = DATA["phantoms"](SIZE)
    trained = train(TINY, train_set, QUICK.recipe)
    assert numbers["largest"] == max(weight.abs().max().item() for weight in trained.model.parameters())
    assert numbers["sharpness"] == study_parts.sharpness(trained, held_out)
    assert numbers["drawn"] == run(whole)["drawn"]
    assert numbers | dict.fromkeys(("largest", "sharpness", "drawn")) == run(QUICK) | dict.fromkeys(
        ("largest", "sharpness", "drawn")
    )


def test_a_metric_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setitem(METRICS, "nothing", Metric("nothing", measure=lambda trained, held_out: math.nan))
    with refused("metric 'nothing' is a finite number, got nan"):
        run(changed(metrics=["nothing"]))


def largest_weight(trained, held_out):
    return torch.stack([weight.detach().abs().max() for weight in trained.model.parameters()]).max()


def test_numbers_of_numpy_become_pythons():
    recipe = Recipe(steps=np.int64(5), batch_size=4, warmup_steps=2, learning_rate=np.float32(0.5))
    assert (type(recipe.steps), type(recipe.learning_rate)) == (int, float)
    experiment = changed(recipe=recipe, seed=np.int64(3), evaluate_every=np.int32(2))
    assert Experiment.from_json(experiment.to_json()) == experiment


def test_images_with_labels_train_a_model_with_classes(monkeypatch):
    heads = phantoms(20, SIZE, lesions=0.5)
    monkeypatch.setitem(experiments.DATA, "lesions", lambda size: (heads, heads))
    classes = TINY.replace(num_classes=2)
    assert math.isfinite(run(changed(config=classes, data="lesions", samples=2))["swd"])
    bare = ImageSet(images=heads.images)
    monkeypatch.setitem(experiments.DATA, "bare", lambda size: (bare, bare))
    with refused("has no label"):
        run(changed(config=classes, data="bare"))
