"""What a head attends to, against the plain formula."""

import numpy as np
import pytest
import torch
from parity_data import sample_inputs, with_parity_weights

from hae_lab import HAELabError, build, plots
from hae_lab.masks import TokenGrid
from hae_lab.models import MSTB
from hae_lab.profilers.attention_maps import attention_maps
from hae_lab.rules import mask_for

PIXEL = 5 * 8 + 3


@pytest.fixture(scope="module")
def model():
    return with_parity_weights(build("hae", "tiny"))


@pytest.fixture(scope="module")
def path(model) -> str:
    return next(name for name, module in model.named_modules() if isinstance(module, MSTB))


def test_weights_are_the_softmax_over_the_keys_that_the_mask_keeps(model, path):
    inputs, caught = sample_inputs(model.config), []
    block = model.get_submodule(path)
    hook = block.multihead_attn.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    attention, tokens = block.multihead_attn, caught[0][0]  # (n, C)
    q, k, _ = (tokens @ attention.in_proj_weight.T + attention.in_proj_bias).detach().chunk(3, dim=-1)
    width = q.shape[-1] // attention.heads
    blocked = torch.from_numpy(mask_for("document", TokenGrid(8, 8)).blocked()[PIXEL])
    found = attention_maps(model, inputs, path, PIXEL).weights
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        scores = (k[:, part] @ q[PIXEL, part] / width**0.5).masked_fill(blocked, -torch.inf)
        assert np.allclose(found[head], scores.softmax(0), atol=1e-5)


@pytest.mark.parametrize("rule", ["dense", "spatial_reduction", "window2d"])
def test_another_rule_may_be_looked_through(model, path, rule):
    found = attention_maps(model, sample_inputs(model.config), path, PIXEL, mask_rule=rule)
    seen = ~mask_for(rule, found.grid).blocked()
    seen = seen[PIXEL] if seen.ndim == 2 else seen[:, PIXEL].any(axis=0)
    assert np.allclose(found.weights.sum(axis=1), 1, atol=1e-5)
    assert (found.weights[:, ~seen] == 0).all()
    assert found.on_map(4).shape == (8, 2, 2)


def test_the_model_is_left_as_it_was(model, path):
    model.train()
    attention_maps(model, sample_inputs(model.config), path, PIXEL)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()


@pytest.mark.parametrize(
    ("where", "pixel", "message"),
    [("out", 0, "no multi-scale block"), (None, 64, "pixel is a whole number from 0 to 63, got 64")],
)
def test_bad_requests_are_named(model, path, where, pixel, message):
    with pytest.raises(HAELabError, match=message):
        attention_maps(model, sample_inputs(model.config), where or path, pixel)


def test_picture_has_a_row_a_rule_and_a_column_a_head(model, path):
    inputs, grid = sample_inputs(model.config), TokenGrid(8, 8)
    weights = {rule: attention_maps(model, inputs, path, PIXEL, rule).weights for rule in ("dense", "document")}
    figure = plots.attention_heads(inputs["x"][0, 0].numpy(), weights, grid, PIXEL, "two rules, eight heads")
    assert len(figure.axes) == 2 * 8 + 1  # and the key of the colours
    shown = figure.axes[8].images[1].get_array()
    strength = weights["document"][0, :64].reshape(8, 8)
    assert np.allclose(shown, strength / strength.max())
