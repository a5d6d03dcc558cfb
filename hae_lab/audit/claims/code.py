"""Claims on the code that the document prints: signatures, names, the attention layer, timesteps and classes."""

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hae_lab.audit import verdicts
from hae_lab.audit.baselines import multihead_attention
from hae_lab.audit.claims.base import INTERFACE, STRUCTURE, Finding, claim, listed
from hae_lab.audit.claims.built import BLOCK, branches_of
from hae_lab.audit.claims.tried import CHANNELS, CLOSE, error_of, in_words, some_map
from hae_lab.audit.measured import Measured
from hae_lab.masks import TokenGrid
from hae_lab.models import (
    BottleneckMLP,
    HAEUNet,
    HybridBlock,
    HybridCNNTransformerBlock,
    MultiScaleSparseTransformerBlock,
    MultiScaleSparseTransformerBlockLite,
    build,
)
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.models.layers import ResBlock, drawn_as, seeded, timestep_embedding
from hae_lab.presets import DOCUMENT
from hae_lab.rules import mask_for

CONDITIONS = {"notebook": "03_hae", "figure": "unet_hae", "table": "architecture"}
MSTB_ARGUMENTS = "def __init__(self, channels, num_heads=8, dropout=0.1, patch_sizes=[1, 4, 8])"
SIGNATURES = {
    35: (MSTB_ARGUMENTS, MultiScaleSparseTransformerBlock),
    59: (
        "def __init__(self, channels, emb_channels, dropout=0.1, use_checkpoint=False)",
        HybridCNNTransformerBlock,
    ),
    138: (MSTB_ARGUMENTS, MultiScaleSparseTransformerBlockLite),
    187: ("def __init__(self, channels, bottleneck_ratio=0.25, dropout=0.1)", BottleneckMLP),
}
NAMES = {
    37: ("self.local_norm", MultiScaleSparseTransformerBlock),
    40: ("self.regional_norms", MultiScaleSparseTransformerBlock),
    41: ("self.patch_projections", MultiScaleSparseTransformerBlock),
    44: ("self.multihead_attn", MultiScaleSparseTransformerBlock),
    47: ("self.mlp", MultiScaleSparseTransformerBlock),
    61: ("self.conv_branch", HybridCNNTransformerBlock),
    64: ("self.transformer_branch", HybridCNNTransformerBlock),
    67: ("self.fusion_conv", HybridCNNTransformerBlock),
    140: ("self.shared_patch_embed", MultiScaleSparseTransformerBlockLite),
    190: ("self.mlp", BottleneckMLP),
}


@claim(
    {line: signature for line, (signature, _) in SIGNATURES.items()},
    "The blocks take the arguments that the document prints, with its defaults",
    "the printed signatures",
    **BLOCK,
    test="test_models.py::test_mstb_has_the_documents_signature",
)
def printed_signatures(measured: Measured) -> Iterator[Finding]:
    """Names, order and defaults of the arguments."""
    for line, (printed, kind) in SIGNATURES.items():
        own = list(inspect.signature(kind).parameters.values())
        found = [(each.name, None if each.default is inspect.Parameter.empty else each.default) for each in own]
        wanted = _arguments(printed)
        verdict = verdicts.as_said(found == wanted)
        yield Finding(f"line {line}", kind.__name__, ", ".join(name for name, _ in found), verdict, INTERFACE)


def _arguments(printed: str) -> list[tuple[str, Any]]:
    """(name, default) of each argument but self of a printed signature; lists as tuples."""
    (function,) = ast.parse(f"{printed}: ...").body
    assert isinstance(function, ast.FunctionDef)
    arguments, defaults = function.args.args, [ast.literal_eval(each) for each in function.args.defaults]
    padded = [None] * (len(arguments) - len(defaults)) + defaults
    values = [tuple(value) if isinstance(value, list) else value for value in padded]
    return [(each.arg, value) for each, value in zip(arguments, values, strict=True)][1:]


@claim(
    {line: name for line, (name, _) in NAMES.items()},
    "The layers have the names that the document prints",
    "the printed names",
    **BLOCK,
    test="test_models.py::test_mstb_has_the_documents_attributes",
)
def printed_names(measured: Measured) -> Iterator[Finding]:
    """Names of the layers of the blocks."""
    missing = [
        f"{line}: {name}"
        for line, (name, kind) in NAMES.items()
        if not hasattr(_made(kind), name.removeprefix("self."))
    ]
    computed = f"{len(NAMES) - len(missing)} of {len(NAMES)}" + (f", not {', '.join(missing)}" if missing else "")
    yield Finding(
        "attributes of the blocks", "the document's classes", computed, verdicts.as_said(not missing), INTERFACE
    )


