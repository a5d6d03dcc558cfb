"""The share of the possible gain: the table from the rows of a study, the picture from the table."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hae_lab import plots
from hae_lab.audit.gain_tables import gain_shares
from hae_lab.audit.measured import Measured
from hae_lab.diffusion.bounds import loss_bounds
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
    committed = measured.read("gain_shares").query("study == 'twins'").set_index("cell")
    runs = measured.studies["twins"]
    for cell, losses in runs.groupby("cell")["loss"]:
        share = (OWN - losses.mean()) / (OWN - SHARED)
        assert committed.loc[cell, "gain_share_mean"] == pytest.approx(share, abs=1e-4)
