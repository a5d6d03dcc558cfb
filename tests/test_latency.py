"""Latency of whole models: what a row says. No test asserts on seconds."""

import pytest
from torch import nn

from hae_lab import HAELabError, build, config
from hae_lab.profilers import latency


def test_a_row_a_model_with_device_and_parameters():
    rows = latency({"v2": config("v2", "tiny"), "mine": build("hae", "tiny").train()}, repeats=2)
    assert rows["case"].tolist() == ["v2", "mine"]
    assert rows["params"].tolist() == [
        sum(p.numel() for p in build(variant, "tiny").parameters()) for variant in ("v2", "hae")
    ]
    assert (rows["ms_median"] > 0).all()
    assert {"device_name", "torch", "threads", "clock"} <= set(rows.columns)


def test_the_mode_of_a_module_is_left_alone():
    model = build("hae", "tiny").train()
    latency({"mine": model}, repeats=1)
    assert model.training


@pytest.mark.parametrize(
    ("models", "device", "message"),
    [({}, "cpu", "name at least one model"), ({"v2": config("v2", "tiny")}, "gpu", "unknown device 'gpu'")],
)
def test_bad_requests_are_named(models, device, message):
    with pytest.raises(HAELabError, match=message):
        latency(models, device=device)


def test_a_module_without_a_config_is_named():
    with pytest.raises(HAELabError, match=r"Linear has no HAEConfig in \.config"):
        latency({"mine": nn.Linear(2, 2)})
