"""The mask explorer: what it says of a query against the mask written out, and its widgets without a browser."""

import time

import numpy as np
import pytest
import torch
from parity_data import sample_inputs, with_parity_weights

from hae_lab import HAELabError, build, rules
from hae_lab.explorer import MaskExplorerModel, explore
from hae_lab.explorer.model import covering, nearest, place_of, scales, shape, token_at
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models import MSTB
from hae_lab.plots import masks as pictures
from hae_lab.plots.weights import weight_colours
from hae_lab.profilers.attention_maps import block_attention
from hae_lab.profilers.reach import visibility

RULES = list(rules.RULES)
EACH_RULE = pytest.mark.parametrize("rule", RULES)
GRID = TokenGrid(16, 16)
SPANS = {1: (0, 256), 4: (256, 272), 8: (272, 276)}  # tokens of 16 x 16


def seen_by_hand(model: MaskExplorerModel) -> np.ndarray:
    """(n, n) bool from the mask written out; a key counts if any shown head group sees it."""
    allowed = ~model.mask.blocked()
    if allowed.ndim == 2:
        return allowed
    return allowed.any(0) if model.group is None else allowed[model.group]


def carried_by_hand(tokens: np.ndarray) -> np.ndarray:
    """The pixels of 16 x 16 that a set of tokens holds, token by token."""
    pixels = np.zeros((16, 16), bool)
    for p, (start, stop) in SPANS.items():
        for number in np.flatnonzero(tokens[start:stop]):
            row, column = divmod(int(number), 16 // p)
            pixels[p * row : p * (row + 1), p * column : p * (column + 1)] = True
    return pixels


def reached_by_hand(model: MaskExplorerModel, blocks: int) -> np.ndarray:
    """Pixels that change the query's output: block by block over the mask written out."""
    allowed = seen_by_hand(model)
    start = allowed[model.query].copy()
    start[model.query] = True
    reached = carried_by_hand(start)
    for _ in range(blocks - 1):
        reached = reached | carried_by_hand(allowed[np.flatnonzero(reached)].any(0))
    return reached


def rule_with_groups(grid: TokenGrid, sparsity: float, seed: int) -> SparseMask:
    """Group 0 sees the first token alone, group 1 the last two."""
    matrix = np.ones((2, grid.n, grid.n), bool)
    matrix[0, :, 0] = matrix[1, :, -2:] = False
    return SparseMask.from_blocked(matrix, grid)


@pytest.fixture
def grouped(monkeypatch) -> MaskExplorerModel:
    monkeypatch.setitem(rules.RULES, "grouped", rule_with_groups)
    return MaskExplorerModel(side=16, rule="grouped")


# places


@pytest.mark.parametrize("grid", [GRID, TokenGrid(8, 24), TokenGrid(12, 20), TokenGrid(4, 4), TokenGrid(5, 3)], ids=str)
def test_tokens_and_places_are_two_names_of_one_thing(grid):
    places = [place_of(grid, token) for token in range(grid.n)]
    assert [token_at(grid, place) for place in places] == list(range(grid.n))
    assert places == [(p, *where) for p in scales(grid) for where in np.ndindex(*shape(grid, p))]


def test_the_covering_token_is_the_parent():
    for p in GRID.scales:
        tokens = [token_at(GRID, covering(place_of(GRID, pixel), p)) for pixel in range(GRID.n_local)]
        assert tokens == GRID.parent(p).tolist()


def test_the_nearest_place_exists_and_is_the_place_itself_where_it_can_be():
    assert nearest(GRID, place_of(GRID, 270)) == place_of(GRID, 270)
    assert nearest(GRID, place_of(TokenGrid(32, 32), 1023)) == (1, 15, 15)
    assert nearest(TokenGrid(4, 4), place_of(GRID, 272)) == (1, 3, 3)  # no 8 x 8 tokens: pixels, cut off


# what a query sees


@EACH_RULE
def test_what_a_query_sees_is_its_row_of_the_mask(rule):
    model = MaskExplorerModel(side=16, rule=rule, seed=3)
    for query in (0, 87, 255, 256, 271, 275):
        model.pick(query)
        row = seen_by_hand(model)[query]
        assert model.seen().tolist() == row.tolist()
        for p, (start, stop) in SPANS.items():
            assert model.visible()[p].shape == (16 // p, 16 // p)
            assert model.visible()[p].ravel().tolist() == row[start:stop].tolist()


@EACH_RULE
def test_numbers_against_the_mask_written_out(rule):
    model = MaskExplorerModel(side=16, rule=rule)
    for query in (0, 87, 200, 255):
        model.pick(query)
        numbers, row = model.numbers(), seen_by_hand(model)[query]
        y, x = divmod(query, 16)
        near = [token for token in range(256) if abs(token // 16 - y) <= 3 and abs(token % 16 - x) <= 3]
        assert numbers["keys"] == 276
        assert numbers["keys_seen"] == row.sum()
        assert numbers["keys_seen_of_scale"] == {p: row[slice(*span)].sum() for p, span in SPANS.items()}
        assert numbers["own_seen"] == {
            4: row[256 + y // 4 * 4 + x // 4],
            8: row[272 + y // 8 * 2 + x // 8],
        }
        assert numbers["neighbourhood_percent"] == pytest.approx(100 * row[near].mean())
        assert numbers["reach_1_percent"] == pytest.approx(100 * reached_by_hand(model, 1).mean())
        assert numbers["reach_2_percent"] == pytest.approx(100 * reached_by_hand(model, 2).mean())
        assert numbers["density_percent"] == pytest.approx(100 * model.mask.density())


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("query", [87, 260])
def test_reach_block_by_block(query, blocks):
    model = MaskExplorerModel(side=16, sparsity=0.97, query=query)
    assert model.reached(blocks).tolist() == reached_by_hand(model, blocks).tolist()


def test_reach_grows_with_each_block():
    model = MaskExplorerModel(side=16, sparsity=0.97)
    sizes = [model.reached(blocks).sum() for blocks in (1, 2, 8)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 256


def test_a_pixel_that_sees_nothing_of_itself_still_carries_itself(monkeypatch):
    def only_the_last(grid, sparsity, seed):
        matrix = np.ones((grid.n, grid.n), bool)
        matrix[:, 255] = False
        return SparseMask.from_blocked(matrix, grid)

    monkeypatch.setitem(rules.RULES, "only_the_last", only_the_last)
    model = MaskExplorerModel(side=16, rule="only_the_last", query=0)
    assert np.flatnonzero(model.reached(2)).tolist() == [0, 255]


def test_the_answer_for_pixel_5_7_on_32_x_32():
    model = MaskExplorerModel()
    numbers = model.numbers()
    assert model.query == 5 * 32 + 7 == 167
    # keep = int(1104 * (1 - 0.9)) = 110: the band is 55 tokens to either side, then come 110 // 4 = 27 random columns
    assert model.seen()[112:223].all()
    assert not model.seen()[[111, 223]].any()
    assert 111 <= numbers["keys_seen"] <= 111 + 27
    assert numbers["keys"] == 1104
    assert numbers["own_seen"] == {4: False, 8: False}


@EACH_RULE
def test_averaged_over_the_pixels_it_is_what_the_profiler_says(rule):
    model = MaskExplorerModel(side=16, rule=rule)
    numbers = []
    for query in range(256):
        model.pick(query)
        numbers.append(model.numbers())
    profile = visibility(model.grid, rule).iloc[0]
    for p in (4, 8):
        assert 100 * np.mean([number["own_seen"][p] for number in numbers]) == pytest.approx(
            profile[f"own_{p}_percent"]
        )
        meets = [number["keys_seen_of_scale"][p] > 0 for number in numbers]
        assert 100 * np.mean(meets) == pytest.approx(profile[f"sees_{p}_percent"])
    assert numbers[0]["density_percent"] == pytest.approx(100 * profile["density"])
    keys = [number["keys_seen"] for number in numbers]
    assert (min(keys), np.median(keys), max(keys)) == tuple(profile[["keys_min", "keys_median", "keys_max"]])


@EACH_RULE
def test_the_picture_of_the_matrix_is_its_mean(rule):
    model = MaskExplorerModel(side=16, rule=rule)
    allowed = ~model.mask.blocked()
    exact = allowed if allowed.ndim == 2 else allowed.mean(0)
    assert np.array_equal(model.matrix(1000), exact)
    cells = model.matrix(7)  # 276 = 7 x 39.4: cells of 39 and 40 tokens
    edges = np.linspace(0, 276, 8).astype(int)
    by_hand = [[exact[a:b, c:d].mean() for c, d in zip(edges, edges[1:])] for a, b in zip(edges, edges[1:])]  # noqa: B905, RUF007
    assert np.allclose(cells, by_hand)


# what the reader does


def test_moves_step_by_step_and_stop_at_the_border():
    model = MaskExplorerModel(side=16)
    assert model.place == (1, 5, 7)
    for direction, place in [("down", (1, 6, 7)), ("right", (1, 6, 8)), ("up", (1, 5, 8)), ("left", (1, 5, 7))]:
        model.move(direction)
        assert model.place == place
    for corner, way in [(0, ("up", "left")), (255, ("down", "right")), (256, ("up", "left")), (275, ("down", "right"))]:
        model.pick(corner)
        for direction in way:
            model.move(direction)
            assert model.query == corner


def test_a_move_stays_on_its_grid():
    model = MaskExplorerModel(side=16, query=256)
    for direction in ("right",) * 9 + ("down",) * 9:
        model.move(direction)
        assert model.place.patch_size == 4
    assert model.query == 271


def test_switching_grids_goes_round_at_the_same_spot():
    model = MaskExplorerModel(side=16)
    places = []
    for _ in range(3):
        model.switch_grid()
        places.append(tuple(model.place))
    assert places == [(4, 1, 1), (8, 0, 0), (1, 4, 4)]
    model.switch_grid(-1)
    assert model.place == (8, 0, 0)


def test_the_query_stays_where_it_is_or_moves_to_the_nearest():
    model = MaskExplorerModel(side=32, query=1023)
    model.set(rule="window2d", sparsity=0.8, seed=5)
    assert model.place == (1, 31, 31)
    model.set(side=16)
    assert model.place == (1, 15, 15)
    model.set(side=64)
    assert model.place == (1, 15, 15)
    model.pick(model.grid.n - 1)
    assert model.place == (8, 7, 7)
    model.set(side=(8, 16))
    assert model.place == (8, 0, 1)
    model.set(side=4)  # has no 8 x 8 tokens
    assert model.place == (1, 3, 3)


def test_a_small_map_starts_at_the_nearest_pixel():
    assert MaskExplorerModel(side=4).place == (1, 3, 3)
    assert MaskExplorerModel(side=(1, 32)).place == (1, 0, 7)


def test_other_patch_sizes():
    model = MaskExplorerModel(side=12, patch_sizes=(1, 2, 3))
    assert {p: m.shape for p, m in model.visible().items()} == {1: (12, 12), 2: (6, 6), 3: (4, 4)}
    assert MaskExplorerModel(side=8, patch_sizes=(1,)).numbers()["own_seen"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "documnt"}, "unknown mask rule 'documnt': did you mean 'document'"),
        ({"rules": "document"}, "unknown option of the explorer 'rules': did you mean 'rule'"),
        ({"side": 0}, "from 1 to 128, got 0"),
        ({"side": 129}, "from 1 to 128, got 129"),
        ({"side": 8.0}, "from 1 to 128, got 8.0"),
        ({"side": (8, 8, 8)}, r"from 1 to 128, got \(8, 8, 8\)"),
        ({"sparsity": 1.0}, r"sparsity is in \[0, 1\), got 1.0"),
        ({"sparsity": "0.9"}, r"sparsity is in \[0, 1\), got '0.9'"),
        ({"sparsity": True}, r"sparsity is in \[0, 1\), got True"),
        ({"seed": -1}, "seed is a whole number from 0, got -1"),
        ({"patch_sizes": (4, 8)}, r"starts with 1, the pixels, for example \(1, 4, 8\); got \(4, 8\)"),
        ({"patch_sizes": 4}, "patch_sizes is a tuple"),
    ],
    ids=str,
)
def test_a_wrong_choice_is_refused_and_changes_nothing(change, message):
    with pytest.raises(HAELabError, match=message):
        MaskExplorerModel(**change)
    model = MaskExplorerModel(side=16)
    before = model.choice, model.mask, model.query
    with pytest.raises(HAELabError, match=message):
        model.set(seed=9, **change) if "seed" not in change else model.set(**change)
    assert (model.choice, model.mask, model.query) == before


@pytest.mark.parametrize("query", [-1, 276, 2.0, "0", None, True])
def test_a_wrong_query_is_refused(query):
    model = MaskExplorerModel(side=16)
    with pytest.raises(HAELabError, match="a token from 0 to 275 on this map"):
        model.pick(query)
    assert model.place == (1, 5, 7)


def test_a_wrong_direction_is_refused():
    with pytest.raises(HAELabError, match="unknown direction 'upp': did you mean 'up'"):
        MaskExplorerModel(side=16).move("upp")


# head groups


def test_all_groups_together_or_one_alone(grouped):
    sees = {group: [] for group in (None, 0, 1)}
    for group in sees:
        grouped.show_group(group)
        sees[group] = np.flatnonzero(grouped.seen()).tolist()
        assert grouped.seen().tolist() == seen_by_hand(grouped)[grouped.query].tolist()
    assert sees == {None: [0, 274, 275], 0: [0], 1: [274, 275]}


def test_numbers_follow_the_group(grouped):
    densities = []
    for group in (None, 0, 1):
        grouped.show_group(group)
        densities.append(grouped.numbers()["density_percent"])
    assert densities == pytest.approx([100 * 1.5 / 276, 100 / 276, 200 / 276])
    assert grouped.matrix(276)[:, -2:].all()
    assert not grouped.matrix(276)[:, :-2].any()


def test_reach_goes_through_the_shown_groups_only(grouped):
    grouped.show_group(0)
    assert np.flatnonzero(grouped.reached(3)).tolist() == [0, 87]
    grouped.show_group(None)
    assert grouped.reached(1).sum() == 1 + 1 + 128  # pixel 0, itself, and the two lower 8 x 8 patches


def test_a_group_that_is_gone_is_not_kept(grouped):
    grouped.show_group(1)
    grouped.set(rule="document")
    assert grouped.group is None
    with pytest.raises(HAELabError, match="None \\(all\\) or a number from 0 to 0, got 1"):
        grouped.show_group(1)


def test_spatial_reduction_gives_each_group_one_scale():
    model = MaskExplorerModel(side=16, rule="spatial_reduction")
    for group, p in enumerate((4, 8)):
        model.show_group(group)
        assert [scale for scale, keys in model.visible().items() if keys.any()] == [p]
        assert model.numbers()["own_seen"] == {4: p == 4, 8: p == 8}


# speed


@pytest.mark.parametrize("rule", RULES)
def test_an_update_at_64_x_64_is_quick(rule):
    explorer = explore(side=64, rule="document")
    explorer.controls["rule"].value = rule  # builds the mask
    explorer.controls["rule"].value = "document"
    start = time.process_time()
    explorer.controls["rule"].value = rule
    explorer.controls["query"].value = 2000
    explorer.picker._handle_custom_msg({"pick": 3000}, [])
    assert (time.process_time() - start) / 3 < 0.3


# pictures


def test_colours_tell_seen_from_reached_from_hidden():
    model = MaskExplorerModel(side=16, rule="spatial_reduction", query=0)
    model.show_group(0)
    colours = pictures.token_colours(model.view())
    as_hex = {p: {"#{:02x}{:02x}{:02x}".format(*colour) for colour in c.reshape(-1, 3)} for p, c in colours.items()}
    assert as_hex == {1: {pictures.REACHED}, 4: {pictures.SEEN}, 8: {pictures.HIDDEN}}


def test_an_image_shines_through():
    view = MaskExplorerModel(side=16).view()
    dark, light = (pictures.token_colours(view, np.full((16, 16), level)) for level in (-1.0, 1.0))
    assert all((light[p] > dark[p]).all() for p in (1, 4, 8))
    gradient = pictures.token_colours(view, np.linspace(-1, 1, 256).reshape(16, 16))[8]
    assert gradient[1, 1, 0] > gradient[0, 0, 0]


@pytest.mark.parametrize("size", [(16, 16), (64, 48), (5, 7), (100, 100)])
def test_resampling_keeps_a_constant_and_the_mean_of_whole_cells(size):
    assert np.allclose(pictures.resample(np.full(size, 0.25), 16, 16), 0.25)
    image = np.arange(64.0).reshape(8, 8)
    assert np.allclose(pictures.resample(image, 2, 4), image.reshape(2, 4, 4, 2).mean((1, 3)))
    assert np.array_equal(pictures.resample(image, 16, 16)[::2, ::2], image)


def test_marks_show_the_query_and_the_patches_that_hold_it():
    def marks(query: int) -> set:
        rows = pictures.query_marks(MaskExplorerModel(side=16, query=query).view())
        assert [row["query"] for row in rows] == sorted(row["query"] for row in rows)  # the query is drawn last
        return {(row["grid"], row["row"], row["column"], row["size"], row["query"]) for row in rows}

    pixel = {(0, 5, 7, 1, True), (0, 4, 4, 4, False), (0, 0, 0, 8, False), (1, 1, 1, 1, False), (2, 0, 0, 1, False)}
    assert marks(5 * 16 + 7) == pixel
    assert marks(256 + 4 + 2) == {(0, 4, 8, 4, False), (1, 1, 2, 1, True), (2, 0, 1, 1, False)}


@pytest.mark.parametrize("with_image", [False, True])
def test_the_static_figure_says_what_the_query_sees(with_image):
    view = MaskExplorerModel(side=16).view()
    figure = pictures.visible_keys(view, np.zeros((8, 8)) if with_image else None)
    assert (
        f"sees {view['keys_seen']:,} of 276 tokens: neither its own 4 × 4 nor 8 × 8"
        in figure.get_suptitle().replace("\n", " ")
    )
    shown = [ax.images[0].get_array()[:, :, :3] for ax in figure.axes]
    assert [ax.shape[:2] for ax in shown] == [(16, 16), (4, 4), (2, 2)]
    colours = pictures.token_colours(view, np.zeros((8, 8)) if with_image else None)
    assert all(np.array_equal(array, colours[p]) for array, p in zip(shown, (1, 4, 8), strict=True))
    assert figure.png().startswith(b"\x89PNG")


def test_a_white_rim_sets_each_mark_off_on_both_sides():
    view = MaskExplorerModel(side=16, query=5 * 16 + 7).view()
    for ax, grid in zip(pictures.visible_keys(view).axes, (0, 1, 2), strict=True):
        marks = [mark for mark in pictures.query_marks(view) if mark["grid"] == grid]
        assert len(ax.patches) == 2 * len(marks)
        for rim, frame, mark in zip(ax.patches[::2], ax.patches[1::2], marks, strict=True):
            assert rim.get_bbox().bounds == frame.get_bbox().bounds
            assert frame.get_bbox().bounds == (mark["column"] - 0.5, mark["row"] - 0.5, mark["size"], mark["size"])
            assert rim.get_linewidth() == 2 * frame.get_linewidth()
            assert frame.get_fill() == mark["query"]


@pytest.mark.parametrize(("side", "words"), [(4, "not its own 4 × 4 token"), (2, "this map has no regional tokens")])
def test_the_static_figure_of_a_map_with_fewer_scales(side, words):
    figure = pictures.visible_keys(MaskExplorerModel(side=side).view())
    assert words in figure.get_suptitle().replace("\n", " ")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({4: True, 8: True}, "its own 4 × 4 and 8 × 8 token"),
        ({4: True, 8: False}, "its own 4 × 4 token, not its own 8 × 8 token"),
        ({4: False, 8: False}, "neither its own 4 × 4 nor 8 × 8 token"),
    ],
)
def test_own_tokens_in_words(own, words):
    assert pictures.own_tokens({"own_seen": own}) == words


def test_all_rules_on_one_figure():
    views, matrices = [], []
    model = MaskExplorerModel(side=16)
    for rule in RULES:
        model.set(rule=rule)
        views.append(model.view())
        matrices.append(model.matrix(60))
    figure = pictures.mask_rules(views, matrices)
    hidden = [view["rule"] for view in views if not all(view["own_seen"].values())]
    title = figure.get_suptitle().replace("\n", " ")
    assert f"under {len(RULES) - len(hidden)} of {len(RULES)} rules" in title
    assert "not under document and document_shared" in title
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(drawn) == 4 * len(RULES)
    assert np.array_equal(drawn[0].images[0].get_array(), matrices[0])


# widgets, in this process


def key_values(explorer) -> tuple:
    return explorer.picker.colours, explorer.picker.marks, explorer.picker.captions, explorer.numbers.value


def test_sliders_change_the_model_the_grids_and_the_numbers():
    explorer = explore(side=16)
    for name, value in [
        ("query", 100), ("rule", "window2d"), ("sparsity", 0.7), ("rule", "document"), ("seed", 4), ("side", 32)
    ]:  # fmt: skip
        before = key_values(explorer)
        explorer.controls[name].value = value
        assert key_values(explorer) != before, name
        model = explorer.model
        assert value == (model.query if name == "query" else getattr(model.choice, name))
        colours = pictures.token_colours(model.view())
        assert explorer.picker.colours == b"".join(colours[p].tobytes() for p in (1, 4, 8))
        assert f"{model.numbers()['keys_seen']:,} of {model.grid.n:,}" in explorer.numbers.value


def test_a_click_moves_the_query_and_its_slider():
    explorer = explore(side=16)
    before = key_values(explorer)
    explorer.picker._handle_custom_msg({"pick": 260}, [])
    assert explorer.model.query == explorer.controls["query"].value == 260
    assert key_values(explorer) != before
    assert "4 × 4 token (1, 0)" in explorer.numbers.value
    assert "throws away what regional queries compute" in explorer.numbers.value


def test_keys_move_the_query():
    explorer = explore(side=16)
    for message in ({"move": "down"}, {"move": "left"}):
        explorer.picker._handle_custom_msg(message, [])
    assert explorer.controls["query"].value == 6 * 16 + 6
    explorer.picker._handle_custom_msg({"grid": 1}, [])
    assert explorer.model.place == (4, 1, 1)


def test_a_smaller_map_leaves_the_query_at_the_nearest_place():
    explorer = explore(side=32, query=31 * 32 + 3)  # pixel (31, 3)
    explorer.controls["side"].value = 16
    assert explorer.model.place == (1, 15, 3)
    assert explorer.controls["query"].value == 15 * 16 + 3
    assert explorer.controls["query"].max == 275
    assert [tuple(grid) for grid in explorer.picker.grids] == [(0, 16, 16), (256, 4, 4), (272, 2, 2)]


def test_head_groups_can_be_chosen_where_there_are_several():
    explorer = explore(side=16)
    heads = explorer.controls["group"]
    assert heads.disabled
    explorer.controls["rule"].value = "spatial_reduction"
    assert not heads.disabled
    assert [label for label, _ in heads.options] == ["all", "1 of 2", "2 of 2"]
    heads.label = "2 of 2"
    assert explorer.model.group == 1
    assert explorer.picker.captions == ["pixels: 0 of 256", "4 × 4: 0 of 16", "8 × 8: 4 of 4"]
    explorer.controls["rule"].value = "document"
    assert (heads.label, heads.disabled, explorer.model.group) == ("all", True, None)


def test_a_rule_that_refuses_a_map_is_shown_and_the_state_stays(monkeypatch):
    def picky(grid, sparsity, seed):
        raise HAELabError("picky: no <map> is good enough")

    monkeypatch.setitem(rules.RULES, "picky", picky)
    explorer = explore(side=16)
    explorer.controls["rule"].value = "picky"
    assert "no &lt;map&gt; is good enough" in explorer.numbers.value
    assert explorer.controls["rule"].value == explorer.model.choice.rule == "document"
    explorer.controls["seed"].value = 1
    assert "good enough" not in explorer.numbers.value


def test_own_values_are_among_the_choices():
    explorer = explore(side=(12, 20), seed=77, sparsity=0.95)
    assert explorer.controls["side"].label == "12 × 20"
    assert explorer.controls["seed"].value == 77
    assert explorer.model.grid == TokenGrid(12, 20)


@pytest.mark.parametrize("image", [np.zeros(4), np.zeros((2, 2, 3)), np.full((2, 2), np.nan), np.zeros((0, 4))])
def test_a_wrong_image_is_refused(image):
    with pytest.raises(HAELabError, match="the image is a 2-D array of finite numbers"):
        explore(image=image)


def test_an_image_lies_beneath_the_grids():
    plain, grey = explore(side=16), explore(side=16, image=np.zeros((64, 64)))
    assert plain.picker.colours != grey.picker.colours
    assert len(plain.picker.colours) == len(grey.picker.colours) == 3 * 276


def test_the_picker_brings_its_script():
    assert "export default { render }" in str(explore(side=4).picker._esm)


# weights of a trained block


@pytest.fixture(scope="module")
def attention():
    model = with_parity_weights(build("hae", "tiny"))
    path = next(name for name, module in model.named_modules() if isinstance(module, MSTB))
    return block_attention(model, sample_inputs(model.config), path)


def test_the_explorer_starts_with_the_block_s_own_mask(attention):
    model = MaskExplorerModel(attention=attention)
    assert (model.choice.rule, model.choice.side, model.choice.sparsity) == ("document", 8, 0.9)
    assert model.mask is attention.mask
    assert model.weights() is None  # no head is chosen


def test_weights_are_those_of_the_chosen_head_query_and_mask(attention):
    model = MaskExplorerModel(attention=attention, query=21)
    for head, rule in ((0, "document"), (3, "document"), (3, "dense")):
        model.set(rule=rule)
        model.show_head(head)
        weights = model.weights()
        q, kv = attention.block.multihead_attn._project(attention.tokens, 64, (0, model.grid.n))
        part = slice(head * (q.shape[-1] // 8), (head + 1) * (q.shape[-1] // 8))
        scores = kv[0, :, part] @ q[0, 21, part] / (q.shape[-1] // 8) ** 0.5
        by_hand = scores.masked_fill(torch.from_numpy(model.mask.blocked()[21]), -torch.inf).softmax(0).detach()
        assert np.allclose(np.concatenate([weights[p].ravel() for p in (1, 4, 8)]), by_hand, atol=1e-5)
        assert all((weights[p][~seen] == 0).all() for p, seen in model.visible().items())


def test_weights_exist_for_pixels_of_the_block_s_map_alone(attention):
    model = MaskExplorerModel(attention=attention)
    model.show_head(1)
    assert model.weights() is not None
    model.switch_grid()
    assert model.weights() is None
    model.switch_grid(-1)
    model.set(side=16)
    assert (model.weights(), model.has_weights, model.head) == (None, False, 1)
    model.set(side=8)
    assert model.weights() is not None


@pytest.mark.parametrize("head", [8, -1, 1.0, True])
def test_a_head_that_is_not_there_is_refused(attention, head):
    model = MaskExplorerModel(attention=attention)
    with pytest.raises(HAELabError, match=r"the head is None \(the mask\) or a number from 0 to 7"):
        model.show_head(head)
    with pytest.raises(HAELabError, match="or nothing else without attention=, got 0"):
        MaskExplorerModel(side=8).show_head(0)


def test_choosing_a_head_draws_its_weights(attention):
    explorer, plain = explore(attention=attention, image=np.zeros((8, 8))), explore(side=8)
    assert "head" not in plain.controls
    before = explorer.picker.colours
    explorer.controls["head"].label = "head 3"
    weights = explorer.model.weights()
    colours = weight_colours(weights, np.zeros((8, 8)))
    assert explorer.picker.colours == b"".join(colours[p].tobytes() for p in (1, 4, 8)) != before
    assert f"{100 * weights[1].sum():.1f} %" in explorer.numbers.value
    assert "head 3 most of all on" in explorer.numbers.value
    explorer.picker._handle_custom_msg({"pick": 3}, [])
    assert explorer.picker.colours != before
    explorer.controls["side"].value = 16
    assert explorer.controls["head"].disabled
    explorer.controls["side"].value = 8
    explorer.controls["head"].label = "none: the mask"
    assert "head 3" not in explorer.numbers.value


def test_the_brightest_colour_is_the_largest_weight():
    weights = {1: np.zeros((4, 4)), 4: np.full((1, 1), 0.25)}
    weights[1][2, 1] = 0.5
    colours = weight_colours(weights)
    assert np.unravel_index(colours[1].sum(axis=2).argmax(), (4, 4)) == (2, 1)
    assert (colours[1].sum(axis=2) > 0).sum() == 1  # on black, what has no weight stays black
    assert np.array_equal(colours[4][0, 0], colours[1][2, 1])
    assert (weight_colours(weights, np.ones((4, 4)))[1].reshape(-1, 3) == 255).all(axis=1).sum() == 15
