"""The search for a v3: what may be chosen, what it costs by a second count, and that the committed choice follows."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hae_lab import HAELabError, build, config, tables
from hae_lab.audit import search, search_space
from hae_lab.audit.clone import read_table
from hae_lab.audit.rerun import studies
from hae_lab.audit.search_space import BODY, LARGE, SPACE
from hae_lab.diffusion.datasets import load_data

FIRST = {name: choices[0] for name, choices in SPACE.items()}
SEARCHED = read_table("v3_search")


def candidate(row: pd.Series) -> dict:
    return {name: row[name] for name in SPACE}


def on_meta(choice: dict, preset: str) -> tuple[int, int]:
    """Parameters and dense MACs of a candidate, counted on the model and by torch's counter."""
    made = search_space.configured(choice, preset)
    with torch.device("meta"):
        model = build(made.replace(mask_rule="dense")).eval()
        x = torch.empty(1, made.in_channels, made.image_size, made.image_size)
        labels = None if made.num_classes is None else torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x, torch.zeros(1, dtype=torch.long), labels)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


# the space


@pytest.mark.parametrize("preset", [BODY, LARGE])
def test_the_first_choices_change_the_fields_that_they_name(preset):
    changed = search_space.changes(FIRST, preset)
    own = config("hae", preset)
    assert changed["model_channels"] * 2 == own.model_channels
    assert changed["channel_mult"] == own.channel_mult
    assert changed["attention_resolutions"] == own.attention_resolutions


@pytest.mark.parametrize(
    ("body", "small", "large"),
    [
        ("flat", (1, 1, 1), (1, 1, 1, 1, 1)),
        ("late", (1, 1, 2), (1, 1, 1, 1, 2)),
        ("shallow", (1, 2), (1, 1, 2, 3)),
    ],
)
def test_bodies_by_hand(body, small, large):
    assert search_space.changes(FIRST | {"body": body}, BODY)["channel_mult"] == small
    assert search_space.changes(FIRST | {"body": body}, LARGE)["channel_mult"] == large


def test_a_body_without_the_presets_rates_attends_on_its_coarsest_map():
    assert search_space.changes(FIRST | {"body": "shallow"}, BODY)["attention_resolutions"] == (2,)
    assert search_space.changes(FIRST | {"body": "shallow"}, LARGE)["attention_resolutions"] == (4, 8)


def test_no_candidate_is_without_a_hybrid_block():
    bare = FIRST | {"placement": "attention", "attention": "none"}
    assert search_space.configured(bare) is None
    assert search_space.counted(bare) is None
    assert search_space.configured(FIRST | {"width": 0.625, "mstb_heads": 8, "body": "flat"}) is None  # 10 channels


def test_counts_of_the_sweep_are_those_of_the_models():
    sweep = read_table("v3_sweep")
    for place in (0, 700, 1500, 2999):
        row = sweep.iloc[place]
        for preset in (BODY, LARGE):
            with torch.device("meta"):
                hae = sum(p.numel() for p in build("hae", preset).parameters())
            params, _ = on_meta(candidate(row), preset)
            assert row[f"params_percent_{preset}"] == pytest.approx(100 * params / hae, abs=0.005 + 1e-4 * 100)


def test_macs_of_a_dense_candidate_are_torchs():
    dense = read_table("v3_sweep").query("mask_rule == 'dense'").iloc[:2]
    hae = search_space.reference_counts("hae", BODY)["macs"]
    for _, row in dense.iterrows():
        assert row[f"macs_percent_{BODY}"] == pytest.approx(100 * on_meta(candidate(row), BODY)[1] / hae, abs=0.01)


def test_what_fits_in_the_sweep_is_small_and_works_less_than_v2():
    sweep = read_table("v3_sweep")
    assert len(sweep) == search_space.SAMPLED
    assert not sweep.duplicated(list(SPACE)).any()
    v2 = {p: 100 * math.prod((_macs("v2", p), 1 / _macs("hae", p))) for p in (BODY, LARGE)}
    small = (sweep[[f"params_percent_{p}" for p in (BODY, LARGE)]] <= 40).all(axis=1)
    cheap = np.logical_and.reduce([sweep[f"macs_percent_{p}"] < v2[p] for p in (BODY, LARGE)])
    assert (sweep["fits"] == (small & cheap)).all()
    assert 0 < sweep["fits"].sum() < len(sweep)


def _macs(variant: str, preset: str) -> int:
    from hae_lab.profilers import compute

    return int(compute(config(variant, preset))["macs_run"].sum())


# the search, on losses that are made up