@lru_cache(maxsize=8)
def _made(kind: type[nn.Module]) -> nn.Module:
    return kind(16, 32) if issubclass(kind, HybridBlock) else kind(16)


@claim(
    {37: "self.local_norm = nn.LayerNorm(channels)", 40: "self.regional_norms = nn.ModuleList([...])"},
    "Pixels pass a LayerNorm of their own, and so do the patches of each scale",
    "a LayerNorm a scale",
    **BLOCK,
    test="test_models.py::test_mstb_has_the_documents_attributes",
)
def norms_of_scales(measured: Measured) -> Iterator[Finding]:
    """The norms of each version, and what the tokens of pixels are."""
    norms = [[each.local_norm, *each.regional_norms] for variant in DOCUMENT for each in branches_of(variant)]
    right = all(isinstance(norm, nn.LayerNorm) for each in norms for norm in each)
    counts = {len(each) for each in norms}
    scales = {len(each.patch_sizes) for variant in DOCUMENT for each in branches_of(variant)}
    computed = f"{listed(counts)} LayerNorms for {listed(scales)} scales" if right else "other norms"
    verdict = verdicts.as_said(right and counts == scales)
    yield Finding("norms, pixels included", "HAE, Lite, V2, brats128", computed, verdict, STRUCTURE)
    block = _made(MultiScaleSparseTransformerBlock).requires_grad_(False)
    pixels = some_map().flatten(2).mT  # (1, HW, C)
    by_hand = (pixels - pixels.mean(2, keepdim=True)) / pixels.var(2, unbiased=False, keepdim=True).add(1e-5).sqrt()
    error = error_of(block.tokens(some_map())[:, : pixels.shape[1]], by_hand)
    verdict = verdicts.at_most(error, CLOSE)
    reading = "tokens of pixels in HAE: each pixel less its mean, over its spread"
    yield Finding(reading, f"8 x 8 map, C = {CHANNELS}", in_words(error), verdict, STRUCTURE)


@claim(
    {44: "nn.MultiheadAttention(...)"},
    "The sparse attention is torch's nn.MultiheadAttention with a mask",
    "the same outputs",
    **BLOCK | {"table": "bench_attention_cpu", "figure": "attention_speed_up"},
    test="test_models.py::test_sparse_attention_equals_torchs_at_the_local_rows",
)
def torchs_attention(measured: Measured) -> Iterator[Finding]:
    """Our layer beside torch's with the same weights and mask, for the pixels."""
    grid = TokenGrid(8, 8)
    mask = mask_for("document", grid)
    with seeded(0), drawn_as("attention"):
        layer = SparseMultiheadAttention(16, 8, 0.0).eval().requires_grad_(False)
    tokens = torch.randn(1, grid.n, 16, generator=torch.Generator().manual_seed(0))
    blocked = torch.from_numpy(mask.blocked())
    theirs, _ = multihead_attention(layer).eval()(tokens, tokens, tokens, attn_mask=blocked)
    error = error_of(layer(tokens, mask), theirs[:, : grid.n_local])
    verdict = verdicts.at_most(error, CLOSE)
    yield Finding("outputs of the pixels", f"8 x 8 map, n = {grid.n}, C = 16", in_words(error), verdict, STRUCTURE)


# timesteps and classes


@lru_cache(maxsize=8)
def _answering(variant: str, classes: int | None = 3) -> HAEUNet:
    """A small model whose last layer is not zero, as that of a fresh one is: do not change it."""
    model = build(variant, "tiny", num_classes=classes).eval().requires_grad_(False)
    model.out[-1].weight.copy_(torch.randn(model.out[-1].weight.shape, generator=torch.Generator().manual_seed(0)))
    return model


@claim(
    {73: "完整的时间步嵌入处理", 266: "所有版本都支持完整的时间步嵌入和条件嵌入"},
    "All versions take timesteps and classes, in the hybrid block too",
    "all versions",
    **CONDITIONS,
    test="test_models.py::test_timestep_changes_the_output",
)
def conditioning(measured: Measured) -> Iterator[Finding]:
    """Whether outputs change with the timestep and with the class; and the hybrid block's with the embedding."""
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    for what, first, second in (("timestep", (10, 0), (500, 0)), ("class", (10, 0), (10, 2))):
        changed = [
            variant
            for variant in DOCUMENT
            if error_of(_answer(variant, x, *first), _answer(variant, x, *second)) > CLOSE
        ]
        verdict = verdicts.as_said(changed == list(DOCUMENT))
        yield Finding(f"the output changes with the {what}", "HAE, Lite, V2, tiny", listed(changed), verdict, STRUCTURE)
    changed = [variant for variant in DOCUMENT if _block_listens(variant)]
    verdict = verdicts.as_said(changed == list(DOCUMENT))
    yield Finding(
        "a hybrid block's output changes with the embedding", "HAE, Lite, V2, tiny", listed(changed), verdict, STRUCTURE
    )


