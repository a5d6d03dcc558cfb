"""A user's variant is in every table, figure, README block and study, from the line that registers it."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import hae_lab
from hae_lab import tables
from hae_lab.audit import compute_tables, registry, reproduce
from hae_lab.audit.clone import read_table
from hae_lab.book import readme

ROOT = Path(__file__).parent.parent
SLOTS = {"regions": "pooled", "mlp_ratio": 0.5, "fusion": "concat"}
# about the document's versions, the mask rules, or the committed studies: another variant changes nothing
OF_THE_DOCUMENT = {
    "published_counts", "block_coefficients", "feasibility", "slot_waterfall", "impossibility", "what_it_would_take",
    "paper_formula", "visibility", "quality_differences", "quality_order", "slot_effects", "sample_floor", "claims",
    "public_counts", "training_memory_by_rule", "slopes", "one_change_less", "gain_shares", "quality_controls",
    "v3_sweep", "v3", "v3_quality", "deployment",
}  # fmt: skip


@pytest.fixture(scope="module")
def v3():
    """A fourth version, registered as long as these tests run."""
    hae_lab.register_variant("v3", "HAE V3", **SLOTS)
    yield "v3"
    del hae_lab.VARIANTS["v3"]


@pytest.fixture(scope="module")
def made(v3, tmp_path_factory) -> Path:
    """Every table with it, in a folder data/."""
    out = tmp_path_factory.mktemp("registered")
    for name, make in registry.TABLES.items():
        tables.write(make(), out / "data" / f"{name}.csv")
    return out


def params(variant: str, preset: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in hae_lab.build(variant, preset).parameters())


@pytest.mark.parametrize("name", registry.TABLES)
def test_every_table_has_it_or_is_about_something_else(made, name):
    rows = tables.read(made / "data" / f"{name}.csv")
    if name in OF_THE_DOCUMENT:
        pd.testing.assert_frame_equal(rows, read_table(name))
        return
    if "variant" in rows:
        assert set(rows["variant"]) - {"v3"} == set(read_table(name)["variant"])
        mine, v2 = (rows[rows["variant"] == variant] for variant in ("v3", "v2"))
        assert len(mine) >= len(v2) > 0
    else:
        assert rows["name"].str.contains("v3").any()


def test_its_parameters_are_those_of_its_models(made):
    rows = tables.read(made / "data" / "parameter_table.csv").query("variant == 'v3' and scope == 'whole model'")
    assert rows.set_index("preset")["params"].to_dict() == {
        preset: params("v3", preset) for preset in ("brats128", "wide128", "imagenet64", "cifar32")
    }
    assert rows["claim_percent"].isna().all()


def test_its_time_was_not_measured_and_is_a_gap(made):
    rows = tables.read(made / "data" / "variants_together.csv").query("variant == 'v3'").set_index("quantity")
    assert rows.loc["parameters", "value"] == pytest.approx(params("v3", "brats128"), rel=1e-5)
    assert rows.loc["parameters", "percent_of_hae"] == pytest.approx(
        100 * params("v3", "brats128") / params("hae", "brats128"), rel=1e-5
    )
    assert rows.loc["MACs", "value"] > 0
    assert rows.loc["time", ["value", "percent_of_hae", "percent_q1", "percent_q3"]].isna().all()


def test_a_variant_registered_anew_is_counted_anew(v3):
    def macs() -> int:
        return compute_tables.step_rows("v3", "tiny", "document")["macs_run"].sum()

    before = macs()
    try:
        hae_lab.register_variant("v3", "HAE V3", **SLOTS | {"mlp_ratio": 4})
        after = macs()
    finally:
        hae_lab.register_variant("v3", "HAE V3", **SLOTS)
    assert after > before == macs()


def test_the_registry_knows_the_picture_of_its_unet(v3):
    assert "unet_v3" in registry.names()


def test_the_summary_names_it(v3):
    assert "v3" in reproduce.parameter_summary()


@pytest.mark.parametrize("block", readme.BLOCKS)
def test_every_block_of_the_readme_is_made_with_it(made, block):
    shutil.copytree(ROOT / "notebooks", made / "notebooks", dirs_exist_ok=True)
    shutil.copy(ROOT / "data" / "seconds.csv", made / "data")
    folder = "notebooks" if block == "costs" else "."
    text = readme.BLOCKS[block](made / folder)
    if block == "variants":
        (row,) = [line for line in text.splitlines() if line.startswith("| `v3` ")]
        assert row.startswith(f"| `v3` | pooled | 0.5 | concat | {params('v3', 'brats128'):,} |")
        assert row.endswith("| - | - |")  # nothing is claimed of it, nothing was published
        assert "Not measured: HAE V3" in text
    else:
        assert text == readme.BLOCKS[block](ROOT / folder)
