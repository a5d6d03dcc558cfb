"""One command makes every table and figure; the committed ones are what it makes."""

import hashlib
import os
import re
from importlib.metadata import version
from multiprocessing import active_children
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from hae_lab import HAELabError, plots, tables
from hae_lab.audit import registry, reproduce
from hae_lab.audit.clone import read_table

ROOT = Path(__file__).parent.parent
FIGURES = registry.figures()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    reproduce.reproduce(out, two_processes=True)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def skip_if_made_by_other_versions(name: str) -> None:
    """The other counters change with their versions; CI pins them."""
    rows = read_table(name)
    for column in [column for column in rows.columns if column.endswith("_version")]:
        committed, here = rows[column].iloc[0], version(column.removesuffix("_version"))
        if committed != here and os.environ.get("CI") != "true":
            pytest.skip(f"{name}.csv was made with {column} {committed}, here is {here}")


def skip_if_drawn_by_another_version() -> None:
    """Pixels change with matplotlib; CI pins it."""
    committed = re.search(r"Matplotlib v([\w.]+)", (ROOT / "figures" / "unet_hae.svg").read_text())[1]
    if committed != mpl.__version__ and os.environ.get("CI") != "true":
        pytest.skip(f"the figures were drawn by matplotlib {committed}, here is {mpl.__version__}")


@pytest.mark.parametrize("name", registry.TABLES)
def test_committed_table_is_what_the_code_makes(made, name):
    skip_if_made_by_other_versions(name)
    assert (made / "data" / f"{name}.csv").read_text() == (ROOT / "data" / f"{name}.csv").read_text()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_function_of_its_committed_tables(made, name):
    source = FIGURES[name]
    figure = reproduce.draw(source, lambda table: tables.read(ROOT / "data" / f"{table}.csv"))
    png = figure.png()
    assert png == (made / "figures" / f"{name}.png").read_bytes()
    skip_if_drawn_by_another_version()
    assert png == (ROOT / "figures" / f"{name}.png").read_bytes()
    if source.vector:
        assert figure.svg() == (ROOT / "figures" / f"{name}.svg").read_bytes()


def test_committed_figures_are_those_of_the_registry():
    vector = {f"{name}.svg" for name, source in FIGURES.items() if source.vector}
    committed = {path.name for path in (ROOT / "figures").iterdir()}
    assert committed - {"explorer.png"} == vector | {f"{name}.png" for name in FIGURES}


@pytest.fixture
def recorded(monkeypatch):
    """A registry of one table and one figure, and the rows that the figure was given."""
    given: list[pd.DataFrame] = []
    chart = registry.TABLES["impossibility"]

    def draw(rows: pd.DataFrame) -> plots.Chart:
        given.append(rows)
        return plots.Chart(figsize=(1, 1))

    made = pd.DataFrame({"third": [1 / 3, float("nan")], "gap": ["x", None]})
    monkeypatch.setattr(reproduce, "TABLES", {"mine": lambda: made, "other": chart})
    monkeypatch.setattr(reproduce, "names", lambda: ("mine", "other", "picture"))
    monkeypatch.setattr(reproduce, "figures", lambda: {"picture": registry.FigureSource(draw, ("mine",))})
    committed = pd.DataFrame({"third": [0.25], "gap": ["committed"]})
    monkeypatch.setattr(reproduce, "read_table", {"mine": committed}.__getitem__)
    return given


def test_a_figure_is_given_the_rows_of_the_file_just_written(recorded, tmp_path):
    reproduce.reproduce(tmp_path, only=["mine", "picture"])
    (rows,) = recorded
    assert rows["third"].tolist()[0] == 0.333333
    assert rows["gap"].tolist() == ["x", ""]


def test_a_figure_whose_table_was_not_chosen_reads_the_committed_one(recorded, tmp_path):
    written = reproduce.reproduce(tmp_path, only=["picture"])
    (rows,) = recorded
    assert rows["gap"].tolist() == ["committed"]
    assert [path.name for path in written] == ["picture.png"]


