"""Architecture: rows against facts from elsewhere; pictures that fit, say the rows and follow the config."""

import copy
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

from hae_lab import VARIANTS, HAEConfig, HAELabError, build, config
from hae_lab.family import hybrid_sites
from hae_lab.masks import TokenGrid
from hae_lab.models import (
    HAEUNet,
    HybridCNNTransformerBlock,
    HybridCNNTransformerBlockLite,
    HybridCNNTransformerBlockV2,
)
from hae_lab.plots import architecture as plots
from hae_lab.plots.base import VARIANT_COLOURS, Chart
from hae_lab.profilers.anatomy import OTHER, hybrid_family, hybrid_rows, hybrid_table, unet_rows, unet_table
from hae_lab.profilers.formulas import hybrid_formulas, parameter_formulas

HYBRIDS = [variant for variant in VARIANTS if variant != "unet"]
PLACEMENTS = ("none", "upsample", "attention", "everywhere")
SECTIONS = ("embedding", "encoder", "middle", "decoder", "out")
BODIES = {
    "as in the preset": {},
    "updown": {"resblock_updown": True},
    "free resampling": {"conv_resample": False},
    "three": {"num_res_blocks": 3, "channel_mult": (1, 3, 2, 4), "attention_resolutions": (1, 8)},
    "one level": {"channel_mult": (1,), "attention_resolutions": (1,)},
}
CASES = [
    *[(variant, "brats128", {}) for variant in VARIANTS],
    ("lite", "wide128", {"placement": "everywhere"}),
    *[("hae", "tiny", changes | {"placement": "everywhere"}) for changes in BODIES.values()],
    *[("v2", "tiny", {"placement": placement}) for placement in PLACEMENTS],
]


# models and rows are made once for all tests, which do not change them
@lru_cache
def on_meta(model_config: HAEConfig) -> HAEUNet:
    with torch.device("meta"):
        return build(model_config)


@lru_cache
def rows_for(model_config: HAEConfig) -> pd.DataFrame:
    return unet_rows(on_meta(model_config))


def rows_of(variant: str, preset: str, **changes) -> pd.DataFrame:
    return rows_for(config(variant, preset, **changes))


@lru_cache
def family(preset: str, **changes) -> pd.DataFrame:
    return hybrid_family(preset, **changes)


