"""Claims on the token MLP: its width, its layers, and what it can express."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import EXPRESSION, Finding, claim, listed
from hae_lab.audit.claims.built import BLOCK, SAYS_TEST, V2, branches_of, of_blocks
from hae_lab.audit.claims.quality import readings_kept
from hae_lab.audit.claims.tried import CHANNELS, CLOSE, error_of, part, some_map
from hae_lab.audit.measured import Measured
from hae_lab.models import BottleneckMLP
from hae_lab.models.slots import GeluMLP
from hae_lab.presets import VARIANTS


@claim(
    {53: "使用完整的4倍扩展MLP", 170: "4倍扩展 … 保持不变"},
    "HAE's token MLP is four times as wide inside, and so is Lite's",
    "4 C",
    **BLOCK | {"notebook": "03_hae"},
    test=SAYS_TEST,
)
def full_mlp(measured: Measured) -> Iterator[Finding]:
    """Hidden width over C."""
    for variant in ("hae", "lite"):
        ratios = {each.mlp[0].out_features / each.mlp[0].in_features for each in branches_of(variant)}
        title = VARIANTS[variant].title
        yield of_blocks(f"hidden width of {title}'s over C", ratios == {4}, listed(f"{ratio:g}" for ratio in ratios))


@claim(
    {
        188: "bottleneck_dim = max(1, int(channels * bottleneck_ratio))",
        190: "self.mlp = nn.Sequential(",
        191: "nn.Linear(channels, bottleneck_dim)",
        192: "nn.GELU()",
        193: "nn.Dropout(dropout)",
        194: "nn.Linear(bottleneck_dim, channels)",
        195: "nn.Dropout(dropout)",
        200: "瓶颈结构：channels → bottleneck_dim → channels",
    },
    "The bottleneck narrows C to max(1, int(C x ratio)) and widens it back",
    "C, max(1, int(C x ratio)), C",
    **V2,
    test="test_models.py::test_bottleneck_mlp_narrows_to_the_ratio",
)
def bottleneck_shape(measured: Measured) -> Iterator[Finding]:
    """Widths of some bottlenecks, and their layers."""
    cases = [(channels, ratio) for channels in (2, 16, 512) for ratio in (0.0625, 0.25, 0.5)]
    widths = {case: BottleneckMLP(*case).mlp[0].out_features for case in cases}
    back = all(BottleneckMLP(*case).mlp[3].out_features == case[0] for case in cases)
    right = back and all(width == max(1, int(channels * ratio)) for (channels, ratio), width in widths.items())
    computed = f"{len(cases)} of {len(cases)}" if right else str(widths)
    yield of_blocks("widths inside", right, computed, "C = 2, 16, 512, ratio 1/16, 1/4, 1/2")
    layers = [type(each).__name__ for each in BottleneckMLP(CHANNELS, 0.25).mlp]
    printed = ["Linear", "GELU", "Dropout", "Linear", "Dropout"]
    yield of_blocks("its layers, in the printed order", layers == printed, ", ".join(layers), f"C = {CHANNELS}")


@claim(
    {187: "bottleneck_ratio=0.25", 201: "默认瓶颈比例0.25", 219: "集成瓶颈MLP结构", 228: "瓶颈0.25倍"},
    "V2 has the bottleneck MLP in its blocks, with a ratio of 0.25 by default",
    "0.25",
    **V2,
    test="test_models.py::test_only_v2_has_a_bottleneck_mlp",
)
def v2_bottleneck(measured: Measured) -> Iterator[Finding]:
    """The MLPs of V2's blocks, and their hidden width over C."""
    found = [each.mlp for each in branches_of("v2") if isinstance(each.mlp, BottleneckMLP)]
    ratios = {each.mlp[0].out_features / each.mlp[0].in_features for each in found}
    n_blocks = len(branches_of("v2"))
    right = len(found) == n_blocks and ratios == {0.25}
    yield of_blocks("bottlenecks, and their ratio", right, f"{len(found)} of {n_blocks}, {listed(ratios)}")


@claim(
    {202: "保持非线性表达能力"},
    "The bottleneck keeps the nonlinear expressive power",
    "the same power",
    **V2 | {"table": "study_bottleneck", "figure": "bottleneck_ratio"},
    test="test_ledger_numbers.py::test_a_bottleneck_moves_in_a_quarter_of_the_directions",
)
def bottleneck_expression(measured: Measured) -> Iterator[Finding]:
    """It is not linear; in how many directions can it move a token; and do trained models tell?"""
    mlp, token = part(GeluMLP, 0.25, 0.0), some_map()[0, :, 0, 0]
    bent = error_of(mlp(2 * token) - mlp(0 * token), 2 * (mlp(token) - mlp(0 * token)))
    scope = f"one MLP, C = {CHANNELS}"
    verdict = verdicts.as_said(bent > CLOSE)
    yield Finding("it is not linear", scope, f"off a line by {100 * bent:.0f} %", verdict, EXPRESSION)
    ranks = [_directions(part(GeluMLP, ratio, 0.0), token) for ratio in (4, 0.25)]
    verdict = verdicts.as_said(ranks[1] >= ranks[0])
    computed = f"{ranks[1]}, of the 4x MLP {ranks[0]}"
    reading = "as many directions in which it can move a token as the 4x MLP has"
    yield Finding(reading, scope, computed, verdict, EXPRESSION)
    yield from readings_kept(measured, "mlp_ratio", "trained models are as good: held-out loss at equal steps")


def _directions(mlp: nn.Module, token: Tensor) -> int:
    """The rank of what the MLP does to small changes of a token."""
    jacobian = torch.autograd.functional.jacobian(mlp, token)
    return int(torch.linalg.matrix_rank(jacobian, rtol=1e-5))
