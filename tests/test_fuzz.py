"""Any input is a clear error or a right result, by a second way: 2,000 cases here, six times as many in `.ci/full`."""

import csv
import io
import json
import tomllib
import warnings
from contextlib import redirect_stderr, redirect_stdout
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import cases, global_state, guarded, leaves_nothing, refused
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from safetensors import torch as safetensors
from scipy import stats

import hae_lab
from hae_lab import HAEConfig, tables
from hae_lab.__main__ import main
from hae_lab.diffusion.data import ImageSet, folder, split_dataset
from hae_lab.family import FIELDS
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention
from hae_lab.presets import PRESETS
from hae_lab.profilers import parameters
from hae_lab.rules import RULES, made_mask, mask_for
from hae_lab.study import Study, statistics

SIDES = st.integers(1, 14)
GRIDS = st.builds(TokenGrid, SIDES, SIDES, st.sampled_from([(1,), (1, 2), (1, 4, 8), (1, 3, 4), (1, 2, 4)]))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([0, 10**9, 10**12, 2**63, -(2**70)]), st.floats(), st.floats(0, 1)
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=4,
)

# configs

LIKELY = {
    "image_size": st.sampled_from([8, 12, 16, 17, 32]),
    "model_channels": st.sampled_from([6, 8, 16, 24]),
    "channel_mult": st.sampled_from([(1,), (1, 2), (1, 2, 2), (2, 1), ()]),
    "num_res_blocks": st.integers(0, 3),
    "attention_resolutions": st.sampled_from([(), (1,), (2,), (2, 4), (8,)]),
    "num_heads": st.sampled_from([1, 2, 3, 4]),
    "mstb_heads": st.sampled_from([1, 2, 4, 8]),
    "placement": st.sampled_from(["none", "upsample", "attention", "everywhere", "nowhere"]),
    "patch_sizes": st.sampled_from([(1,), (1, 2), (1, 4, 8), (4, 1), (1, 1)]),
    "mask_rule": st.sampled_from([*RULES, "none"]),
    "regions": st.sampled_from(["linear", "pooled", "mean"]),
    "fusion": st.sampled_from(["concat", "mean", "sum"]),
    "mlp_ratio": st.sampled_from([4, 1, 0.25, 0.0625, 0, -1]),
    "sparsity": st.sampled_from([0, 0.5, 0.9, 0.999, 1, 90]),
    "dropout": st.sampled_from([0, 0.1, 1]),
    "num_classes": st.sampled_from([None, 1, 3, 0]),
    "cnn_branch": st.booleans(),
    "transformer_branch": st.booleans(),
    "middle_attention": st.booleans(),
    "use_scale_shift_norm": st.booleans(),
    "resblock_updown": st.booleans(),
}
CHANGES = st.fixed_dictionaries({}, optional=LIKELY)


@cases(200)
@given(CHANGES)
@guarded
def test_a_config_is_refused_or_counts_what_its_model_has(changes):
    failed, config = refused(lambda: hae_lab.config("hae", "tiny", **changes))
    if failed:
        return
    assert HAEConfig.from_json(config.to_json()) == config
    with torch.device("meta"):
        model = hae_lab.build(config)
        x = torch.empty(2, config.in_channels, config.image_size, config.image_size)
        labels = None if config.num_classes is None else torch.empty(2, dtype=torch.long)
        assert model(x, torch.empty(2), labels).shape == (2, config.out_channels, *x.shape[2:])
    counted = parameters(config)["params"].sum()
    assert counted == sum(parameter.numel() for parameter in model.parameters())


@cases(200)
@given(st.dictionaries(st.sampled_from([*FIELDS, "colour"]), ANYTHING, min_size=1, max_size=3))
@guarded
def test_a_config_takes_no_nonsense(changes):
    failed, config = refused(lambda: hae_lab.config("v2", "tiny", **changes))
    if not failed:
        values = json.loads(config.to_json())
        json.dumps(values, allow_nan=False)
        assert HAEConfig(**values) == config


