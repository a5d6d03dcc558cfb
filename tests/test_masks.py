"""Who may see whom: the tokens of a grid, and masks in index form against the document's law."""

import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from hashlib import sha1
from itertools import combinations

import numpy as np
import pytest

from hae_lab import HAELabError, config, rules
from hae_lab.masks import PAD, SparseMask, TokenGrid
from hae_lab.rules import distinct_columns, mask_for

SIZES = (1, 4, 20, 50, 69, 100, 276)  # 20, 50 and 100 are divisible by 10; below 50 no random column is drawn
SPARSITIES = (0.0, 0.5, 0.9, 0.99)


def row(n: int) -> TokenGrid:
    """A grid of any number of tokens."""
    return TokenGrid(1, n, (1,))


def document_band(n: int, sparsity: float) -> tuple[np.ndarray, int]:
    """The document's loop without its random columns: (n, n) True = blocked, and how many columns it draws a row."""
    mask = np.ones((n, n), bool)
    keep_indices = max(1, int(n * (1 - sparsity)))
    for i in range(n):
        start = max(0, i - keep_indices // 2)
        end = min(n, i + keep_indices // 2 + 1)
        mask[i, start:end] = False
    return mask, max(1, keep_indices // 4) if keep_indices > 4 else 0


# tokens


def test_grid_counts_pixels_then_patches_of_each_scale():
    grid = TokenGrid(8, 16, (1, 4, 8))
    assert (grid.n_local, grid.n) == (128, 128 + 8 + 2)
    assert [grid.span(p) for p in (1, 4, 8)] == [(0, 128), (128, 136), (136, 138)]


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 12), (12, 12)])
def test_grid_drops_a_patch_size_that_does_not_divide_the_map(height, width):
    grid = TokenGrid(height, width, (1, 8, 4))
    assert (grid.scales, grid.dropped) == ((4,), (8,))
    assert grid.n == height * width * 17 // 16
    assert grid.span(4) == (height * width, grid.n)


def test_dropped_scale_has_no_span():
    with pytest.raises(HAELabError, match=r"tokens of the scales \(1, 4\), not 8"):
        TokenGrid(12, 12, (1, 4, 8)).span(8)


@pytest.mark.parametrize("patch_size", [1, 4, 8])
def test_parent_of_a_pixel_is_its_patch_in_raster_order(patch_size):
    grid = TokenGrid(8, 24, (1, 4, 8))
    expected = np.empty((8, 24), int)
    token = grid.span(patch_size)[0]
    for top in range(0, 8, patch_size):
        for left in range(0, 24, patch_size):
            expected[top : top + patch_size, left : left + patch_size] = token
            token += 1
    assert token == grid.span(patch_size)[1]
    assert (grid.parent(patch_size) == expected.ravel()).all()


# the document's law


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("n", SIZES)
def test_band_is_that_of_the_documents_loop(n, sparsity):
    mask = rules.document(row(n), sparsity, seed=0)
    band = replace(mask, extra=np.empty((1, n, 0), np.int32))
    assert (band.blocked() == document_band(n, sparsity)[0]).all()


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("n", SIZES)
def test_random_columns_are_as_many_as_the_document_draws_distinct_and_in_range(n, sparsity):
    columns = rules.document(row(n), sparsity, seed=0).extra
    assert columns.shape == (1, n, document_band(n, sparsity)[1])
    assert all(len(set(drawn)) == len(drawn) and set(drawn) <= set(range(n)) for drawn in columns[0].tolist())


@pytest.mark.parametrize("n", SIZES)
def test_mask_is_the_band_opened_at_the_random_columns(n):
    mask = rules.document(row(n), 0.9, seed=3)
    expected, _ = document_band(n, 0.9)
    for i in range(n):
        expected[i, mask.extra[0, i]] = False
    assert (mask.blocked() == expected).all()


def test_ten_percent_of_a_multiple_of_ten_is_one_less():
    # int(100 * (1 - 0.9)) is 9: half width 4, 2 random columns; 10 would give a band of 11
    mask = rules.document(row(100), 0.9, seed=0)
    assert (mask.stop - mask.start)[0, 50] == 9
    assert mask.extra.shape[2] == 2


def test_document_rule_runs_over_the_tokens_of_all_scales():
    assert rules.document(TokenGrid(8, 8), 0.9, seed=0).blocked().shape == (69, 69)


def test_dense_rule_blocks_nothing():
    mask = rules.dense(TokenGrid(8, 8), 0.9, seed=0)
    assert not mask.blocked().any()
    assert mask.is_dense


def test_document_rule_is_not_dense():
    assert not rules.document(TokenGrid(8, 8), 0.9, seed=0).is_dense


