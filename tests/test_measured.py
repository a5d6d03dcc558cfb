"""What was measured before: which studies there are, one computer of several, and what is made once."""

import pandas as pd
import pytest

from hae_lab.audit import clone
from hae_lab.audit.measured import Measured, of_one_computer, study_names


def write_tables(folder, *names: str) -> None:
    (folder / "data").mkdir()
    for name in names:
        pd.DataFrame({"name": [name]}).to_csv(folder / "data" / f"{name}.csv", index=False)


def test_studies_are_the_files_of_that_name_without_their_curves(monkeypatch, tmp_path):
    write_tables(tmp_path, "study_twins", "study_masks", "study_masks_curves", "bench_masks_cpu", "claims")
    monkeypatch.setattr(clone, "root", lambda: tmp_path)
    assert study_names() == ("masks", "twins")
    studies = Measured(lambda name: pd.DataFrame({"name": [name]})).studies
    assert {name: rows["name"].item() for name, rows in studies.items()} == {
        "masks": "study_masks", "twins": "study_twins"
    }  # fmt: skip


def test_what_is_made_of_measurements_is_made_once():
    made = []
    measured = Measured(lambda name: pd.DataFrame({"name": [name]}))

    def names(here: Measured) -> list[str]:
        made.append(here)
        return here.slots["name"].tolist()

    assert measured.once(names) is measured.once(names)
    assert measured.once(names) == ["study_slots"]
    assert made == [measured]
    assert Measured(measured.read).once(names) is not measured.once(names)


def test_what_was_made_makes_no_difference_to_what_was_measured():
    read = {"study_slots": pd.DataFrame()}.__getitem__
    one, other = Measured(read), Measured(read)
    one.once(lambda measured: "made")
    assert one == other
    assert "made" not in repr(one)
    with pytest.raises(TypeError):
        Measured(read, {})


def test_of_several_computers_the_first_in_the_alphabet_is_taken():
    rows = pd.DataFrame({"device_name": ["b", "a", "b", "a"], "ms_median": [1, 2, 3, 4]})
    assert of_one_computer(rows)["ms_median"].tolist() == [2, 4]
