"""Second opinions on MACs: each counter's own count, and the reasons for it without a rest."""

import warnings

import pytest
import torch

from hae_lab import config
from hae_lab.profilers.counters import counter_configs, counters
from hae_lab.profilers.macs import compute

CONFIGS = {
    "unet tiny dense": config("unet", "tiny", mask_rule="dense"),
    "hae tiny document": config("hae", "tiny"),
    "lite lesson16 document_shared": config("lite", "lesson16", mask_rule="document_shared"),
    "v2 tiny spatial_reduction, dropout": config("v2", "tiny", mask_rule="spatial_reduction", dropout=0.1),
    "hae tiny everywhere": config("hae", "tiny", placement="everywhere", resblock_updown=True),
}


@pytest.fixture(scope="module")
def frame():
    return counters(CONFIGS)


def test_every_disagreement_is_explained_to_the_last_mac(frame):
    assert (frame["unexplained_macs"] == 0).all()
    assert (frame["reason"].ne("") == frame["ratio"].ne(1)).all()


def test_the_formulas_and_both_right_counters_agree(frame):
    right = frame[frame["mode"].isin(["run", "meta"]) | frame["counter"].eq("FlopCounterMode, taught")]
    assert len(right) == 3 * len(CONFIGS)
    assert (right["ratio"] == 1).all()


def test_no_counter_but_ours_knows_the_mask(frame):
    kept = frame[frame["mode"] == "kept"].set_index("name")
    for name, model_config in CONFIGS.items():
        assert kept.loc[name, "macs"] == compute(model_config)["macs_kept"].sum()
    assert (kept.drop("unet tiny dense")["ratio"] < 1).all()
    assert kept.loc["unet tiny dense", "ratio"] == 1


def test_counters_that_miss_attention_say_so(frame):
    missed = frame[frame["counter"].isin(["fvcore", "torchinfo"])]
    assert missed["reason"].str.contains("scaled_dot_product_attention: -").all()
    plain = frame[(frame["counter"] == "FlopCounterMode") & (frame["mode"] == "CPU")].set_index("name")
    assert "no formula for torch's fused CPU attention: -" in plain.loc["hae tiny document", "reason"]


def test_nobody_is_told_more_than_the_table(recwarn, caplog, capsys, random_states):
    states, filters = random_states(), warnings.filters[:]
    counters({"tiny": config("v2", "tiny", dropout=0.1)})
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
    assert random_states() == states
    assert warnings.filters == filters
    assert torch.is_grad_enabled()


def test_the_table_holds_every_variant_dense_and_sparse():
    configs = counter_configs()
    assert len(configs) == len({*configs.values()}) == 2 * 4 * 2
    assert configs["lite lesson32 document"] == config("lite", "lesson32", mask_rule="document")