def test_distinct_columns_are_uniform_over_all_subsets():
    rows = 70_000
    drawn = np.sort(distinct_columns(rows, 7, 3, np.random.default_rng(0)), axis=1)
    subsets = list(combinations(range(7), 3))
    counts = np.array([(drawn == subset).all(1).sum() for subset in subsets])
    assert counts.sum() == rows
    expected = rows / len(subsets)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 65.25  # 99.9 % point of chi-square with 35 - 1 degrees of freedom


def test_distinct_columns_favour_no_column():
    rows, n, count = 20_000, 40, 10
    counts = np.bincount(distinct_columns(rows, n, count, np.random.default_rng(0)).ravel(), minlength=n)
    expected = rows * count / n
    # drawn without replacement, so the counts vary less than a multinomial's
    chi_square = ((counts - expected) ** 2 / expected).sum() * (n - 1) / (n - count)
    assert chi_square < 72.05  # 99.9 % point of chi-square with 40 - 1 degrees of freedom


def test_distinct_columns_can_be_all_columns():
    drawn = distinct_columns(50, 6, 6, np.random.default_rng(0))
    assert (np.sort(drawn, axis=1) == np.arange(6)).all()


@pytest.mark.parametrize("grid", [TokenGrid(16, 16), TokenGrid(32, 32)])
@pytest.mark.parametrize("seed", [0, 1])
def test_density_equals_the_closed_form(grid, seed):
    n = grid.n
    keep = int(n * (1 - 0.9))
    h, r = keep // 2, max(1, keep // 4)
    p_b = (n * (2 * h + 1) - h * (h + 1)) / n**2
    density = 1 - rules.document(grid, 0.9, seed).blocked().mean()
    # in each row the random columns outside the band are hypergeometric
    outside = (document_band(n, 0.9)[0]).sum(1) / n
    variance = (r * outside * (1 - outside) * (n - r) / (n - 1)).sum()
    assert abs(density - (p_b + r / n * (1 - p_b))) < 3 * variance**0.5 / n**2


