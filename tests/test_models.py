"""What the models promise beyond parity: plain formulas, randomness, gradients, faces of the document, clear errors."""

import inspect
import math
from dataclasses import fields

import numpy as np
import pytest
import reference_unet
import torch
from parity_data import sample_inputs, with_parity_weights
from torch import nn

import hae_lab
from hae_lab import VARIANTS, HAEConfig, HAELabError, build, config, rules
from hae_lab.masks import SparseMask, TokenGrid
from hae_lab.models.attention import SparseMultiheadAttention
from hae_lab.models.hybrid import MSTB, HybridBlock, redraw_masks
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample, group_norm, timestep_embedding
from hae_lab.models.slots import BottleneckMLP
from hae_lab.rules import mask_for

every_variant = pytest.mark.parametrize("variant", VARIANTS)
hybrid_variants = pytest.mark.parametrize("variant", ["hae", "lite", "v2"])


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(HAELabError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


# plain formulas


def described(changes: dict) -> str:
    return "-".join(f"{name}={value}" for name, value in changes.items()).replace(" ", "") or "tiny"


def difference_from_plain_formulas(variant: str, changes: dict) -> float:
    model = with_parity_weights(build(variant, "tiny", **changes).double())
    inputs = sample_inputs(model.config, dtype=torch.float64)
    with torch.no_grad():
        expected = reference_unet.unet(model.state_dict(), model.config, **inputs)
        assert expected.std() > 0.1
        return (model(**inputs) - expected).abs().max().item()


# the tolerance is for the timestep embedding, which is in single precision


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resblock_updown": True},
        {"conv_resample": False},
        {"resblock_updown": True, "conv_resample": False, "use_scale_shift_norm": False},
        {"channel_mult": (1, 3, 2), "num_res_blocks": 2, "num_classes": None},
        {"activation": "identity", "use_scale_shift_norm": False},
    ],
    ids=described,
)
@every_variant
def test_body_equals_the_plain_formulas(variant, changes):
    assert difference_from_plain_formulas(variant, changes) < 2e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"placement": "attention", "attention_resolutions": (1, 2)},
        {"placement": "everywhere", "attention_resolutions": (1, 2)},
        {"placement": "everywhere", "resblock_updown": True, "use_scale_shift_norm": False},
        {"cnn_branch": False},
        {"transformer_branch": False},
        {"middle_attention": False, "attention_resolutions": ()},
        {"image_size": 24},  # 8 does not divide the map of 12
        {"image_size": 24, "patch_sizes": (1, 8, 4)},
        {"mstb_heads": 4, "sparsity": 0.6, "mask_seed": 5},
        {"patch_sizes": (1, 8, 2), "mask_rule": "dense"},
    ],
    ids=described,
)
@hybrid_variants
def test_hybrid_blocks_equal_the_plain_formulas(variant, changes):
    assert difference_from_plain_formulas(variant, changes) < 2e-5