# Rows of the U-Net


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_rows_hold_every_parameter_in_its_section(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    rows = rows_for(model_config)
    assert rows["params"].sum() == sum(p.numel() for p in on_meta(model_config).parameters())
    assert rows["share_percent"].sum() == pytest.approx(100)
    formulas = parameter_formulas(model_config)
    assert rows.groupby("section")["params"].sum().to_dict() == {section: formulas[section] for section in SECTIONS}


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_blocks_follow_each_other_on_maps_of_the_config(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    body = rows_for(model_config).query("section != 'embedding'").set_index("path")
    assert body["size_out"].tolist() == [model_config.sizes[level] for level in body["level"]]
    inside = body[~body["kind"].isin(["downsample", "upsample", "out"])]
    assert inside["channels_out"].tolist() == [model_config.channels[level] for level in inside["level"]]
    assert (body["channels_in"].iloc[0], body["channels_out"].iloc[-1]) == (
        model_config.in_channels,
        model_config.out_channels,
    )
    for before, after in pairwise(body.itertuples()):
        joined = body.loc[after.skip_from, "channels_out"] if after.skip_from else 0
        assert after.channels_in == before.channels_out + joined
        assert after.size_in == before.size_out


@pytest.mark.parametrize(("variant", "preset", "changes"), CASES)
def test_each_output_of_the_encoder_joins_one_decoder_block_last_first(variant, preset, changes):
    rows = rows_of(variant, preset, **changes)
    encoder = rows[rows["section"] == "encoder"]
    outputs = encoder.groupby(encoder["path"].str.rpartition(".")[0], sort=False)["path"].last()
    joins = rows[rows["skip_from"] != ""]
    assert joins["skip_from"].tolist() == outputs.tolist()[::-1]
    assert set(joins["kind"]) == {"residual"}
    assert joins["path"].tolist() == [f"output_blocks.{index}.0" for index in range(len(outputs))]
    sizes = rows.set_index("path")["size_out"]
    assert joins["size_in"].tolist() == sizes[joins["skip_from"]].tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("preset", ["cifar32", "lesson16"])
def test_hybrid_blocks_stand_where_the_placement_says(preset, placement):
    model_config = config("lite", preset, placement=placement)
    rows = rows_for(model_config)
    hybrid = rows[rows["kind"] == "hybrid"]
    assert list(zip(hybrid["section"], hybrid["level"], strict=True)) == hybrid_sites(model_config)
    if placement == "upsample":
        following = rows["kind"].shift(-1)[hybrid.index]
        assert set(following) == {"upsample"}


def test_hybrid_blocks_by_hand():
    hybrid = rows_of("hae", "brats128").query("kind == 'hybrid'")
    assert hybrid["path"].tolist() == [f"output_blocks.{index}" for index in ("2.2", "5.2", "8.2", "11.1")]
    assert hybrid["channels_out"].tolist() == [512, 384, 256, 128]
    assert hybrid["size_out"].tolist() == [8, 16, 32, 64]


@pytest.mark.parametrize("body", BODIES)
def test_number_of_blocks_of_each_kind(body):
    model_config = config("unet", "tiny", **BODIES[body])
    kinds = unet_rows(model_config)["kind"].value_counts()
    levels, blocks = len(model_config.channel_mult), model_config.num_res_blocks
    attended = len(model_config.attention_resolutions)
    assert kinds["residual"] == levels * (2 * blocks + 1) + 2
    assert kinds["attention"] == attended * (2 * blocks + 1) + 1
    assert kinds.get("downsample", 0) == kinds.get("upsample", 0) == levels - 1
    assert (kinds["stem"], kinds["out"], kinds["embedding"]) == (1, 1, 3)


def test_a_model_can_be_given_and_stays_as_it_was():
    model = build("v2", "tiny")
    before = copy.deepcopy(model.state_dict())
    assert unet_rows(model).equals(unet_rows(model.config))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_name_the_variant_by_its_slots():
    assert unet_table("tiny").drop_duplicates("variant")["variant"].tolist() == list(VARIANTS)
    assert set(unet_rows(config("lite", "tiny", fusion="concat"))["variant"]) == {OTHER}
    assert set(unet_rows(config("lite", "tiny", mlp_ratio=0.25))["variant"]) == {"v2"}


# Rows of the hybrid block


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("brats128", {}),
        ("lesson16", {}),
        ("lesson16", {"cnn_branch": False}),
        ("lesson16", {"patch_sizes": (1, 2)}),
        ("lesson16", {"patch_sizes": (1,)}),
    ],
)
@pytest.mark.parametrize("variant", HYBRIDS)
def test_steps_hold_the_parameters_of_their_parts(variant, preset, changes):
    model_config = config(variant, preset, **changes)
    for level in set(model_config.hybrid_levels) & {2, 4}:
        parts = hybrid_rows(model_config, level).query("part != ''").groupby("part")["params"].sum()
        formulas = hybrid_formulas(model_config, model_config.channels[level])
        assert parts.to_dict() == {part: params for part, params in formulas.items() if part in parts}
        assert sum(formulas[part] for part in formulas if part not in parts) == 0


@pytest.mark.parametrize(
    ("variant", "block"),
    [
        ("hae", HybridCNNTransformerBlock),
        ("lite", HybridCNNTransformerBlockLite),
        ("v2", HybridCNNTransformerBlockV2),
    ],
)
def test_steps_sum_to_the_block_under_the_documents_name(variant, block):
    with torch.device("meta"):
        expected = sum(p.numel() for p in block(256, 512).parameters())
    assert hybrid_rows(config(variant, "brats128"), level=2)["params"].sum() == expected


