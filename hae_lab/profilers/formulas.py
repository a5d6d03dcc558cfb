"""What a configuration costs without building it: one walk over the config in plain integer arithmetic.

`layers` names every layer of the model with its parameters and MACs; all totals are its sums, thousands a minute. It
shares no code with the models but the formulas that the parts of slots bring along, and the pairs that a mask keeps.
The MACs are those of `profilers.compute`, which walks through the model itself.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from hae_lab.checks import require
from hae_lab.family import HAEConfig
from hae_lab.masks import TokenGrid
from hae_lab.models.attention import pairs_kept, pairs_run
from hae_lab.models.slots import Cost, make_part, part_inputs, part_options
from hae_lab.parts import SLOT_PARTS
from hae_lab.profilers.places import HYBRID_PARTS, MSTB_PARTS, SCORES
from hae_lab.profilers.tracing import trace
from hae_lab.rules import RULES, Rule, made_mask

NOTHING = Cost(0, 0)


class Layer(NamedTuple):
    """A layer of the model, or one part of a hybrid block; MACs of one denoising step of one image.

    The level is that of the map that it writes, 0 the finest; the embedding has none. Names as in `parameters`.
    """

    section: str
    level: int | None
    block: str
    part: str
    params: int
    macs_run: int
    macs_dense: int
    macs_kept: int


def layers(config: HAEConfig) -> tuple[Layer, ...]:
    """Every layer of the model, in the order of the forward pass."""
    # a registry may give a name to another part
    parts = tuple(SLOT_PARTS[slot].find(getattr(config, slot)) for slot in SLOT_PARTS)
    return _layers(config, (*parts, RULES.find(config.mask_rule)))


def parameter_formulas(config: HAEConfig) -> dict[str, int]:
    """Parameters of each part by closed formula, in the order and nesting of `params.parameter_parts`."""
    sections = dict.fromkeys(("embedding", "encoder", "middle", "decoder", "out"), 0)
    hybrid = dict.fromkeys((*HYBRID_PARTS, SCORES), 0)
    for layer in layers(config):
        sections[layer.section] += layer.params
        if layer.block == "hybrid block":
            hybrid[layer.part] += layer.params
    mstb = {part: hybrid[part] for part in MSTB_PARTS}
    return {
        "model": sum(sections.values()),
        **sections,
        "hybrid blocks": sum(hybrid.values()),
        "timestep": hybrid["timestep"],
        "CNN branch": hybrid["CNN branch"],
        "MSTB": sum(mstb.values()),
        **mstb,
        "fusion": hybrid["fusion"],
    }


def hybrid_formulas(config: HAEConfig, c: int) -> dict[str, int]:
    """Parameters of each part of one hybrid block of c channels."""
    costs = _unmasked(config, c, TokenGrid(1, 1, config.patch_sizes))
    return {part: cost.params for part, cost in costs.items()}


def static_counts(config: HAEConfig) -> dict[str, int]:
    """params, macs (what our kernel runs), macs_dense, macs_kept; MACs of one denoising step of one image."""
    counts = zip(*(layer[-4:] for layer in layers(config)), strict=True)
    return dict(zip(("params", "macs", "macs_dense", "macs_kept"), map(sum, counts), strict=True))


def macs_formulas(config: HAEConfig) -> tuple[int, int, int]:
    """MACs of one denoising step of one image: run, dense, kept. See `profilers.compute` for what they mean."""
    _, *macs = static_counts(config).values()
    run, dense, kept = macs
    return run, dense, kept


# the walk


@lru_cache(maxsize=4096)
def _layers(config: HAEConfig, parts: tuple[Any, ...]) -> tuple[Layer, ...]:
    return (*_embedding(config), *_encoder(config), *_middle(config), *_decoder(config))


def _layer(section: str, level: int | None, block: str, cost: Cost) -> Layer:
    """A layer whose work no mask changes."""
    return Layer(section, level, block, block, cost.params, cost.macs, cost.macs, cost.macs)


def _embedding(config: HAEConfig) -> Iterator[Layer]:
    width, e = config.model_channels, config.time_embed_dim
    mlp = _sum(_linear(width, e), _linear(e, e))
    yield _layer("embedding", None, "embedding", mlp)
    if config.num_classes is not None:
        yield _layer("embedding", None, "embedding", Cost(config.num_classes * width, 0))
        yield _layer("embedding", None, "embedding", mlp)


def _encoder(config: HAEConfig) -> Iterator[Layer]:
    before = config.channels[0]
    yield _layer("encoder", 0, "convolution", _conv(config.in_channels, before, config.sizes[0] ** 2))
    for level, c in enumerate(config.channels):
        for _ in range(config.num_res_blocks):
            yield _residual(config, "encoder", level, before)
            yield from _attention(config, "encoder", level)
            before = c
        if level + 1 < len(config.channels):
            yield _resampling(config, "encoder", level + 1, c)


def _middle(config: HAEConfig) -> Iterator[Layer]:
    deepest = len(config.channels) - 1
    yield _residual(config, "middle", deepest, config.channels[-1])
    yield from _attention(config, "middle", deepest)
    yield _residual(config, "middle", deepest, config.channels[-1])


def _decoder(config: HAEConfig) -> Iterator[Layer]:
    before = config.channels[-1]
    for level, c in reversed(list(enumerate(config.channels))):
        begun = config.channels[
            max(0, level - 1)
        ]  # width of the map that the encoder's level began with, its last skip
        for skip in [c] * config.num_res_blocks + [begun]:
            yield _residual(config, "decoder", level, before + skip)
            yield from _attention(config, "decoder", level)
            before = c
        if level > 0:
            if config.placement == "upsample":
                yield from _hybrid(config, "decoder", level)
            yield _resampling(config, "decoder", level - 1, c)
    yield _layer("out", 0, "convolution", _sum(_norm(before), _conv(before, config.out_channels, config.sizes[0] ** 2)))


# the layers


def _residual(config: HAEConfig, section: str, level: int, c_in: int, c: int | None = None) -> Layer:
    """A residual block that writes the map of a level, as wide as the level unless `c` says otherwise."""
    c, pixels = c or config.channels[level], config.sizes[level] ** 2
    embedding = _linear(config.time_embed_dim, 2 * c if config.use_scale_shift_norm else c)
    skip = _linear(c_in, c, pixels) if c_in != c else NOTHING
    cost = _sum(_norm(c_in), _conv(c_in, c, pixels), embedding, _norm(c), _conv(c, c, pixels), skip)
    return _layer(section, level, "residual block", cost)


def _resampling(config: HAEConfig, section: str, level: int, c: int) -> Layer:
    """Halving or doubling of c channels to the map of a level."""
    if config.resblock_updown:
        return _residual(config, section, level, c, c)
    cost = _conv(c, c, config.sizes[level] ** 2) if config.conv_resample else NOTHING
    return _layer(section, level, "resampling", cost)


def _attention(config: HAEConfig, section: str, level: int) -> Iterator[Layer]:
    """Attention after a residual block, plain or by a hybrid block, or none."""
    here = config.middle_attention if section == "middle" else 2**level in config.attention_resolutions
    if not here:
        return
    if config.placement == "everywhere" or (config.placement == "attention" and section == "decoder"):
        yield from _hybrid(config, section, level)
        return
    c, pixels, e = config.channels[level], config.sizes[level] ** 2, config.time_embed_dim
    tokens = 0 if config.num_classes is None else e  # class tokens among the keys
    scores = Cost(0, 2 * c * pixels * (pixels + tokens))
    cost = _sum(_norm(c), _linear(c, 3 * c, pixels), _linear(e, 2 * c, tokens), scores, _linear(c, c, pixels))
    yield _layer(section, level, "attention block", cost)


def _hybrid(config: HAEConfig, section: str, level: int) -> Iterator[Layer]:
    c, size, heads = config.channels[level], config.sizes[level], config.mstb_heads
    grid = TokenGrid(size, size, config.patch_sizes)
    keys = pairs = (0, 0, 0)
    if config.transformer_branch:
        spanned, run, kept = _mask_counts(RULES.find(config.mask_rule), grid, config.sparsity, config.mask_seed, heads)
        keys, pairs = (spanned, grid.n, spanned), (run, heads * grid.n_local * grid.n, kept)
    for part, cost in _unmasked(config, c, grid).items():
        projected = [2 * each * c**2 if part == "attention" else 0 for each in keys]  # keys and values
        yield Layer(section, level, "hybrid block", part, cost.params, *(cost.macs + each for each in projected))
    yield Layer(section, level, "hybrid block", SCORES, 0, *(2 * each * c // heads for each in pairs))


def _unmasked(config: HAEConfig, c: int, grid: TokenGrid) -> dict[str, Cost]:
    """Parts of a hybrid block of c channels, without the work of attention that depends on its mask."""
    pixels = grid.n_local
    half = _sum(_norm(c), _conv(c, c, pixels))
    return {
        "timestep": _linear(config.time_embed_dim, c),
        "CNN branch": _sum(half, half) if config.cnn_branch else NOTHING,
        **(_transformer(config, c, grid) if config.transformer_branch else dict.fromkeys(MSTB_PARTS, NOTHING)),
        "fusion": _slot(config, "fusion", c, grid),
    }


def _transformer(config: HAEConfig, c: int, grid: TokenGrid) -> dict[str, Cost]:
    """The parts of the Transformer branch, in the order of `MSTB_PARTS`."""
    return {
        "norms": Cost((len(config.patch_sizes) + 1) * 2 * c, 0),
        "projections": _slot(config, "regions", c, grid),
        "attention": Cost(4 * (c**2 + c), 2 * grid.n_local * c**2),  # MACs of queries and of the out-projection
        "MLP": _slot(config, "mlp", c, grid),
    }


@lru_cache(maxsize=4096)
def _mask_counts(rule: Rule, grid: TokenGrid, sparsity: float, seed: int, heads: int) -> tuple[int, int, int]:
    """Keys in the span of a mask, query-key pairs of all heads that its kernel runs, and those that it keeps."""
    mask = made_mask(rule, grid, sparsity, seed)
    first, stop = mask.span
    return stop - first, pairs_run(mask, heads), pairs_kept(mask, heads)


def _slot(config: HAEConfig, slot: str, c: int, grid: TokenGrid) -> Cost:
    """The part in a slot: by its own formula, or else built and traced."""
    name = getattr(config, slot)
    part = SLOT_PARTS[slot].find(name)
    formula = getattr(part, "formula", None)
    if formula is None:
        return _traced(part, slot, name, c, grid, part_options(slot, config))
    return Cost(*formula(c, grid, config))


@lru_cache(maxsize=4096)
def _traced(part: Any, slot: str, name: str, c: int, grid: TokenGrid, options: tuple[Any, ...]) -> Cost:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = make_part(slot, name, c, *options)
    calls = trace(module, part_inputs(slot, grid, c, *options))
    unknown = sorted({operator for call in calls for operator in call.unknown})
    require(not unknown, f"nobody counts {', '.join(unknown)} of {slot} {name!r}: give it a formula, see models.slots")
    return Cost(sum(p.numel() for p in module.parameters()), sum(call.macs for call in calls))


# arithmetic


def _sum(*costs: Cost) -> Cost:
    return Cost(sum(cost.params for cost in costs), sum(cost.macs for cost in costs))


def _conv(c_in: int, c_out: int, positions: int, kernel: int = 3) -> Cost:
    weights = kernel**2 * c_in * c_out
    return Cost(weights + c_out, positions * weights)


def _linear(c_in: int, c_out: int, tokens: int = 1) -> Cost:
    return _conv(c_in, c_out, tokens, kernel=1)


def _norm(c: int) -> Cost:
    return Cost(2 * c, 0)