@pytest.fixture
def made_up(monkeypatch):
    """A search whose runs take no time: the loss grows with the parameters, and one field makes models slow."""
    trained: list[tuple[int, list[str]]] = []

    def timed(candidates, path):
        rows = pd.DataFrame([{"candidate": name} | dict(each) for name, each in candidates.items()])
        slow = rows["mstb_heads"] == 8
        return rows.assign(ms_per_step=np.where(slow, 90.0, 40.0), ms_hae=80.0, ms_v2=70.0)

    def rung(level, rows, store):
        trained.append((search.RUNGS[level], list(rows["candidate"])))
        percent = [100 * search_space.counted(candidate(row))[f"params_percent_{BODY}"] for _, row in rows.iterrows()]
        parts = [
            pd.DataFrame({"rung": search.RUNGS[level], "candidate": rows["candidate"], "data": data}).assign(
                percent_to_hae=percent
            )
            for data in search.DATA[level]
        ]
        return pd.concat(parts, ignore_index=True)

    monkeypatch.setattr(search, "timed", timed)
    monkeypatch.setattr(search, "rung", rung)
    return trained


def test_the_search_halves_what_is_fast_enough(made_up, tmp_path):
    pytest.importorskip("optuna")
    found = search.search(tmp_path / "runs.sqlite")
    first = found[found["rung"] == search.RUNGS[0]]
    assert (first["mstb_heads"] == 4).all()  # those with 8 heads are slower than V2 here
    assert first["candidate"].nunique() < search.KEPT[0]
    for longer, shorter, kept in zip(search.RUNGS[1:], search.RUNGS, search.KEPT[1:], strict=False):
        before = search.score(found[found["rung"] == shorter])
        assert set(found.loc[found["rung"] == longer, "candidate"]) == set(before.nsmallest(kept).index)
    assert [level for level, _ in made_up] == [search.RUNGS[0]] * (search.KEPT[0] // search.GENERATION) + list(
        search.RUNGS[1:]
    )


def test_the_search_repeats_itself_and_draws_no_model_twice(made_up, tmp_path):
    pytest.importorskip("optuna")
    one, two = (search.search(tmp_path / f"{name}.sqlite") for name in "ab")
    pd.testing.assert_frame_equal(one, two)
    rows = one.drop_duplicates("candidate")
    assert rows.apply(lambda row: search.same(candidate(row)), axis=1).is_unique
    assert all(search_space.counted(candidate(row))["fits"] for _, row in rows.iterrows())


def test_times_of_other_candidates_are_refused(tmp_path):
    tables.write(pd.DataFrame({"candidate": ["c99"]}), tmp_path / "times.csv")
    with pytest.raises(HAELabError, match="the times of other candidates: take another store"):
        search.timed({"c00": FIRST}, tmp_path / "times.csv")


# the committed search


def test_committed_rungs_follow_from_each_other():
    best = {row.candidate: row for row in SEARCHED.itertuples()}
    assert all(row.ms_per_step < row.ms_v2 for row in best.values())
    percent = 100 * (SEARCHED["loss"] / SEARCHED["hae_loss"] - 1)
    assert np.allclose(percent, SEARCHED["percent_to_hae"], atol=0.002)
    time = SEARCHED["steps"] * SEARCHED["ms_per_step"]
    assert (abs(time / (SEARCHED["rung"] * SEARCHED["ms_hae"]) - 1) < 0.01).all()
    for shorter, longer in zip(search.RUNGS, search.RUNGS[1:], strict=False):
        here = SEARCHED[SEARCHED["rung"] == longer]
        scores = SEARCHED[SEARCHED["rung"] == shorter].groupby("candidate")["percent_to_hae"].mean()
        kept = here["candidate"].nunique()
        assert set(here["candidate"]) == set(scores.nsmallest(kept).index)
        assert list(here["data"].unique()) == list(search.DATA[search.RUNGS.index(longer)])


def test_committed_candidates_fit():
    for _, row in SEARCHED.drop_duplicates("candidate").iterrows():
        assert search_space.counted(candidate(row))["fits"]
        assert row["branches"] != "cnn"


def test_seeds_and_images_for_choosing_are_those_of_no_study():
    assert search.SEED not in {run.seed for study in studies() for run in study.planned}
    for name, part in product(("twins", "phantoms"), (0, 1)):
        chosen, studied = (load_data(data, 16)[part] for data in (f"{search.__name__}:{name}_for_choosing", name))
        ours = {image.numpy().tobytes() for image in chosen.images[:256]}
        assert not ours & {image.numpy().tobytes() for image in studied.images}
