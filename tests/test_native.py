"""The kernel in C++: equal to the reference, chosen only where it is asked for and fits, missed with a clear word."""

import copy
import shutil
import tomllib
from functools import partial

import numpy as np
import pytest
import torch
from test_kernels import GRIDS, assert_equal_to_reference, blind, label, outputs_and_gradients, tangle
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from hae_lab import HAELabError, build, freeze
from hae_lab.audit import bench_attention
from hae_lab.masks import PAD, TokenGrid
from hae_lab.models import attention, native
from hae_lab.models.attention import KERNELS, SparseMultiheadAttention, pairs_kept, pairs_run
from hae_lab.models.plans import plan_of
from hae_lab.rules import RULES, mask_for

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C++ compiler is here")


def tokens_for(mask, channels: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, mask.grid.n, channels, generator=torch.Generator().manual_seed(0))


# exactness


@needs_compiler
@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_native_equals_the_reference(grid):
    for mask in (*(mask_for(rule, grid) for rule in RULES), tangle(grid, 1), tangle(grid, 2), blind(grid)):
        assert_equal_to_reference(mask, ["native"])


@needs_compiler
@pytest.mark.parametrize("width", [16, 24, 48, 80, 128])
def test_heads_may_be_of_any_width(width):
    torch.manual_seed(0)
    layer = SparseMultiheadAttention(2 * width, 2)
    for rule in ("document", "document_shared"):
        mask, results = mask_for(rule, TokenGrid(12, 20)), {}
        for layer.kernel in ("reference", "native"):
            tokens = tokens_for(mask, 2 * width).requires_grad_()
            output = layer(tokens, mask)
            output.square().sum().backward()
            results[layer.kernel] = (output, tokens.grad)
        for ours, right in zip(results["native"], results["reference"], strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_scores_that_lie_far_apart_give_the_same_weights():
    mask = mask_for("document", TokenGrid(16, 16))
    q, kv = (200 * torch.randn(1, n, c, generator=torch.Generator().manual_seed(0)) for n, c in ((256, 32), (276, 64)))
    kv = kv[:, slice(*mask.span)]
    ours, right = (KERNELS[name].run(q, kv, mask, 2) for name in ("native", "reference"))
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-3)


@needs_compiler
def test_the_number_of_threads_changes_nothing():
    mask, threads, results = mask_for("document", TokenGrid(16, 16)), torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(outputs_and_gradients(mask, "native"))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


@needs_compiler
def test_half_precision_is_computed_in_single():
    mask = mask_for("document", TokenGrid(8, 8))
    layer = SparseMultiheadAttention(32, 2, kernel="native")
    tokens = tokens_for(mask, 32)
    half = copy.deepcopy(layer).bfloat16()(tokens.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(tokens, mask), rtol=0, atol=0.05)


# the plan and the operator


def test_single_columns_are_read_alone_and_shared_ones_together():
    grid = TokenGrid(32, 32)
    (own,), (shared,) = (plan_of(native.native_plans, mask_for(rule, grid), 4, CPU) for rule in RULES if "doc" in rule)
    extra = mask_for("document", grid).extra.shape[2]
    assert own.columns.shape == (grid.n_local, extra + -extra % native.LANES)
    assert shared.columns.shape == (grid.n_local, 0)


@pytest.mark.parametrize(
    "mask", [mask_for("document", TokenGrid(16, 16)), tangle(TokenGrid(9, 10))], ids=["rule", "any"]
)
def test_a_plan_holds_every_pair_of_the_mask_once(mask):
    first = mask.span[0]
    for group, plan in enumerate(plan_of(native.native_plans, mask, 4, CPU)):
        for query in range(mask.grid.n_local):
            block, place = divmod(query, native.BLOCK)
            some = slice(int(plan.begins[block]), int(plan.begins[block + 1]))
            together = plan.keys[some][plan.hidden[some, place] == 0]
            alone = plan.columns[query][plan.columns[query] != PAD]
            assert sorted([*together.tolist(), *alone.tolist()]) == (mask.keys(query, group) - first).tolist()


