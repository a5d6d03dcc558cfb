"""Pictures of single concepts: what is drawn is what was given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from hae_lab import HAELabError
from hae_lab.plots import by_hand
from hae_lab.plots.base import Chart


def words(figure: Chart) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_number_stands_in_its_cell():
    values = np.array([[0.0, -1.5, 2.0], [np.nan, 4.0, 0.25]])
    figure = by_hand.number_grids({"some": values}, "Numbers", digits=2)
    found = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert found == {(0, 0): "0.00", (1, 0): "-1.50", (2, 0): "2.00", (1, 1): "4.00", (2, 1): "0.25"}
    assert {"some", "Numbers"} <= set(words(figure))
    assert figure.png().startswith(b"\x89PNG")


def test_patches_are_outlined_where_they_fit():
    figure = by_hand.number_grids({"map": np.zeros((4, 6)), "means": np.zeros((2, 1))}, "Patches", patch=2)
    assert [len(ax.patches) for ax in figure.axes] == [2 * 3, 0]
    assert {patch.get_xy() for patch in figure.axes[0].patches} == {
        (column - 0.5, row - 0.5) for row in (0, 2) for column in (0, 2, 4)
    }


def test_matrices_show_their_values_with_the_split_and_the_mark():
    signed, positive = np.array([[1.0, -2.0], [0.5, 0.0]]), np.array([[0.0, 3.0]])
    figure = by_hand.matrices({"a": signed, "b": positive}, "Two", split=1, mark=(0, 1))
    for ax, values in zip(figure.axes, (signed, positive), strict=True):
        (image,) = ax.images
        assert np.array_equal(image.get_array(), values)
        assert {tuple(line.get_xdata()) for line in ax.lines} >= {(0.5, 0.5)}
        assert ax.patches[0].get_xy() == (0.5, -0.5)
    assert [ax.images[0].get_clim() for ax in figure.axes] == [(-2, 2), (0, 3)]
    assert figure.axes[0].get_ylabel() == "← queries"


def test_rows_draw_bars_and_mark_what_is_hidden():
    figure = by_hand.rows({"scores": np.array([1.0, -np.inf, 0.5, 2.0])}, "Row", xlabel="key", split=3)
    (ax,) = figure.axes
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in ax.patches] == [(0, 1), (2, 0.5), (3, 2)]
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours[0] == colours[1] != colours[2]
    assert list(ax.lines[0].get_xdata()) == [1]


def test_bars_and_curves_draw_what_they_are_given():
    figure = by_hand.bars({"one": 1.0, "three": 3.0}, "Bars", xlabel="size", digits=1)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1, 3]
    assert {"1.0", "3.0", "size"} <= set(words(figure))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["one", "three"]
    with pytest.raises(HAELabError, match="at least one"):
        by_hand.bars({}, "None", xlabel="size")

    figure = by_hand.curves({"up": [0, 1, 2], "down": [2, 1, 0]}, "Curves", xlabel="x", ylabel="y", faint=("down",))
    up, down = figure.axes[0].lines
    assert (list(up.get_ydata()), list(down.get_ydata())) == ([0, 1, 2], [2, 1, 0])
    assert up.get_linewidth() > down.get_linewidth()
    assert {"up", "down"} <= set(words(figure))


def test_the_mixture_stands_on_the_quarter_circle_and_v_touches_it():
    figure = by_hand.quarter_circle(0.7, "Circle")
    tips = {text.get_position(): text.xyann for text in figure.axes[0].texts if hasattr(text, "xyann")}
    arrows = [np.array(each.xy) - each.xyann for each in figure.axes[0].texts if hasattr(each, "xyann")]
    image, noise, mixed, v = arrows
    assert len(tips) >= 1
    assert np.allclose(mixed, np.sqrt(0.7) * image + np.sqrt(0.3) * noise)
    assert abs(v @ mixed) < 1e-9  # at a right angle: along the circle
    assert v @ noise > 0 > v @ image
    with pytest.raises(HAELabError, match="between 0 and 1"):
        by_hand.quarter_circle(1.0, "No noise")


def test_a_cut_map_has_all_its_pixels_and_four_named_axes():
    figure = by_hand.patch_axes(8, 4, "Cut")
    sizes = [patch.get_width() for patch in figure.axes[0].patches]
    assert (sizes.count(1), sizes.count(4)) == (64, 4)
    assert [word.split(":")[0] for word in words(figure) if word.startswith("axis")] == [
        f"axis {k}" for k in (2, 3, 4, 5)
    ]
    with pytest.raises(HAELabError, match="do not divide"):
        by_hand.patch_axes(8, 3, "Uneven")


def test_a_flow_has_its_steps_in_order():
    steps = [("map", "4 x 8"), ("tokens", "8 x 4"), ("attention", "8 x 4"), ("back", "4 x 8"), ("end", "4 x 8")]
    figure = by_hand.flow(steps, "Flow", columns=3)
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert [text for text in texts if text in dict(steps)] == list(dict(steps))
    assert len(figure.axes[0].patches) == len(steps)
    with pytest.raises(HAELabError, match="at least one step"):
        by_hand.flow([], "None")


def test_what_is_no_matrix_is_refused():
    with pytest.raises(HAELabError, match=r"'row' is drawn as \(rows, columns\), got a shape of \(3,\)"):
        by_hand.matrices({"row": np.zeros(3)}, "No matrix")
