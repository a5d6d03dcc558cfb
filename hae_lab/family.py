"""The HAE family as data: one frozen config, validated when it is made.

Sources: the HAE design document, sections 1-3 (the three slots); guided-diffusion (names and meanings of the body's
fields; Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233).
"""

import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

from hae_lab import rules
from hae_lab.checks import (
    HAELabError,
    is_whole,
    require,
    require_flag,
    require_name,
    require_number,
    require_seed,
    require_whole,
)
from hae_lab.masks import TokenGrid
from hae_lab.parts import SLOT_PARTS, Registry

CHOICES = {
    "placement": ("none", "upsample", "attention", "everywhere"),
    "activation": ("silu", "identity"),
}
# the most of each: far above what anybody trains, and low enough that its layers can be counted
COUNTS = dict.fromkeys(
    ("image_size", "in_channels", "out_channels", "model_channels", "num_heads", "mstb_heads"), 2**16
)
COUNTS |= {"num_res_blocks": 1000}
MOST_LEVELS, MOST_IN_TUPLE, MOST_CLASSES, MOST_RATIO = 16, 2**16, 2**24, 1024


@dataclass(frozen=True, kw_only=True)
class HAEConfig:
    """Everything that defines a model; validated when made, hashable, and equal after a JSON round trip.

    Raises `HAELabError` for a value that no model could have.
    """

    # the body: guided-diffusion's names and meanings
    image_size: int  # pixels along one side
    in_channels: int
    out_channels: int
    model_channels: int  # model_channels * channel_mult is the width of a level
    num_res_blocks: int  # residual blocks of an encoder level; a decoder level has one more
    attention_resolutions: tuple[int, ...]  # downsampling rates, not sizes
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)  # one number a level, finest first
    num_heads: int = 1  # heads of the body's own attention blocks
    dropout: float = 0.0
    num_classes: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    use_checkpoint: bool = False
    middle_attention: bool = True  # False: two residual blocks and nothing between them
    activation: str = "silu"  # "identity": the residual blocks of published hae checkpoints lost theirs
    # the hybrid block: the slots that make the variants ...
    regions: str = "linear"  # how a p x p patch becomes one token: own Linear, or shared 1x1 conv and mean
    mlp: str = "gelu"  # the token MLP
    mlp_ratio: float = 4  # its hidden width / channels
    fusion: str = "concat"  # how the two branches join
    # ... and its other knobs
    placement: str = "upsample"  # where hybrid blocks stand
    cnn_branch: bool = True
    transformer_branch: bool = True
    patch_sizes: tuple[int, ...] = (1, 4, 8)  # 1: every pixel is a token; others: one token a patch
    mstb_heads: int = 8
    mask_rule: str = "document"
    sparsity: float = 0.9
    mask_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_resolutions", "patch_sizes"):
            object.__setattr__(self, name, _int_tuple(name, getattr(self, name)))
        _check_values(self)
        _check_levels(self)
        _check_widths(self)

    @cached_property
    def rates(self) -> tuple[int, ...]:
        """Downsampling rate of each level, finest first."""
        return tuple(2**level for level in range(len(self.channel_mult)))

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Width of each level, finest first."""
        return tuple(mult * self.model_channels for mult in self.channel_mult)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Side of each level's feature map in pixels, finest first."""
        return tuple(self.image_size // rate for rate in self.rates)

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.model_channels

    @property
    def hybrid_levels(self) -> tuple[int, ...]:
        """Level of every hybrid block, in the order of the forward pass."""
        return tuple(level for _, level in hybrid_sites(self))

    def replace(self, **changes: Any) -> Self:
        """A changed copy, validated anew. An unknown field is a `HAELabError`."""
        for name in changes:
            require_name("field", name, FIELDS)
        return replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote. Raises `HAELabError` for anything else."""
        try:
            values = json.loads(text)
        except (TypeError, ValueError) as error:
            raise HAELabError(f"not a config in JSON ({error}): {str(text)[:60]!r}") from None
        require(isinstance(values, dict), f"a config in JSON is an object of fields, got {text[:60]!r}")
        for name in values:
            require_name("field", name, FIELDS)
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        require(not missing, f"a config in JSON needs {', '.join(missing)}, got {text[:60]!r}")
        return cls(**values)


def hybrid_sites(config: HAEConfig) -> list[tuple[str, int]]:
    """(section, level) of every hybrid block, in the order of the forward pass.

    Sections are "encoder", "middle" and "decoder". See `placement` in hae_lab/README.md: one before each upsample,
    or in the place of the plain attention blocks of the decoder, or of the whole net.
    """
    levels = range(len(config.channel_mult))
    if config.placement == "none":
        return []
    if config.placement == "upsample":
        return [("decoder", level) for level in reversed(levels) if level > 0]
    attended = [level for level in levels if config.rates[level] in config.attention_resolutions]
    decoder = [("decoder", level) for level in reversed(attended) for _ in range(config.num_res_blocks + 1)]
    if config.placement == "attention":
        return decoder
    encoder = [("encoder", level) for level in attended for _ in range(config.num_res_blocks)]
    middle = [("middle", levels[-1])] if config.middle_attention else []
    return [*encoder, *middle, *decoder]


def _int_tuple(name: str, value: Any) -> tuple[int, ...]:
    items = value.tolist() if hasattr(value, "tolist") else value
    require(
        isinstance(items, list | tuple) and all(is_whole(item) and item > 0 for item in items),
        f"{name} is a sequence of positive whole numbers, got {value!r}",
    )
    return tuple(require_whole(f"each of {name}", item, 1, most=MOST_IN_TUPLE) for item in items)


def _check_values(config: HAEConfig) -> None:
    """Raise for a value of the wrong kind; numpy's numbers become Python's."""
    checked: dict[str, Any] = {
        name: require_whole(name, getattr(config, name), 1, most=most) for name, most in COUNTS.items()
    }
    for name, choices in CHOICES.items():
        require_name(name, getattr(config, name), choices)
    for field in fields(config):
        if field.type is bool:
            checked[field.name] = require_flag(field.name, getattr(config, field.name))
    rules.RULES.find(config.mask_rule)
    for name, parts in SLOT_PARTS.items():
        require_part(parts, getattr(config, name))
    for name in ("dropout", "sparsity"):
        checked[name] = require_number(name, getattr(config, name), 0, 1, high_open=True)
    checked["mlp_ratio"] = require_number("mlp_ratio", config.mlp_ratio, 0, low_open=True)
    require(checked["mlp_ratio"] <= MOST_RATIO, f"mlp_ratio is at most {MOST_RATIO:,}, got {config.mlp_ratio!r}")
    checked["mask_seed"] = require_seed("mask_seed", config.mask_seed)
    if config.num_classes is not None:
        checked["num_classes"] = require_whole(
            "num_classes, if there are classes,", config.num_classes, 1, most=MOST_CLASSES
        )
    for name, value in checked.items():
        object.__setattr__(config, name, value)


def require_part(parts: Registry[Any], name: Any) -> None:
    """Raise `HAELabError` unless a registry knows the name; what it has is not loaded, for torch would be too."""
    if not (isinstance(name, str) and name in parts):
        parts.find(name)


def _check_levels(config: HAEConfig) -> None:
    require(len(config.channel_mult) > 0, "channel_mult is empty: it needs a number a level, for example (1, 2, 2)")
    halvings = len(config.channel_mult) - 1
    require(halvings < MOST_LEVELS, f"channel_mult has at most {MOST_LEVELS} levels, got {halvings + 1}")
    require(
        config.image_size % 2**halvings == 0,
        f"image_size {config.image_size} cannot be halved {halvings} times (channel_mult has {halvings + 1} levels): "
        f"take a multiple of {2**halvings} or fewer levels",
    )
    unknown = [rate for rate in config.attention_resolutions if rate not in config.rates]
    require(
        not unknown,
        f"attention_resolutions are downsampling rates, not sizes; no level runs at {unknown}: "
        f"the rates of {len(config.rates)} levels are {config.rates}",
    )
    patches = config.patch_sizes
    require(
        patches[:1] == (1,) and len(set(patches)) == len(patches),
        f"patch_sizes start with 1, the pixels, and name each further patch once, for example (1, 4, 8); got {patches}",
    )


def _check_widths(config: HAEConfig) -> None:
    some = config.cnn_branch or config.transformer_branch
    require(some, "cnn_branch=False and transformer_branch=False leave a hybrid block empty: keep one of them")
    width = config.model_channels
    require(width % 2 == 0, f"model_channels is even (half cosines, half sines of the timestep), got {width}")
    if config.placement != "everywhere":  # then no plain attention block is left
        attended = {config.rates.index(rate) for rate in config.attention_resolutions}
        middle = {len(config.rates) - 1} if config.middle_attention else set()
        _check_heads(config, "num_heads", attended | middle)
    if config.transformer_branch:
        _check_heads(config, "mstb_heads", set(config.hybrid_levels))
        _check_groups(config)


def _check_heads(config: HAEConfig, field: str, levels: set[int]) -> None:
    heads = getattr(config, field)
    bad = [config.channels[level] for level in sorted(levels) if config.channels[level] % heads]
    require(not bad, f"{field}={heads} does not divide the widths {bad}: take a common divisor of {config.channels}")


def _check_groups(config: HAEConfig) -> None:
    """Raise if the mask of a level would split its heads unequally."""
    for level in sorted(set(config.hybrid_levels)):
        size = config.sizes[level]
        groups = rules.head_groups(config.mask_rule, TokenGrid(size, size, config.patch_sizes))
        require(
            config.mstb_heads % groups == 0,
            f"mask_rule={config.mask_rule!r} splits the heads over the {groups} regional scales of a {size} x {size} "
            f"map, which mstb_heads={config.mstb_heads} cannot: take a multiple of {groups}, or other patch_sizes",
        )


FIELDS = tuple(field.name for field in fields(HAEConfig))