@needs_compiler
def test_native_is_a_sound_operator_of_torch():
    mask = mask_for("document", TokenGrid(7, 9))
    (plan,) = plan_of(native.native_plans, mask, 2, CPU)
    sizes = (mask.grid.n_local, np.diff(mask.span)[0], np.diff(mask.span)[0])
    inputs = [torch.randn(3, size, 16, generator=torch.Generator().manual_seed(int(size))) for size in sizes]
    for x in inputs:
        x.requires_grad_()
    plans = (plan.keys, plan.begins, plan.hidden, plan.columns)
    torch.library.opcheck(torch.ops.hae_lab.native, (*inputs, *plans))
    run = partial(KERNELS["native"].run, kv=torch.cat([x[:2].detach() for x in inputs[1:]], -1), mask=mask, heads=1)
    many = torch.randn(3, 2, sizes[0], 16)
    for one, alone in zip(torch.func.vmap(run)(many), many, strict=True):
        torch.testing.assert_close(one, run(alone))


@pytest.mark.parametrize("rule", ["document", "document_shared", "spatial_reduction"])
def test_flops_are_those_of_the_pairs(rule):
    mask = mask_for(rule, TokenGrid(12, 20))
    layer = SparseMultiheadAttention(32, 2, kernel="native").to("meta")
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(3, mask.grid.n, 32, device="meta"), mask).sum().backward()
    flops, pairs = counter.get_flop_counts()["Global"], pairs_run(mask, 2, "native")
    assert pairs >= pairs_kept(mask, 2)
    assert flops[torch.ops.hae_lab.native] == 3 * 2 * 2 * 16 * pairs
    assert flops[torch.ops.hae_lab.native_backward] == 3 * 5 * 2 * 16 * pairs


# the choice


@pytest.fixture
def calls(monkeypatch):
    """What runs natively: each call is noted, and the reference gives its result."""
    noted = []

    def note(q, kv, mask, heads, dropout=0.0):
        noted.append(q)
        return KERNELS["reference"].run(q, kv, mask, heads)

    class Noted:
        run = staticmethod(note)

    monkeypatch.setitem(attention.KERNELS, "native", Noted)
    monkeypatch.setattr(native, "_is_there", lambda width: True)
    monkeypatch.setenv(native.ASKED, "1")
    return noted


def runs(calls: list, layer, mask, dtype=torch.float32, device="cpu") -> bool:
    calls.clear()
    channels = layer.in_proj_weight.shape[1]
    layer.to(device, dtype)(torch.zeros(1, mask.grid.n, channels, dtype=dtype, device=device), mask)
    return bool(calls)


