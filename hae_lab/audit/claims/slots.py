"""Claims on the three slots together: what each version has in them, and whether HAE's can do what the others' do."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from hae_lab.audit.claims.base import Finding, claim
from hae_lab.audit.claims.built import BLOCK, LITE, fusion_inputs, hybrid_blocks_of, of_blocks
from hae_lab.audit.claims.tried import CHANNELS, PATCHES, error_of, expressed, part, some_map
from hae_lab.audit.measured import Measured
from hae_lab.models.slots import GeluMLP, MeanFusion, PooledRegions
from hae_lab.presets import VARIANTS


@claim(
    {
        226: "4倍扩展 … 独立Linear … 拼接",
        227: "4倍扩展 … 共享Conv1x1 … 平均",
        228: "瓶颈0.25倍 … 共享Conv1x1+池化 … 平均",
    },
    "MLP, projection and fusion of the three versions, as the table has them",
    "the table's words",
    **BLOCK | {"notebook": "00_start_here"},
    test="test_family.py::test_variants_are_the_documents_slots",
)
def slots_of_the_table(measured: Measured) -> Iterator[Finding]:
    """The slots of each version in the table's words."""
    words = {
        "hae": (4, "patch_projections", 2), "lite": (4, "shared_patch_embed", 1), "v2": (0.25, "shared_patch_embed", 1),
    }  # fmt: skip
    for variant, (ratio, layer, inputs) in words.items():
        block = hybrid_blocks_of(variant)[0]
        mlp = next(each for each in block.transformer_branch.mlp.modules() if isinstance(each, nn.Linear))
        found = (mlp.out_features / mlp.in_features, layer, fusion_inputs(block))
        right = found == (ratio, layer, inputs) and hasattr(block.transformer_branch, layer)
        computed = f"MLP {found[0]:g} C, {layer}, fusion of {found[2]} C"
        yield of_blocks(f"the slots of {VARIANTS[variant].title}", right, computed)


@claim(
    {283: "完整的特征表达能力"},
    "HAE has the full expressive power of features",
    "HAE can do what the others do",
    **LITE,
    test="test_ledger_numbers.py::test_hae_cannot_shift_its_pixel_tokens_as_lite_does",
)
def full_expression(measured: Measured) -> Iterator[Finding]:
    """Whether HAE's slots, with the right weights, do what Lite's and V2's do."""
    pooled, x = part(PooledRegions, PATCHES), some_map()
    weight, bias = pooled.shared_patch_embed.weight.flatten(1), pooled.shared_patch_embed.bias  # (C, C), (C,)
    scope, tokens = f"the slot alone, C = {CHANNELS}", pooled(x, PATCHES)
    for index, p in enumerate(PATCHES):
        tiled = weight.repeat_interleave(p * p, dim=1) / p**2  # (C, C p²), channel-major
        made = nn.functional.linear(nn.functional.unfold(x, p, stride=p).mT, tiled, bias)
        yield expressed(f"Lite's {p} x {p} tokens from HAE's projection", error_of(made, tokens[1 + index]), scope)
    yield expressed("Lite's pixel tokens, for which HAE has no layer", error_of(x.flatten(2).mT, tokens[0]), scope)
    narrow_mlp, token = part(GeluMLP, 0.25, 0.0), x.flatten(2).mT
    wide = _widened(narrow_mlp)
    yield expressed("V2's bottleneck from HAE's MLP", error_of(wide(token), narrow_mlp(token)), scope)
    mean, b = part(MeanFusion, True), x.flip(2)
    halves = torch.cat([mean.fusion_conv.weight] * 2, 1) / 2
    made = nn.functional.conv2d(torch.cat([b, x], 1), halves, mean.fusion_conv.bias)
    yield expressed("Lite's mean from HAE's concatenation", error_of(made, mean(x, b)), scope)


def _widened(narrow_mlp: nn.Module) -> nn.Module:
    """A 4x MLP that does what a bottleneck does: its further hidden units are silent."""
    wide = copy.deepcopy(part(GeluMLP, 4, 0.0))
    inside, outside = narrow_mlp.mlp.mlp[0], narrow_mlp.mlp.mlp[3]
    for layer in (wide.mlp[0], wide.mlp[3]):
        layer.weight.zero_()
        layer.bias.zero_()
    wide.mlp[0].weight[: len(inside.bias)], wide.mlp[0].bias[: len(inside.bias)] = inside.weight, inside.bias
    wide.mlp[3].weight[:, : len(inside.bias)], wide.mlp[3].bias[:] = outside.weight, outside.bias
    return wide
