"""What a configuration costs without training it: parameters and MACs by closed formula, thousands a minute.

The MACs are those of `profilers.compute`, which walks through the model; here they follow from the config alone.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from hae_lab.family import HAEConfig, hybrid_sites
from hae_lab.masks import TokenGrid
from hae_lab.models.attention import pairs_kept, pairs_run
from hae_lab.profilers.params import parameter_formulas
from hae_lab.rules import mask_for


def static_counts(config: HAEConfig) -> dict[str, int]:
    """params, macs (what our kernel runs), macs_dense, macs_kept; MACs of one denoising step of one image."""
    run, dense, kept = macs_formulas(config)
    return {"params": parameter_formulas(config)["model"], "macs": run, "macs_dense": dense, "macs_kept": kept}


@lru_cache(maxsize=4096)
def macs_formulas(config: HAEConfig) -> tuple[int, int, int]:
    """MACs of one denoising step of one image: run, dense, kept. See `profilers.compute` for what they mean."""
    body = _embedding(config) + _encoder(config) + _middle(config) + _decoder(config)
    hybrid = sum((_hybrid(config, level) for _, level in hybrid_sites(config)), np.zeros(3, int))
    return tuple(int(body + part) for part in hybrid)


def _embedding(config: HAEConfig) -> int:
    mlp = config.model_channels * config.time_embed_dim + config.time_embed_dim**2
    return mlp if config.num_classes is None else 2 * mlp


def _encoder(config: HAEConfig) -> int:
    widths, sizes = config.channels, config.sizes
    total = _conv(config.in_channels, widths[0], sizes[0])
    for level, (c, size) in enumerate(zip(widths, sizes, strict=True)):
        below = widths[max(0, level - 1)]
        total += _residual(config, below, c, size) + (config.num_res_blocks - 1) * _residual(config, c, c, size)
        if _attends(config, level) and config.placement != "everywhere":
            total += config.num_res_blocks * _attention(config, level)
    return total + sum(_resampling(config, c, size) for c, size in zip(widths[:-1], sizes[1:], strict=True))


def _middle(config: HAEConfig) -> int:
    deepest = len(config.channels) - 1
    c, size = config.channels[-1], config.sizes[-1]
    attention = 0 if config.placement == "everywhere" else _attention(config, deepest)
    return 2 * _residual(config, c, c, size) + attention


def _decoder(config: HAEConfig) -> int:
    widths, sizes = config.channels, config.sizes
    total = _conv(widths[0], config.out_channels, sizes[0])
    for level, (c, size) in enumerate(zip(widths, sizes, strict=True)):
        above, below = widths[min(level + 1, len(widths) - 1)], widths[max(0, level - 1)]
        # the first block comes from the level above, the last one's skip from the level below
        total += _residual(config, above + c, c, size) + _residual(config, c + below, c, size)
        total += (config.num_res_blocks - 1) * _residual(config, 2 * c, c, size)
        if _attends(config, level) and config.placement not in ("attention", "everywhere"):
            total += (config.num_res_blocks + 1) * _attention(config, level)
    return total + sum(_resampling(config, c, size) for c, size in zip(widths[1:], sizes[:-1], strict=True))


def _attends(config: HAEConfig, level: int) -> bool:
    return config.rates[level] in config.attention_resolutions


def _conv(c_in: int, c_out: int, size: int) -> int:
    return 9 * c_in * c_out * size**2


def _residual(config: HAEConfig, c_in: int, c: int, size: int) -> int:
    """A residual block that writes a `size` x `size` map."""
    embedding = config.time_embed_dim * (2 * c if config.use_scale_shift_norm else c)
    skip = c_in * c * size**2 if c_in != c else 0
    return _conv(c_in, c, size) + _conv(c, c, size) + embedding + skip


def _resampling(config: HAEConfig, c: int, size: int) -> int:
    """Halving or doubling to a `size` x `size` map."""
    if config.resblock_updown:
        return _residual(config, c, c, size)
    return _conv(c, c, size) if config.conv_resample else 0


def _attention(config: HAEConfig, level: int) -> int:
    """Plain self-attention; a model with classes has `time_embed_dim` class tokens among its keys."""
    c, pixels = config.channels[level], config.sizes[level] ** 2
    tokens = 0 if config.num_classes is None else config.time_embed_dim
    return 4 * pixels * c**2 + tokens * config.time_embed_dim * 2 * c + 2 * c * pixels * (pixels + tokens)


def _hybrid(config: HAEConfig, level: int) -> np.ndarray:
    """One hybrid block: run, dense, kept, (3,)."""
    c, size = config.channels[level], config.sizes[level]
    pixels, grid = size**2, TokenGrid(size, size, config.patch_sizes)
    regions = len(grid.scales) if config.regions == "linear" else 1
    hidden = max(1, int(c * config.mlp_ratio))
    joined = 2 * c if config.fusion == "concat" and config.cnn_branch else c
    always = config.time_embed_dim * c + (2 * _conv(c, c, size) if config.cnn_branch else 0)
    always += pixels * (regions * c**2 + 2 * c**2 + 2 * c * hidden + joined * c)  # with the queries' and out-projection
    keys, pairs = np.array(list(_keys_and_pairs(config, size))).T
    return always + 2 * keys * c**2 + 2 * pairs * c // config.mstb_heads


def _keys_and_pairs(config: HAEConfig, size: int) -> Iterator[tuple[int, int]]:
    """(keys that are projected, query-key pairs of all heads): run, dense, kept."""
    grid = TokenGrid(size, size, config.patch_sizes)
    spanned, run, kept = _mask_counts(config.mask_rule, grid, config.sparsity, config.mask_seed, config.mstb_heads)
    yield spanned, run
    yield grid.n, config.mstb_heads * grid.n_local * grid.n
    yield spanned, kept


@lru_cache(maxsize=4096)
def _mask_counts(rule: str, grid: TokenGrid, sparsity: float, seed: int, heads: int) -> tuple[int, int, int]:
    """Keys in the span of a mask, pairs that its kernel runs, pairs that it keeps."""
    mask = mask_for(rule, grid, sparsity, seed)
    first, stop = mask.span
    return stop - first, pairs_run(mask, heads), pairs_kept(mask, heads)
