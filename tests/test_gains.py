"""The share of the possible gain: the table from the rows of a study, the picture from the table."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hae_lab import plots
from hae_lab.audit.gain_tables import gain_shares, mean_distance_px
from hae_lab.audit.measured import Measured
from hae_lab.diffusion.bounds import loss_bounds
from hae_lab.diffusion.patterns import PATTERNS, twins
from hae_lab.plots.gains import AT_COST
from hae_lab.plots.verdicts import KNOWN_WORSE, MEAN

OWN, SHARED = (getattr(loss_bounds("twins"), name)["loss"] for name in ("own", "shared"))
LOSSES = {
    "unet": [0.037, 0.036, 0.038],
    "hae": [0.035, 0.034, 0.034],
    "half": [(OWN + SHARED) / 2] * 2,
    "narrow": [OWN],
}
ROLES = {"unet": "question", "hae": "question", "half": "equal MACs", "narrow": "control"}


@pytest.fixture
def rows() -> pd.DataFrame:
    runs = [(cell, seed, loss) for cell, losses in LOSSES.items() for seed, loss in enumerate(losses)]
    frame = pd.DataFrame(runs, columns=["cell", "seed", "loss"])
    return frame.assign(data="twins", role=frame["cell"].map(ROLES))


def table(**studies: pd.DataFrame) -> pd.DataFrame:
    return gain_shares(type("Fixed", (), {"studies": studies})())


def test_shares_are_those_of_each_seed(rows):
    found = table(twins=rows, other=rows.assign(data="phantoms"))
    assert list(found["study"].unique()) == ["twins"]
    assert found["cell"].tolist() == list(LOSSES)
    assert found["role"].tolist() == list(ROLES.values())
    for row in found.to_dict("records"):
        shares = (OWN - np.array(LOSSES[row["cell"]])) / (OWN - SHARED)
        assert row["n_seeds"] == len(shares)
        assert row["gain_share_mean"] == pytest.approx(shares.mean())
        if row["cell"] in ("unet", "hae"):
            interval = stats.t.interval(0.95, 2, shares.mean(), stats.sem(shares))
            assert (row["gain_share_ci_low"], row["gain_share_ci_high"]) == pytest.approx(interval)
    half, none = found.set_index("cell")["gain_share_mean"][["half", "narrow"]]
    assert (half, none) == pytest.approx((0.5, 0.0))


def test_studies_without_roles_are_all_question(rows):
    assert set(table(twins=rows.drop(columns="role"))["role"]) == {"question"}


def test_without_such_images_the_table_is_empty(rows):
    found = table(other=rows.assign(data="phantoms"))
    assert len(found) == 0
    assert list(found.columns) == list(table(twins=rows).columns)


def test_the_picture_draws_every_share_with_its_interval(rows):
    shares = table(twins=rows).sample(frac=1, random_state=0)
    figure = plots.gain_shares(shares)
    (ax,) = figure.axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    order = [name.rsplit(" (", 1) for name in names]
    assert {name for name, _ in order[:2]} == {"U-Net (control)", "HAE"}
    assert [name for name, _ in order[2:]] == ["half", "narrow"]
    known = shares.assign(title=shares["cell"].map(plots.variant_title)).set_index("title")
    colours = {plots.variant_title(name): plots.variant_colour(name) for name in ("unet", "hae")}
    colours |= {"half": AT_COST, "narrow": KNOWN_WORSE}
    for place, (name, seeds) in enumerate(order):
        assert int(seeds.rstrip(")")) == known.loc[name, "n_seeds"]
        drawn = ax.containers[place]
        assert drawn.lines[0].get_color() == colours[name]
        assert drawn.lines[0].get_xdata()[0] == pytest.approx(known.loc[name, "gain_share_mean"])
        if known.loc[name, "n_seeds"] > 1:
            ends = drawn.lines[2][0].get_segments()[0][:, 0]
            expected = known.loc[name, ["gain_share_ci_low", "gain_share_ci_high"]].tolist()
            assert ends.tolist() == pytest.approx(expected)
    title = figure.get_suptitle().replace("\n", " ")
    assert "U-Net (control) 0.31; HAE 0.41" in title
    plt.close(figure)


@pytest.mark.parametrize(("name", "side", "apart"), [("twins", 16, 8), ("twins_middle", 16, 4), ("twins_near", 32, 2)])
def test_a_copy_lies_as_far_as_its_pattern_says(name, side, apart):
    assert mean_distance_px(PATTERNS[name](side)) == apart
    image = PATTERNS[name](side).draw(1, seed=3).images[0, 0]
    assert bool((image[:, :apart] == image[:, apart : 2 * apart]).all())


def test_copies_at_different_distances_count_by_their_mean():
    # mirrored, 16 pixels wide: columns of 2 pixels meet their like 14, 10, 6 and 2 pixels away
    assert mean_distance_px(twins(16, mirrored=True)) == pytest.approx((14 + 10 + 6 + 2) / 4)
    # a cell of 4 x 4 pixels, and one of 2 x 2 at the lower right: by hand, bit by bit
    apart = [
        np.hypot(8 + 2 * row + 0.5 - (4 * row + 1.5), 12 + 2 * column + 0.5 - (4 * column + 1.5))
        for row in range(4)
        for column in range(2)
    ]
    assert mean_distance_px(PATTERNS["scales"](16)) == pytest.approx(np.mean(apart))


@pytest.fixture
def by_distance(rows) -> pd.DataFrame:
    """Three distances, far ones first; the farther the copy, the higher the loss."""
    parts = [
        table(reach=rows.assign(data=data, loss=rows["loss"] + apart / 1000)).assign(apart_px=apart)
        for data, apart in (("twins", 8.0), ("twins_middle", 4.0), ("twins_near", 2.0))
    ]
    return pd.concat(parts, ignore_index=True)


def test_the_picture_by_distance_draws_each_share_at_its_distance(by_distance):
    figure = plots.gain_by_distance(by_distance)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "4", "8"]
    assert len(ax.containers) == 2  # no control, and nothing at equal cost
    for cell, drawn in zip(("unet", "hae"), ax.containers, strict=True):
        here = by_distance[by_distance["cell"] == cell].sort_values("apart_px")
        assert drawn.lines[0].get_color() == plots.variant_colour(cell)
        assert drawn.lines[0].get_ydata().tolist() == pytest.approx(here["gain_share_mean"].tolist())
        assert np.round(drawn.lines[0].get_xdata().astype(float)).tolist() == [0, 1, 2]
        ends = np.array([segment[:, 1] for segment in drawn.lines[2][0].get_segments()])
        assert ends == pytest.approx(here[["gain_share_ci_low", "gain_share_ci_high"]].to_numpy())
    places = [drawn.lines[0].get_xdata()[0] for drawn in ax.containers]
    assert places[1] - places[0] > 0.2  # no interval behind another
    title = figure.get_suptitle().replace("\n", " ")
    # the losses of hae are 0.0343 + 0.002 and + 0.008, those of unet 0.037
    shares = [(OWN - loss) / (OWN - SHARED) for loss in (0.103 / 3 + 0.002, 0.103 / 3 + 0.008, 0.039, 0.045)]
    assert "2 → 8 pixels away: HAE {:.2f}→{:.2f}; U-Net (control) {:.2f}→{:.2f}".format(*shares) in title
    plt.close(figure)


def test_the_picture_reaches_a_tenth_beyond_the_farthest_interval(rows):
    shares = table(twins=rows)
    most = shares["gain_share_ci_high"].max()
    assert 1.1 * most > 0.5
    assert plots.gain_shares(shares).axes[0].get_xlim() == pytest.approx((0, 1.1 * most))
    low = shares.assign(gain_share_mean=0.1, gain_share_ci_low=0.0, gain_share_ci_high=0.2)
    assert plots.gain_shares(low).axes[0].get_xlim() == (0, 0.5)


def test_what_cells_are_for_is_told_by_colours_and_lines_and_by_no_other_line(rows):
    assert len({AT_COST, KNOWN_WORSE, MEAN}) == 3
    figure = plots.gain_shares(table(twins=rows))
    (ax,) = figure.axes
    parting = [line.get_ydata()[0] for line in ax.lines if list(line.get_xdata()) == [0, 1]]
    assert parting == [1.5, 2.5]  # question, equal cost, control
    assert not any(line.get_visible() for line in ax.yaxis.get_gridlines())


def test_the_picture_does_not_take_the_users_settings(rows):
    plain = plots.gain_shares(table(twins=rows)).png()
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "axes.edgecolor": "red"}):
        same = plots.gain_shares(table(twins=rows)).png() == plain
    assert same  # the bytes of two pictures are nothing to read


def test_data_sets_come_as_the_rows_have_them(rows):
    scales = rows.assign(data="scales", loss=loss_bounds("scales").own["loss"])
    found = table(one=pd.concat([rows, scales], ignore_index=True))
    assert found["data"].tolist() == ["twins"] * 4 + ["scales"] * 4
    assert found.index.tolist() == list(range(8))
    assert found.loc[4:, "gain_share_mean"].to_numpy() == pytest.approx(np.zeros(4), abs=1e-12)


def test_the_committed_table_follows_from_the_committed_rows():
    measured = Measured()
    committed = measured.read("gain_shares").set_index(["study", "data", "cell"])
    for study in committed.index.unique("study"):
        for (data, cell), losses in measured.studies[study].groupby(["data", "cell"])["loss"]:
            if data in PATTERNS:
                bounds = loss_bounds(data)
                least, most = bounds.shared["loss"], bounds.own["loss"]
                share = (most - losses.mean()) / (most - least)
                assert committed.loc[(study, data, cell), "gain_share_mean"] == pytest.approx(share, abs=1e-4)
