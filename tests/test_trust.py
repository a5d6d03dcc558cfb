"""Code from files is never a surprise: it is named before it runs, and runs only if somebody trusts it."""

import sys
from pathlib import Path

import pytest

from hae_lab import HAELabError, parts
from hae_lab.__main__ import main
from hae_lab.book import readme
from hae_lab.presets import VARIANTS, Variant
from hae_lab.study import Study

CODE = """
from pathlib import Path

Path({mark!r}).touch()


def rule(grid, sparsity, seed):
    from hae_lab.rules import dense

    return dense(grid, sparsity, seed)


def trial(experiment, folder):
    return {{"loss": 1.0}}


def data(size):
    raise AssertionError


Slot = metric = data
"""
FIELDS = {
    "mask rule": 'fixed = {{mask_rule = "{}rule"}}',
    "trial": 'trial = "{}trial"',
    "data set": 'fixed = {{data = "{}data"}}',
    "metric": 'fixed = {{metrics = ["{}metric"]}}',
    "regions": 'fixed = {{regions = "{}Slot"}}',
    "fusion": 'controls = {{worse = {{fusion = "{}Slot"}}}}',
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with code that leaves a mark when it is run, which can be imported from there, too."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(parts, "_FILES", {})
    (tmp_path / "evil_code.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    yield tmp_path
    sys.modules.pop("evil_code", None)


def write(folder, line: str):
    folder.mkdir(exist_ok=True)
    path = folder / "mine.toml"
    path.write_text(f'name = "mine"\npreset = "tiny"\n{line}\ngrid = {{variant = ["v2"]}}\n')
    return path


@pytest.mark.parametrize("head", ["evil_code.py:", "evil_code:"])
@pytest.mark.parametrize("kind", FIELDS)
def test_no_code_of_a_study_file_runs_untrusted(kind, head, place):
    path = write(place, FIELDS[kind].format(head))
    with pytest.raises(
        HAELabError, match=rf"{kind} '{head}\w+' is code in .*evil_code\.py: read it, then say trust=True"
    ):
        Study.from_toml(path)
    assert not (place / "ran").exists()


def test_a_submodule_is_named_before_its_package_runs(place):
    (place / "evil_package").mkdir()
    (place / "evil_package" / "__init__.py").write_text(CODE.format(mark=str(place / "ran")))
    path = write(place, 'trial = "evil_package.inner:trial"')
    with pytest.raises(HAELabError, match=r"is code in .*evil_package.__init__\.py"):
        Study.from_toml(path)
    assert not (place / "ran").exists()


def test_code_that_is_trusted_is_announced_once_before_it_runs(place):
    path, told = write(place, FIELDS["mask rule"].format("evil_code.py:")), []

    def announce(line: str) -> None:
        told.append((line, (place / "ran").exists()))

    study = Study.from_toml(path, trust=True, announce=announce)
    assert study.cells[0].experiment.config.mask_rule == "evil_code.py:rule"
    assert told == [(f"{path}: mask rule 'evil_code.py:rule' is code in {place / 'evil_code.py'}", False)]
    assert (place / "ran").exists()


@pytest.mark.parametrize("name", ["../evil_code.py", "sub/../../evil_code.py", "{place}/evil_code.py", "linked.py"])
def test_names_cannot_leave_the_folder_of_their_study_even_if_trusted(name, place):
    path = write(place / "study", f'trial = "{name.format(place=place)}:trial"')
    (place / "study" / "sub").mkdir()
    (place / "study" / "linked.py").symlink_to(place / "evil_code.py")
    with pytest.raises(HAELabError, match=r"leads out of .*: a study takes code from its own folder"):
        Study.from_toml(path, trust=True)
    assert not (place / "ran").exists()


def test_what_lies_in_the_package_needs_no_trust(tmp_path):
    line = 'fixed = {data = "hae_lab.diffusion.datasets:digit_pair", mask_rule = "hae_lab.rules:dense"}'
    assert len(Study.from_toml(write(tmp_path, line)).cells) == 1


def test_what_only_sounds_like_the_package_does(place):
    (place / "hae_lab_evil.py").write_text(CODE.format(mark=str(place / "ran")))
    with pytest.raises(HAELabError, match=r"is code in .*hae_lab_evil\.py"):
        Study.from_toml(write(place, 'trial = "hae_lab_evil:trial"'))
    assert not (place / "ran").exists()


def test_the_command_refuses_without_trust_and_names_the_code_with_it(place, capsys):
    path = write(place, FIELDS["mask rule"].format("evil_code.py:"))
    assert main(["study", str(path), "--static"]) == 2
    assert "on the command line --trust" in capsys.readouterr().err
    assert not (place / "ran").exists()
    assert main(["study", str(path), "--static", "--trust"]) == 0
    printed = capsys.readouterr()
    assert f"mask rule 'evil_code.py:rule' is code in {place / 'evil_code.py'}" in printed.err
    assert "macs_kept" in printed.out


# hostile titles


def test_titles_are_no_markup_on_pages(tmp_path, monkeypatch):
    title = "<script>alert(1)</script> | [x](y) `z`"
    monkeypatch.setitem(VARIANTS, "hostile", Variant(title, VARIANTS["v2"].changes))
    shown = readme.escaped(title)
    assert shown == r"&lt;script&gt;alert(1)&lt;/script&gt; \| \[x\](y) \`z\`"
    block = readme.variants(Path(readme.__file__).parents[2])
    assert "<script>" not in block
    assert shown in block  # among those that are not measured
    assert readme.escaped("HAE V2 (control)") == "HAE V2 (control)"
