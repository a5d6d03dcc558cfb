"""Image sets: phantoms and their lesions, digits, folders, the contract for any dataset, and the grid of images."""

import builtins
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from hae_lab import HAELabError, config
from hae_lab.diffusion import data
from hae_lab.diffusion.data import (
    ImageSet,
    MappedDataset,
    check_dataset,
    data_key,
    digits,
    folder,
    phantoms,
    split_dataset,
    to_image,
)
from hae_lab.plots.images import image_grid

SIZES = (8, 16, 32, 50)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


def same(first: ImageSet, second: ImageSet) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)


# phantoms


@pytest.mark.parametrize("size", SIZES)
def test_phantoms_keep_the_contract(size):
    heads = phantoms(7, size, lesions=0.5)
    assert heads.images.shape == heads.masks.shape == (7, 1, size, size)
    assert heads.images.dtype == torch.float32
    assert heads.masks.dtype == torch.bool
    assert -1 == heads.images.min() < heads.images.max() <= 1
    assert heads.labels.tolist() == heads.masks.flatten(1).any(1).long().tolist()
    check_dataset(heads)


@pytest.mark.parametrize("size", SIZES)
def test_every_head_is_whole_and_the_background_exactly_black(size):
    images = phantoms(40, size, seed=4).images[:, 0]
    assert (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == -1).all()
    shares = (images > -1).flatten(1).float().mean(1)
    assert 0.4 < shares.min() < shares.max() < 0.8


def test_same_seed_same_bytes_and_another_differs():
    assert same(phantoms(5, lesions=0.5), phantoms(5, lesions=0.5))
    assert not same(phantoms(5, lesions=0.5), phantoms(5, seed=1, lesions=0.5))


@pytest.mark.parametrize("size", [16, 64])
def test_more_images_begin_with_the_same_ones(size):
    many = phantoms(60, size, lesions=0.5)  # more than one chunk
    assert same(many.select(range(5)), phantoms(5, size, lesions=0.5))
    assert same(many.select(range(31)), phantoms(31, size, lesions=0.5))


def test_splits_share_no_head():
    train, held_out = (phantoms(200, seed=0, split=split).images.flatten(1) for split in data.SPLITS)
    assert torch.cdist(train, held_out).min() > 1
    assert torch.cdist(train, phantoms(200, seed=1).images.flatten(1)).min() > 1


def test_global_random_states_are_untouched(random_states):
    before = random_states()
    phantoms(3, lesions=True)
    split_dataset(digits(8), seed=3)
    assert random_states() == before


@pytest.mark.parametrize("size", SIZES)
def test_a_lesion_brightens_its_mask_and_nothing_else(size):
    healthy, ill = phantoms(40, size, seed=2), phantoms(40, size, seed=2, lesions=True)
    assert ill.labels.all()
    assert not healthy.labels.any()
    assert not healthy.masks.any()
    changed = (ill.images - healthy.images)[ill.masks]
    assert torch.equal(ill.images[~ill.masks], healthy.images[~ill.masks])
    assert changed.min() >= 0
    assert changed.mean() > 0.2
    assert (ill.images[ill.masks] > -1).all()  # inside the head


@pytest.mark.parametrize("size", [8, 16, 32])
def test_no_lesion_is_lost_between_pixels(size):
    masks = phantoms(400, size, seed=9, lesions=True).masks.flatten(1)
    assert masks.any(1).all()
    assert masks.float().mean(1).max() < 0.25


def test_lesions_lie_anywhere_in_the_brain():
    heat = phantoms(600, lesions=True).masks.float().mean(0)[0]
    assert (heat[5:11, 5:11] > 0.02).all()
    assert (heat[[0, 1, -2, -1]] == 0).all()


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_fraction_of_lesions(fraction):
    few, all_ = phantoms(300, lesions=fraction), phantoms(300, lesions=True)
    assert few.labels.float().mean() == pytest.approx(fraction, abs=0.07)
    ill = few.labels.bool()
    assert torch.equal(few.masks[ill], all_.masks[ill])


def test_another_size_shows_the_same_heads():
    small, large = phantoms(40, 32, noise=0).images, phantoms(40, 64, noise=0).images
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    gaps = torch.cdist(small.flatten(1), reduced.flatten(1))
    assert torch.equal(gaps.argmin(1), torch.arange(40))