def test_index_form_makes_no_matrix():
    grid = TokenGrid(64, 64)
    tracemalloc.start()
    try:
        mask = rules.document(grid, 0.9, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < grid.n**2  # bytes of a bool matrix
    assert mask.start.nbytes + mask.stop.nbytes + mask.extra.nbytes < grid.n**2 / 8


# randomness


@pytest.mark.parametrize("rule", rules.RULES)
def test_same_seed_gives_the_same_mask_in_another_process(rule):
    code = f"from hae_lab.rules import *; print(sha1(RULES[{rule!r}](TokenGrid(16, 16), 0.9, 4).blocked()).hexdigest())"
    python = [sys.executable, "-c", f"from hashlib import sha1; {code}"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    digest = subprocess.run(python, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert digest == sha1(rules.RULES[rule](TokenGrid(16, 16), 0.9, 4).blocked()).hexdigest()


def test_another_seed_gives_another_mask():
    first, second = (rules.document(TokenGrid(16, 16), 0.9, seed).blocked() for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("rule", rules.RULES)
def test_rules_leave_the_global_random_states_alone(rule, random_states):
    before = random_states()
    rules.RULES[rule](TokenGrid(16, 16), 0.9, 0)
    assert random_states() == before


def test_rules_do_not_depend_on_the_global_random_state():
    first = rules.document(TokenGrid(16, 16), 0.9, 0).extra
    np.random.seed(99)  # noqa: NPY002
    assert (rules.document(TokenGrid(16, 16), 0.9, 0).extra == first).all()


# the index form and the matrix


@pytest.mark.parametrize("shape", [(17, 17), (2, 17, 17), (4, 17, 17)])
def test_matrix_round_trip(shape):
    matrix = np.random.default_rng(0).random(shape) < 0.7
    mask = SparseMask.from_blocked(matrix, TokenGrid(4, 4, (1, 4)))
    assert mask.groups == (1 if len(shape) == 2 else shape[0])
    assert (mask.blocked() == matrix).all()


def test_matrix_of_one_group_gives_a_flat_matrix():
    matrix = np.eye(17, dtype=bool)
    assert (SparseMask.from_blocked(matrix[None], TokenGrid(4, 4, (1, 4))).blocked() == matrix).all()


@pytest.mark.parametrize("value", [True, False])
def test_matrix_of_one_value_round_trip(value):
    matrix = np.full((17, 17), value)
    assert (SparseMask.from_blocked(matrix, TokenGrid(4, 4, (1, 4))).blocked() == matrix).all()


@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (17,)])
def test_matrix_of_another_grid_is_refused_with_both_shapes(shape):
    with pytest.raises(HAELabError) as caught:
        SparseMask.from_blocked(np.zeros(shape, bool), TokenGrid(4, 4, (1, 4)))
    assert str(shape) in str(caught.value)
    assert "(17, 17)" in str(caught.value)


@pytest.fixture
def mixed() -> tuple[SparseMask, np.ndarray]:
    """A mask that uses every part of the index form, and its matrix by loops."""
    grid, share, always = TokenGrid(4, 4, (1, 2)), 3, (16, 18)
    generator = np.random.default_rng(1)
    start = generator.integers(0, 10, (2, grid.n)).astype(np.int32)
    stop = start + generator.integers(0, 6, (2, grid.n)).astype(np.int32)
    extra = generator.integers(grid.n, size=(1, -(-grid.n // share), 4)).astype(np.int32)
    extra[0, ::2, -1] = PAD
    blocked = np.ones((2, grid.n, grid.n), bool)
    for group in range(2):
        for query in range(grid.n):
            for key in range(grid.n):
                sees = start[group, query] <= key < stop[group, query] or key in extra[0, query // share]
                blocked[group, query, key] = not (sees or always[0] <= key < always[1])
    return SparseMask(grid, start, stop, extra, share, always), blocked


def test_matrix_of_interval_shared_columns_padding_and_always(mixed):
    mask, blocked = mixed
    assert (mask.blocked() == blocked).all()


def test_allowed_gives_the_asked_rows(mixed):
    mask, blocked = mixed
    queries = np.array([19, 3, 3])
    assert (mask.allowed(queries, group=1) == ~blocked[1, queries]).all()


def test_keys_are_the_open_columns_of_a_row(mixed):
    mask, blocked = mixed
    for group in range(2):
        assert mask.keys(7, group).tolist() == np.flatnonzero(~blocked[group, 7]).tolist()


def test_keys_per_query_count_each_key_once(mixed):
    mask, blocked = mixed
    for group in range(2):
        assert mask.keys_per_query(group).tolist() == (~blocked[group]).sum(1).tolist()


def test_keys_per_query_of_many_queries():
    mask = rules.document(row(1200), 0.9, 0)
    assert mask.keys_per_query().tolist() == (~mask.blocked()).sum(1).tolist()


# the registry


def test_user_rule_is_accepted_by_config_and_found_by_name(monkeypatch):
    with pytest.raises(HAELabError, match="unknown mask rule 'diagonal'"):
        config("hae", "tiny", mask_rule="diagonal")
    calls = []

    def diagonal(grid, sparsity, seed):
        calls.append((sparsity, seed))
        return SparseMask.from_blocked(~np.eye(grid.n, dtype=bool), grid)

    monkeypatch.setitem(rules.RULES, "diagonal", diagonal)
    assert config("hae", "tiny", mask_rule="diagonal").mask_rule == "diagonal"
    mask = mask_for("diagonal", TokenGrid(4, 4), 0.5, 7)
    assert (mask.keys_per_query() == 1).all()
    assert calls == [(0.5, 7)]


def test_unknown_rule_is_refused_with_the_nearest_and_all_known():
    with pytest.raises(HAELabError) as caught:
        mask_for("documnt", TokenGrid(4, 4))
    assert "unknown mask rule 'documnt': did you mean 'document'?" in str(caught.value)
    assert all(rule in str(caught.value) for rule in rules.RULES)


def test_layers_with_the_same_grid_share_one_mask():
    assert mask_for("document", TokenGrid(16, 16), 0.9, 0) is mask_for("document", TokenGrid(16, 16), 0.9, 0)


@pytest.mark.parametrize(
    "other",
    [
        ("document", TokenGrid(8, 8), 0.9, 0),
        ("document", TokenGrid(16, 16), 0.9, 1),
        ("document", TokenGrid(16, 16), 0.8, 0),
        ("dense", TokenGrid(16, 16), 0.9, 0),
    ],
)
def test_cache_tells_masks_apart(other):
    assert mask_for(*other) is not mask_for("document", TokenGrid(16, 16), 0.9, 0)


def test_cache_gives_the_mask_of_the_rule():
    grid = TokenGrid(16, 16)
    assert (mask_for("document", grid, 0.8, 5).blocked() == rules.document(grid, 0.8, 5).blocked()).all()


def test_rule_replaced_under_its_name_is_not_served_from_the_cache(monkeypatch):
    mask_for("document", TokenGrid(4, 4))
    monkeypatch.setitem(rules.RULES, "document", rules.dense)
    assert mask_for("document", TokenGrid(4, 4)).is_dense
