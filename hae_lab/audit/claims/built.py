"""The models whose structure the claims look at: the document's versions, and those of the published revision."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import nn

from hae_lab.audit import verdicts
from hae_lab.audit.claims.base import STRUCTURE, Evidence, Finding
from hae_lab.audit.claims.parameters import PRESET
from hae_lab.audit.parameter_tables import PUBLISHED_CHANGES, PUBLISHED_PRESET
from hae_lab.models import MSTB, HAEUNet, HybridBlock, build
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample
from hae_lab.presets import DOCUMENT, config

NARROW = 32  # channels: what stands where is the same at any width
DESIGN = f"as the document places them ({PRESET})"
REVISION = f"the published revision, rebuilt ({PUBLISHED_PRESET}; HAE / Lite / V2)"
ARCHITECTURE = {"notebook": "03_hae", "figure": "unet_hae", "table": "architecture"}
BLOCK = {"notebook": "02_build_the_block", "figure": "hybrid_blocks", "table": "hybrid_blocks"}
LITE = BLOCK | {"notebook": "04_hae_lite"}
V2 = BLOCK | {"notebook": "05_hae_v2"}
EVERY_BLOCK = f"every hybrid block of {PRESET}"
SAYS_TEST = "test_architecture.py::test_slots_say_what_they_hold"
PLACES_TEST = "test_architecture.py::test_hybrid_blocks_stand_where_the_placement_says"
SITES_TEST = "test_family.py::test_hybrid_sites_are_the_hybrid_blocks_of_the_built_model"
COUNTED = "test_architecture.py::test_number_of_blocks_of_each_kind"
REBUILT = Evidence("06_parameter_table", "published_counts", "published_counts", SITES_TEST)
SECTIONS = {"encoder": "input_blocks", "middle": "middle_block", "decoder": "output_blocks"}


@lru_cache(maxsize=16)
def narrow(variant: str, published: bool = False) -> HAEUNet:
    """A narrow model of a version on the meta device: the document's, or that of the published revision."""
    preset, changes = (PUBLISHED_PRESET, PUBLISHED_CHANGES[variant]) if published else (PRESET, {})
    with torch.device("meta"):
        return build(config(variant, preset, model_channels=NARROW, **changes))


def blocks_of(model: nn.Module, section: str) -> Mapping[str, int]:
    """How many blocks of each class a section has."""
    kinds = (ResBlock, AttentionBlock, HybridBlock, Downsample, Upsample)
    return Counter(
        type(each).__name__ for each in getattr(model, SECTIONS[section]).modules() if isinstance(each, kinds)
    )


def published_blocks(section: str, kind: str = "HybridBlock") -> dict[str, int]:
    """Blocks of a class in a section of each version of the published revision."""
    return {variant: blocks_of(narrow(variant, True), section)[kind] for variant in DOCUMENT}


def branches_of(variant: str) -> list[MSTB]:
    """The Transformer branches of a version."""
    return [each for each in narrow(variant).modules() if isinstance(each, MSTB)]


def hybrid_blocks_of(variant: str) -> list[HybridBlock]:
    """The hybrid blocks of a version."""
    return [each for each in narrow(variant).modules() if isinstance(each, HybridBlock)]


def fusion_inputs(block: HybridBlock) -> int:
    """Channels into the fusion of a block, over C."""
    return block.fusion_conv.in_channels // block.fusion_conv.out_channels


def of_blocks(reading: str, found: bool, computed: str, scope: str = EVERY_BLOCK, asked_of: str = "") -> Finding:
    """A reading of how the blocks are made."""
    return Finding(reading, scope, computed, verdicts.as_said(found), STRUCTURE, asked_of=asked_of)