def test_every_name_has_its_file_and_no_temporary_stays(made):
    assert {path.stem for path in (made / "data").iterdir()} == set(registry.TABLES)
    vector = {f"{name}.svg" for name, source in FIGURES.items() if source.vector}
    assert {path.name for path in (made / "figures").iterdir()} == vector | {f"{name}.png" for name in FIGURES}


def test_a_second_process_makes_its_tables_meanwhile(monkeypatch, tmp_path):
    def not_here() -> pd.DataFrame:
        raise AssertionError("a table of the second process was made in this one")

    monkeypatch.setattr(reproduce, "TABLES", {"impossibility": not_here, "slopes": registry.TABLES["slopes"]})
    monkeypatch.setattr(reproduce, "APART", ("impossibility",))
    monkeypatch.setattr(reproduce, "names", lambda: ("impossibility", "slopes"))
    monkeypatch.setattr(reproduce, "figures", dict)
    written = reproduce.reproduce(tmp_path, two_processes=True)
    assert [path.name for path in written] == ["impossibility.csv", "slopes.csv"]
    for path in written:
        assert path.read_bytes() == (ROOT / "data" / path.name).read_bytes()
    assert active_children() == []


def wait_for_a_killed_process(data: Path) -> None:
    with reproduce._second_process(["impossibility"], data) as coming:
        for child in active_children():
            child.kill()  # it is still starting
        coming["impossibility"].result()


def test_a_second_process_that_dies_is_an_error_in_one_line(tmp_path):
    with pytest.raises(HAELabError, match="the second process died"):
        wait_for_a_killed_process(tmp_path)
    assert active_children() == []


def test_tables_made_apart_are_tables():
    assert set(registry.APART) < set(registry.TABLES)


def test_two_runs_write_the_same_bytes_whatever_process_they_are_in(made, tmp_path):
    figure = next(iter(FIGURES))
    assert "v3_sweep" in registry.APART
    reproduce.reproduce(tmp_path, only=[figure, "feasibility", "unet_v2", "v3_sweep"], two_processes=True)
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
    rows = registry.TABLES["feasibility"]()
    figure = plots.feasibility(rows)
    drawn = {tuple(map(float, point)) for artist in figure.axes[0].collections for point in artist.get_offsets()}
    assert {(row.lite_percent, row.v2_percent) for row in rows.itertuples()} <= drawn


def test_a_figure_of_one_data_set_is_given_its_runs_alone():
    given = pd.DataFrame({"data": ["twins", "phantoms", "twins"], "loss": [1, 2, 3]})
    seen = []
    source = registry.FigureSource(lambda rows: seen.append(rows["loss"].tolist()), ("any",), data="twins")
    reproduce.draw(source, lambda name: given)
    assert seen == [[1, 3]]
    names = [name for name in registry.FIGURES if name.startswith("slot_ladder")]
    assert [registry.FIGURES[name].data for name in names] == ["twins", "phantoms"]


def test_bars_of_the_parameter_table_have_the_heights_of_the_rows():
    rows = registry.TABLES["parameter_table"]()
    figure = plots.parameter_table(rows)
    heights = sorted(bar.get_height() for bars in figure.axes[0].containers for bar in bars)
    assert heights == pytest.approx(sorted(rows.loc[rows["scope"] == "whole model", "percent_of_hae"]))


def test_drawing_leaves_the_users_settings_alone():
    before = dict(plt.rcParams)
    plots.published_counts(registry.TABLES["published_counts"]()).png()
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", FIGURES)
def test_titles_stay_inside_their_figures(name):
    figure = reproduce.draw(FIGURES[name])
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


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
        missing = [column for column in tables.read(path).columns if f"`{column}`" not in explained]
        assert not missing, f"{path.name}: {missing}"