@pytest.mark.parametrize("channels", [2, 16, 128])
def test_timestep_embedding_is_cosines_then_sines(channels):
    times, half = [0, 1, 37, 999], channels // 2
    freq = [math.exp(-math.log(10000) * i / half) for i in range(half)]
    expected = [[math.cos(t * f) for f in freq] + [math.sin(t * f) for f in freq] for t in times]
    given = timestep_embedding(torch.tensor(times), channels)
    assert (given - torch.tensor(expected)).abs().max() < 1e-4  # angles up to 999 in single precision


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("with_classes", [True, False])
def test_attention_block_equals_a_naive_einsum(heads, with_classes):
    channels, width, tokens = 12, 5, 5
    block = with_parity_weights(AttentionBlock(channels, heads, encoder_channels=width).double())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 3, 4, generator=generator, dtype=torch.float64)
    classes = torch.randn(2, width, tokens, generator=generator, dtype=torch.float64) if with_classes else None
    qkv = torch.einsum("oc,bcn->bon", block.qkv.weight[:, :, 0], block.norm(x).flatten(2)) + block.qkv.bias[:, None]
    q, k, v = (part.reshape(2, heads, channels // heads, 12) for part in split_inside_heads(qkv, heads, 3))
    if with_classes:
        kv = torch.einsum("oc,bcn->bon", block.encoder_kv.weight[:, :, 0], classes) + block.encoder_kv.bias[:, None]
        class_k, class_v = (
            part.reshape(2, heads, channels // heads, tokens) for part in split_inside_heads(kv, heads, 2)
        )
        k, v = torch.cat([class_k, k], dim=3), torch.cat([class_v, v], dim=3)
    weights = torch.einsum("bhdq,bhdk->bhqk", q, k).div(math.sqrt(channels / heads)).softmax(3)
    attended = torch.einsum("bhqk,bhdk->bhdq", weights, v).reshape(2, channels, 12)
    out = torch.einsum("oc,bcn->bon", block.proj_out.weight[:, :, 0], attended) + block.proj_out.bias[:, None]
    assert torch.allclose(block(x, classes), x + out.view_as(x), rtol=0, atol=1e-10)


def split_inside_heads(x: torch.Tensor, heads: int, parts: int) -> list[torch.Tensor]:
    """The channels of part 0, 1, ... of every head: heads come first, the parts inside each."""
    width = x.shape[1] // heads // parts
    channels = torch.arange(x.shape[1]).reshape(heads, parts, width)
    return [x[:, channels[:, part].flatten()] for part in range(parts)]


def grouped(grid: TokenGrid, groups: int) -> SparseMask:
    matrices = np.random.default_rng(groups).random((groups, grid.n, grid.n)) < 0.8
    matrices[:, :, 0] = False  # no query without a key
    return SparseMask.from_blocked(matrices, grid)


GRID = TokenGrid(8, 8)


@pytest.mark.parametrize(
    "mask",
    [
        *(pytest.param(rule(GRID, 0.9, 1), id=name) for name, rule in rules.RULES.items()),
        pytest.param(grouped(GRID, 1), id="matrix"),
        pytest.param(grouped(GRID, 2), id="two-head-groups"),
        pytest.param(grouped(GRID, 4), id="four-head-groups"),
    ],
)
def test_sparse_attention_equals_torchs_at_the_local_rows(mask):
    heads, batch = 4, 2
    theirs = with_parity_weights(nn.MultiheadAttention(16, heads, batch_first=True).double())
    ours = SparseMultiheadAttention(16, heads).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    tokens = torch.randn(batch, GRID.n, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocked = torch.from_numpy(mask.blocked())
    if mask.groups > 1:
        blocked = blocked.repeat_interleave(heads // mask.groups, dim=0).repeat(batch, 1, 1)
    expected, _ = theirs(tokens, tokens, tokens, attn_mask=blocked)
    assert torch.allclose(ours(tokens, mask), expected[:, : GRID.n_local], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "groups"), [(16, 16), (32, 32), (48, 24), (64, 32), (384, 32), (33, 11), (37, 1), (1, 1)]
)
def test_group_norm_has_the_largest_divisor_up_to_32(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("use_conv", [True, False])
def test_resampling_halves_and_doubles(use_conv):
    x = torch.randn(1, 4, 6, 8)
    assert Downsample(4, use_conv)(x).shape == (1, 4, 3, 4)
    assert Upsample(4, use_conv)(x).shape == (1, 4, 12, 16)


# randomness


def test_same_seed_gives_the_same_weights():
    first = build("hae", "tiny", seed=3)
    torch.manual_seed(99)
    assert same_weights(first, build("hae", "tiny", seed=3))


def test_another_seed_gives_other_weights():
    assert not same_weights(build("hae", "tiny", seed=0), build("hae", "tiny", seed=1))


def test_layers_that_two_variants_share_start_alike():
    control = layers_in_order(build("unet", "lesson32", seed=3))
    models = {name: build(name, "lesson32", seed=3) for name in ("hae", "lite", "v2")}
    for model in models.values():
        mine = [state for state in layers_in_order(model) if not any("branch" in name for name in state)]
        assert len(mine) == len(control)
        assert all(same_states(*pair) for pair in zip(mine, control, strict=True))
    hae, v2 = (dict(model.named_modules()) for model in (models["hae"], models["v2"]))
    convs = {name for name, layer in v2.items() if isinstance(layer, nn.Conv2d) and same_shape(layer, hae.get(name))}
    assert len(convs) > 20
    assert all(same_states(hae[name].state_dict(), v2[name].state_dict()) for name in convs)


def layers_in_order(model):
    """The state of each layer of the body, without the places, which a hybrid block shifts."""
    lists = (model.input_blocks, [model.middle_block], model.output_blocks)
    layers = [model.time_embed, *(layer for blocks in lists for block in blocks for layer in block), model.out]
    return [layer.state_dict() for layer in layers]


def same_shape(layer, other):
    return isinstance(other, nn.Conv2d) and layer.weight.shape == other.weight.shape


def same_states(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_no_two_layers_start_alike():
    for name in ("hae", "v2"):
        weights = [p for p in build(name, "lesson32").parameters() if p.dim() > 1 and p.any()]
        first_numbers = {p.detach().flatten()[:4].div(p.detach().std()).numpy().tobytes() for p in weights}
        assert len(first_numbers) == len(weights)


def test_layers_made_by_hand_follow_the_global_random_state():
    torch.manual_seed(0)
    first, second = (HybridBlock(16, 32).state_dict() for _ in range(2))
    torch.manual_seed(0)
    assert same_states(first, HybridBlock(16, 32).state_dict())
    assert not same_states(first, second)


@every_variant
def test_build_and_eval_leave_the_global_random_states_alone(variant, random_states):
    before = random_states()
    model = build(variant, "tiny", dropout=0.1).eval()
    with torch.no_grad():
        model(**sample_inputs(model.config))
    assert random_states() == before


@every_variant
def test_eval_is_repeatable_to_the_bit(variant):
    model = with_parity_weights(build(variant, "tiny", dropout=0.5))
    inputs = sample_inputs(model.config)
    with torch.no_grad():
        first = model(**inputs)
        torch.manual_seed(99)
        assert torch.equal(model(**inputs), first)


def test_dropout_acts_in_training():
    model = with_parity_weights(build("hae", "tiny", dropout=0.5)).train()
    inputs = sample_inputs(model.config)
    with torch.no_grad():
        assert not torch.equal(model(**inputs), model(**inputs))


@every_variant
def test_dropout_is_handed_to_every_block(variant):
    modules = list(build(variant, "tiny", dropout=0.3).modules())
    rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
    rates += [module.dropout for module in modules if isinstance(module, SparseMultiheadAttention)]
    assert set(rates) == {0.3}
    assert len(rates) >= 7


@hybrid_variants
def test_mask_is_not_part_of_the_weights(variant):
    assert not list(build(variant, "tiny").buffers())


def test_tokens_are_of_the_scales_of_the_map_or_of_those_given():
    block = next(module for module in build("hae", "tiny").modules() if isinstance(module, MSTB))
    x = torch.linspace(-1, 1, block.local_norm.normalized_shape[0] * 64).reshape(1, -1, 8, 8)
    tokens = block.tokens(x)
    assert tokens.shape[:2] == (1, 64 + 4 + 1)  # pixels, patches of 4 x 4, of 8 x 8
    assert torch.equal(block.tokens(x, (4,)), tokens[:, : 64 + 4])


def test_redrawn_masks_are_those_of_a_model_built_with_that_seed():
    model, other = (with_parity_weights(build("hae", "tiny", mask_seed=seed)).eval() for seed in (0, 5))
    inputs = sample_inputs(model.config)
    assert not torch.equal(model(**inputs), other(**inputs))
    redraw_masks(model, 5)
    assert torch.equal(model(**inputs), other(**inputs))


# meta device


def test_stem_and_last_convolution_are_as_wide_as_the_finest_level():
    with torch.device("meta"):
        model = build("unet", "tiny", model_channels=16, channel_mult=(3, 1, 2))
    assert model.input_blocks[0][0].out_channels == model.out[-1].in_channels == 3 * 16


@every_variant
def test_build_under_meta_allocates_nothing(variant):
    with torch.device("meta"):
        model = build(variant, "brats128")
    assert {weight.device.type for weight in model.state_dict().values()} == {"meta"}


@every_variant
def test_forward_on_meta_gives_the_shape(variant):
    with torch.device("meta"):
        model = build(variant, "cifar32", out_channels=6)
        assert model(torch.empty(5, 3, 32, 32), torch.empty(5)).shape == (5, 6, 32, 32)


def test_build_under_meta_leaves_the_global_random_state_alone(random_states):
    before = random_states()
    with torch.device("meta"):
        build("hae", "tiny")
    assert random_states() == before


# gradients


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of a random linear function of the output; zeros where none arrives."""
    torch.manual_seed(7)
    out = model(**sample_inputs(model.config, dtype=next(model.parameters()).dtype))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (out * direction).sum().backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@every_variant
def test_checkpointing_gives_the_same_gradients(variant, dropout):
    plain, checkpointed = (
        gradients(with_parity_weights(build(variant, "tiny", dropout=dropout, use_checkpoint=flag)).train())
        for flag in (False, True)
    )
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@every_variant
def test_checkpointing_stores_less_for_the_backward_pass(variant):
    def stored(use_checkpoint: bool) -> int:
        model, total = build(variant, "tiny", use_checkpoint=use_checkpoint), 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**sample_inputs(model.config))
        return total

    assert stored(True) < stored(False) / 2


@every_variant
def test_checkpointing_is_handed_to_every_block(variant):
    model = build(variant, "tiny", use_checkpoint=True)
    kinds = {type(module): module.use_checkpoint for module in model.modules() if hasattr(module, "use_checkpoint")}
    assert kinds.keys() == {ResBlock, AttentionBlock} | ({HybridBlock} if variant != "unet" else set())
    assert all(kinds.values())


def dead_parameters(model_config: HAEConfig, names: list[str]) -> set[str]:
    """What cannot learn: class keys without classes; scales that drop out of the map or that no pixel sees."""
    dead = set()
    if model_config.num_classes is None:
        dead |= {name for name in names if ".encoder_kv." in name}
    size = model_config.image_size // 2  # every hybrid block of the models below stands on this map
    grid = TokenGrid(size, size, model_config.patch_sizes)
    open_to_pixels = ~mask_for(model_config.mask_rule, grid).blocked()[: grid.n_local]
    for i, p in enumerate(model_config.patch_sizes[1:]):
        if p in grid.dropped or not open_to_pixels[:, slice(*grid.span(p))].any():
            dead |= {name for name in names if f".regional_norms.{i}." in name or f".patch_projections.{i}." in name}
    return dead


def only_pixels(grid, sparsity, seed):
    blocked = np.zeros((grid.n, grid.n), bool)
    blocked[:, grid.n_local :] = True
    return SparseMask.from_blocked(blocked, grid)


@pytest.mark.parametrize(
    ("changes", "dead_count"),
    [
        ({}, {}),
        ({"num_classes": None}, {"unet": 8, "hae": 8, "lite": 8, "v2": 8}),
        ({"image_size": 24}, {"hae": 4, "lite": 2, "v2": 2}),
        ({"mask_rule": "only_pixels"}, {"hae": 8, "lite": 4, "v2": 4}),
        ({"use_scale_shift_norm": False, "resblock_updown": True}, {}),
    ],
    ids=["all-alive", "no-classes", "dropped-scale", "hidden-scales", "updown"],
)
@every_variant
def test_gradients_reach_every_parameter_but_the_dead(variant, changes, dead_count, monkeypatch):
    monkeypatch.setitem(rules.RULES, "only_pixels", only_pixels)
    # 64 channels: up to 32 the norms hold one channel a group and undo every bias before them
    model = with_parity_weights(build(variant, "tiny", model_channels=64, **changes).double())
    reached = gradients(model)
    unreached = {name for name, gradient in reached.items() if gradient.abs().max() < 1e-9}
    assert unreached == dead_parameters(model.config, list(reached))
    assert len(unreached) == dead_count.get(variant, 0)


def test_fresh_output_is_zero():
    model = build("hae", "tiny")
    assert not model(**sample_inputs(model.config)).any()


# conditioning


@pytest.mark.parametrize("preset", ["lesson16", "lesson32", "tiny"])
@every_variant
def test_timestep_changes_the_output(variant, preset):
    model = with_parity_weights(build(variant, preset))
    x = sample_inputs(model.config, batch=1)["x"]
    with torch.no_grad():
        first, second = (model(x, torch.tensor([time])) for time in (10, 900))
    assert (first - second).abs().max() > 1e-2


@every_variant
def test_label_minus_one_is_no_label_for_that_sample(variant):
    model = with_parity_weights(build(variant, "tiny"))
    inputs = sample_inputs(model.config)
    x, timesteps = inputs["x"], inputs["timesteps"]
    with torch.no_grad():
        mixed = model(x, timesteps, torch.tensor([2, -1]))
        labelled = model(x[:1], timesteps[:1], torch.tensor([2]))
        unlabelled = model(x[1:], timesteps[1:], None)
    assert torch.allclose(mixed, torch.cat([labelled, unlabelled]), rtol=0, atol=1e-5)


@every_variant
def test_labels_change_the_output(variant):
    model = with_parity_weights(build(variant, "tiny"))
    inputs = sample_inputs(model.config)
    with torch.no_grad():
        outputs = [
            model(inputs["x"], inputs["timesteps"], y) for y in (torch.tensor([0, 0]), torch.tensor([1, 1]), None)
        ]
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(outputs, [*outputs[1:], outputs[0]], strict=True))


def test_samples_of_a_batch_do_not_mix():
    model = with_parity_weights(build("hae", "tiny"))
    inputs = sample_inputs(model.config, batch=3)
    with torch.no_grad():
        together = model(**inputs)
        alone = torch.cat([model(*(tensor[i : i + 1] for tensor in inputs.values())) for i in range(3)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)


# activations


def activations(model: nn.Module) -> list[type]:
    """First and second activation of each residual block, then the last layer's."""
    blocks = [block for block in model.modules() if isinstance(block, ResBlock)]
    assert len(blocks) >= 7
    kinds = [type(layer) for block in blocks for layer in (block.in_layers[1], block.out_layers[1])]
    return [*kinds, type(model.out[1])]


@every_variant
def test_every_residual_block_has_its_activations(variant):
    assert set(activations(build(variant, "tiny"))) == {nn.SiLU}


def test_identity_removes_every_activation_of_the_body():
    assert set(activations(build("hae", "tiny", activation="identity", use_scale_shift_norm=False))) == {nn.Identity}


def test_identity_with_scale_shift_keeps_the_second_activation_of_a_block():
    kinds = activations(build("unet", "tiny", activation="identity", use_scale_shift_norm=True))
    assert set(kinds[:-1:2]) == {nn.Identity}
    assert set(kinds[1:-1:2]) == {nn.SiLU}
    assert kinds[-1] is nn.Identity


def test_identity_keeps_the_activations_of_the_cnn_branch():
    (block,) = (m for m in build("hae", "tiny", activation="identity").modules() if isinstance(m, HybridBlock))
    assert [type(block.conv_branch[i]) for i in (1, 4)] == [nn.SiLU, nn.SiLU]


# the document's names

SUFFIX = {"hae": "", "lite": "Lite", "v2": "V2"}


def face(kind: str, variant: str) -> type:
    return getattr(hae_lab, kind + SUFFIX[variant])


def defaults(cls: type) -> dict:
    return {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
    }


@hybrid_variants
def test_mstb_has_the_documents_signature(variant):
    assert defaults(face("MultiScaleSparseTransformerBlock", variant)) == {
        "channels": inspect.Parameter.empty,
        "num_heads": 8,
        "dropout": 0.1,
        "patch_sizes": [1, 4, 8],
    }


@hybrid_variants
def test_hybrid_block_has_the_documents_signature(variant):
    assert defaults(face("HybridCNNTransformerBlock", variant)) == {
        "channels": inspect.Parameter.empty,
        "emb_channels": inspect.Parameter.empty,
        "dropout": 0.1,
        "use_checkpoint": False,
    }


def test_bottleneck_mlp_has_the_documents_signature():
    expected = {"channels": inspect.Parameter.empty, "bottleneck_ratio": 0.25, "dropout": 0.1}
    assert defaults(hae_lab.BottleneckMLP) == expected


@hybrid_variants
def test_mstb_has_the_documents_attributes(variant):
    block = face("MultiScaleSparseTransformerBlock", variant)(16)
    shared = {"local_norm", "regional_norms", "multihead_attn", "norm_out", "mlp"}
    own = {"patch_projections"} if variant == "hae" else {"shared_patch_embed"}
    assert {name for name, _ in block.named_children()} == shared | own


@hybrid_variants
def test_hybrid_block_has_the_documents_attributes(variant):
    names = {name for name, _ in face("HybridCNNTransformerBlock", variant)(16, 64).named_children()}
    assert names == {"emb_layers", "conv_branch", "transformer_branch", "fusion_conv"}


@hybrid_variants
def test_model_has_the_documents_attributes(variant):
    names = {name for name, _ in build(variant, "tiny").named_children()}
    body = {"input_blocks", "middle_block", "output_blocks", "out"}
    assert names == body | {"time_embed", "label_emb", "class_emb"}


@hybrid_variants
def test_document_blocks_are_the_blocks_of_the_built_model(variant):
    built = next(module for module in build(variant, "tiny").modules() if isinstance(module, HybridBlock))
    named = face("HybridCNNTransformerBlock", variant)(32, 64)
    alone = face("MultiScaleSparseTransformerBlock", variant)(32)
    shapes = [
        {name: weight.shape for name, weight in block.state_dict().items()}
        for block in (built, named, built.transformer_branch, alone)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[2] == shapes[3]


@hybrid_variants
def test_document_hybrid_block_runs_with_its_slots(variant):
    block = with_parity_weights(face("HybridCNNTransformerBlock", variant)(16, 64).double())
    x, emb = torch.randn(2, 16, 12, 8, dtype=torch.float64), torch.randn(2, 64, dtype=torch.float64)
    prefixed = {f"block.{name}": weight for name, weight in block.state_dict().items()}
    with torch.no_grad():
        expected = reference_unet.hybrid_block(prefixed, "block", x, emb, config(variant, "tiny"))
        assert torch.allclose(block(x, emb), expected, rtol=0, atol=1e-10)


def test_hybrid_block_checkpoints():
    block = hae_lab.HybridCNNTransformerBlock(16, 64, dropout=0.0, use_checkpoint=True)
    block(torch.randn(1, 16, 8, 8), torch.randn(1, 64)).sum().backward()
    assert block.fusion_conv.weight.grad.any()


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(64, 0.25, 16), (10, 0.25, 2), (8, 0.01, 1), (8, 2, 16)])
def test_bottleneck_mlp_narrows_to_the_ratio(channels, ratio, hidden):
    mlp = BottleneckMLP(channels, bottleneck_ratio=ratio).mlp
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout]
    assert (mlp[0].weight.shape, mlp[3].weight.shape) == ((hidden, channels), (channels, hidden))
    assert [mlp[2].p, mlp[4].p] == [0.1, 0.1]


@hybrid_variants
def test_only_v2_has_a_bottleneck_mlp(variant):
    mlp = face("MultiScaleSparseTransformerBlock", variant)(16).mlp
    assert isinstance(mlp, BottleneckMLP) == (variant == "v2")


@hybrid_variants
def test_create_sparse_mask_is_the_documents(variant):
    block = face("MultiScaleSparseTransformerBlock", variant)(16)
    assert defaults(block.create_sparse_mask) == {"seq_len": inspect.Parameter.empty, "sparsity_ratio": 0.9}
    mask = block.create_sparse_mask(69)
    assert (mask.dtype, mask.shape) == (torch.bool, (69, 69))
    assert torch.equal(mask, block.create_sparse_mask(69, sparsity_ratio=0.9))
    # int(69 * 0.1) = 6 keys: three to each side of the diagonal, and one random column
    assert not mask.diagonal().any()
    assert all((~mask[i, max(0, i - 3) : i + 4]).all() for i in range(69))
    assert set((~mask)[3:-3].sum(1).tolist()) == {7, 8}


def test_create_sparse_mask_follows_the_ratio():
    block = hae_lab.MultiScaleSparseTransformerBlock(16)
    kept = [(~block.create_sparse_mask(100, ratio)).float().mean() for ratio in (0.9, 0.5, 0.1)]
    assert kept == sorted(kept)
    assert kept[0] < 0.15 < 0.5 < kept[1]


def test_every_exported_name_can_be_imported():
    missing = [name for name in hae_lab.__all__ if not hasattr(hae_lab, name)]
    assert missing == []
    assert set(hae_lab.__all__) <= set(dir(hae_lab))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HAEUNetModelV3'"):
        hae_lab.HAEUNetModelV3  # noqa: B018


# guided-diffusion's keywords

GUIDED = {
    "image_size": 16,
    "in_channels": 1,
    "model_channels": 16,
    "out_channels": 1,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "dropout": 0.1,
    "channel_mult": (1, 2, 2, 2),
    "conv_resample": True,
    "dims": 2,
    "num_classes": 3,
    "use_checkpoint": False,
    "use_fp16": False,
    "num_heads": 2,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": False,
}


@hybrid_variants
def test_document_model_takes_guided_diffusions_keywords(variant):
    model = face("HAEUNetModel", variant)(**GUIDED)
    known = {name: value for name, value in GUIDED.items() if name in {field.name for field in fields(HAEConfig)}}
    assert model.config == HAEConfig(**known, **VARIANTS[variant])


@hybrid_variants
def test_document_model_equals_the_built_one(variant):
    model = face("HAEUNetModel", variant)(**GUIDED)
    assert model.state_dict().keys() == build(model.config).state_dict().keys()
    model = with_parity_weights(model)
    inputs = sample_inputs(model.config)
    with torch.no_grad():
        assert torch.equal(model(**inputs), with_parity_weights(build(model.config))(**inputs))


def test_document_model_takes_fields_of_the_family():
    assert hae_lab.HAEUNetModelLite(**GUIDED, sparsity=0.5).config.sparsity == 0.5


@pytest.mark.parametrize(
    "body",
    [
        {"image_size": 32, "channel_mult": (1, 1, 2, 2, 2), "attention_resolutions": (4, 8, 16)},
        {"image_size": 12, "channel_mult": (1, 2)},
    ],
)
def test_document_model_takes_any_number_of_levels(body):
    model = hae_lab.HAEUNetModelV2(**{**GUIDED, **body})
    assert model.config.channel_mult == body["channel_mult"]


@pytest.mark.parametrize(
    ("keyword", "value", "right"),
    [
        ("dims", 3, 2),
        ("use_fp16", True, False),
        ("num_head_channels", 64, -1),
        ("num_heads_upsample", 4, -1),
        ("use_new_attention_order", True, False),
    ],
)
def test_keyword_value_that_the_family_lacks_is_refused_with_the_right_one(keyword, value, right):
    message = refusal(hae_lab.HAEUNetModel, **{**GUIDED, keyword: value})
    assert f"{keyword}={value!r}" in message
    assert f"pass {right!r}" in message


def test_unknown_keyword_is_refused_with_the_nearest():
    message = refusal(hae_lab.HAEUNetModel, **GUIDED, num_clases=2)
    assert "'num_clases': did you mean 'num_classes'?" in message


# clear errors of a forward pass


@pytest.fixture(scope="module")
def tiny():
    return with_parity_weights(build("hae", "tiny"))


@pytest.fixture(scope="module")
def unconditional():
    return build("hae", "tiny", num_classes=None)


X, T = torch.zeros(2, 1, 16, 16), torch.zeros(2)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((2, 3, 16, 16), "(2, 3, 16, 16)"),
        ((2, 1, 32, 32), "(2, 1, 32, 32)"),
        ((2, 1, 16, 8), "(2, 1, 16, 8)"),
        ((1, 16, 16), "(1, 16, 16)"),
    ],
)
def test_wrong_channels_or_size_are_refused_with_both_shapes(tiny, shape, named):
    message = refusal(tiny, torch.zeros(shape), T)
    assert f"x has shape {named}" in message
    assert "(batch, 1, 16, 16)" in message
    assert "image_size or in_channels" in message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_input_that_is_not_floating_point_is_refused_with_its_type(tiny, dtype):
    message = refusal(tiny, X.to(dtype), T)
    assert str(dtype) in message
    assert "floating point" in message


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_timesteps_of_the_wrong_shape_are_refused_with_the_right_one(tiny, shape):
    message = refusal(tiny, X, torch.zeros(shape))
    assert f"of shape {shape}" in message
    assert "shape (2,)" in message


@pytest.mark.parametrize(("labels", "bad"), [([0, 3], "[3]"), ([-2, 9], "[-2, 9]")])
def test_labels_out_of_range_are_refused_with_the_range(tiny, labels, bad):
    message = refusal(tiny, X, T, torch.tensor(labels))
    assert f"labels {bad} are out of range" in message
    assert "-1 (none) to 2" in message


@pytest.mark.parametrize("y", [torch.tensor([0]), torch.tensor([[0], [1]]), torch.tensor([0.0, 1.0])])
def test_labels_of_the_wrong_shape_or_type_are_refused(tiny, y):
    message = refusal(tiny, X, T, y)
    assert str(y.dtype) in message
    assert str(tuple(y.shape)) in message
    assert "whole numbers of shape (2,)" in message


def test_labels_of_int32_are_taken(tiny):
    with torch.no_grad():
        assert torch.equal(tiny(X, T, torch.tensor([0, 2], dtype=torch.int32)), tiny(X, T, torch.tensor([0, 2])))


def test_labels_for_an_unconditional_model_are_refused_with_the_field(unconditional):
    message = refusal(unconditional, X, T, torch.tensor([0, 1]))
    assert "unconditional model" in message
    assert "num_classes" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_input_of_another_precision_is_refused_with_both(tiny, dtype):
    message = refusal(tiny, X.to(dtype), T)
    assert str(dtype) in message
    assert "torch.float32" in message


def test_model_in_double_precision_takes_double_input():
    model = build("lite", "tiny").double()
    assert model(X.double(), T).dtype == torch.float64


def test_norms_may_stay_in_single_precision_as_guided_diffusion_keeps_them():
    model = with_parity_weights(build("hae", "tiny")).eval()
    inputs = sample_inputs(model.config)
    right = model(**inputs)
    model.bfloat16()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()
    found = model(**inputs | {"x": inputs["x"].bfloat16()})
    assert found.dtype == torch.bfloat16
    assert (found - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize("block", [MSTB, face("MultiScaleSparseTransformerBlock", "v2")])
def test_heads_that_do_not_divide_the_channels_are_refused_with_both(block):
    assert "8 heads do not divide 12 channels" in refusal(block, 12)


@pytest.mark.parametrize(
    ("block", "options", "parts"),
    [
        (MSTB, {"channels": 16, "regions": "pool"}, ["unknown regions 'pool'", "'pooled'"]),
        (HybridBlock, {"channels": 16, "emb_channels": 64, "fusion": "men"}, ["unknown fusion 'men'", "'mean'"]),
        (ResBlock, {"channels": 16, "emb_channels": 64, "activation": "silo"}, ["unknown activation 'silo'", "'silu'"]),
    ],
)
def test_unknown_slot_of_a_block_is_refused_with_the_nearest(block, options, parts):
    message = refusal(block, **options)
    assert [part for part in parts if part not in message] == []


def test_heads_that_head_groups_do_not_divide_are_refused_with_both():
    message = refusal(SparseMultiheadAttention(16, 4), torch.zeros(1, GRID.n, 16), grouped(GRID, 3))
    assert "4 heads" in message
    assert "3 head groups" in message


def test_printed_model_names_its_slots():
    text = repr(build("v2", "tiny"))
    assert "fusion=mean" in text
    assert "regions=pooled, mlp=gelu, patch_sizes=(1, 4, 8)" in text
