"""What surrounds the code: environment.yml, citation, README, the gate."""

import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hae_lab
from hae_lab.book import readme

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}


def bounds(lines: list[str]) -> dict[str, SpecifierSet]:
    requirements = [Requirement(line) for line in lines]
    return {requirement.name: requirement.specifier for requirement in requirements}


def test_environment_lists_the_same_names_and_bounds():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *lines, pip = environment["dependencies"]
    conda = bounds(lines)
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert pip == {"pip": ["-e .[cluster,parquet]"]}
    assert conda.pop("pip") == SpecifierSet()
    python = conda.pop("python")
    assert any(spec.operator == ">=" and spec.version == "3.11" for spec in python)
    project = PYPROJECT["project"]
    wanted = bounds(project["dependencies"] + project["optional-dependencies"]["test"])
    assert wanted.pop("hae-lab") == SpecifierSet()  # its extras, which pip installs
    assert conda == {CONDA_NAMES.get(name, name): specifier for name, specifier in wanted.items()}


def test_every_dependency_says_why():
    text = (ROOT / "pyproject.toml").read_text()
    requirements = re.findall(r'^    "[a-z0-9-]+[<>=[].*$', text, re.MULTILINE)
    project = PYPROJECT["project"]
    assert len(requirements) == len(project["dependencies"]) + sum(map(len, project["optional-dependencies"].values()))
    assert [line for line in requirements if not re.search(r"#\s\S", line)] == []


def test_torch_is_pinned_for_ci_alone():
    assert (ROOT / ".ci" / "constraints.txt").read_text().split() == ["torch==2.13.0"]
    assert bounds(PYPROJECT["project"]["dependencies"])["torch"] == SpecifierSet(">=2.4,<3")


def test_citation_names_the_audited_works_and_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    cited = {(work["authors"][0]["family-names"], work["year"]) for work in citation["references"]}
    assert cited == {("Lu", 2024), ("Che", 2025), ("Dhariwal", 2021)}
    assert citation["version"] == hae_lab.__version__ == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"] == "MIT"


def test_readme_blocks_are_up_to_date(tmp_path):
    text = (ROOT / "README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(text)
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (tmp_path / "data").symlink_to(ROOT / "data")
    assert not readme.update(copy), "run `python -m hae_lab reproduce`"
    assert set(re.findall(r"<!-- generated: (\w+) -->", text)) == set(readme.BLOCKS)


def test_every_number_of_the_readme_table_is_in_data():
    text = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE))
    table = pd.read_csv(ROOT / "data" / "parameter_table.csv").query("scope == 'whole model'")
    published = pd.read_csv(ROOT / "data" / "published_counts.csv").set_index("variant")
    assert set(rows) == {"unet", "hae", "lite", "v2"}
    for variant, cells in rows.items():
        mine = table[table["variant"] == variant]
        assert f"{mine.set_index('preset').loc['brats128', 'params']:,}" in cells
        assert f"{mine['percent_of_hae'].min():.1f} - {mine['percent_of_hae'].max():.1f} %" in cells
        if variant != "unet":
            assert f"{published.loc[variant, 'our_params']:,}" in cells


def test_readme_prose_types_no_result():
    text = (ROOT / "README.md").read_text()
    prose = readme.PATTERN.sub("", text)
    allowed = {"100 %", "70 %", "40 %"}  # the claim itself
    numbers = re.findall(r"\d[\d.,]*\s?(?:%|M\b|million|x\b|ms\b)", prose)
    assert set(numbers) <= allowed


def test_readme_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    "command",
    [
        "python -m pip install -e . && python -m hae_lab reproduce",
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
def test_readme_holds_the_two_commands_word_for_word(command):
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()