@pytest.mark.parametrize("variant", HYBRIDS)
def test_tokens_are_those_of_the_grid(variant):
    steps = hybrid_rows(config(variant, "brats128"), level=2).set_index("step")
    grid = TokenGrid(32, 32)
    for step, size in (("pixels", 1), ("4×4 patches", 4), ("8×8 patches", 8)):
        start, stop = grid.span(size)
        assert steps.loc[step, "shape_out"] == f"{stop - start} × 256"
    assert steps.loc["attention", ["shape_in", "shape_out"]].tolist() == [f"{grid.n} × 256", "1024 × 256"]
    assert steps.loc["fusion", "shape_in"] == ("512 × 32 × 32" if variant == "hae" else "256 × 32 × 32")
    assert steps.loc["residual", "shape_out"] == "256 × 32 × 32"


def test_a_scale_that_does_not_fit_is_said_not_dropped():
    steps = hybrid_rows(config("hae", "lesson16"), level=2).set_index("step")
    assert steps.loc["8×8 patches", "operation"] == "left out, 8 does not divide 4"
    assert steps.loc["8×8 patches", "params"] == 32 * (64 * 32) + 32
    assert steps.loc["8×8 patches", "shape_out"] == ""
    assert steps.loc["norms", "operation"] == "2 × LayerNorm, 1 never called"


def test_slots_say_what_they_hold():
    rows = hybrid_family("tiny").query("slot != ''")
    choices = {(row.variant, row.slot): row.choice for row in rows.itertuples()}
    assert choices == {
        (variant, slot): f"{VARIANTS[variant][slot]}"
        for variant in HYBRIDS
        for slot in ("regions", "mlp_ratio", "fusion")
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"lite": {"regions", "fusion"}, "v2": {"mlp_ratio"}}),
        ({"cnn_branch": False}, {"lite": {"regions"}, "v2": {"mlp_ratio"}}),
        ({"fusion": "mean"}, {"lite": {"regions"}, "v2": {"mlp_ratio"}}),
        ({"mlp_ratio": 2}, {"lite": {"regions", "fusion"}}),
        (VARIANTS["v2"], {}),
    ],
)
def test_changed_slots_are_those_that_differ_from_the_block_before(changes, expected):
    rows = hybrid_family("tiny", **changes)
    changed = rows[rows["changed"]].groupby("variant")["slot"].agg(set).to_dict()
    assert changed == expected


def test_levels_without_a_hybrid_block_are_refused():
    with pytest.raises(HAELabError, match=r"no hybrid block at level 0: levels with one are \[1, 2\]"):
        hybrid_rows(config("hae", "lesson16"), level=0)
    with pytest.raises(HAELabError, match="the model has none"):
        hybrid_rows(config("unet", "lesson16"))


# Pictures


def drawn(figure: Chart) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_text()]


def words(figure: Chart) -> list[str]:
    return sorted(text.get_text() for text in drawn(figure))


def boxes(figure: Chart) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def check_layout(figure: Chart) -> None:
    """Readable, 4:3, every text inside the figure, none over the edge of a box or over another."""
    texts = drawn(figure)
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(4 / 3)
    assert min(text.get_fontsize() for text in texts) >= 11
    renderer = FigureCanvasAgg(figure).get_renderer()
    extents = np.array([text.get_window_extent(renderer).extents for text in texts])  # left, bottom, right, top
    frames = np.array([box.get_window_extent().extents for box in boxes(figure)])
    assert (extents[:, :2] >= 0).all()
    assert (extents[:, 2:] <= figure.bbox.size).all()
    slack = np.array([0, 1])  # the box of a text is higher than its letters
    for frame in frames:
        inside = (extents[:, :2] >= frame[:2] - slack) & (extents[:, 2:] <= frame[2:] + slack)
        outside = (extents[:, :2] >= frame[2:]) | (extents[:, 2:] <= frame[:2])
        crossing = ~inside.all(axis=1) & ~outside.any(axis=1)
        assert [texts[index] for index in np.flatnonzero(crossing)] == []
    low, high = np.maximum(extents[:, None, :2], extents[:, :2]), np.minimum(extents[:, None, 2:], extents[:, 2:])
    overlaps = np.argwhere(np.triu((low < high).all(axis=2), k=1))
    assert [(texts[one], texts[other]) for one, other in overlaps] == []


