"""The checks of the exercises: they take what is right, and say where a usual mistake first shows."""

import pytest
import torch
from statsmodels.stats.multitest import multipletests

from hae_lab import HAELabError
from hae_lab.book import exercises
from hae_lab.masks import TokenGrid
from hae_lab.rules import mask_for


def ddim(x, clean, now, after):
    noise = (x - now**0.5 * clean) / (1 - now) ** 0.5
    return after**0.5 * clean + (1 - after) ** 0.5 * noise


def library_mask(seq_len, sparsity):
    return mask_for("document", TokenGrid(1, seq_len, (1,)), sparsity, 3).blocked()


def band(seq_len, sparsity):
    keep, place = max(1, int(seq_len * (1 - sparsity))), torch.arange(seq_len)
    return (place[:, None] - place).abs() > keep // 2


def one_draw_for_all_rows(seq_len, sparsity):
    mask, keep = band(seq_len, sparsity), int(seq_len * (1 - sparsity))
    if keep > 4:
        mask[:, torch.randperm(seq_len, generator=torch.Generator().manual_seed(0))[: keep // 4]] = False
    return mask


def own_token(row, column, side, sizes):
    first = side**2 + sum((side // p) ** 2 for p in sizes[:-1])
    return first + row // sizes[-1] * (side // sizes[-1]) + column // sizes[-1]


def second_difference(count, width, step):
    return (count(width + 2 * step) - 2 * count(width + step) + count(width)) / (2 * step**2)


def cross_mask(grid, *, columns=True, blocked=True):
    """By distances on the map, for every pair at once."""
    place = torch.arange(grid.n_local)
    row, column = place // grid.width, place % grid.width
    seen = torch.ones(grid.n, grid.n, dtype=torch.bool)
    alike = row[:, None] == row
    seen[: grid.n_local, : grid.n_local] = alike | (column[:, None] == column) if columns else alike
    return ~seen if blocked else seen


def attention_macs(queries, keys, channels):
    return 2 * (queries + keys) * channels**2 + 2 * queries * keys * channels


def verdict_of(computed, claimed):
    return ("holds", "nearly holds", "does not hold")[sum(abs(computed - claimed) > bound for bound in (1, 5))]


def library_holm(p_values):
    return multipletests(p_values, method="holm")[1]


def on_front(costs, losses):
    """Cheapest first, the better first of equals: on the front is what is better than all before, and its doubles."""
    order = sorted(range(len(costs)), key=lambda place: (costs[place], losses[place]))
    found, best = [False] * len(costs), (float("inf"), float("inf"))
    for place in order:
        if losses[place] < best[0]:
            best = losses[place], costs[place]
        found[place] = (losses[place], costs[place]) == best
    return found


RIGHT = {
    exercises.check_count_parameters: lambda module: sum(p.numel() for p in module.parameters()),
    exercises.check_ddim_step: ddim,
    exercises.check_patch_mean: lambda x, p: x.unfold(2, p, p).unfold(3, p, p).mean((4, 5)),
    exercises.check_sparse_mask: library_mask,
    exercises.check_own_token: own_token,
    exercises.check_concat_of_mean: lambda M: torch.cat([M, M], 1) / 2,
    exercises.check_mlp_params: lambda C, r: 2 * C * max(1, int(C * r)) + max(1, int(C * r)) + C,
    exercises.check_square_coefficient: second_difference,
    exercises.check_cross_mask: cross_mask,
    exercises.check_attention_macs: attention_macs,
    exercises.check_holm: library_holm,
    exercises.check_on_front: on_front,
    exercises.check_verdict_of: verdict_of,
}

WRONG = {
    "counts tensors": (exercises.check_count_parameters, lambda module: len(list(module.parameters())), "20 would be"),
    "fresh noise": (
        exercises.check_ddim_step,
        lambda x, clean, now, after: after**0.5 * clean + (1 - after) ** 0.5 * torch.ones_like(x),
        "signal 0.1 to 0.3: at",
    ),
    "axes mixed up": (
        exercises.check_patch_mean,
        lambda x, p: x.unflatten(2, (p, -1)).unflatten(4, (p, -1)).mean((2, 4)),
        "map",
    ),
    "a sum": (exercises.check_patch_mean, lambda x, p: x.unfold(2, p, p).unfold(3, p, p).sum((4, 5)), "would be right"),
    "True means visible": (exercises.check_sparse_mask, lambda n, s: ~torch.as_tensor(library_mask(n, s)), "blocked"),
    "no random columns": (exercises.check_sparse_mask, band, "keys beyond the bands"),
    "one draw for all": (exercises.check_sparse_mask, one_draw_for_all_rows, "each row draws its own"),
    "numbers": (exercises.check_sparse_mask, lambda n, s: torch.as_tensor(library_mask(n, s)).float(), "torch.bool"),
    "no offset": (exercises.check_own_token, lambda row, column, side, sizes: row * side + column, "pixel (0, 0)"),
    "not halved": (exercises.check_concat_of_mean, lambda M: torch.cat([M, M], 1), "would be right"),
    "swapped": (exercises.check_concat_of_mean, lambda M: torch.cat([M, M], 0) / 2, "shape"),
    "no biases": (exercises.check_mlp_params, lambda C, r: int(2 * C * C * r), "would be right"),
    "one step, not two": (
        exercises.check_square_coefficient,
        lambda count, width, step: (count(width + step) - count(width)) / step**2,
        "9 would be right",
    ),
    "not halved twice": (
        exercises.check_square_coefficient,
        lambda count, width, step: 2 * second_difference(count, width, step),
        "nn.Conv2d(C, C, 3), from C = 64 in steps of 64: 9 would be right, got 18.0",
    ),
    "rows alone": (exercises.check_cross_mask, lambda grid: cross_mask(grid, columns=False), "pixel (0, 0)"),
    "True means seen": (exercises.check_cross_mask, lambda grid: cross_mask(grid, blocked=False), "blocked"),
    "all queries": (exercises.check_attention_macs, lambda m, n, C: attention_macs(n, n, C), "256 queries, 276 keys"),
    "no projections": (exercises.check_attention_macs, lambda m, n, C: 2 * m * n * C, "would be right"),
    "Bonferroni": (
        exercises.check_holm,
        lambda p_values: [min(1.0, len(p_values) * p) for p in p_values],
        "p = (0.01, 0.04, 0.03): at (1,), 0.0600 would be right",
    ),
    "falls": (
        exercises.check_holm,
        lambda p_values: [(len(p_values) - sum(each < p for each in p_values)) * p for p in p_values],
        "0.0600 would be right, got 0.0400",
    ),
    "ties of one": (
        exercises.check_on_front,
        lambda costs, losses: [
            not any(a < cost and b < loss for a, b in zip(costs, losses, strict=True))
            for cost, loss in zip(costs, losses, strict=True)
        ],
        "[True, False, False] would be right",
    ),
    "ties of both": (
        exercises.check_on_front,
        lambda costs, losses: [each and costs[0] != costs[-1] for each in on_front(costs, losses)],
        "costs (2.0, 2.0), losses (1.0, 1.0): [True, True] would be right",
    ),
    "less than one": (exercises.check_mlp_params, lambda C, r: 2 * C * int(C * r) + int(C * r) + C, "C = 6, r = 0.1"),
    "one side": (
        exercises.check_verdict_of,
        lambda computed, claimed: verdict_of(max(computed, claimed), claimed),
        "65 % computed, 70 % claimed: nearly holds would be right, got holds",
    ),
}


@pytest.mark.parametrize(("check", "function"), RIGHT.items(), ids=lambda each: each.__name__)
def test_what_is_right_passes(check, function):
    assert check(function).startswith("right")


@pytest.mark.parametrize(("check", "function", "says"), WRONG.values(), ids=WRONG)
def test_a_usual_mistake_is_named(check, function, says):
    with pytest.raises(HAELabError) as raised:
        check(function)
    assert says in str(raised.value)


def test_every_check_is_tried():
    checks = {value for name, value in vars(exercises).items() if name.startswith("check_")}
    assert checks == set(RIGHT) == {check for check, _, _ in WRONG.values()}


def test_a_stub_says_that_it_is_one():
    def stub(x, p):
        raise NotImplementedError("yours to write")

    with pytest.raises(NotImplementedError, match="yours"):
        exercises.check_patch_mean(stub)
