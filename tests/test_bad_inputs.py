"""What nobody could mean is refused in one line, that says what is wrong; what numpy says is taken as Python's."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image

import hae_lab
from hae_lab import HAELabError, rules
from hae_lab.checks import MOST_SEED, require_seed, require_whole
from hae_lab.diffusion import quality
from hae_lab.diffusion.data import ImageSet, MappedDataset, folder, phantoms, to_image
from hae_lab.diffusion.datasets import DATA, load_data
from hae_lab.diffusion.sampling import sample
from hae_lab.diffusion.training import Recipe, train
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.presets import VARIANTS, register_variant
from hae_lab.study import Study
from hae_lab.study.store import Store
from hae_lab.study.task import checked_metrics

IMAGES = phantoms(4, 16).images
TINY = hae_lab.config("v2", "tiny", num_classes=None)
GRID = TokenGrid(8, 8, (1, 4))
LESION = torch.eye(16, dtype=torch.bool).expand(4, 1, 16, 16)


def tiny(**options) -> Study:
    return Study(**{"name": "s", "grid": {"variant": ["v2"]}, "preset": "tiny"} | options)


def raising(size: int):
    raise OSError("the disk is away")


def with_pixel(value: float) -> torch.Tensor:
    images = IMAGES.clone()
    images[0, 0, 0, 0] = value
    return images


REFUSED = {
    # numbers that no computer could bear
    "seed": (lambda: phantoms(2, 16, 2**63), f"seed is at most {MOST_SEED:,}, got {2**63}"),
    "mask seed": (lambda: TINY.replace(mask_seed=2**63), "mask_seed is at most"),
    "batch": (lambda: Recipe(batch_size=10**9), "batch_size is at most 65,536, got 1000000000"),
    "chain": (lambda: Recipe(timesteps=10**9), "timesteps is at most 100,000, got 1000000000"),
    "steps": (lambda: Recipe(steps=10**30), "steps is at most 1,000,000,000"),
    "blocks": (lambda: TINY.replace(num_res_blocks=10**12), "num_res_blocks is at most 1,000, got 1000000000000"),
    "width": (lambda: TINY.replace(model_channels=2**20), "model_channels is at most 65,536"),
    "patches": (lambda: TINY.replace(patch_sizes=(1, 10**9)), "each of patch_sizes is at most 65,536"),
    "ratio": (lambda: TINY.replace(mlp_ratio=1e300), "mlp_ratio is at most 1,024, got 1e+300"),
    "levels": (lambda: TINY.replace(channel_mult=(1,) * 17, image_size=2**16), "channel_mult has at most 16 levels"),
    "memory": (lambda: rules.mask_for("document", TokenGrid(10**6, 10**6, (1,))), "needs more memory than there is"),
    "phantoms": (lambda: phantoms(10**12), "count is at most 16,777,216"),
    "samples": (lambda: sample(hae_lab.build(TINY), 10**12), "count is at most 1,000,000"),
    "seeds": (lambda: tiny(seeds=10**9), "a study has at most 100,000 seeds, got 1000000000"),
    "range of seeds": (lambda: tiny(seeds=range(10**30)), "a study has at most 100,000 seeds, got range("),
    "range in a grid": (
        lambda: tiny(grid={"mask_seed": range(10**9)}),
        "mask_seed has more values than the 10,000 cells",
    ),
    "runs": (lambda: tiny(grid={"mask_seed": range(101)}, seeds=10**4), "at most 1,000,000 runs, 's' has 1,010,000"),
    "seed of a study": (lambda: tiny(seeds=[2**63]), "a seed is at most"),
    "workers": (lambda: tiny().cost("s.sqlite", workers=10**6), "workers is at most"),
    "label": (lambda: tiny(grid={"variant": ["v2"], "label": "{variant:>999999999}"}), "may hold fields of its cell"),
    # shares that are percentages
    "sparsity of a config": (lambda: TINY.replace(sparsity=90), "sparsity is in [0, 1), got 90"),
    "sparsity of a mask": (lambda: rules.mask_for("document", GRID, 90), "sparsity is in [0, 1), got 90"),
    "sparsity of a rule": (lambda: rules.document(GRID, 90, 0), "sparsity is in [0, 1), got 90"),
    "sparsity of a density": (lambda: rules.expected_density("window2d", GRID, 90), "sparsity is in [0, 1), got 90"),
    # configs that cannot run
    "head groups": (
        lambda: TINY.replace(image_size=64, mask_rule="spatial_reduction", patch_sizes=(1, 2, 4, 8)),
        "over the 3 regional scales of a 32 x 32 map, which mstb_heads=8 cannot: take a multiple of 3",
    ),
    "json": (lambda: hae_lab.HAEConfig.from_json(None), "not a config in JSON"),
    # data
    "labels": (lambda: ImageSet(images=IMAGES, labels=[0] * 4), "labels: a torch tensor, got a list"),
    "array": (lambda: ImageSet(images=IMAGES.numpy()), "images: a torch tensor, got a ndarray: torch.as_tensor"),
    "place": (lambda: ImageSet(images=IMAGES).select([4]), "a place is a whole number from 0 to 3, got 4"),
    "no name": (lambda: load_data(None, 16), "a data set is named by a text, got None"),
    "no function": (lambda: load_data("json:__name__", 16), "is a function of the image size, got 'json'"),
    "no pair": (lambda: load_data("math:sqrt", 16), "sqrt returns (train, held-out), two data sets, got 4.0"),
    "raises": (lambda: load_data("test_bad_inputs:raising", 16), "raising gives no data at size 16: OSError: the disk"),
    "size": (lambda: load_data("phantoms", 10**9), "size is at most 65,536"),
    "no folder": (lambda: folder(None), "a folder is a path, got None"),
    "no picture": (lambda: to_image(np.zeros((8, 8))), "a PIL picture is needed, got a ndarray"),
    "32 bits": (
        lambda: to_image(Image.fromarray(np.full((8, 8), 65_536, np.int32))),
        "0 to 65,535, got 65536 to 65536",
    ),
    # measures
    "NaN in images": (lambda: quality.restore(hae_lab.build(TINY), with_pixel(np.nan)), "1 of 1,024 values are NaN"),
    "inf in images": (lambda: quality.anomaly_maps(hae_lab.build(TINY), with_pixel(np.inf)), "1 of 1,024 values are"),
    "NaN in a map": (
        lambda: quality.detection(with_pixel(np.nan), LESION),
        "a map has a value that is no finite number",
    ),
    "masks of floats": (
        lambda: quality.detection(IMAGES, LESION.float()),
        "masks and inside of bool, got torch.float32",
    ),
    "NaN in samples": (lambda: quality.mmd(with_pixel(np.nan), IMAGES), "1 of 1,024 values are NaN or infinite"),
    "no projection": (
        lambda: quality.sliced_wasserstein(IMAGES, IMAGES, projections=0),
        "projections is a whole number",
    ),
    "no splits": (lambda: quality.real_floor(IMAGES, splits=0), "splits is a whole number from 1, got 0"),
    "no image": (lambda: quality.denoising_loss(hae_lab.build(TINY), []), "the dataset is empty"),
    "no batch": (lambda: sample(hae_lab.build(TINY), 2, batch_size=0), "batch_size is a whole number from 1, got 0"),
    "guidance": (lambda: sample(hae_lab.build(TINY), 2, guidance=np.nan), "guidance is a finite number, got nan"),
    # studies
    "limit": (lambda: tiny(limit="many"), "limit is a whole number from 1, got 'many'"),
    "trial": (lambda: tiny(trial="math:pi"), "trial 'math:pi' is a function of an experiment and a folder, got 3.14"),
    "preset": (lambda: tiny(preset=["tiny"]), "a preset is named by a text, got ['tiny']"),
    "control": (lambda: tiny(controls={3: {"sparsity": 0.5}}), "a control is named by a text, got 3"),
    "attribute": (lambda: tiny(grid={"variant": ["v2"], "label": "{variant.x}"}), "may hold fields of its cell"),
    "no file": (lambda: Study.from_toml(None), "a study is in a file, got None"),
    # words in figures
    "formula": (lambda: register_variant("v9", "cheap $"), "words in one line, without '$'"),
    "two lines": (lambda: register_variant("v9", "two\nlines"), "words in one line"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_nobody_could_mean_is_one_clear_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HAELabError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


# numbers of numpy


@pytest.mark.parametrize("whole", [np.int64, np.int8, np.uint16, np.array])
def test_whole_numbers_of_numpy_are_pythons_wherever_they_are_taken(whole):
    assert type(require_whole("x", whole(3), 0)) is int
    assert type(require_seed("x", whole(3))) is int
    assert TINY.replace(num_res_blocks=whole(2), mask_seed=whole(3)) == TINY.replace(num_res_blocks=2, mask_seed=3)
    assert repr(Recipe(steps=whole(3))) == repr(Recipe(steps=3))
    assert tiny(seeds=whole(3)).seeds == (0, 1, 2)
    assert tiny(seeds=[whole(3), 1]).seeds == (1, 3)
    assert tiny(limit=whole(7)).limit == 7
    assert torch.equal(phantoms(whole(2), whole(16), whole(5)).images, phantoms(2, 16, 5).images)
    assert rules.mask_for("document", GRID, 0.9, whole(3)) is rules.mask_for("document", GRID, 0.9, 3)


@pytest.mark.parametrize("real", [np.float64, np.array])
def test_floats_of_numpy_are_pythons_wherever_they_are_taken(real):
    assert TINY.replace(sparsity=real(0.5)).to_json() == TINY.replace(sparsity=0.5).to_json()
    assert repr(Recipe(learning_rate=real(0.5))) == repr(Recipe(learning_rate=0.5))
    assert rules.mask_for("document", GRID, real(0.5)) is rules.mask_for("document", GRID, 0.5)


def test_a_sweep_of_numpy_names_the_same_runs_as_one_of_python():
    def keys(values, seeds):
        return [run.key for run in tiny(grid={"sparsity": values, "mask_seed": [seeds[0]]}, seeds=seeds).planned]

    assert keys(np.array([0.5, 0.75]), np.arange(2)) == keys([0.5, 0.75], [0, 1])
    assert keys([np.array(0.5), np.float64(0.75)], [np.int64(0), np.array(1)]) == keys([0.5, 0.75], [0, 1])


# masks of users


def any_mask(generator: np.random.Generator) -> SparseMask:
    """Intervals the right way round and not, blind head groups, columns named twice, shared rows, on tiny maps."""
    height, width = generator.integers(1, 5, 2)
    grid = TokenGrid(height, width, [(1,), (1, 2), (1, 2, 4)][generator.integers(3)])
    groups, share, columns = generator.integers(1, 3), int(generator.integers(1, 4)), generator.integers(0, 3)
    start, stop = generator.integers(0, grid.n + 1, (2, groups, grid.n)).astype(np.int32)
    if generator.random() < 0.3:
        start[:], stop[:] = start[:, :1], stop[:, :1]
    if generator.random() < 0.2:
        stop[0] = start[0]
    shape = (1 if generator.random() < 0.5 else groups, -(-grid.n // share), columns)
    extra = generator.integers(-1, grid.n, shape).astype(np.int32)
    always = tuple(generator.integers(0, grid.n + 1, 2).tolist()) if generator.random() < 0.3 else (0, 0)
    return SparseMask(grid, start, stop, extra, share, always)


def by_hand(mask: SparseMask, group: int) -> np.ndarray:
    """The matrix of a mask, (n, n) bool, as its definition says, key by key."""
    allowed = np.zeros((mask.grid.n, mask.grid.n), bool)
    for query in range(mask.grid.n):
        allowed[query, mask.start[group, query] : mask.stop[group, query]] = True
        allowed[query, mask.always[0] : mask.always[1]] = True
        for column in mask.extra[min(group, len(mask.extra) - 1), query // mask.share]:
            allowed[query, column] |= column >= 0
    return allowed


@pytest.mark.parametrize("seed", range(60))
def test_every_kernel_runs_every_mask_that_a_user_makes(seed):
    mask = any_mask(np.random.default_rng(seed))
    matrices = [by_hand(mask, group) for group in range(mask.groups)]
    for group, matrix in enumerate(matrices):
        assert np.array_equal(mask.allowed(np.arange(mask.grid.n), group), matrix)
        assert np.array_equal(mask.keys_per_query(group), matrix.sum(1))
    generator = torch.Generator().manual_seed(seed)
    for batch in (2, 0):
        tokens = torch.randn(batch, mask.grid.n, 8, dtype=torch.float64, generator=generator)
        towards = torch.randn(batch, mask.grid.n_local, 8, dtype=torch.float64, generator=generator)
        found = {}
        for name in set(KERNELS) - {"native"}:  # which computes in single precision
            if name == "slices" and mask.intervals is None:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layer = SparseMultiheadAttention(8, 2, kernel=name).double()
            given = tokens.clone().requires_grad_()
            out = layer(given, mask)
            (out * towards).sum().backward()
            found[name] = out.detach(), given.grad
        for name, (out, slope) in found.items():
            assert torch.allclose(out, found["reference"][0], atol=1e-10), name
            assert torch.allclose(slope, found["reference"][1], atol=1e-10), name


START = np.zeros((1, GRID.n), np.int32)
NONE = np.empty((1, GRID.n, 0), np.int32)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"stop": START + GRID.n + 1},
            "stop of a mask of TokenGrid(height=8, width=8, patch_sizes=(1, 4)) goes from 0 to 68",
        ),
        ({"start": START - 1}, "start of a mask"),
        ({"start": START[:, :3]}, "has shape (1, 68), got (1, 3)"),
        ({"start": START[0]}, "start of a mask"),
        ({"stop": START + 0.5}, "stop of a mask is an array of whole numbers (1, 68), got dtype('float64')"),
        ({"extra": np.full((1, GRID.n, 1), GRID.n)}, "extra of a mask"),
        ({"extra": NONE[:, :3]}, "has shape (1, 68, any), got (1, 3, 0)"),
        ({"share": 0}, "share is how many queries read a row of columns, from 1 on, got 0"),
        ({"always": (0, GRID.n + 1)}, "always is first key and one past the last, from 0 to 68, got (0, 69)"),
        ({"grid": (8, 8)}, "a mask is over a TokenGrid, got (8, 8)"),
    ],
)
def test_a_mask_that_does_not_fit_its_tokens_is_refused(parts, message):
    with pytest.raises(HAELabError) as error:
        SparseMask(**{"grid": GRID, "start": START, "stop": START + 1, "extra": NONE} | parts)
    assert message in str(error.value)


@pytest.mark.parametrize("sizes", [(0, 8), (-8, 8), (8, 8, (1, 0)), ("a", 8), (8, None), (8, 8, 4)])
def test_a_grid_without_tokens_is_refused(sizes):
    with pytest.raises(HAELabError, match="the sizes of a grid of tokens are whole numbers from 1 on"):
        TokenGrid(*sizes)


def test_a_grid_takes_lists_and_numbers_of_numpy():
    assert TokenGrid(np.int64(8), np.array(8), [1, np.int64(4)]) == GRID
    assert hash(TokenGrid(8, 8, [1, 4])) == hash(GRID)


def test_masks_that_all_share_cannot_be_written_to_and_the_arrays_of_their_makers_can():
    mask = rules.mask_for("document", GRID)
    for array in (mask.start, mask.stop, mask.extra):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    own = START.copy()
    SparseMask(GRID, own, own + 1, NONE)
    own[0, 0] = 1


@pytest.mark.parametrize("shape", [(2, GRID.n + 40, 16), (2, GRID.n - 1, 16), (2, GRID.n, 8), (GRID.n, 16)])
def test_attention_refuses_tokens_of_another_mask(shape):
    layer, mask = SparseMultiheadAttention(16, 2), rules.mask_for("document", GRID)
    for call in (lambda tokens: layer(tokens, mask), lambda tokens: layer.weights(tokens, mask, torch.arange(3))):
        with pytest.raises(HAELabError, match=r"tokens are \(B, 68, 16\) for a mask of TokenGrid"):
            call(torch.zeros(shape))
    with pytest.raises(HAELabError, match="attention takes a SparseMask, got ndarray"):
        layer(torch.zeros(2, GRID.n, 16), mask.blocked())


# shared data, images that nobody looked at, the meta device


def test_images_that_somebody_wrote_into_are_drawn_again(monkeypatch):
    monkeypatch.setitem(DATA, "few", lambda size: (phantoms(4, size), phantoms(2, size, split="held-out")))
    first = load_data("few", 16)
    assert load_data("few", 16) is first
    first[0][0]["image"].zero_()
    again = load_data("few", 16)
    assert torch.equal(again[0].images, phantoms(4, 16).images)
    assert load_data("few", 16) is again


def test_images_that_only_a_batch_shows_are_not_trained_on():
    def item(place: int) -> dict:
        return {"image": IMAGES[0] if place % 2 == 0 else 127.5 * (IMAGES[0] + 1)}

    images = MappedDataset(range(511), item)  # of which the first look sees the even ones
    images.key = "half of them in 0-255"
    with pytest.raises(HAELabError, match=r"the images of step 1: values in \[-1, 1\], got -1 to 2\d\d"):
        train(TINY, images, Recipe(steps=1, batch_size=8), device="cpu")


def test_a_profile_under_the_meta_device_leaves_later_models_whole():
    config = TINY.replace(image_size=20, patch_sizes=(1, 5))  # a size of its own: nothing is cached yet
    with torch.device("meta"):
        hae_lab.profile(config)
        hae_lab.build(config)(torch.zeros(1, 1, 20, 20), torch.zeros(1))
    out = hae_lab.build(config)(torch.zeros(1, 1, 20, 20), torch.zeros(1))
    assert out.device.type == "cpu"
    assert bool(out.isfinite().all())


# trials and stores


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"seed": 1.0}, "metric 'seed': a study has a column 'seed' of its own; rename the metric"),
        ({"cell": 1.0}, "a study has a column 'cell' of its own"),
        ({"params": 1.0}, "a study has a column 'params' of its own"),
        ({"role": 1.0}, "a study has a column 'role' of its own"),
        ({"margin_percent_swd": 1.0}, "a study has a column 'margin_percent_swd' of its own"),
        ({"loss": "low"}, "metric 'loss' of mine is a finite number, got 'low'"),
        ({"loss": float("nan")}, "metric 'loss' of mine is a finite number, got nan"),
        ({3: 1.0}, "a trial returns a dictionary of metrics, mine returned {3: 1.0}"),
        ([("loss", 1.0)], "a trial returns a dictionary of metrics"),
        ({"curve": [1, 2]}, "the curve of mine is a list of [step, loss], got [1, 2]"),
        ({"curve": [["a", 2]]}, "a step is a whole number from 0, got 'a'"),
    ],
)
def test_metrics_that_a_study_could_not_keep_are_refused(metrics, message):
    with pytest.raises(HAELabError) as error:
        checked_metrics("mine", metrics)
    assert message in str(error.value)


def test_metrics_of_numpy_are_kept_as_pythons():
    found = checked_metrics(
        "mine", {"loss": np.float32(0.5), "count": np.int64(3), "curve": [(np.int64(1), np.array(0.5))]}
    )
    assert json.loads(json.dumps(found)) == {"loss": 0.5, "count": 3, "curve": [[1, 0.5]]}


@pytest.fixture
def finished(tmp_path):
    """A study, and its store with one run."""
    study, store = tiny(), tmp_path / "s.sqlite"
    outcome = {"status": "ok", "traceback": None, "seconds": 1.0, "host": None, "versions": None}
    with Store(store) as opened:
        opened.finish(study.planned[0], outcome | {"metrics": {"loss": 0.5, "curve": [[1, 0.5]]}})
    return study, store


@pytest.mark.parametrize(
    "text", ["{", "null", "[]", '"loss"', '{"loss": "low"}', '{"curve": 3}', '{"curve": [[1]]}', None]
)
def test_a_row_that_is_damaged_in_the_store_is_named(finished, text):
    study, store = finished
    assert study.results(store)["loss"].tolist() == [0.5]
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE runs SET metrics = ?", (text,))
    connection.close()
    for read in (study.results, study.curves):
        with pytest.raises(HAELabError, match=f"the metrics of run {study.planned[0].key[:16]} are .* in the store"):
            read(store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "ray"}, "unknown backend 'ray'"),
        ({"backend": "dask"}, "needs the address of a scheduler"),
        ({"backend": "dask", "address": 8786}, "needs the address of a scheduler, for example .*; got 8786"),
        ({"address": "tcp://host:1"}, 'an address is for backend="dask"'),
        ({"workers": 10**6}, "workers is at most"),
        ({"workers": 0.5}, "workers is a whole number from 1, got 0.5"),
    ],
)
def test_options_are_wrong_even_if_nothing_is_left_to_run(finished, options, message):
    study, store = finished
    assert len(study.run(store, progress=False)) == 1
    with pytest.raises(HAELabError, match=message):
        study.run(store, progress=False, **options)


def test_a_store_without_a_suffix_keeps_its_runs_beside_it(tmp_path):
    study = tiny(trial="study_trials:quick", seeds=2)
    assert len(study.run(tmp_path / "runs", workers=1, progress=False)) == 2
    (tmp_path / "taken").write_text("")
    with pytest.raises(HAELabError, match=r"needs the folder '.*taken', which is a file"):
        Store(tmp_path / "taken.sqlite")


def test_no_variant_was_registered_by_the_way():
    assert set(VARIANTS) == {"unet", "hae", "lite", "v2"}
