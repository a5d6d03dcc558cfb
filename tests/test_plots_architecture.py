"""Pictures of the architecture: they fit, say the rows and follow the config."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

from hae_lab import VARIANTS, HAEConfig, HAELabError, config, plots
from hae_lab.family import hybrid_sites
from hae_lab.plots.base import Chart, short, variant_colour
from hae_lab.profilers.anatomy import hybrid_family, hybrid_table, unet_rows, unet_table

ONE_LEVEL = {"channel_mult": (1,), "attention_resolutions": (1,), "placement": "everywhere"}


# rows are made once for all tests, which do not change them
@lru_cache
def rows_for(model_config: HAEConfig) -> pd.DataFrame:
    return unet_rows(model_config)


def rows_of(variant: str, preset: str, **changes) -> pd.DataFrame:
    return rows_for(config(variant, preset, **changes))


@lru_cache
def family(preset: str, **changes) -> pd.DataFrame:
    return hybrid_family(preset, **changes)


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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # places the legend
    renderer = canvas.get_renderer()
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
        ("hae", "tiny", ONE_LEVEL),
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
    for params, count in body["params"].map(short).value_counts().items():
        assert counts.count(params) >= count
    assert len(boxes(figure)) == len(body)
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    skips, lanes = (rows["skip_from"] != "").sum(), 3 + 1 + 3
    assert len(arrows) == skips + (lanes - 1)
    for text in ("1 → 16 → 1 channels\n16 × 16", "32 channels\n8 × 8"):
        assert text in counts


@pytest.mark.parametrize(
    ("variant", "placement"), [("hae", "upsample"), ("lite", "everywhere"), ("v2", "attention"), ("hae", "none")]
)
def test_hybrid_blocks_have_the_colour_of_their_variant(variant, placement):
    model_config = config(variant, "tiny", placement=placement)
    figure = plots.unet(rows_for(model_config))
    coloured = [box for box in boxes(figure) if to_hex(box.get_facecolor()) == variant_colour(variant)]
    blocks = len(hybrid_sites(model_config))
    assert len(coloured) == blocks
    entries = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("H: hybrid block" in entries) == (blocks > 0)


def test_one_variant_of_a_table_is_drawn():
    table = unet_table("tiny")
    assert words(plots.unet(table, variant="lite")) == words(plots.unet(rows_of("lite", "tiny")))
    assert words(plots.unet(table, variant="unet")) == words(plots.unet(rows_of("unet", "tiny")))


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
        {"transformer_branch": False},
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
    assert highlighted(figure, variant_colour("hae")) == []
    assert highlighted(figure, variant_colour("lite")) == ["regions: pooled", "fusion: mean"]
    assert highlighted(figure, variant_colour("v2")) == ["mlp_ratio: 0.25"]


def test_blocks_of_any_names_stand_side_by_side():
    configs = {"lite": config("lite", "tiny"), "lite with concat": config("lite", "tiny", fusion="concat")}
    figure = plots.hybrid_blocks(hybrid_table(configs))
    check_layout(figure)
    assert figure.get_suptitle().startswith("lite with concat changes fusion: ")
    assert any(text.startswith("lite with concat: ") for text in words(figure))


@pytest.mark.parametrize("order", [None, ["v2"]])
def test_below_the_lowest_box_is_room_for_the_caption_and_no_more(order):
    """One unit is one inch; the caption is a line of 11 points around 0.18, and the title may be a line shorter."""
    figure = plots.hybrid_blocks(family("brats128"), order=order)
    lowest = min(box.get_y() for box in boxes(figure))
    caption = figure.axes[0].texts[-1].get_position()[1]
    assert caption + 11 / 72 < lowest < caption + 0.6


def test_each_step_is_drawn_with_its_parameters():
    rows = family("brats128", level=2)
    texts = words(plots.hybrid_blocks(rows))
    for params, count in rows.loc[rows["params"] > 0, "params"].map(short).value_counts().items():
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
    assert short(count) == expected


def test_short_counts_with_more_digits():
    assert short(7_478_016, 3, " ") == "7.48 M"


def test_a_block_without_its_transformer_is_not_drawn():
    rows = hybrid_table({"hae": config("hae", "tiny", transformer_branch=False)})
    with pytest.raises(HAELabError, match="a block without its Transformer is two convolutions"):
        plots.hybrid_blocks(rows)
