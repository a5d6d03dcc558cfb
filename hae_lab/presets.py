"""The named points of the family: the variants as deltas of one config, and presets of the body.

Source: the HAE design document, sections 1-3 (the three slots of the variants); the published training scripts.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hae_lab.checks import require, require_name
from hae_lab.family import FIELDS, HAEConfig


@dataclass(frozen=True)
class Variant(Mapping[str, Any]):
    """A member of the family: a mapping of the fields in which it differs, and its title in figures and tables."""

    title: str
    changes: Mapping[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.changes[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def has_blocks(self) -> bool:
        """Whether it has hybrid blocks; the control has none."""
        return self.changes.get("placement") != "none"

    def describes(self, config: HAEConfig) -> bool:
        """Whether a config has the values of this variant; without hybrid blocks, what they hold does not count."""
        alike = self.has_blocks == (config.placement != "none")
        return alike and all(getattr(config, field) == value for field, value in self.changes.items())


# `unet` is the control: the same body without hybrid blocks.
VARIANTS: dict[str, Variant] = {
    "unet": Variant("U-Net (control)", {"placement": "none"}),
    "hae": Variant("HAE", {"regions": "linear", "mlp_ratio": 4, "fusion": "concat"}),
    "lite": Variant("HAE Lite", {"regions": "pooled", "mlp_ratio": 4, "fusion": "mean"}),
    "v2": Variant("HAE V2", {"regions": "pooled", "mlp_ratio": 0.25, "fusion": "mean"}),
}
CONTROL = "unet"
DOCUMENT = ("hae", "lite", "v2")  # the versions that the document describes, in its order of quality, best first
SLOTS = tuple(VARIANTS["hae"])  # in which they differ


def register_variant(name: str, title: str, **changes: Any) -> None:
    """Add a variant: every table, figure, study and command knows it from then on, under `name` and with its `title`.

        hae_lab.register_variant("v3", "HAE V3", regions="pooled", mlp_ratio=0.25, fusion="mean", placement="attention")

    A variant registered twice is replaced. Raises `HAELabError` for a name of the document's, an unknown field and
    values that no model could have.
    """
    named = isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name) is not None
    require(named, f"a variant's name is letters, digits and '_', a letter first: it names files; got {name!r}")
    require(name not in (CONTROL, *DOCUMENT), f"{name!r} is a variant of the document: take another name")
    words = isinstance(title, str) and title.strip() != "" and title.isprintable() and "$" not in title
    require(words, f"a variant's title is some words in one line, without '$', a formula in figures; got {title!r}")
    HAEConfig(**{**PRESETS["tiny"], **_known_fields(changes)})
    VARIANTS[name] = Variant(title, MappingProxyType(dict(changes)))


def variant_title(name: str) -> str:
    """The title of a variant; any other name is its own."""
    return VARIANTS[name].title if name in VARIANTS else str(name)


def variant_of(config: HAEConfig) -> str | None:
    """The variant that a config is, the one that says most of it if several describe it, or None."""
    names = [name for name, variant in VARIANTS.items() if variant.describes(config)]
    return max(names, key=lambda name: len(VARIANTS[name]), default=None)


def _known_fields(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    for field in changes:
        require_name("field", field, FIELDS)
    return changes


_LESSON = {
    "in_channels": 1, "out_channels": 1, "model_channels": 16, "channel_mult": (1, 2, 2), "num_res_blocks": 1,
    # at this width a norm group is one channel, which would cancel a timestep that is only added
    "attention_resolutions": (4,), "num_heads": 4, "use_scale_shift_norm": True,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # the published training scripts
    "brats128": {
        "image_size": 128, "in_channels": 4, "out_channels": 4, "model_channels": 128, "channel_mult": (1, 1, 2, 3, 4),
        "num_res_blocks": 2, "attention_resolutions": (4, 8, 16), "num_heads": 4, "dropout": 0.1, "num_classes": 2,
        "use_scale_shift_norm": True,
    },
    "wide128": {
        "image_size": 128, "in_channels": 4, "out_channels": 4, "model_channels": 128, "channel_mult": (1, 2, 4, 8),
        "num_res_blocks": 2, "attention_resolutions": (4, 8), "num_heads": 8, "dropout": 0.1,
    },
    "imagenet64": {
        "image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 128, "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 2, "attention_resolutions": (4, 8), "num_heads": 4, "use_scale_shift_norm": True,
    },
    "cifar32": {
        "image_size": 32, "in_channels": 3, "out_channels": 3, "model_channels": 128, "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 2, "attention_resolutions": (2,), "num_heads": 4, "dropout": 0.1,
        "use_scale_shift_norm": True,
    },
    # small enough to train on a laptop in class
    "lesson16": {"image_size": 16, **_LESSON},
    "lesson32": {"image_size": 32, **_LESSON},
    # small enough for a test
    "tiny": {
        "image_size": 16, "in_channels": 1, "out_channels": 1, "model_channels": 16, "channel_mult": (1, 2),
        "num_res_blocks": 1, "attention_resolutions": (2,), "num_heads": 2, "num_classes": 3,
        "use_scale_shift_norm": True,
    },
}  # fmt: skip


def config(variant: str, preset: str = "brats128", **changes: Any) -> HAEConfig:
    """The config of a variant on a preset's body, with further fields changed.

    Raises `HAELabError` for an unknown variant, preset or field (with the nearest name) and for invalid values.
    """
    require_name("variant", variant, VARIANTS)
    require_name("preset", preset, PRESETS)
    return HAEConfig(**{**PRESETS[preset], **VARIANTS[variant], **_known_fields(changes)})