def test_native_runs_where_it_is_asked_for_and_fits(calls, monkeypatch):
    grid = TokenGrid(16, 16)
    layer, mask = SparseMultiheadAttention(64, 4), mask_for("document", grid)
    sparse = {rule for rule in RULES if runs(calls, layer, mask_for(rule, grid))}
    assert sparse == set(RULES) - {"dense", "spatial_reduction"}
    assert not runs(calls, layer, mask_for("document", TokenGrid(8, 8)))  # so small a map is not worth it
    assert not runs(calls, SparseMultiheadAttention(64, 4, kernel="columns"), mask)
    assert runs(calls, SparseMultiheadAttention(48, 4), mask)
    assert not runs(calls, SparseMultiheadAttention(28, 4), mask)
    assert not runs(calls, SparseMultiheadAttention(144 * 2, 2), mask)
    dropping = SparseMultiheadAttention(64, 4, dropout=0.1)
    assert not runs(calls, dropping, mask)
    assert runs(calls, dropping.eval(), mask)
    for options in ({"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}):
        assert not runs(calls, SparseMultiheadAttention(64, 4), mask, **options)
    monkeypatch.setenv(native.ASKED, "0")
    assert not runs(calls, layer, mask)


def test_traced_and_frozen_models_run_torchs_kernels(calls, monkeypatch):
    layer, mask = SparseMultiheadAttention(64, 4), mask_for("document", TokenGrid(16, 16))
    for what in (torch.compiler, torch.jit):
        with monkeypatch.context() as patch:
            patch.setattr(what, "is_compiling" if what is torch.compiler else "is_tracing", lambda: True)
            assert not runs(calls, layer, mask)
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(torch.zeros(1, mask.grid.n, 64), mask)
    assert calls == []
    model = build("v2", "tiny", image_size=32, mstb_heads=2).eval()
    inputs = torch.zeros(1, 1, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    model(*inputs)
    assert calls != []
    calls.clear()
    freeze(model)(*inputs)
    assert calls == []


@needs_compiler
def test_a_model_gives_the_same_numbers_natively(monkeypatch):
    model = build("v2", "tiny", seed=1, image_size=32, mstb_heads=2).eval()
    torch.nn.init.normal_(model.out[-1].weight, generator=torch.Generator().manual_seed(0))
    inputs = (
        torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.zeros(2),
        torch.zeros(2).long(),
    )
    plain = model(*inputs)
    monkeypatch.setenv(native.ASKED, "1")
    natively = model(*inputs)
    assert not torch.equal(natively, plain)  # another order of additions
    torch.testing.assert_close(natively, plain, rtol=1e-4, atol=1e-4)


def test_numbers_of_lessons_and_studies_are_never_native(calls):
    for preset in ("lesson16", "lesson32"):
        model = build("hae", preset).eval()
        size = model.config.image_size
        model(torch.zeros(1, 1, size, size), torch.zeros(1))
    assert calls == []


# without it


@pytest.fixture
def no_compiler(monkeypatch):
    native.library.cache_clear()
    native._is_there.cache_clear()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    yield
    native.library.cache_clear()
    native._is_there.cache_clear()


def test_without_a_compiler_torchs_kernels_run_after_one_warning(no_compiler, monkeypatch):
    layer, mask = SparseMultiheadAttention(64, 4), mask_for("document", TokenGrid(16, 16))
    tokens = tokens_for(mask, 64)
    plain = layer(tokens, mask)
    monkeypatch.setenv(native.ASKED, "1")
    with pytest.warns(UserWarning, match=r"needs a C\+\+ compiler: none of .*torch's kernels run instead"):
        assert torch.equal(layer(tokens, mask), plain)
    assert torch.equal(layer(tokens, mask), plain)  # warnings are errors here: no second one
    layer.kernel = "native"
    with pytest.raises(HAELabError, match=r"needs a C\+\+ compiler"):
        layer(tokens, mask)
    assert bench_attention.native_ways("cpu") == ()


def test_the_source_is_part_of_the_wheel():
    package = native.SOURCE.parents[1]
    project = tomllib.loads((package.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["hae_lab"]
    assert native.SOURCE in [path for pattern in patterns for path in package.glob(pattern)]


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch):
    monkeypatch.setattr(native, "OPTIONS", ("--no-such-option",))
    with pytest.raises(HAELabError, match=r"cannot compile attention kernel 'native': .*no-such-option"):
        native.library.__wrapped__(32)


@pytest.mark.parametrize(("options", "words"), [({"dropout": 0.5}, "no dropout"), ({}, "single precision")])
def test_what_native_cannot_do_is_said(options, words):
    mask = mask_for("document", TokenGrid(4, 4))
    layer = SparseMultiheadAttention(32, 2, kernel="native", **options).to(torch.float32 if options else torch.float64)
    with pytest.raises(HAELabError, match=words):
        layer(tokens_for(mask, 32).to(layer.in_proj_weight.dtype), mask)


@needs_compiler
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("way", bench_attention.NATIVE)
def test_every_native_case_of_the_benchmark_runs(way, direction):
    assert bench_attention.native_ways("cpu") == tuple(bench_attention.NATIVE)
    assert bench_attention.native_ways("cuda") == ()
    bench_attention.layer_case(way, 8, direction)()