def test_contrast_scales_what_a_lesion_adds():
    healthy, half, full = (phantoms(60, lesions=True, contrast=value, noise=0).images for value in (0, 0.5, 1))
    assert torch.allclose(half - healthy, (full - healthy) / 2, atol=1e-5)
    assert torch.equal(healthy, phantoms(60, noise=0).images)


def test_noise_and_bias_are_knobs():
    plain, noisy = phantoms(200, noise=0, bias=0).images, phantoms(200, noise=0.1, bias=0).images
    middle = slice(6, 10)
    grain = (noisy - plain)[..., middle, middle]
    assert grain.std() == pytest.approx(0.1, rel=0.05)
    assert abs(grain.mean()) < 0.01
    uneven = phantoms(200, noise=0, bias=0.3).images
    assert (uneven - plain).flatten(1).std() > 0.1


def test_the_data_version_follows_the_drawing():
    """If the pictures were meant to change, raise PHANTOM_VERSION and put the new numbers here."""
    heads = phantoms(50, lesions=0.5)
    numbers = [heads.images.mean().item(), heads.images.std().item(), heads.masks.float().mean().item()]
    assert (data.PHANTOM_VERSION, numbers) == (1, pytest.approx([-0.51788, 0.52111, 0.01492], abs=2e-4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is a whole number from 1, got 0"),
        ({"count": 2.0}, "count is a whole number from 1, got 2.0"),
        ({"size": 4}, "size is a whole number from 8 to 256, got 4"),
        ({"size": 512}, "size is a whole number from 8 to 256, got 512"),
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
        ({"lesions": 1.5}, "lesions is a number from 0 to 1, got 1.5"),
        ({"lesions": "some"}, "lesions is a number from 0 to 1, got 'some'"),
        ({"contrast": 2}, "contrast is a number from 0 to 1, got 2"),
        ({"noise": float("nan")}, "noise is a number from 0 to 1, got nan"),
        ({"bias": -0.1}, "bias is a number from 0 to 1, got -0.1"),
        ({"split": "heldout"}, "unknown split 'heldout': did you mean 'held-out'?"),
    ],
)
def test_phantoms_refuse_with_the_value(options, message):
    with refused(message):
        phantoms(**{"count": 1, **options})


# image sets


def test_items_make_batches():
    heads = phantoms(6, lesions=0.5)
    batch = next(iter(DataLoader(heads, batch_size=6)))
    assert torch.equal(batch["image"], heads.images)
    assert torch.equal(batch["label"], heads.labels)
    assert torch.equal(batch["mask"], heads.masks)
    assert len(list(heads)) == len(heads) == 6
    assert torch.equal(heads[-1]["image"], heads.images[5])


def test_image_set_says_what_it_is_in_a_line():
    assert len(repr(phantoms(6))) < 300
    assert "count=6 size=16 seed=0" in repr(phantoms(6))


def one_pixel(value: float) -> torch.Tensor:
    """Grey images (2, 1, 4, 4) of which one pixel has this value."""
    images = torch.zeros(2, 1, 4, 4)
    images[1, 0, 2, 3] = value
    return images


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": torch.zeros(1, 4, 4)}, "images are (N, C, H, W) with N above 0, got (1, 4, 4)"),
        ({"images": torch.zeros(0, 1, 4, 4)}, "images are (N, C, H, W) with N above 0, got (0, 1, 4, 4)"),
        ({"images": torch.zeros(2, 1, 4, 4).double()}, "got torch.float64: image.float()"),
        ({"images": torch.full((2, 1, 4, 4), 9.0)}, "values in [-1, 1], got 9 to 9: image / 127.5 - 1"),
        ({"images": np.zeros((2, 1, 4, 4), np.float32)}, "images: a torch tensor, got a ndarray: torch.as_tensor"),
        ({"images": one_pixel(float("inf"))}, "images: values in [-1, 1], but some are NaN or infinite"),
        ({"images": one_pixel(float("nan"))}, "images: values in [-1, 1], but some are NaN or infinite"),
        ({"labels": [0, 1]}, "labels: a torch tensor, got a list: torch.as_tensor converts it"),
        ({"masks": [True, False]}, "masks: a torch tensor, got a list"),
        ({"labels": torch.zeros(3).long()}, "labels: torch.int64 of shape (2,), got torch.int64 of shape (3,)"),
        ({"masks": torch.zeros(2, 1, 4, 4)}, "masks: torch.bool of shape (2, 1, 4, 4), got torch.float32"),
    ],
)
def test_image_set_refuses(parts, message):
    with refused(message):
        ImageSet(**{"images": torch.zeros(2, 1, 4, 4), **parts})


