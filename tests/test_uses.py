"""What a trained model uses: each change against the forward pass by hand, and the model is as before afterwards."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_data import with_parity_weights
from scipy.stats import bootstrap

from hae_lab import HAELabError, build, config
from hae_lab.diffusion.data import phantoms
from hae_lab.diffusion.quality import denoising_loss, image_losses
from hae_lab.diffusion.uses import CHANGES, growth, uses
from hae_lab.models import MSTB, HybridBlock, freeze

CONFIG = config("hae", "tiny", num_classes=None, sparsity=0.3)
HELD_OUT = phantoms(6, 16, split="held-out")
every_change = pytest.mark.parametrize("change", CHANGES)


def refused(message: str):
    return pytest.raises(HAELabError, match=re.escape(message))


@pytest.fixture(scope="module")
def model():
    return with_parity_weights(build(CONFIG)).eval()


@pytest.fixture(scope="module")
def inputs():
    x = torch.randn((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([7, 300, 900])


def seen(model, inputs, kind, change=None) -> list[tuple]:
    """Inputs and output of every part of a kind, in a forward pass under a change."""
    calls = []
    parts = [part for part in model.modules() if isinstance(part, kind)]
    hooks = [part.register_forward_hook(lambda part, x, y: calls.append((part, *x, y))) for part in parts]
    try:
        with torch.no_grad(), CHANGES[change](model):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(calls) == len(parts) > 0
    return calls


def after_attention(block: MSTB, x, attended):
    with torch.no_grad():
        return x + (attended + block.mlp(block.norm_out(attended))).mT.reshape(x.shape)


@torch.no_grad()
def joined(block: HybridBlock, x, emb, transformed=None, convolved=None):
    h = x + block.emb_layers(emb)[:, :, None, None]
    transformed = block.transformer_branch(h) if transformed is None else transformed(h)
    convolved = block.conv_branch(h) if convolved is None else convolved(h)
    return x + block.join(transformed, convolved)


def test_swapped_tokens_are_those_of_the_next_image(model, inputs):
    for block, x, out in seen(model, inputs, MSTB, "tokens_swapped"):
        tokens, pixels = block.tokens(x), x[0, 0].numel()
        assert tokens.shape[1] > pixels
        for image in range(3):
            mixed = torch.cat([tokens[image, :pixels], tokens[image - 1, pixels:]])[None]
            with torch.no_grad():
                attended = block.multihead_attn(mixed, block._mask(*x.shape[2:])[0])
            torch.testing.assert_close(out[[image]], after_attention(block, x[[image]], attended), atol=1e-5, rtol=1e-5)


def test_a_redrawn_mask_is_that_of_the_next_seed(model, inputs):
    other = build(CONFIG.replace(mask_seed=CONFIG.mask_seed + 1)).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        before, expected = model(*inputs), other(*inputs)
        with CHANGES["mask_redrawn"](model):
            assert torch.equal(model(*inputs), expected)
    assert not torch.allclose(before, expected, atol=1e-4)


def test_who_sees_itself_only_gets_its_own_value(model, inputs):
    for block, x, out in seen(model, inputs, MSTB, "itself_only"):
        layer, channels = block.multihead_attn, x.shape[1]
        with torch.no_grad():
            pixels = block.tokens(x)[:, : x[0, 0].numel()]
            value = F.linear(pixels, layer.in_proj_weight[2 * channels :], layer.in_proj_bias[2 * channels :])
            attended = layer.out_proj(value)
        torch.testing.assert_close(out, after_attention(block, x, attended), atol=1e-5, rtol=1e-5)


def test_a_silent_transformer_hands_its_input_on(model, inputs):
    for block, x, emb, out in seen(model, inputs, HybridBlock, "transformer_silenced"):
        torch.testing.assert_close(out, joined(block, x, emb, transformed=lambda h: h))


def test_a_silent_cnn_is_zero(model, inputs):
    for block, x, emb, out in seen(model, inputs, HybridBlock, "cnn_silenced"):
        torch.testing.assert_close(out, joined(block, x, emb, convolved=lambda h: 0 * h))


@every_change
def test_a_change_ends_with_its_context_whatever_happens(model, inputs, change):
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    with torch.no_grad():
        before = model(*inputs)
        with CHANGES[change](model):
            changed = model(*inputs)
        with pytest.raises(TypeError), CHANGES[change](model):
            model()
        assert not torch.allclose(changed, before, atol=1e-4)
        assert torch.equal(model(*inputs), before)
        with CHANGES[change](model):
            with CHANGES["transformer_silenced"](model):
                pass
            assert torch.equal(model(*inputs), changed)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes


# the table


def test_rows_are_losses_before_and_under_each_change(model):
    rows = uses(model, HELD_OUT, seed=3).set_index("change")
    assert list(rows.index) == list(CHANGES)
    for change, row in rows.iterrows():
        assert row["loss"] == pytest.approx(denoising_loss(model, HELD_OUT, seed=3)["loss"])
        with CHANGES[change](model):
            assert row["changed_loss"] == pytest.approx(denoising_loss(model, HELD_OUT, seed=3)["loss"])
        assert row["percent"] == pytest.approx(100 * (row["changed_loss"] / row["loss"] - 1))
        assert row["percent_low"] < row["percent"] < row["percent_high"]
    assert (rows["n_images"] == 6).all()


def test_losses_of_images_are_those_of_each_image_alone(model):
    losses = image_losses(model, HELD_OUT, batch_size=4)
    assert losses.shape == (6,)
    assert losses.mean().item() == pytest.approx(denoising_loss(model, HELD_OUT)["loss"], rel=1e-6)
    first = image_losses(model, HELD_OUT.select([0]))  # its draws are the first ones
    assert losses[0].item() == pytest.approx(first.item(), rel=1e-5)


def test_the_interval_of_a_growth_is_the_bootstraps():
    generator = np.random.default_rng(0)
    before = generator.gamma(4, size=400)
    after = 1.05 * before + generator.normal(0, 0.3, 400)
    found = growth(before, after)

    def percent(first, second, axis=-1):
        return 100 * (second.mean(axis) / first.mean(axis) - 1)

    low, high = bootstrap((before, after), percent, paired=True, rng=1, method="percentile").confidence_interval
    assert found["percent"] == pytest.approx(percent(before, after))
    assert found["percent_low"] == pytest.approx(low, abs=0.1)
    assert found["percent_high"] == pytest.approx(high, abs=0.1)
    assert high - low > 1


def test_what_cannot_be_changed_is_refused(model):
    with refused("unknown change 'tokens': did you mean"):
        uses(model, HELD_OUT, changes=("tokens",))
    with refused("this model has no MSTB"):
        uses(build(config("unet", "tiny", num_classes=None)), HELD_OUT)
    with refused("a frozen model cannot be changed"):
        uses(freeze(model), HELD_OUT)
    with refused("take batches of at least 2"):
        uses(model, HELD_OUT, batch_size=1, changes=("tokens_swapped",))