@pytest.mark.parametrize(
    ("variant", "preset", "changes"),
    [
        *[(variant, "brats128", {}) for variant in VARIANTS],
        ("hae", "brats128", {"placement": "everywhere", "num_res_blocks": 3}),
        ("lite", "wide128", {"placement": "everywhere"}),
        ("v2", "cifar32", {}),
        ("v2", "lesson16", {}),
        ("hae", "tiny", {}),
        ("hae", "tiny", BODIES["one level"]),
        ("lite", "tiny", {"fusion": "concat"}),
    ],
)
def test_unet_texts_stay_apart(variant, preset, changes):
    check_layout(plots.unet(rows_of(variant, preset, **changes)))


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        *[("brats128", {"level": level}) for level in (1, 2, 4)],
        ("wide128", {"level": 3, "cnn_branch": False, "mask_rule": "spatial_reduction"}),
        ("lesson16", {"level": 2}),
        ("lesson16", {"mask_rule": "document_shared"}),
        ("tiny", {"patch_sizes": (1, 2, 4, 8, 16)}),
    ],
)
def test_hybrid_texts_stay_apart(preset, options):
    check_layout(plots.hybrid_blocks(family(preset, **options)))


def test_every_block_is_drawn_with_its_parameters_and_every_skip_as_an_arrow():
    rows = rows_of("v2", "lesson16")
    figure = plots.unet(rows)
    body = rows[rows["section"] != "embedding"]
    counts = words(figure)
    for params, count in body["params"].map(plots.short).value_counts().items():
        assert counts.count(params) >= count
    legend = rows["kind"].nunique() - 3  # without embedding, in, out
    assert len(boxes(figure)) == len(body) + legend
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    skips, lanes = (rows["skip_from"] != "").sum(), 3 + 1 + 3
    assert len(arrows) == skips + (lanes - 1) + 1  # one more in the legend
    for text in ("1 → 16 → 1 channels\n16 × 16", "32 channels\n8 × 8"):
        assert text in counts


@pytest.mark.parametrize(
    ("variant", "placement"), [("hae", "upsample"), ("lite", "everywhere"), ("v2", "attention"), ("hae", "none")]
)
def test_hybrid_blocks_have_the_colour_of_their_variant(variant, placement):
    model_config = config(variant, "tiny", placement=placement)
    figure = plots.unet(rows_for(model_config))
    coloured = [box for box in boxes(figure) if to_hex(box.get_facecolor()) == VARIANT_COLOURS[variant]]
    blocks = len(hybrid_sites(model_config))
    assert len(coloured) == blocks + (blocks > 0)  # one more in the legend


def test_one_variant_of_a_table_is_drawn():
    table = unet_table("tiny")
    assert words(plots.unet(table, "lite")) == words(plots.unet(rows_of("lite", "tiny")))
    assert words(plots.unet(table, "unet")) == words(plots.unet(rows_of("unet", "tiny")))