@pytest.mark.parametrize("kind", ["own", "other"])
def test_split_dataset_is_a_partition(kind):
    numbers = torch.linspace(-1, 1, 50)[:, None, None, None].expand(50, 1, 2, 2).contiguous()
    dataset = ImageSet(images=numbers, labels=torch.arange(50))
    whole = dataset if kind == "own" else MappedDataset(dataset, dict)
    parts = split_dataset(whole, 0.2, seed=1)
    labels = [[item["label"] for item in map(part.__getitem__, range(len(part)))] for part in parts]
    assert [len(part) for part in parts] == [40, 10]
    assert sorted(labels[0] + labels[1]) == list(range(50))
    again, other = split_dataset(whole, 0.2, seed=1)[1], split_dataset(whole, 0.2, seed=2)[1]
    assert data_key(again) == data_key(parts[1]) != data_key(other)
    assert isinstance(parts[0], ImageSet if kind == "own" else Subset)


@pytest.mark.parametrize("held_out", [0, 1, 0.001])
def test_split_dataset_refuses_an_empty_part(held_out):
    with refused(f"held_out={held_out} of 20 images leaves a part empty"):
        split_dataset(phantoms(20), held_out)


@pytest.mark.parametrize(
    ("dataset", "held_out", "message"),
    [
        (None, float("nan"), "held_out is in [0, 1], got nan"),
        (None, "0.2", "held_out is in [0, 1], got '0.2'"),
        (None, 5, "held_out is in [0, 1], got 5"),
        (iter([1, 2]), 0.2, "a dataset has len(dataset) and dataset[i]; list_iterator is a stream or no dataset"),
        ({1, 2}, 0.2, "a dataset has len(dataset) and dataset[i]; set is a stream or no dataset"),
        ([], 0.2, "the dataset is empty"),
    ],
)
def test_split_dataset_refuses(dataset, held_out, message):
    with refused(message):
        split_dataset(phantoms(20) if dataset is None else dataset, held_out)


def test_numbers_of_numpy_are_numbers():
    plain = split_dataset(phantoms(20, lesions=0.5), 0.25)
    of_numpy = split_dataset(
        phantoms(np.int64(20), np.int32(16), lesions=np.float32(0.5)), np.float64(0.25), np.int8(0)
    )
    assert [data_key(part) for part in plain] == [data_key(part) for part in of_numpy]
    assert torch.equal(plain[0].images, of_numpy[0].images)


# data keys


def test_data_key_names_the_recipe():
    recipes = [
        {},
        {"seed": 1},
        {"lesions": 0.5},
        {"contrast": 0.5},
        {"noise": 0},
        {"bias": 0},
        {"split": "held-out"},
        {"size": 32},
    ]
    keys = {data_key(phantoms(2, **recipe)) for recipe in recipes} | {data_key(phantoms(3)), data_key(digits(16))}
    assert len(keys) == len(recipes) + 2
    assert data_key(phantoms(2, lesions=True)) == data_key(phantoms(2, lesions=1.0))
    assert data_key(phantoms(2)) == (
        "phantoms v1: count=2 size=16 seed=0 lesions=0.0 contrast=1.0 noise=0.03 bias=0.05 split=train"
    )


def test_data_key_without_a_name_is_the_content():
    images = phantoms(4).images
    plain, labelled = ImageSet(images=images), ImageSet(images=images, labels=torch.arange(4))
    assert data_key(plain) == data_key(ImageSet(images=images.clone()))
    assert len({data_key(plain), data_key(labelled), data_key(ImageSet(images=images.flip(0)))}) == 3
    assert data_key(plain).startswith("ImageSet: count=4 sha256=")


