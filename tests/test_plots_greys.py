"""Figures in grey: no colour is left, and what was told apart by colour is told apart by brightness."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from hae_lab import HAELabError, plots
from hae_lab.__main__ import main
from hae_lab.audit import registry, reproduce
from hae_lab.plots.greys import MOST, brightness


def is_grey(picture: bytes) -> bool:
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return bool((np.ptp(pixels, axis=2) == 0).all())


def bars(figure: plots.Chart) -> list[float]:
    """How light the bars of HAE and of V2 are; by the mean of the channels, for these are equal in a grey."""
    return [float(np.mean(to_rgb(group[0].get_facecolor()))) for group in figure.axes[0].containers]


def test_two_colours_that_paper_would_mix_become_two_greys():
    rows = reproduce.subset(["hae", "v2"])
    source = registry.FIGURES["parameter_table"]
    with plots.style("paper", 3.3):
        coloured = reproduce.draw(source, rows)
    with plots.style("paper", 3.3, grey=True):
        figure = reproduce.draw(source, rows)
    light = [brightness(to_rgb(plots.variant_colour(name))) for name in ("hae", "v2")]
    assert abs(light[0] - light[1]) < 0.15  # why a copy in black and white would not do
    assert bars(figure) == pytest.approx([0.2, 0.72])
    assert is_grey(figure.png())
    assert not is_grey(coloured.png())
    writing, same = ([text.get_text() for text in each.findobj(Text)] for each in (figure, coloured))
    assert writing == same
    legend = [handle.get_facecolor()[0] for handle in figure.legends[0].legend_handles[:2]]
    assert legend == pytest.approx(bars(figure))


def test_more_colours_than_greys_and_pictures_of_pixels_are_refused(tmp_path):
    with pytest.raises(HAELabError, match=rf"\d+ colours, and print keeps {MOST} greys apart"):
        reproduce.print_figures(tmp_path, ["where_parameters_sit"], grey=True)
    with pytest.raises(HAELabError, match="cannot be drawn in grey"):
        reproduce.print_figures(tmp_path, ["mask_rules"], grey=True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_in_grey_with_the_rows_beside_it(tmp_path, capsys):
    command = ["reproduce", "--only", "parameter_table", "--grey", "--width", "3.3", "--variants", "hae,v2"]
    formats = [f"--format={kind}" for kind in ("png", "csv", "tex")]
    assert main([*command, *formats, "--out", str(tmp_path)]) == 0
    written = [tmp_path / f"parameter_table.{kind}" for kind in ("png", "csv", "tex")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert is_grey(written[0].read_bytes())
    lines = written[1].read_text().splitlines()[1:]
    assert lines
    assert {line.split(",")[2] for line in lines} == {"hae", "v2"}
    counts = [row.split(" & ")[3].replace(",", "") for row in written[2].read_text().splitlines()[4:-2]]
    assert counts == [line.split(",")[3] for line in lines]


@pytest.mark.slow
def test_every_figure_is_grey_or_says_why_not(tmp_path):
    written, left_out = reproduce.print_figures(tmp_path, variants=["hae", "v2"], formats=["png"], grey=True)
    _, anyway = reproduce.print_figures(tmp_path, variants=["hae", "v2"], formats=[])
    assert len(written) > 10
    assert all(is_grey(path.read_bytes()) for path in written)
    assert all("colours" in line for line in set(left_out) - set(anyway))
