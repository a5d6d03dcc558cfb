"""One command makes every table and figure; the committed ones are what it makes."""

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from hae_lab import HAELabError, plots
from hae_lab.audit import reproduce

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    reproduce.reproduce(out)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def skip_if_made_by_other_versions(name: str) -> None:
    """The other counters change with their versions; CI pins them."""
    columns = [column for column in pd.read_csv(ROOT / "data" / f"{name}.csv", nrows=1) if column.endswith("_version")]
    rows = pd.read_csv(ROOT / "data" / f"{name}.csv", dtype=str)
    for column in columns:
        committed, here = rows[column].iloc[0], version(column.removesuffix("_version"))
        if committed != here and os.environ.get("CI") != "true":
            pytest.skip(f"{name}.csv was made with {column} {committed}, here is {here}")


@pytest.mark.parametrize("name", reproduce.TABLES)
def test_committed_table_is_what_the_code_makes(made, name):
    skip_if_made_by_other_versions(name)
    assert (made / "data" / f"{name}.csv").read_text() == (ROOT / "data" / f"{name}.csv").read_text()


def test_every_name_has_its_file_and_no_temporary_stays(made):
    assert {path.stem for path in (made / "data").iterdir()} == set(reproduce.TABLES)
    vector = {f"{name}.svg" for name, source in reproduce.FIGURES.items() if source.vector}
    assert {path.name for path in (made / "figures").iterdir()} == vector | {
        f"{name}.png" for name in reproduce.FIGURES
    }


def test_two_runs_write_the_same_bytes(made, tmp_path):
    figure = next(iter(reproduce.FIGURES))
    reproduce.reproduce(tmp_path, only=[figure, "feasibility", "unet_v2"])
    for folder in ("data", "figures"):
        again = digests(tmp_path / folder)
        assert again.items() <= digests(made / folder).items()
        assert again


def test_unknown_name_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(HAELabError, match="unknown table or figure 'feasability': did you mean 'feasibility'"):
        reproduce.reproduce(tmp_path, only=["parameter_table", "feasability"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(HAELabError, match="cannot write"):
        reproduce.reproduce(tmp_path, only=["impossibility"])


def test_figures_show_the_rows_they_are_given():
    rows = reproduce.TABLES["feasibility"]()
    figure = plots.feasibility(rows)
    drawn = {tuple(map(float, point)) for artist in figure.axes[0].collections for point in artist.get_offsets()}
    assert {(row.lite_percent, row.v2_percent) for row in rows.itertuples()} <= drawn


def test_bars_of_the_parameter_table_have_the_heights_of_the_rows():
    rows = reproduce.TABLES["parameter_table"]()
    figure = plots.parameter_table(rows)
    heights = sorted(bar.get_height() for bars in figure.axes[0].containers for bar in bars)
    assert heights == pytest.approx(sorted(rows.loc[rows["scope"] == "whole model", "percent_of_hae"]))


def test_drawing_leaves_the_users_settings_alone():
    before = dict(plt.rcParams)
    plots.published_counts(reproduce.TABLES["published_counts"]()).png()
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


def test_titles_stay_inside_their_figures():
    made = {}
    for name, source in reproduce.FIGURES.items():
        figure = source.draw(*(reproduce._rows(table, made) for table in source.tables))
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()
        assert box.x0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name


def test_summary_and_verdict_say_the_numbers():
    summary, verdict = reproduce.parameter_summary(), reproduce.verdict()
    for number in ("70.0 %", "40.0 %", "75.2 %", "72.9 %", "68.7 %"):
        assert number in summary
    for number in ("683,777,028", "469,936,644", "275,996,292", "67.2 %"):
        assert number in verdict


def test_every_column_is_explained_in_the_data_readme():
    explained = (ROOT / "data" / "README.md").read_text()
    for path in (ROOT / "data").glob("*.csv"):
        assert f"`{path.name}`" in explained
        missing = [column for column in pd.read_csv(path, nrows=1).columns if f"`{column}`" not in explained]
        assert not missing, f"{path.name}: {missing}"
