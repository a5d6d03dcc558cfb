"""One walk over the config against the built model: each section, level and part, in all accounts."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_parameters import configs

from hae_lab import VARIANTS, build, config
from hae_lab.family import hybrid_sites
from hae_lab.masks import TokenGrid
from hae_lab.profilers import compute, parameters
from hae_lab.profilers.anatomy import unet_rows
from hae_lab.profilers.formulas import Layer, hybrid_formulas, layers, macs_formulas, parameter_formulas, static_counts
from hae_lab.profilers.macs import PROJECTIONS, SCORES, total
from hae_lab.rules import RULES, mask_for

MACS = ["macs_run", "macs_dense", "macs_kept"]


def sums(walk: tuple[Layer, ...], *keys: str) -> dict[tuple, list[int]]:
    """[params, run, dense, kept] of each group of layers that has any."""
    groups: dict[tuple, list[int]] = {}
    for layer in walk:
        key = tuple(getattr(layer, name) for name in keys)
        groups[key] = [a + b for a, b in zip(groups.get(key, [0] * 4), layer[-4:], strict=True)]
    return {key: counts for key, counts in groups.items() if any(counts)}


def counted(frame, columns: list[str], *keys: str) -> dict[tuple, list[int]]:
    groups = frame.groupby([frame[key] for key in keys], dropna=False)[columns].sum()
    named = {
        key if isinstance(key, tuple) else (key,): row for key, row in zip(groups.index, groups.values, strict=True)
    }
    return {key: row.tolist() for key, row in named.items() if any(row)}


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), st.sampled_from(sorted(RULES)))
def test_walk_equals_the_built_model_section_by_section_and_part_by_part(model_config, rule):
    model_config = model_config.replace(mask_rule=rule)
    walk = layers(model_config)
    params = counted(parameters(model_config), ["params"], "section", "block", "part")
    assert {key: [row[0]] for key, row in sums(walk, "section", "block", "part").items() if row[0]} == params
    frame = compute(model_config, batch=2)  # a norm group may be one number, of which torch takes more than one
    frame[MACS] //= 2
    frame["part"] = frame["part"].replace({PROJECTIONS: "attention"})
    hybrid = frame[frame["block"] == "hybrid block"]
    mine = tuple(layer for layer in walk if layer.block == "hybrid block")
    assert {key: row[1:] for key, row in sums(mine, "section", "part").items() if any(row[1:])} == counted(
        hybrid, MACS, "section", "part"
    )
    assert {key: row[1:] for key, row in sums(walk, "section", "block").items() if any(row[1:])} == counted(
        frame, MACS, "section", "block"
    )


LEVELS = [
    ("v2", "brats128", {}),
    ("hae", "lesson16", {"channel_mult": (1, 3, 2), "resblock_updown": True, "placement": "everywhere"}),
    ("lite", "lesson32", {"mask_rule": "window2d", "placement": "attention", "attention_resolutions": (1, 4)}),
]


@pytest.mark.parametrize(("variant", "preset", "changes"), LEVELS)
def test_walk_goes_through_the_levels_as_the_model_does(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    walk = tuple(layer for layer in layers(model_config) if layer.level is not None)
    frame = compute(model_config).query("section != 'embedding'")
    macs = {key: row[1:] for key, row in sums(walk, "section", "level").items()}
    assert macs == counted(frame, MACS, "section", "level")
    rows = unet_rows(model_config).query("section != 'embedding'")
    params = {key: row[:1] for key, row in sums(walk, "section", "level").items()}
    assert params == counted(rows, ["params"], "section", "level")
    # and in that order: down, through the middle, up
    assert list(sums(walk, "section", "level")) == list(dict.fromkeys(zip(rows["section"], rows["level"], strict=True)))
    assert [(layer.section, layer.level) for layer in walk if layer.part == SCORES] == hybrid_sites(model_config)


@pytest.mark.parametrize("rule", RULES)
def test_pairs_of_a_hybrid_block_by_its_matrix(rule):
    """One level has a block: 16 x 16 pixels, 16 + 4 patches, 276 tokens, 32 wide, 4 heads."""
    model_config = config("v2", "tiny", image_size=32, mask_rule=rule, mstb_heads=4)
    (scores,) = [layer for layer in layers(model_config) if layer.part == SCORES]
    blocked = mask_for(rule, TokenGrid(16, 16), 0.9, 0).blocked()
    groups = blocked[None] if blocked.ndim == 2 else blocked
    kept = sum(int((~group[:256]).sum()) for group in groups) * 4 // len(groups)
    assert scores.macs_kept == 2 * kept * 8
    assert scores.macs_dense == 2 * 4 * 256 * 276 * 8
    assert scores.macs_kept <= scores.macs_run
    (projections,) = [layer for layer in layers(model_config) if layer.part == "attention"]
    seen = np.flatnonzero((~groups[:, :256]).any(axis=(0, 1)))
    spanned = int(seen[-1] - seen[0] + 1)
    assert projections.macs_kept == projections.macs_run == (2 * 256 + 2 * spanned) * 32**2
    assert projections.macs_dense == (2 * 256 + 2 * 276) * 32**2


def test_kept_run_and_dense_are_three_numbers():
    run, dense, kept = macs_formulas(config("v2", "lesson32", mask_rule="document_shared"))
    assert kept < run < dense
    whole = total(compute(config("v2", "lesson32", mask_rule="document_shared")))
    assert [whole[name] for name in MACS] == [run, dense, kept]


@pytest.mark.parametrize("variant", VARIANTS)
def test_totals_are_those_of_the_model(variant):
    model_config = config(variant, "tiny")
    counts = static_counts(model_config)
    assert list(counts) == ["params", "macs", "macs_dense", "macs_kept"]
    assert counts["params"] == parameter_formulas(model_config)["model"]
    assert counts["params"] == sum(p.numel() for p in build(model_config).parameters())
    assert counts["macs"] == macs_formulas(model_config)[0] == total(compute(model_config))["macs_run"]


def test_blocks_of_one_width_sum_to_the_whole():
    model_config = config("hae", "lesson16")  # two blocks of 32 channels
    whole = parameter_formulas(model_config)
    assert {part: 2 * params for part, params in hybrid_formulas(model_config, 32).items()} == {
        part: whole[part] for part in hybrid_formulas(model_config, 32)
    }