# rules and masks


@cases(200)
@given(GRIDS, st.sampled_from(list(RULES)), st.floats(0, 0.99), st.integers(0, 2**31))
@guarded
def test_a_mask_is_its_matrix(grid, rule, sparsity, seed):
    failed, mask = refused(lambda: made_mask(RULES[rule], grid, sparsity, seed))
    if failed:
        return
    blocked = mask.blocked().reshape(-1, grid.n, grid.n)
    again = SparseMask.from_blocked(blocked, grid)
    assert (again.blocked().reshape(blocked.shape) == blocked).all()
    for group, matrix in enumerate(blocked):
        assert mask.keys_per_query(group).tolist() == (~matrix).sum(1).tolist()
        assert (mask.seen(np.arange(grid.n), group) == ~matrix.all(0)).all()
    assert mask.density("all") == pytest.approx(1 - blocked.mean())
    assert mask.density() == pytest.approx(1 - blocked[:, : grid.n_local].mean())
    if rule == "document":
        keep = max(1, int(grid.n * (1 - sparsity)))
        band = np.abs(np.subtract.outer(np.arange(grid.n), np.arange(grid.n))) <= keep // 2
        drawn = max(1, keep // 4) if keep > 4 else 0
        assert not blocked[0][band].any()
        assert ((~blocked[0] & ~band).sum(1) <= drawn).all()


@st.composite
def own_masks(draw):
    """Masks as a user may make them: any intervals, inverted ones too, columns that repeat, blind head groups."""
    grid = draw(st.builds(TokenGrid, st.integers(1, 6), st.integers(1, 6), st.sampled_from([(1,), (1, 2)])))
    groups, share, rng = draw(st.sampled_from([1, 2])), draw(st.integers(1, 5)), np.random.default_rng(draw(SIDES))
    start, stop = rng.integers(0, grid.n + 1, size=(2, groups, grid.n)).astype(np.int32)
    if draw(st.booleans()):
        start, stop = np.minimum(start, stop), np.maximum(start, stop)
    if draw(st.booleans()):
        start[:], stop[:] = start[:, :1], stop[:, :1]
    if draw(st.booleans()):
        start[0], stop[0] = 0, 0
    extra = rng.integers(-1, grid.n, size=(groups, -(-grid.n // share), draw(st.integers(0, 4)))).astype(np.int32)
    always = draw(st.sampled_from([(0, 0), (0, 1), (min(2, grid.n), grid.n)]))
    return SparseMask(grid, start, stop, extra, share, always)


def attended(mask: SparseMask, kernel: str, batch: int) -> list[torch.Tensor]:
    """In double precision: the outputs, and the gradients of tokens and parameters."""
    generator = torch.Generator().manual_seed(0)
    layer = SparseMultiheadAttention(8, 4, kernel=kernel).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) / 3)
    tokens = torch.randn(batch, mask.grid.n, 8, dtype=torch.double, generator=generator).requires_grad_()
    output = layer(tokens, mask)
    (output * torch.randn(output.shape, dtype=torch.double, generator=generator)).sum().backward()
    return [output.detach(), tokens.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_kernels_agree(mask: SparseMask, batch: int) -> None:
    with torch.random.fork_rng():
        expected = attended(mask, "reference", batch)
        for kernel in set(KERNELS) - {"reference", "native"}:  # native computes in single precision
            failed, found = refused(lambda name=kernel: attended(mask, name, batch))
            assert not failed or kernel == "slices", found
            for tensor, right in zip([] if failed else found, expected, strict=False):
                torch.testing.assert_close(tensor, right, rtol=0, atol=1e-11)


@cases(120)
@given(GRIDS, st.sampled_from(list(RULES)), st.floats(0, 0.99), st.integers(1, 3))
@guarded
def test_kernels_equal_the_reference_under_every_rule(grid, rule, sparsity, batch):
    failed, mask = refused(lambda: mask_for(rule, grid, round(sparsity, 1), 0))
    if not failed:
        assert_kernels_agree(mask, batch)


@cases(120)
@given(own_masks(), st.integers(0, 2))
@guarded
def test_kernels_equal_the_reference_under_any_mask(mask, batch):
    assert_kernels_agree(mask, batch)


# weights and their files


def tiny_state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in hae_lab.build("v2", "tiny").state_dict().items()}


SPOILT = {
    "drop": lambda state, name: state.pop(name),
    "rename": lambda state, name: state.update({name + "x": state.pop(name)}),
    "reshape": lambda state, name: state.update({name: state[name][None]}),
    "double": lambda state, name: state.update({name: state[name].double()}),
    "text": lambda state, name: state.update({name: "weights"}),
    "number": lambda state, name: state.update({3: state.pop(name)}),
    "keep": lambda state, name: None,
}


@cases(100)
@given(st.data())
@guarded
def test_a_state_dict_loads_whole_or_not_at_all(data):
    state = tiny_state()
    kind, name = data.draw(st.sampled_from(list(SPOILT))), data.draw(st.sampled_from(sorted(state)))
    original = state[name]
    SPOILT[kind](state, name)
    failed, model = refused(lambda: hae_lab.load_checkpoint(state, hae_lab.config("v2", "tiny")))
    assert failed == (kind not in ("keep", "double"))
    if not failed:
        assert torch.equal(model.state_dict()[name], original)


@pytest.fixture(scope="module", params=[".safetensors", ".pt"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / f"model{request.param}"
    return hae_lab.save_checkpoint(hae_lab.build("v2", "tiny"), path)


@cases(100)
@given(data=st.data())
def test_damaged_bytes_of_a_checkpoint(checkpoint, data):
    content = bytearray(checkpoint.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            near = st.integers(0, min(len(content), 4000) - 1)
            content[data.draw(st.one_of(near, st.integers(0, len(content) - 1)))] = data.draw(st.integers(0, 255))
    damaged = checkpoint.with_name(f"damaged{checkpoint.suffix}")
    damaged.write_bytes(content)
    with leaves_nothing(checkpoint.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a file that only looks like an archive of its own
        failed, model = refused(lambda: hae_lab.load_checkpoint(damaged, hae_lab.config("v2", "tiny")))
    if not failed:
        state = model.state_dict()
        for name, tensor in read_otherwise(damaged).items():
            assert torch.equal(state[name].nan_to_num(), tensor.to(state[name].dtype).nan_to_num())


def read_otherwise(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.load(path.read_bytes()) if path.suffix == ".safetensors" else torch.load(path)
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was loaded: {error}") from None


# studies

AXES = {
    "variant": st.lists(st.sampled_from(["hae", "v2", "unet", "v9"]), min_size=1, max_size=3),
    "mlp_ratio": st.lists(st.sampled_from([4, 0.25, 1, -1, "wide"]), min_size=1, max_size=3),
    "learning_rate": st.lists(st.sampled_from([1e-3, 2e-3, 0, "fast"]), min_size=1, max_size=2),
    "steps": st.lists(st.sampled_from([1, 10, 10**9, 2.5]), min_size=1, max_size=2),
    "colour": st.lists(st.just("red"), min_size=1),
    "data": st.lists(st.sampled_from(["phantoms", "digits", "none.such:function"]), min_size=1, max_size=2),
}
SEEDS = st.one_of(st.integers(-1, 5), st.lists(st.integers(-1, 6), max_size=4), st.sampled_from([2**63, "two", None]))


@cases(150)
@given(st.fixed_dictionaries({}, optional=AXES), SEEDS)
@guarded
def test_a_grid_is_refused_or_has_all_its_cells(grid, seeds):
    failed, study = refused(lambda: Study("fuzz", grid, seeds=seeds))
    if failed:
        return
    count = seeds if isinstance(seeds, int) else len(seeds)
    assert len(study.cells) == prod(len(values) for values in grid.values())
    assert len(study.planned) == len(study.cells) * count
    assert len({run.key for run in study.planned}) == len(study.planned)


STUDY = """name = "fuzz"
seeds = 2
margin_percent = 2
[fixed]
steps = 10
data = "phantoms"
[[grid]]
variant = ["hae", "v2"]
[[grid]]
label = "small"
reference = "hae"
variant = ["hae"]
model_channels = [12]
[controls."short"]
steps = 5
"""


@cases(150)
@given(st.data())
def test_a_study_file_is_refused_or_plans_what_it_says(data):
    lines = STUDY.splitlines()
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(lines) - 1))
        key = lines[place].split("=")[0]
        value = data.draw(st.sampled_from(['"x"', "-1", "1e400", "[]", "[1]", "true", "{}", "2.5", "nan", ""]))
        changed = {"change": [f"{key}= {value}"], "drop": [], "twice": [lines[place]] * 2, "cut": [lines[place][:-1]]}
        lines[place : place + 1] = changed[data.draw(st.sampled_from(list(changed)))]
    with TemporaryDirectory() as name:
        path = Path(name) / "fuzz.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        with leaves_nothing(Path(name)):
            failed, study = refused(lambda: Study.from_toml(path))
        if failed:
            return
        read = tomllib.loads(path.read_text(encoding="utf-8"))
        blocks = read.get("grid", {})
        axes = ({key: v for key, v in block.items() if isinstance(v, list)} for block in blocks)
        cells = sum(prod(map(len, axis.values())) for axis in axes) if isinstance(blocks, list) else 1
        assert len(study.cells) == cells + len(read.get("controls", {}))


# the command line

ARGUMENTS = st.one_of(
    st.sampled_from(["show", "study", "profile", "bench", "reproduce", "notebooks", "site", "train"]),
    st.sampled_from(["--help", "--static", "--cost", "--list", "--preset", "--depth", "--out", "--only", "--plugin"]),
    st.sampled_from(["hae", "v2", "v9", *PRESETS, "tiny", "none.toml", "none.such:function", "-1", "2", "nan", ""]),
    WORDS.filter(lambda word: "\0" not in word),
)


@cases(100)
@given(st.lists(ARGUMENTS, max_size=4))
def test_any_command_line_ends_in_one_line_or_a_result(arguments):
    assume("train" not in arguments or "v9" in arguments)
    assume(arguments[:1] not in (["bench"], ["site"], ["notebooks"], ["reproduce"]) or "--help" in arguments)
    out, err = io.StringIO(), io.StringIO()
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        before = global_state()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(arguments)
            except SystemExit as left:
                status = left.code
        assert global_state() == before
    assert status in (0, 2)
    assert "Traceback" not in err.getvalue()
    assert status == 0 or err.getvalue().strip()


# images, and what is cut from them


@cases(100)
@given(st.data())
def test_a_folder_of_pictures(data):
    modes = {"L": 1, "RGB": 3, "RGBA": 4, "1": 1, "P": 1, "I;16": 1, "LA": 2, "F": 1, "CMYK": 4}
    with TemporaryDirectory() as name:
        for place in range(data.draw(st.integers(0, 3))):
            path = Path(name) / f"{place}.{data.draw(st.sampled_from(['png', 'jpg', 'tif', 'bmp', 'txt']))}"
            mode, side = data.draw(st.sampled_from(list(modes))), data.draw(st.integers(1, 9))
            try:
                Image.new(mode, (side, side), 3 if modes[mode] == 1 else (3,) * modes[mode]).save(path)
            except (OSError, ValueError, KeyError):  # a format that has no such mode
                path.write_bytes(data.draw(st.binary(max_size=40)))
        size, channels = data.draw(st.sampled_from([None, 4, 0, -1, "big"])), data.draw(st.sampled_from([1, 3, 2]))
        error = data.draw(st.sampled_from(["raise", "skip"]))
        with leaves_nothing(Path(name)):
            failed, images = refused(lambda: folder(name, size, channels=channels, on_error=error))
        if not failed:
            assert images.images.dtype == torch.float32
            assert images.images.shape[1] == channels
            assert size is None or images.images.shape[2:] == (size, size)
            assert images.images.isfinite().all()
            assert images.images.abs().max() <= 1


@cases(80)
@given(st.integers(1, 30), st.one_of(NUMBERS, WORDS, st.none()), st.one_of(st.integers(-1, 9), st.floats()))
@guarded
def test_a_split_is_refused_or_a_partition(count, held_out, seed):
    values = torch.arange(count, dtype=torch.float32) / count
    images = ImageSet(images=values[:, None, None, None].expand(-1, 1, 2, 2).contiguous())
    failed, parts = refused(lambda: split_dataset(images, held_out, seed))
    if not failed:
        found = torch.cat([part.images[:, 0, 0, 0] for part in parts])
        assert torch.equal(found.sort().values, values)
        assert len(parts[1]) == round(held_out * count)


# tables

TRICKY = ["1", "1.5", "True", "inf", "a,b", 'say "so"', "é\n"]
COLUMNS = st.one_of(
    st.lists(st.integers(-(2**53), 2**53), min_size=3, max_size=3),
    st.lists(st.floats(allow_nan=True), min_size=3, max_size=3),
    st.lists(st.one_of(WORDS, st.sampled_from(TRICKY)), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=3, max_size=3),
)


@cases(200)
@given(st.dictionaries(WORDS, COLUMNS, max_size=4))
def test_a_table_is_refused_or_comes_back(columns):
    frame = pd.DataFrame(columns)
    with TemporaryDirectory() as name:
        path = Path(name) / "table.csv"
        with leaves_nothing(Path(name)):
            failed, _ = refused(lambda: tables.write(frame, path))
        assert path.exists() != failed
        if failed:
            return
        again = tables.read(path)
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
        assert header == list(frame.columns) == list(again.columns)
        assert len(lines) == len(again) == len(frame)
        for column in frame:
            for wanted, found in zip(frame[column], again[column], strict=True):
                both_gaps = pd.isna(wanted) and (pd.isna(found) or found == "")
                assert both_gaps or wanted == found or float(wanted) == pytest.approx(float(found), rel=1e-5)


@cases(80)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_table_or_refused(content):
    with TemporaryDirectory() as name:
        path = Path(name) / "table.csv"
        path.write_bytes(content)
        with leaves_nothing(Path(name)):
            failed, frame = refused(lambda: tables.read(path))
        assert failed or isinstance(frame, pd.DataFrame)


# statistics

LOSSES = st.lists(
    st.one_of(st.floats(0.001, 2), st.sampled_from([0.1, float("nan"), float("inf")])), min_size=2, max_size=12
)


@cases(150)
@given(LOSSES, st.integers(1, 3))
@guarded
def test_paired_differences_are_refused_or_those_of_scipy(losses, cells):
    rows = pd.DataFrame(
        [
            {"cell": f"cell {place % cells}", "data": "phantoms", "seed": place // cells, "loss": loss}
            for place, loss in enumerate(losses)
        ]
    )
    failed, found = refused(lambda: statistics.paired_differences(rows))
    if failed:
        return
    table = rows.pivot(index="seed", columns="cell", values="loss").dropna()
    for row in found.to_dict("records"):
        first, second = table[row["first"]], table[row["second"]]
        assert row["mean_difference"] == pytest.approx((first - second).mean(), abs=1e-12)
        if (first - second).std() > 1e-9:
            assert row["p_value"] == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-6, abs=1e-12)


def drawn() -> list[int]:
    seen = []

    @cases(20)
    @given(st.integers())
    def draw(number):
        seen.append(number)

    draw()
    return seen


def test_the_cases_are_the_same_in_every_run():
    """What the fuzzing rests on: no clock and no database decides which cases are tried."""
    assert drawn() == drawn()
