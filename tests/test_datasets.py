"""Data sets by name: real whatever traces while they are loaded, and a clear word about what is none."""

import re
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hae_lab import HAELabError
from hae_lab.diffusion import datasets
from hae_lab.diffusion.data import digits, split_dataset
from hae_lab.diffusion.datasets import load_data
from hae_lab.diffusion.patterns import twins


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


@pytest.fixture
def nothing_loaded():
    datasets._loaded.cache_clear()
    yield
    datasets._loaded.cache_clear()


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("mode", [FakeTensorMode, torch.inference_mode, lambda: torch.device("meta")])
@pytest.mark.parametrize("name", ["digits", "twins"])
def test_images_are_real_whatever_traces(name, mode):
    with mode():
        load_data(name, 16)  # kept for all later runs
    train, _ = load_data(name, 16)
    right = split_dataset(digits(16))[0] if name == "digits" else twins(16).draw(len(train))
    for found, expected in ((train.images, right.images), (train.labels, right.labels)):
        assert type(found) is type(expected)
        if found is not None:
            assert not found.is_inference()
            assert torch.equal(found, expected)


@pytest.fixture
def targets(monkeypatch, tmp_path):
    """A module of what one might take for a data set."""
    (tmp_path / "no_images.py").write_text(
        "number = 3\n"
        "images = [[1], [2]]\n"
        "def three(size):\n    return [0], [1], [2]\n"
        "def numbers(size):\n    return 1, 2\n"
        "def streams(size):\n    return iter([1]), iter([2])\n"
        "def empty(size):\n    return [1], []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("no_images", None)


@pytest.mark.usefixtures("targets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "a data set is named by a text, got None"),
        (3, "a data set is named by a text, got 3"),
        (["twins"], "a data set is named by a text, got ['twins']"),
        ("", "unknown data set '': known are phantoms"),
        ("no_images:number", "data set 'no_images:number' is a function of the image size, got 3"),
        ("no_images:images", "data set 'no_images:images' is a function of the image size, got [[1], [2]]"),
        ("no_images:three", "three returns (train, held-out), two data sets, got ([0], [1], [2])"),
        ("no_images:numbers", "a dataset has len(dataset) and dataset[i]; int is a stream or no dataset"),
        ("no_images:streams", "list_iterator is a stream or no dataset"),
        ("no_images:empty", "the dataset is empty"),
    ],
)
def test_what_is_no_data_set_is_refused(name, message):
    with refused(message):
        load_data(name, 16)


@pytest.mark.parametrize("size", [0, 16.0, "16", None, True])
def test_a_size_that_is_none_is_refused(size):
    with refused("size is a whole number from 1"):
        load_data("twins", size)
