"""Claims on the fusion of the two branches: what it is, and what it can express."""

from collections.abc import Iterator

import torch
from torch import nn

from hae_lab.audit.claims.base import BEYOND, Finding, claim, listed
from hae_lab.audit.claims.built import BLOCK, LITE, SAYS_TEST, fusion_inputs, hybrid_blocks_of, of_blocks
from hae_lab.audit.claims.parameters import count
from hae_lab.audit.claims.quality import readings_kept
from hae_lab.audit.claims.tried import CHANNELS, CLOSE, error_of, expressed, in_words, part, some_map
from hae_lab.audit.measured import Measured
from hae_lab.models.slots import ConcatFusion, MeanFusion
from hae_lab.presets import DOCUMENT


@claim(
    {
        67: "self.fusion_conv = conv_nd(2, channels * 2, channels, 1)",
        72: "通过拼接进行特征融合",
        169: "拼接+Conv … 平均+Conv",
    },
    "HAE joins its branches by concatenation and a 1 x 1 convolution",
    "1 x 1, 2C in, C out",
    **BLOCK | {"notebook": "03_hae"},
    test="test_compute.py::test_one_hybrid_block_by_hand",
)
def concat_fusion(measured: Measured) -> Iterator[Finding]:
    """Channels into the fusion of each block, and the size of its kernel."""
    found = {fusion_inputs(each) for each in hybrid_blocks_of("hae")}
    yield of_blocks("input channels of the fusion over C", found == {2}, f"{listed(found)}")
    kernels = {each.fusion_conv.kernel_size for each in hybrid_blocks_of("hae")}
    words = listed(f"{height} x {width}" for height, width in kernels)
    yield of_blocks("the kernel of the fusion", kernels == {(1, 1)}, words)


@claim(
    {
        154: "加权平均而不是拼接",
        155: "fused = (conv_out + trans_out) / 2",
        156: "output = self.fusion_conv(fused)",
        160: "使用加权平均替代特征拼接",
    },
    "Lite joins its branches by a weighted mean instead of concatenation: half of their sum, then a convolution",
    "a weighted mean",
    **LITE,
    test="test_ledger_numbers.py::test_the_mean_of_lite_has_no_weights",
)
def weighted_mean(measured: Measured) -> Iterator[Finding]:
    """A mean it is; weighted would be unequal or learned weights."""
    fusion, a, b = part(MeanFusion, True), some_map(), some_map().flip(2)
    error = error_of(fusion(a, b), fusion.fusion_conv((a + b) / 2))
    scope = f"the fusion alone, C = {CHANNELS}"
    yield of_blocks("half of the sum, then the convolution, as printed", error < CLOSE, in_words(error), scope)
    swapped = error_of(fusion(b, a), fusion(a, b))
    weights = count(fusion) - count(fusion.fusion_conv)
    computed = f"{weights} weights; with the branches exchanged the output is {in_words(swapped)}"
    yield of_blocks(
        "weighted: by unequal or learned weights, which the printed line has not",
        weights > 0 or swapped > CLOSE,
        computed,
        scope,
        BEYOND,
    )


@claim(
    {161: "减少融合卷积的输入通道数", 169: "减少通道数"},
    "Lite's fusion convolution has fewer input channels",
    "C instead of 2C",
    **LITE,
    test=SAYS_TEST,
)
def fewer_fusion_inputs(measured: Measured) -> Iterator[Finding]:
    """Channels into the fusion, over C."""
    found = {variant: {fusion_inputs(each) for each in hybrid_blocks_of(variant)} for variant in DOCUMENT}
    fewer = max(found["lite"]) < min(found["hae"]) and max(found["v2"]) < min(found["hae"])
    yield of_blocks(
        "input channels over C",
        fewer,
        f"HAE {listed(found['hae'])}, Lite {listed(found['lite'])}, V2 {listed(found['v2'])}",
    )


@claim(
    {162: "保持相同的表达能力"},
    "The mean keeps the same expressive power",
    "the same functions",
    **LITE,
    test="test_ledger_numbers.py::test_a_mean_misses_one_branch_alone_by_the_root_of_a_half",
)
def same_expressiveness(measured: Measured) -> Iterator[Finding]:
    """Concatenation can do what the mean does; can the mean do what concatenation does? And do trained models tell?"""
    concat, mean, a, b = part(ConcatFusion, True), part(MeanFusion, True), some_map(), some_map().flip(2)
    weight, bias = mean.fusion_conv.weight, mean.fusion_conv.bias
    tied = nn.functional.conv2d(torch.cat([b, a], 1), torch.cat([weight, weight], 1) / 2, bias)
    error = error_of(tied, mean(a, b))
    scope = f"the fusion alone, C = {CHANNELS}"
    yield expressed("concatenation with tied halves is the mean", error, scope)
    wanted = concat.fusion_conv.weight.flatten(1)  # (C, 2C)
    halves = wanted.view(CHANNELS, 2, CHANNELS)
    nearest = halves.mean(1, keepdim=True).expand_as(halves).reshape_as(wanted)  # the tied halves next to it
    yield expressed("the mean does what concatenation does", error_of(nearest, wanted), scope)
    yield from readings_kept(measured, "fusion", "trained models are as good: held-out loss at equal steps")