def _answer(variant: str, x: Tensor, timestep: int, label: int) -> Tensor:
    return _answering(variant)(x, torch.tensor([timestep]), torch.tensor([label]))


def _block_listens(variant: str) -> bool:
    block = next(each for each in _answering(variant).modules() if isinstance(each, HybridBlock))
    channels, width = block.fusion_conv.out_channels, block.emb_layers[1].in_features
    x = torch.ones(1, channels, 8, 8)
    return error_of(block(x, torch.ones(1, width)), block(x, -torch.ones(1, width))) > CLOSE


@claim(
    {
        270: "emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))",
        273: "if self.num_classes is not None:",
        274: "cemb = self.class_emb(self.label_emb(y))",
        275: "emb = emb + cemb",
    },
    "The embedding of the timestep, plus that of the class if the model has classes",
    "the printed lines",
    **CONDITIONS,
    test="test_models.py::test_timestep_embedding_is_cosines_then_sines",
)
def embedding_lines(measured: Measured) -> Iterator[Finding]:
    """What the first residual block is given, beside the printed lines: with classes, and without."""
    steps, y = torch.tensor([250]), torch.tensor([1])
    for words, classes in (("with classes", 3), ("of a model without classes", None)):
        errors = []
        for variant in DOCUMENT:
            model = _answering(variant, classes)
            emb = model.time_embed(timestep_embedding(steps, model.config.model_channels))
            if classes is not None:
                emb = emb + model.class_emb(model.label_emb(y))
            errors.append(error_of(_given_to_first_block(model, steps, y if classes else None), emb))
        verdict, reading = verdicts.at_most(max(errors), CLOSE), f"what a residual block is given, {words}"
        yield Finding(reading, "HAE, Lite, V2, tiny", in_words(max(errors)), verdict, STRUCTURE)


def _given_to_first_block(model: HAEUNet, steps: Tensor, y: Tensor | None) -> Tensor:
    """The embedding that reaches the first residual block."""
    given: list[Tensor] = []
    first = next(each for each in model.modules() if isinstance(each, ResBlock))
    handle = first.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    try:
        model(torch.zeros(1, 1, 16, 16), steps, y)
    finally:
        handle.remove()
    return given[0]


# checkpoints


@claim(
    {59: "use_checkpoint=False"},
    "A hybrid block takes `use_checkpoint`, which is off by default",
    "an argument, off by default",
    **BLOCK | {"table": "training_memory"},
    test="test_models.py::test_hybrid_block_checkpoints",
)
def use_checkpoint(measured: Measured) -> Iterator[Finding]:
    """Its default; and, turned on, what the name means elsewhere: compute again instead of keeping, same gradients."""
    default = inspect.signature(HybridCNNTransformerBlock).parameters["use_checkpoint"].default
    verdict = verdicts.as_said(default is False)
    yield Finding("its default", HybridCNNTransformerBlock.__name__, f"{default}", verdict, INTERFACE)
    for variant in DOCUMENT:
        block = next(each for each in build(variant, "tiny").modules() if isinstance(each, HybridBlock)).eval()
        (plain, once), (again, twice) = (_gradients(block, use) for use in (False, True))
        right = (once, twice) == (1, 2) and error_of(again, plain) < CLOSE
        computed = f"CNN branch run {twice} times a step, {once} without; gradients {in_words(error_of(again, plain))}"
        reading = f"turned on in {variant}, the backward pass computes again what was not kept"
        yield Finding(reading, "tiny", computed, verdicts.as_said(right), INTERFACE)


def _gradients(block: HybridBlock, use: bool) -> tuple[Tensor, int]:
    """Gradients of the input and the fusion, and how often the CNN branch ran."""
    calls: list[int] = []
    handle = block.conv_branch.register_forward_hook(lambda *_: calls.append(1))
    channels, width = block.fusion_conv.out_channels, block.emb_layers[1].in_features
    x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    block.use_checkpoint = use
    try:
        block.zero_grad()
        block(x, torch.ones(1, width)).square().sum().backward()
    finally:
        handle.remove()
    assert x.grad is not None
    return torch.cat([x.grad.flatten(), block.fusion_conv.weight.grad.flatten()]), len(calls)
