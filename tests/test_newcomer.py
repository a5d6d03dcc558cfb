"""A first day at the command line: own pictures, own values, samples of a model, a study with its figures."""

import json
import re
from dataclasses import replace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from study_rows import curve_rows, study_rows

from hae_lab import HAELabError, config, load_checkpoint, plots
from hae_lab.__main__ import main
from hae_lab.audit import benchmarks, lessons
from hae_lab.diffusion.data import folder, split_dataset
from hae_lab.diffusion.datasets import DATA, load_data, require_fit
from hae_lab.diffusion.sampling import sample
from hae_lab.diffusion.settings import with_settings
from hae_lab.diffusion.training import STATE, WEIGHTS, Recipe, saved_recipe
from hae_lab.plots.of_study import single_factor, study_figures

TINY = config("v2", "tiny")


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


def draw_pictures(place, count=6, colour=False, kinds=("",)):
    """Pictures of 20 x 20 noise, `count` in each folder of `kinds`."""
    generator = np.random.default_rng(3)
    for kind in kinds:
        (place / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (20, 20, 3) if colour else (20, 20), np.uint8)
            Image.fromarray(pixels).save(place / kind / f"{number}.png")
    return str(place)


# fields as text


def test_settings_are_fields_of_model_and_training():
    texts = [
        "mlp_ratio=0.5",
        "patch_sizes=1,4",
        "channel_mult=1",
        "attention_resolutions=[1]",
        "middle_attention=False",
    ]
    texts += ["num_classes=none", "mask_rule=dense", "steps=7", "precision=no", "learning_rate=1e-4"]
    found = with_settings(TINY, Recipe(batch_size=5), texts)
    model = {"mlp_ratio": 0.5, "patch_sizes": (1, 4), "channel_mult": (1,), "attention_resolutions": (1,)}
    model |= {"middle_attention": False, "num_classes": None, "mask_rule": "dense"}
    assert found == (replace(TINY, **model), Recipe(batch_size=5, steps=7, learning_rate=1e-4))
    assert with_settings(TINY, Recipe(), []) == (TINY, Recipe())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp_ratio", "a setting is NAME=VALUE, for example mlp_ratio=0.5, got 'mlp_ratio'"),
        ("mlp_ration=1", "unknown field 'mlp_ration': did you mean 'mlp_ratio'"),
        ("mlp_ratio=wide", "mlp_ratio is a number above 0, got 'wide'"),
        ("patch_sizes=4,x", "patch_sizes is a sequence of positive whole numbers, got [4, 'x']"),
        ("steps=0.5", "steps is a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text, message):
    with refused(message):
        with_settings(TINY, Recipe(), [text])


# a folder of pictures


def test_a_folder_is_a_data_set(tmp_path):
    place = draw_pictures(tmp_path / "grey", 10)
    train, held_out = load_data(place, 16)
    expected = split_dataset(folder(place, 16))
    assert [len(train), len(held_out)] == [8, 2]
    assert all(torch.equal(one.images, other.images) for one, other in zip((train, held_out), expected, strict=True))
    assert train.labels is None
    (tmp_path / "grey" / "0.png").unlink()
    assert sum(map(len, load_data(place, 16))) == 9  # read again


def test_colours_and_classes_are_found(tmp_path, monkeypatch):
    place = draw_pictures(tmp_path / "coloured", 3, colour=True, kinds=("cat", "dog"))
    monkeypatch.chdir(tmp_path)
    train, held_out = load_data("coloured", 16)  # as it is named from here
    assert train.images.shape[1:] == (3, 16, 16)
    assert train.classes == ("cat", "dog")
    whole = folder(place, 16, channels=3, labels=True)
    assert sorted([*train.labels, *held_out.labels]) == sorted(whole.labels)


def test_grey_pictures_of_16_bits_keep_their_bits(tmp_path):
    steps = np.arange(400, dtype=np.uint16).reshape(20, 20) + 30000
    for number in range(5):
        Image.fromarray(steps + number).save(tmp_path / f"{number}.png")
    train, _ = load_data(str(tmp_path), 20)
    assert train.images.shape[1] == 1
    assert len(train.images[0].unique()) == 400


def test_names_come_before_folders_and_paths_that_lead_nowhere_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert DATA.find("digits") is DATA["digits"]
    with refused("no such folder: './nowhere'"):
        load_data("./nowhere", 16)
    with refused("unknown data set 'nowhere'"):
        load_data("nowhere", 16)


# what a model needs


@pytest.mark.parametrize(
    ("preset", "data", "message"),
    [
        ("brats128", "lesions", "images of 4 channels, 128 x 128, with labels below 2; those of 'lesions' have 1"),
        ("cifar32", "digits", "images of 3 channels, 32 x 32; those of 'digits' have 1"),
        ("tiny", "twins", "with labels below 3; those of 'twins' have no label"),
    ],
)
def test_a_preset_says_which_images_it_needs(preset, data, message, monkeypatch):
    monkeypatch.setattr("hae_lab.diffusion.datasets.HELD_OUT", 4)
    monkeypatch.setitem(DATA, data, lambda size, load=DATA[data]: load_few(data, size))
    with refused(message) as caught:
        require_fit(data, config("hae", preset))
    assert "docs/your_own.md" in str(caught.value)


def load_few(name, size):
    """As the built-in data set of that name, with few images."""
    from hae_lab.diffusion.data import digits, phantoms
    from hae_lab.diffusion.patterns import twins

    few = {"lesions": lambda: phantoms(4, size, lesions=0.5), "digits": lambda: digits(size)}
    few["twins"] = lambda: twins(size).draw(4)
    return few[name](), few[name]()


def test_what_a_preset_asks_for_is_enough(monkeypatch):
    changed, _ = with_settings(config("hae", "cifar32"), Recipe(), ["in_channels=1", "out_channels=1"])
    require_fit("digits", changed)


# the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run on a folder of pictures, with a field changed."""
    place = tmp_path_factory.mktemp("day")
    pictures = draw_pictures(place / "pictures", 8, kinds=("a", "b", "c"))
    arguments = [
        "train",
        "v2",
        "--preset",
        "tiny",
        "--data",
        pictures,
        "--set",
        "mlp_ratio=0.5",
        "--set",
        "timesteps=50",
    ]
    assert main([*arguments, "--steps", "3", "--batch-size", "4", "--out", str(place / "run")]) == 0
    return place / "run"


def test_training_takes_a_folder_and_keeps_what_it_was(trained):
    assert {path.name for path in trained.iterdir()} == {STATE, WEIGHTS, "samples.png"}
    model = load_checkpoint(trained / WEIGHTS)
    assert model.config == config("v2", "tiny", mlp_ratio=0.5)
    assert saved_recipe(trained / WEIGHTS) == Recipe(steps=3, batch_size=4, timesteps=50)


def test_samples_are_those_of_the_library(trained, tmp_path, capsys):
    out = tmp_path / "drawn.png"
    arguments = ["sample", str(trained), "--count", "3", "--seed", "5", "--steps", "5", "--label", "1"]
    assert main([*arguments, "--guidance", "2", "--sampler", "ddpm", "--out", str(out)]) == 0
    assert f"3 images in {out}" in capsys.readouterr().out
    options = {"seed": 5, "steps": 5, "sampler": "ddpm", "labels": torch.tensor([1, 1, 1]), "guidance": 2}
    model = load_checkpoint(trained / WEIGHTS)
    images = sample(model, 3, Recipe(steps=3, batch_size=4, timesteps=50), **options)
    figure = plots.image_grid(images, title="3 samples of a model, label 1, 5 steps of ddpm, seed 5", columns=8)
    assert out.read_bytes() == figure.png()


def test_a_committed_lesson_model_draws_heads(tmp_path):
    out = tmp_path / "heads.png"
    path = lessons.checkpoint(lessons.folder(), "v2")
    assert saved_recipe(path) == lessons.lesson("v2").recipe
    assert load_checkpoint(path).config == lessons.lesson("v2").config
    assert main(["sample", str(path), "--count", "2", "--steps", "2", "--out", str(out)]) == 0
    assert matplotlib.image.imread(out).std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "nowhere"], "a checkpoint ends in"),
        (["sample", "nowhere.safetensors"], "no such file: 'nowhere.safetensors'"),
        (["train", "hae", "--preset", "brats128", "--data", "digits"], "this model takes images of 4 channels"),
        (["train", "hae", "--set", "mlp=wide"], "unknown mlp 'wide'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_others_has_no_recipe(trained, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    notes = {"config": json.loads(config("v2", "tiny", mlp_ratio=0.5).to_json())}
    save_file(load_file(trained / WEIGHTS), tmp_path / WEIGHTS, {"hae_lab": json.dumps(notes)})
    assert main(["sample", str(tmp_path)]) == 2
    assert "carries no recipe: pass the Recipe" in capsys.readouterr().err


# a study's figures


def test_every_study_has_its_figures():
    rows = study_rows().assign(data="phantoms", params=5)
    curves = curve_rows()[0].assign(data="phantoms")
    figures, left_out = study_figures(rows, curves)
    assert list(figures) == ["forest", "curves"]
    assert left_out == []
    assert figures["forest"].png() == plots.forest(rows).png()
    doses = rows.assign(mlp_ratio=rows["cell"].map({"unet": 0.5, "hae": 4, "lite": 2, "v2": 0.25}), macs=3)
    assert single_factor(doses) == "mlp_ratio"
    assert list(study_figures(doses, curves)[0]) == ["forest", "dose", "curves"]
    assert single_factor(doses.assign(steps=doses["mlp_ratio"])) is None


def test_each_data_set_has_figures_of_its_own():
    rows = pd.concat([study_rows().assign(data=data, params=5) for data in ("phantoms", "digits")])
    curves = pd.concat([curve_rows()[0].assign(data=data) for data in ("phantoms", "digits")])
    assert list(study_figures(rows, curves)[0]) == [
        "forest_phantoms",
        "curves_phantoms",
        "forest_digits",
        "curves_digits",
    ]


def test_what_cannot_be_drawn_is_named():
    rows, curves = study_rows(["v2"]).assign(data="phantoms", params=5), curve_rows(["v2"])[0].assign(data="phantoms")
    figures, left_out = study_figures(rows, curves)
    assert list(figures) == ["curves"]
    assert left_out == ["forest: a comparison needs two or more cells, got ['v2']"]


def test_curves_compare_the_pairs_that_the_study_declares():
    rows = study_rows().assign(data="phantoms", params=5, role="question", margin_percent=50.0)
    rows["reference"] = rows["cell"].map({"lite": "hae", "v2": "hae", "unet": "hae"})
    figures, _ = study_figures(rows, curve_rows()[0].assign(data="phantoms"))
    assert "3 pairs" in " ".join(figures["curves"].get_suptitle().split())


# benchmarks


def test_bench_leaves_committed_rows_alone_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        benchmarks.BENCHMARKS, "masks", lambda device: pd.DataFrame({"way": ["mine"], "ms_median": [1.5]})
    )
    (tmp_path / "data").mkdir()
    committed = tmp_path / "data" / "bench_masks_cpu.csv"
    committed.write_text("way,device_name\ntheirs,elsewhere\n")
    assert main(["bench", "masks"]) == 0
    assert committed.read_text() == "way,device_name\ntheirs,elsewhere\n"
    assert "mine" in (tmp_path / "runs" / "data" / committed.name).read_text()
    assert main(["bench", "masks", "--out", "."]) == 0
    assert {"mine", "theirs"} <= set(re.findall(r"\w+", committed.read_text()))