def test_titles_say_the_point():
    title = plots.unet(rows_of("v2", "brats128")).get_suptitle()
    assert title == "HAE V2: 4 hybrid blocks hold 11 % of 116\xa0M parameters"
    assert plots.unet(rows_of("hae", "tiny")).get_suptitle().startswith("HAE: 1 hybrid block holds")
    title = plots.hybrid_blocks(family("tiny")).get_suptitle().replace("\n", " ")
    assert title.startswith("HAE Lite changes regions and fusion, HAE V2 changes mlp_ratio: ")
    assert title.endswith("parameters a block on 32\xa0×\xa08\xa0×\xa08")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_res_blocks": 2},
        {"channel_mult": (1, 2, 2)},
        {"attention_resolutions": ()},
        {"model_channels": 32},
        {"image_size": 32},
        {"in_channels": 2},
        {"num_classes": None},
        {"use_scale_shift_norm": False},
        {"conv_resample": False},
        {"placement": "everywhere"},
        {"fusion": "mean"},
        {"mlp_ratio": 2},
        {"patch_sizes": (1, 4)},
        {"cnn_branch": False},
    ],
)
def test_the_unet_follows_its_config(changes):
    before, after = rows_of("hae", "tiny"), rows_of("hae", "tiny", **changes)
    assert not before.equals(after)
    assert words(plots.unet(before)) != words(plots.unet(after))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_channels": 32},
        {"image_size": 32},
        {"patch_sizes": (1, 2)},
        {"patch_sizes": (1, 4, 8, 16)},
        {"mlp_ratio": 2},
        {"fusion": "mean"},
        {"regions": "pooled"},
        {"cnn_branch": False},
        {"mstb_heads": 4},
        {"mask_rule": "dense"},
        {"sparsity": 0.5},
    ],
)
def test_the_hybrid_blocks_follow_their_config(changes):
    before, after = family("tiny"), family("tiny", **changes)
    assert not before.equals(after)
    assert words(plots.hybrid_blocks(before)) != words(plots.hybrid_blocks(after))


def highlighted(figure: Chart, colour: str) -> list[str]:
    """The first line of each box that has an edge of this colour."""
    frames = [box.get_window_extent() for box in boxes(figure) if to_hex(box.get_edgecolor()) == colour]
    inside = [
        [text for text in drawn(figure) if frame.contains(*text.get_transform().transform(text.get_position()))]
        for frame in frames
    ]
    return [max(texts, key=lambda text: text.get_position()[1]).get_text() for texts in inside]


def test_changed_slots_are_drawn_in_the_colour_of_their_variant():
    figure = plots.hybrid_blocks(family("tiny"))
    assert highlighted(figure, VARIANT_COLOURS["hae"]) == []
    assert highlighted(figure, VARIANT_COLOURS["lite"]) == ["regions: pooled", "fusion: mean"]
    assert highlighted(figure, VARIANT_COLOURS["v2"]) == ["mlp_ratio: 0.25"]


def test_blocks_of_any_names_stand_side_by_side():
    configs = {"lite": config("lite", "tiny"), "lite with concat": config("lite", "tiny", fusion="concat")}
    figure = plots.hybrid_blocks(hybrid_table(configs))
    check_layout(figure)
    assert figure.get_suptitle().startswith("lite with concat changes fusion: ")
    assert any(text.startswith("lite with concat: ") for text in words(figure))


def test_each_step_is_drawn_with_its_parameters():
    rows = family("brats128", level=2)
    texts = words(plots.hybrid_blocks(rows))
    for params, count in rows.loc[rows["params"] > 0, "params"].map(plots.short).value_counts().items():
        assert texts.count(params) == count


def test_the_same_rows_give_the_same_picture():
    rows = family("tiny")
    assert plots.hybrid_blocks(rows).png() == plots.hybrid_blocks(rows).png()
    assert plots.unet(rows_of("hae", "tiny")).png() == plots.unet(rows_of("hae", "tiny")).png()


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (512, "512"),
        (999, "999"),
        (1000, "1.0k"),
        (1536, "1.5k"),
        (65_792, "66k"),
        (263_168, "263k"),
        (999_600, "1.0M"),
        (7_478_016, "7.5M"),
        (29_636_096, "30M"),
        (683_777_028, "684M"),
    ],
)
def test_short_counts(count, expected):
    assert plots.short(count) == expected


def test_short_counts_with_more_digits():
    assert plots.short(7_478_016, 3, " ") == "7.48 M"
