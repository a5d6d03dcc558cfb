"""Attention kernels: all equal the reference, in outputs and gradients; what they count, cache and keep in memory."""

import copy
import resource
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hae_lab import HAELabError
from hae_lab.masks import PAD, SparseMask, TokenGrid
from hae_lab.models import column_operator, columns, pairs
from hae_lab.models import kernels as kernels_module
from hae_lab.models.attention import (
    KERNELS,
    SparseMultiheadAttention,
    allowed_matrix,
    kernel_name,
    pairs_kept,
    pairs_run,
)
from hae_lab.models.columns import column_plans
from hae_lab.models.kernels import block_plans
from hae_lab.models.plans import plan_of
from hae_lab.rules import RULES, mask_for

# tiny, wider than high, not a multiple of a tile, without any regional scale
GRIDS = [TokenGrid(*sides) for sides in ((4, 4), (8, 8), (12, 20), (24, 40), (7, 9), (1, 70))]
CHANNELS, HEADS = 16, 4
FAST = sorted(set(KERNELS) - {"reference", "native"})  # which needs a compiler: test_native.py
CPU = torch.device("cpu")


def label(grid: TokenGrid) -> str:
    return f"{grid.height}x{grid.width}"


def tangle(grid: TokenGrid, groups: int = 2, seed: int = 0) -> SparseMask:
    """All that a mask may hold: queries without an interval, columns that repeat, pad or are visible anyway."""
    rng = np.random.default_rng(seed)
    n, share, always = grid.n, 3, (5, 9)
    bounds = np.sort(rng.integers(n + 1, size=(2, groups, n)), axis=0).astype(np.int32)
    bounds[:, :, ::4] = 0
    extra = rng.integers(PAD, n, size=(groups, -(-n // share), 7)).astype(np.int32)
    extra[:, :, 1] = extra[:, :, 0]
    extra[:, 0] = PAD
    return SparseMask(grid, *bounds, extra, share, always)


def blind(grid: TokenGrid) -> SparseMask:
    """A random matrix in which every fifth query sees nothing."""
    blocked = np.random.default_rng(0).random((grid.n, grid.n)) < 0.7
    blocked[::5] = True
    return SparseMask.from_blocked(blocked, grid)


def runnable(mask: SparseMask) -> list[str]:
    return [name for name in FAST if name != "slices" or mask.intervals is not None]


def outputs_and_gradients(mask: SparseMask, kernel: str, dtype=torch.float32, batch: int = 2) -> list[torch.Tensor]:
    """Of a whole layer: the output, and the gradients of its tokens and parameters."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel=kernel).to(dtype)
    tokens = torch.randn(batch, mask.grid.n, CHANNELS, dtype=dtype, generator=generator).requires_grad_()
    output = layer(tokens, mask)
    towards = torch.randn(output.shape, dtype=dtype, generator=generator) / mask.grid.n_local
    (output * towards).sum().backward()
    return [output.detach(), tokens.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_equal_to_reference(mask: SparseMask, kernels: list[str], tolerance: float = 1e-5, **options) -> None:
    expected = outputs_and_gradients(mask, "reference", **options)
    assert all(tensor.isfinite().all() for tensor in expected)
    for kernel in kernels:
        for tensor, right in zip(outputs_and_gradients(mask, kernel, **options), expected, strict=True):
            torch.testing.assert_close(tensor, right, rtol=0, atol=tolerance, msg=lambda text, k=kernel: f"{k}: {text}")


# exactness


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", GRIDS, ids=label)
def test_kernels_equal_the_reference(grid, rule):
    mask = mask_for(rule, grid)
    assert_equal_to_reference(mask, runnable(mask))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("grid", [TokenGrid(8, 8), TokenGrid(9, 10), TokenGrid(12, 20)], ids=label)
def test_kernels_run_any_mask(grid, groups):
    assert_equal_to_reference(tangle(grid, groups), ["masked", "blocks", "columns"])


@pytest.mark.parametrize("rule", ["document", "document_shared", "always_regional"])
def test_kernels_are_exact_in_double_precision(rule):
    mask = mask_for(rule, TokenGrid(16, 16))
    assert_equal_to_reference(mask, runnable(mask), tolerance=1e-13, dtype=torch.float64)


def test_reference_is_the_softmax_over_the_seen_keys():
    mask = tangle(TokenGrid(4, 4, (1, 4)))
    layer = SparseMultiheadAttention(8, 2, kernel="reference")
    tokens = torch.randn(1, mask.grid.n, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = nn.functional.linear(tokens[0], layer.in_proj_weight, layer.in_proj_bias).view(-1, 3, 2, 4).unbind(1)
    attended = torch.zeros(mask.grid.n_local, 2, 4)
    for query in range(mask.grid.n_local):
        for head in range(2):
            keys = torch.from_numpy(mask.keys(query, group=head))
            scores = torch.stack([q[query, head] @ k[key, head] / 2 for key in keys]) if len(keys) else torch.empty(0)
            attended[query, head] = scores.softmax(dim=0) @ v[keys, head]
    expected = layer.out_proj(attended.flatten(1))
    torch.testing.assert_close(layer(tokens, mask)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["masked", "blocks", "columns"])
def test_a_query_that_sees_nothing_gets_zeros_and_no_nan(kernel):
    mask = blind(TokenGrid(6, 12))
    assert_equal_to_reference(mask, [kernel])
    layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel=kernel)
    output = layer(torch.randn(2, mask.grid.n, CHANNELS), mask)
    assert (output[:, ::5] == layer.out_proj.bias).all()


def test_work_under_a_small_budget_is_the_same(monkeypatch):
    monkeypatch.setattr(kernels_module, "GATHER_BYTES", 1)
    monkeypatch.setattr(kernels_module, "MASK_BYTES", 2000)
    for rule in ("document", "document_shared", "window2d"):
        assert_equal_to_reference(mask_for(rule, TokenGrid(12, 20)), ["masked", "blocks"])


@pytest.mark.parametrize(
    ("side", "own_columns", "shared_columns"),
    [(4, "masked", "masked"), (8, "masked", "masked"), (16, "columns", "blocks"), (32, "columns", "blocks")],
)
def test_rules_run_on_the_kernel_that_costs_least(side, own_columns, shared_columns):
    chosen = {rule: kernel_name(mask_for(rule, TokenGrid(side, side)), HEADS) for rule in RULES}
    assert chosen == {
        "document": own_columns,
        "document_shared": shared_columns,
        "always_regional": own_columns,
        "spatial_reduction": "slices",
        "window2d": shared_columns,
        "dense": "slices",
    }
    for rule, name in chosen.items():
        mask = mask_for(rule, TokenGrid(side, side))
        assert pairs_run(mask, HEADS) == KERNELS[name].pairs(mask, HEADS)
        assert kernel_name(mask, HEADS, "reference") == "reference"


def test_work_in_portions_of_heads_and_calls_is_the_same(monkeypatch):
    masks = [mask_for("document", TokenGrid(12, 20)), tangle(TokenGrid(9, 10))]
    for module, name, value in ((column_operator, "PORTION_BYTES", 1), (pairs, "CALL_PAIRS", 1)):
        monkeypatch.setattr(module, name, value)
        for mask in masks:
            assert_equal_to_reference(mask, ["columns"])


@pytest.mark.parametrize("scores", [1, 2000, 2**20])
def test_blocks_that_run_together_read_equally_many_keys(monkeypatch, scores):
    monkeypatch.setattr(columns, "CHUNK_SCORES", scores)
    grid = TokenGrid(16, 16)
    for rule in ("document", "always_regional"):
        mask = replace(mask_for(rule, grid))  # a mask that no plan was made for
        chunks = list(columns._chunks(replace(mask, extra=mask.extra[..., :0]), 0))
        assert np.concatenate([queries.ravel() for queries, _ in chunks]).tolist() == list(range(grid.n_local))
        for queries, slabs in chunks:
            assert len(queries) == len(slabs)
            assert len(queries) == 1 or len(queries) * len(queries[0]) * np.diff(slabs[0]).sum() <= scores
            assert (np.diff(slabs)[..., 0] == np.diff(slabs)[0, :, 0]).all()
        assert_equal_to_reference(mask, ["columns"])


@pytest.mark.parametrize(("side", "length", "together"), [(8, 16, 4), (16, 16, 16), (32, 64, 1)])
def test_blocks_are_half_an_interval_and_small_ones_run_together(side, length, together):
    """Intervals are a tenth of 69, 276 and 1104 tokens; two blocks of 64 pass 2**14 scores, as 174 keys are read."""
    mask = mask_for("document", TokenGrid(side, side))
    chunks = columns._chunks(replace(mask, extra=mask.extra[..., :0]), 0)
    assert {queries.shape for queries, _ in chunks} == {(together, length)}


def test_kernel_can_be_set_later():
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    mask = mask_for("document", TokenGrid(8, 8))
    tokens = torch.randn(1, mask.grid.n, CHANNELS)
    outputs = []
    for kernel in (None, "reference", "blocks"):
        layer.kernel = kernel
        outputs.append(layer(tokens, mask))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert "kernel=blocks" in repr(layer)


# dropout


def values_of_one(mask: SparseMask) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of random numbers, values all 1: what comes out is the sum of the weights."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, length, 8, generator=generator) for length in (mask.grid.n_local, np.diff(mask.span)[0]))
    return q, torch.cat([k, torch.ones_like(k)], dim=-1)


@pytest.mark.parametrize("kernel", ["reference", "masked", "blocks", "columns"])
def test_dropout_keeps_the_mean_and_drops_its_share(kernel):
    mask = mask_for("document", TokenGrid(16, 16))
    q, kv = values_of_one(mask)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sums = KERNELS[kernel].run(q, kv, mask, 8, 0.5)
        identity = mask_for("document", TokenGrid(4, 4))  # one key a query: a weight is dropped or doubled
        alone = KERNELS[kernel].run(*values_of_one(identity), identity, 8, 0.5)
    assert float(sums.mean()) == pytest.approx(1, abs=0.03)
    assert float(sums.std()) > 0.1
    assert set(alone.unique().tolist()) == {0.0, 2.0}


def test_dropout_is_for_training_alone():
    mask = mask_for("document", TokenGrid(8, 8))
    layer = SparseMultiheadAttention(CHANNELS, HEADS, dropout=0.5)
    tokens = torch.randn(1, mask.grid.n, CHANNELS)
    assert not torch.equal(layer(tokens, mask), layer(tokens, mask))
    layer.eval()
    assert torch.equal(layer(tokens, mask), layer(tokens, mask))


def test_columns_drop_the_same_weights_in_the_backward_pass():
    mask = mask_for("document", TokenGrid(3, 5, (1,)), sparsity=0.6)
    q, kv = (torch.randn(1, mask.grid.n, width, dtype=torch.float64, requires_grad=True) for width in (4, 8))

    def run(q, kv):
        torch.manual_seed(0)
        return KERNELS["columns"].run(q, kv, mask, 2, 0.3)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.autograd.gradcheck(run, (q, kv))


# the operator behind `columns`


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("grid", [TokenGrid(8, 8), TokenGrid(7, 9), TokenGrid(1, 70)], ids=label)
def test_columns_are_a_sound_operator_of_torch(grid, dropout):
    for mask in (mask_for("document", grid), tangle(grid)):
        caught, generator = [], torch.Generator().manual_seed(0)

        class Catch(TorchDispatchMode):
            def __torch_dispatch__(self, operator, types, args=(), kwargs=None, caught=caught):
                if str(operator.overloadpacket) == "hae_lab.columns":
                    caught.append(args)
                return operator(*args, **(kwargs or {}))

        q, kv = (torch.randn(2, length, 8 * k, generator=generator) for length, k in ((grid.n_local, 1), (grid.n, 2)))
        with Catch():
            KERNELS["columns"].run(q, kv[:, slice(*mask.span)], mask, 2, dropout)
        assert len(caught) == mask.groups
        for *inputs, _ in caught:
            torch.library.opcheck(torch.ops.hae_lab.columns, (*inputs, False))
            q, k, v = (x.clone().requires_grad_() for x in inputs[:3])
            torch.library.opcheck(torch.ops.hae_lab.columns, (q, k, v, *inputs[3:], True))


def test_flops_of_columns_are_those_of_their_products():
    mask = mask_for("document", TokenGrid(12, 20))
    layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel="columns")
    tokens = torch.randn(3, mask.grid.n, CHANNELS)
    forward, backward = torch.ops.hae_lab.columns, torch.ops.hae_lab.columns_backward
    for device in ("cpu", "meta"):
        with FlopCounterMode(display=False) as counter:
            layer.to(device)(tokens.to(device), mask).sum().backward()
        flops = counter.get_flop_counts()["Global"]
        pairs = pairs_run(mask, HEADS, "columns")
        single = HEADS * mask.grid.n_local * mask.extra.shape[2]
        assert flops[forward] == 3 * 2 * 2 * pairs * CHANNELS // HEADS
        assert flops[backward] == 3 * 2 * (5 * (pairs - single) + 4 * single) * CHANNELS // HEADS


def test_columns_run_under_vmap():
    mask = mask_for("document", TokenGrid(7, 9))
    q, kv = torch.randn(3, 2, mask.grid.n_local, 8), torch.randn(2, np.diff(mask.span)[0], 16)
    run = partial(KERNELS["columns"].run, kv=kv, mask=mask, heads=2)
    many = torch.func.vmap(run)(q)
    for index in range(3):
        torch.testing.assert_close(many[index], run(q[index]))


# counts


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grid", [TokenGrid(4, 4), TokenGrid(12, 20), TokenGrid(9, 10)], ids=label)
def test_pairs_run_are_what_flop_counter_mode_counts(grid, rule):
    mask = mask_for(rule, grid)
    first, stop = mask.span
    projections = 2 * CHANNELS**2 * (2 * grid.n_local + 2 * (stop - first))
    for kernel in [None, "reference", *runnable(mask)]:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel=kernel)
            layer(torch.empty(3, grid.n, CHANNELS), mask)
        # scores and values: 2 products of C / heads numbers a pair, 2 FLOPs each
        pairs = 4 * CHANNELS // HEADS * pairs_run(mask, HEADS, kernel)
        assert counter.get_total_flops() == 3 * (projections + pairs), kernel


@pytest.mark.parametrize("rule", RULES)
def test_pairs_kept_are_those_of_the_matrix(rule):
    mask = mask_for(rule, TokenGrid(12, 20))
    allowed = np.atleast_3d(~mask.blocked().reshape(mask.groups, mask.grid.n, mask.grid.n))
    assert pairs_kept(mask, HEADS) == HEADS // mask.groups * allowed[:, : mask.grid.n_local].sum()


def test_sparse_kernels_run_fewer_pairs_than_the_matrix_and_no_fewer_than_the_mask_keeps():
    for rule in set(RULES) - {"dense"}:
        mask = mask_for(rule, TokenGrid(32, 32))
        assert pairs_kept(mask, 8) <= pairs_run(mask, 8) < 0.3 * 8 * mask.grid.n_local * mask.grid.n


def test_blocks_take_tiles_of_the_map_where_that_reads_fewer_keys():
    plan, *_ = plan_of(block_plans, mask_for("window2d", TokenGrid(32, 32)), HEADS, CPU)
    rows, columns = np.divmod(plan.queries[0].numpy(), 32)
    assert (np.ptp(rows), np.ptp(columns)) == (7, 7)
    plan, *_ = plan_of(block_plans, mask_for("document_shared", TokenGrid(32, 32)), HEADS, CPU)
    assert plan.queries[0].tolist() == list(range(64))


def test_shared_columns_are_read_once_a_block():
    mask = mask_for("document_shared", TokenGrid(32, 32))
    plan, *_ = plan_of(block_plans, mask, HEADS, CPU)
    band = 64 + int((mask.stop - mask.start).max()) - 1
    assert plan.keys.shape[1] <= band + mask.extra.shape[2]


# what stays


@pytest.mark.parametrize("rule", RULES)
def test_plans_are_made_once_and_are_no_part_of_the_layer(rule):
    mask = mask_for(rule, TokenGrid(8, 8))
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    tokens = torch.randn(1, mask.grid.n, CHANNELS)
    output = layer(tokens, mask)
    assert list(layer.state_dict()) == list(nn.MultiheadAttention(CHANNELS, HEADS).state_dict())
    assert not list(layer.buffers())
    assert torch.equal(copy.deepcopy(layer)(tokens, mask), output)
    assert mask_for(rule, TokenGrid(8, 8)) is mask
    made = plan_of.cache_info().misses
    layer(tokens, mask)
    assert plan_of.cache_info().misses == made
    assert allowed_matrix(mask, HEADS, CPU) is allowed_matrix(mask, HEADS, CPU)


def test_many_forwards_do_not_grow_memory():
    grid = TokenGrid(8, 8)
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    tokens = torch.randn(1, grid.n, CHANNELS)

    def forwards(count):
        for index in range(count):
            layer(tokens, mask_for(list(RULES)[index % len(RULES)], grid))

    forwards(100)
    made, peak = plan_of.cache_info().misses, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forwards(1000)
    assert plan_of.cache_info().misses == made
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 4096  # KiB on Linux


def test_caches_are_bounded():
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    for seed in range(40):
        mask = RULES["document"](TokenGrid(4, 4), 0.9, seed)
        for layer.kernel in ("masked", "blocks", "columns"):
            layer(torch.zeros(1, mask.grid.n, CHANNELS), mask)
    assert plan_of.cache_info().currsize == plan_of.cache_info().maxsize == 16


@pytest.mark.parametrize("kernel", FAST)
def test_plans_made_for_sampling_can_be_trained_with(kernel):
    mask = RULES["dense" if kernel == "slices" else "document"](TokenGrid(8, 8), 0.9, 5)
    layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel=kernel)
    tokens = torch.randn(1, mask.grid.n, CHANNELS)
    with torch.inference_mode():
        layer(tokens, mask)
    layer(tokens, mask).sum().backward()
    assert layer.in_proj_weight.grad.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_half_precision_and_autocast_come_close(rule):
    mask = mask_for(rule, TokenGrid(8, 8))
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    tokens = torch.randn(1, mask.grid.n, CHANNELS)
    expected = layer(tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(tokens, mask)
    output.float().sum().backward()
    half = copy.deepcopy(layer).bfloat16()(tokens.bfloat16(), mask)
    assert (output.dtype, half.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05)


def test_columns_keep_little_for_the_backward_pass():
    mask = mask_for("document", TokenGrid(32, 32))
    tokens = torch.randn(1, mask.grid.n, 32)
    kept = {}
    for kernel in ("columns", "masked"):
        layer, sizes = SparseMultiheadAttention(32, 8, kernel=kernel), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.setdefault(x.data_ptr(), x), lambda x: x):
            layer(tokens, mask)
        kept[kernel] = sum(tensor.nbytes for tensor in sizes.values())
    assert kept["columns"] < kept["masked"] / 2


# weights


def test_weights_are_those_behind_the_output():
    mask = tangle(TokenGrid(8, 8))
    layer = SparseMultiheadAttention(CHANNELS, HEADS)
    tokens, pixels = torch.randn(2, mask.grid.n, CHANNELS), torch.tensor([3, 17])
    weights = layer.weights(tokens, mask, pixels)
    allowed = allowed_matrix(mask, HEADS, CPU)[:, pixels]
    assert (weights[:, ~allowed] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 2))
    values = nn.functional.linear(tokens, layer.in_proj_weight[-CHANNELS:], layer.in_proj_bias[-CHANNELS:])
    values = values[:, slice(*mask.span)].unflatten(-1, (HEADS, -1))
    attended = torch.einsum("bhqk,bkhd->bqhd", weights, values).flatten(2)
    torch.testing.assert_close(layer.out_proj(attended), layer(tokens, mask)[:, pixels])


# errors


def test_unknown_kernel_is_named_with_the_known():
    layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel="block")
    mask = mask_for("document", TokenGrid(4, 4))
    for call in (lambda: layer(torch.zeros(1, 17, CHANNELS), mask), lambda: pairs_run(mask, HEADS, "block")):
        with pytest.raises(HAELabError, match="unknown attention kernel 'block': did you mean 'blocks'"):
            call()


def test_slices_refuse_a_mask_that_is_no_slice():
    layer = SparseMultiheadAttention(CHANNELS, HEADS, kernel="slices")
    with pytest.raises(HAELabError, match="one interval"):
        layer(torch.zeros(1, 69, CHANNELS), mask_for("document", TokenGrid(8, 8)))


def test_head_groups_need_heads_that_they_divide():
    with pytest.raises(HAELabError, match="3 heads cannot be split evenly over 2 head groups"):
        pairs_run(mask_for("spatial_reduction", TokenGrid(8, 8)), 3)


def test_making_plans_raises_no_warning():
    mask = mask_for("document", TokenGrid(8, 8))
    columns, *_ = column_plans(mask, HEADS, CPU)
    assert columns.columns.shape == (64, mask.extra.shape[2])