def test_data_key_refuses_items_that_change():
    generator = torch.Generator().manual_seed(0)
    shaky = MappedDataset(phantoms(4), lambda item: {"image": torch.rand(1, 8, 8, generator=generator) - 1})
    with refused("item 0 changes from one reading to the next: give the dataset a `key`"):
        data_key(shaky)
    shaky.key = "random crops, version 3"
    assert data_key(shaky) == "random crops, version 3"


# digits


def test_digits():
    dataset = digits(16)
    assert dataset.images.shape == (1797, 1, 16, 16)
    assert dataset.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert dataset.classes == tuple("0123456789")
    check_dataset(dataset, config("hae", "lesson16", num_classes=10))


def test_digits_at_their_own_size_are_scikit_learns():
    from sklearn.datasets import load_digits

    assert np.array_equal((digits(8).images[:, 0].numpy() + 1) * 8, load_digits().images)


def test_digits_name_the_missing_package(monkeypatch):
    real = builtins.__import__

    def without_sklearn(name, *args, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with refused("pip install scikit-learn"):
        digits()


# folders


def save(path, shape=(12, 12), value=None, **options):
    """A PNG (or what the suffix says) of the given (H, W) or (H, W, 3), grey ramp or one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.linspace(0, 255, int(np.prod(shape))).reshape(shape) if value is None else np.full(shape, value)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


@pytest.fixture
def pictures(tmp_path):
    """b/2.PNG, a/1.png and a/deep/3.png, grey values 200, 100 and 0; and a text."""
    for name, value in (("b/2.PNG", 200), ("a/1.png", 100), ("a/deep/3.png", 0)):
        save(tmp_path / name, value=value)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def break_picture(path):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(content, "png")
    path.write_bytes(content.getvalue()[:500])


def test_folder_is_read_recursively_in_order(pictures):
    dataset = folder(pictures)
    assert dataset.images[:, 0, 0, 0].tolist() == pytest.approx([100 / 127.5 - 1, -1, 200 / 127.5 - 1])
    assert dataset.images.shape == (3, 1, 12, 12)
    assert (dataset.labels, dataset.skipped) == (None, ())
    check_dataset(dataset)


def test_folder_takes_classes_from_its_folders(pictures):
    dataset = folder(pictures, labels=True)
    assert (dataset.classes, dataset.labels.tolist()) == (("a", "b"), [0, 0, 1])
    save(pictures / "loose.png")
    with refused("but loose.png lie in none"):
        folder(pictures, labels=True)


def test_folder_resizes_the_middle_square(tmp_path):
    save(tmp_path / "wide.png", (10, 30))
    save(tmp_path / "tall.jpg", (30, 10), value=255)
    with refused("the pictures have 2 sizes (tall.jpg is 10 x 30, wide.png is 30 x 10): pass size="):
        folder(tmp_path)
    tall, wide = folder(tmp_path, size=8).images
    assert tall.shape == wide.shape == (1, 8, 8)
    assert tall.min() == 1
    assert wide[0, :, 0].mean() > -1 + 10 / 127.5 * 0.5  # the left third is cut off


def test_folder_names_broken_files_and_skips_them_only_if_asked(pictures):
    break_picture(pictures / "a/cut.png")
    (pictures / "b/text.png").write_text("no picture")
    with refused("2 of 5 pictures cannot be read (repair or remove them, or pass on_error='skip'): a/cut.png ("):
        folder(pictures)
    dataset = folder(pictures, on_error="skip")
    assert len(dataset) == 3
    assert dataset.skipped == ("a/cut.png", "b/text.png")


def test_folder_with_nothing_left_is_an_error_even_if_skipping(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with refused("7 of 7 pictures cannot be read (none is left): 0.png (cannot identify image file") as error:
        folder(tmp_path, on_error="skip")
    assert str(error.value).endswith("and 2 more")
    assert str(tmp_path) not in str(error.value)


def test_folder_refuses(tmp_path):
    with refused(f"no picture below {str(tmp_path)!r}: looked for .bmp"):
        folder(tmp_path)
    with refused("no such folder: 'nowhere'"):
        folder("nowhere")
    with refused("unknown on_error 'ignore': known are raise, skip"):
        folder(tmp_path, on_error="ignore")
    save(tmp_path / "a.png")
    with refused("channels is 1 (grey) or 3 (RGB), got 4"):
        folder(tmp_path, channels=4)
    with refused("size is a whole number from 1, got 0"):
        folder(tmp_path, size=0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_to_image_takes_every_common_mode(mode, channels):
    grey = Image.fromarray(np.full((5, 7), 255, np.uint8))
    picture = Image.fromarray(np.full((5, 7), 65535, np.uint16)) if mode == "I;16" else grey.convert(mode)
    assert torch.allclose(to_image(picture, channels=channels), torch.ones(channels, 5, 7))
    assert to_image(picture, size=4, channels=channels).shape == (channels, 4, 4)


def test_to_image_keeps_16_bits_and_colours():
    deep = to_image(Image.fromarray(np.array([[0, 257 * 100, 257 * 100 + 128]], np.uint16)))
    assert deep[0, 0].tolist() == pytest.approx([-1, 100 / 127.5 - 1, (100 + 128 / 257) / 127.5 - 1])
    red = to_image(Image.new("RGB", (2, 2), (255, 0, 0)), channels=3)
    assert red[:, 0, 0].tolist() == [1, -1, -1]
    with refused("a picture of mode 'F' has no known range"):
        to_image(Image.new("F", (2, 2)))


# any dataset


class Items:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


class Stream(IterableDataset):
    def __iter__(self):
        yield {}


def image(*shape, value=-0.5):
    return torch.full(shape or (1, 16, 16), value)


def test_check_dataset_takes_items_as_torchvision_and_hugging_face_give_them():
    picture = Image.new("L", (20, 20), 30)
    pairs, rows = Items((picture, 3)), Items({"image": picture, "label": 3, "file": "a.png"})
    model = config("v2", "lesson16", num_classes=4)
    check_dataset(MappedDataset(pairs, lambda pair: {"image": to_image(pair[0], 16), "label": pair[1]}), model)
    check_dataset(MappedDataset(rows, lambda row: {**row, "image": to_image(row["image"], 16)}), model)
    check_dataset(Items({"image": image(), "label": np.int64(1)}, {"image": image(), "label": torch.tensor(-1)}), model)


GOOD = {"image": image(), "label": 1, "mask": torch.zeros(1, 16, 16, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "a dataset has len(dataset) and dataset[i]; Stream is a stream or no dataset"),
        (Items(), "the dataset is empty"),
        (Items((image(), 1)), "got a tuple: wrap the dataset in MappedDataset"),
        (Items({"img": image()}), "got keys ['img']: wrap the dataset in MappedDataset"),
        (Items({"image": Image.new("L", (4, 4))}), "the image of item 0: a torch tensor, got a Image: to_image"),
        (Items({"image": image(1, 0, 0)}), "the image of item 0: no pixel in (1, 0, 0)"),
        (Items({"image": image(16, 16)}), "is (C, H, W) with at most 4 channels, got (16, 16)"),
        (Items({"image": image(16, 16, 3)}), "got (16, 16, 3), which looks like (H, W, C): image.permute(2, 0, 1)"),
        (Items({"image": image().byte()}), "float32 in [-1, 1], got torch.uint8: image / 127.5 - 1"),
        (Items({"image": image().double()}), "got torch.float64: image.float()"),
        (Items({"image": image(value=255.0)}), "got 255 to 255: image / 127.5 - 1 maps 0-255 to it"),
        (Items({"image": image(value=-1.5)}), "got -1.5 to -1.5: clamp or rescale"),
        (Items({"image": np.zeros((1, 4, 4))}), "the image of item 0: a torch tensor, got a ndarray: torch.as_tensor"),
        (Items({"image": image(value=float("nan"))}), "values in [-1, 1], but some are NaN or infinite"),
        (Items({"image": image(value=0.5)}), "the range looks like [0, 1]: take 2 * image - 1"),
        (Items(GOOD, {**GOOD, "label": 0.5}), "the label of item 1 is a whole number, got 0.5"),
        (Items({**GOOD, "mask": None}), "the mask of item 0: a torch tensor, got a NoneType"),
        (Items({**GOOD, "mask": image()}), "got torch.float32 of shape (1, 16, 16)"),
        (
            Items({**GOOD, "mask": torch.ones(16, 16).bool()}),
            "the mask of item 0: torch.bool of shape (1, 16, 16), got",
        ),
        (Items(GOOD, {"image": image()}), "all items are alike, but item 0 has"),
        (Items({"image": image()}, {"image": image(1, 8, 8)}), "and item 1 has {'shape': (1, 8, 8)"),
    ],
)
def test_check_dataset_says_what_is_wrong(dataset, message):
    with refused(message):
        check_dataset(dataset)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"image": image(1, 32, 32)},
            "the image of item 0 is (1, 32, 32), but the config has in_channels=1 and image_size=16: "
            "resize the images to (1, 16, 16), or change the config",
        ),
        ({"image": image(3, 16, 16)}, "is (3, 16, 16), but the config has in_channels=1"),
        ({"image": image()}, "the config has num_classes=2, but item 0 has no label"),
        (
            {"image": image(), "label": 2},
            "the label of item 0 is 2: num_classes=2 allows 0 to 1, and -1 for no label",
        ),
    ],
)
def test_check_dataset_compares_with_the_config(item, message):
    with refused(message):
        check_dataset(Items(item), config("hae", "lesson16", num_classes=2))


def test_check_dataset_looks_from_end_to_end():
    items = [{"image": image()}] * 999 + [{"image": image(value=3.0)}]
    with refused("the image of item 999: values in [-1, 1], got 3 to 3"):
        check_dataset(Items(*items), limit=10)


# the grid


@pytest.mark.parametrize(
    ("count", "options", "shape"),
    [
        (1, {}, (1, 1)),
        (12, {}, (3, 4)),
        (6, {"titles": list("abcdef")}, (2, 3)),
        (8, {"titles": list("abcd")}, (2, 4)),
        (6, {"row_titles": ["HAE", "Lite", "V2"]}, (3, 2)),
        (7, {"columns": 3}, (3, 3)),
    ],
)
def test_image_grid_lays_out_rows(count, options, shape):
    heads = phantoms(count, lesions=0.5)
    figure = image_grid(heads.images, title="Heads", masks=heads.masks, **options)
    first = figure.axes[0].get_subplotspec().get_gridspec()
    assert (first.nrows, first.ncols) == shape
    assert sum(len(ax.images) for ax in figure.axes) == count
    assert all(not ax.get_xticks().size for ax in figure.axes)
    assert figure.get_figwidth() / figure.get_figheight() >= 4 / 3 - 1e-9
    assert figure.png()[:4] == b"\x89PNG"


def test_image_grid_has_one_scale_and_outlines_masks():
    images = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 4, 4)
    masks = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    masks[1, 0, 1, 2] = True
    axes = image_grid(images, masks=masks).axes
    assert [np.unique(ax.images[0].get_array()).tolist() for ax in axes[:3]] == [[0], [0.5], [1]]
    edges = np.concatenate([line.get_segments() for line in axes[1].collections])
    assert len(edges) == 4
    assert edges.min((0, 1)).tolist() == [1.5, 0.5]
    assert edges.max((0, 1)).tolist() == [2.5, 1.5]


def test_image_grid_shows_colour():
    colour = image_grid(torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 4, 4)).axes[0]
    assert colour.images[0].get_array()[0, 0].tolist() == [1, 0, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": np.zeros((4, 8, 8))}, "images are (N, 1 or 3, H, W) with N above 0, got (4, 8, 8)"),
        ({"titles": ["a", "b", "c"], "columns": 2}, "titles: 2 or 4 of them, got 3"),
        ({"row_titles": ["a"], "columns": 2}, "row_titles: 2 of them, got 1"),
        ({"masks": np.zeros((4, 8, 8), bool)}, "masks are one an image, (4, 1, 8, 8), got (4, 8, 8)"),
    ],
)
def test_image_grid_refuses(options, message):
    with refused(message):
        image_grid(**{"images": np.zeros((4, 1, 8, 8)), **options})
