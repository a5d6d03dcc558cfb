"""What the models are made of, in the order of the forward pass: the blocks of the U-Net, the steps of a hybrid block.

Everything is read from the modules of a real model and from one forward pass on the meta device.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hae_lab.checks import require
from hae_lab.family import HAEConfig
from hae_lab.models import MSTB, HAEUNet, HybridBlock, build
from hae_lab.models.layers import AttentionBlock, Downsample, ResBlock, Upsample
from hae_lab.models.unet import ConditionedSequential
from hae_lab.parts import SLOT_PARTS
from hae_lab.presets import VARIANTS, config, variant_of
from hae_lab.profilers.inputs import step_inputs
from hae_lab.profilers.places import SECTIONS
from hae_lab.profilers.tracing import Call, trace

KINDS = {
    HybridBlock: "hybrid", ResBlock: "residual", AttentionBlock: "attention", Downsample: "downsample",
    Upsample: "upsample", nn.Conv2d: "stem", nn.Sequential: "out",
}  # fmt: skip
WHOLE_COLUMNS = ["level", "channels_in", "channels_out", "size_in", "size_out"]
OTHER = "HAE with other slots"


def variant_name(model_config: HAEConfig) -> str:
    """The variant that a config is, or `OTHER` if it is none."""
    return variant_of(model_config) or OTHER


# The U-Net


def unet_rows(config_or_model: HAEConfig | HAEUNet) -> pd.DataFrame:
    """A row a block of the U-Net, in the order of the forward pass; the column `params` sums to the model's total.

    Columns: variant, section (embedding, encoder, middle, decoder, out), level (0 is the finest; that of the block's
    output), kind (embedding, stem, residual, attention, hybrid, downsample, upsample, out), path, channels_in,
    channels_out, size_in, size_out (pixels along one side), skip_from (path of the block whose output is concatenated
    to this one's input, else empty), params, share_percent. The embedding has no map, so no level and no sizes.
    """
    model = _on_meta(config_or_model) if isinstance(config_or_model, HAEConfig) else config_or_model
    joins = Joins()
    with joins:
        calls = [call for call in trace(model, step_inputs(model.config, labels=True)) if _is_block(call)]
    made_by = {id(call.output): call.path for call in calls}
    rows = [
        {
            "variant": variant_name(model.config),
            **_position(call, model.config),
            **_shapes(call),
            "skip_from": made_by.get(id(joins.second(call.args[0])), ""),
            "params": _params(call.module),
        }
        for call in calls
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(WHOLE_COLUMNS, "Int64"))
    return frame.assign(share_percent=100 * frame["params"] / frame["params"].sum())


def unet_table(preset: str = "brats128") -> pd.DataFrame:
    """`unet_rows` of every variant on a preset's body, one below the other."""
    return pd.concat([unet_rows(config(variant, preset)) for variant in VARIANTS], ignore_index=True)


class Joins(TorchFunctionMode):
    """Remembers what was concatenated while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, list[Tensor]]] = {}  # the tensors are kept, so their ids stay theirs

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.cat:
            self.made[id(out)] = (out, list(args[0]))
        return out

    def second(self, joined: Tensor) -> Tensor | None:
        """The second of the tensors that `joined` was made of, or None."""
        _, parts = self.made.get(id(joined), (None, [None, None]))
        return parts[1]


def _on_meta(model_config: HAEConfig) -> HAEUNet:
    with torch.device("meta"):
        return build(model_config)


def _is_block(call: Call) -> bool:
    """A layer of the body, or a whole module of the top that is no list of layers."""
    parent = call.parent
    if parent is None or isinstance(call.module, ConditionedSequential):
        return False
    return parent.parent is None or isinstance(parent.module, ConditionedSequential)


def _position(call: Call, model_config: HAEConfig) -> dict[str, Any]:
    section = SECTIONS[call.path.split(".")[0]]
    level = None if section == "embedding" else model_config.sizes.index(call.output.shape[-1])
    kind = "embedding" if section == "embedding" else _kind(call.module)
    return {"section": section, "level": level, "kind": kind, "path": call.path}


def _kind(module: nn.Module) -> str:
    if isinstance(module, ResBlock) and module.resample is not None:
        return KINDS[type(module.resample)]
    return next(kind for cls, kind in KINDS.items() if isinstance(module, cls))


def _shapes(call: Call) -> dict[str, int | None]:
    """Channels and side of the map before and after a block; None where there are none."""
    before, after = ((*t.shape[1:], None, None)[:2] for t in (call.args[0], call.output))
    return {"channels_in": before[0], "channels_out": after[0], "size_in": before[1], "size_out": after[1]}


def _params(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


# The hybrid block

OPERATIONS: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.Linear: lambda layer: f"Linear {layer.in_features}→{layer.out_features}",
    nn.Conv2d: lambda layer: f"conv {'×'.join(map(str, layer.kernel_size))} {layer.in_channels}→{layer.out_channels}",
    nn.GroupNorm: lambda layer: "GroupNorm",
    nn.LayerNorm: lambda layer: "LayerNorm",
    nn.SiLU: lambda layer: "SiLU",
    nn.GELU: lambda layer: "GELU",
}
MSTB_PATH = "transformer_branch"
Shapes = dict[str, tuple[str, str]]  # path in the block -> shape of what goes in, and of what comes out


@dataclass(frozen=True)
class BlockStep:
    """One step of a hybrid block. Shapes are without the batch; empty for a scale that the map does not fit."""

    step: str
    branch: str
    shape_in: str
    shape_out: str
    operation: str
    paths: tuple[str, ...] = ()  # modules that hold its parameters
    part: str = ""
    slot: str = ""


def hybrid_rows(model_config: HAEConfig, level: int | None = None) -> pd.DataFrame:
    """A row a step of one hybrid block, in the order of the forward pass; `params` sums to the block's total.

    `level` is that of the block; the finest that has one if it is left out. Columns: variant, step, branch (both, CNN,
    Transformer), part (as in `profilers.parameters`; empty for sums), slot (regions, mlp_ratio, fusion; empty for what
    no slot changes), choice (what the slot holds), operation (separated by commas), shape_in, shape_out, path (of its
    modules in the block), params. Raises `HAELabError` for a level without a hybrid block.
    """
    block, side = _hybrid_block(model_config, level)
    with torch.device("meta"):
        image = torch.empty(1, model_config.channels[model_config.sizes.index(side)], side, side)
        inputs = image, torch.empty(1, model_config.time_embed_dim)
    shapes = {call.path: (_shape(call.args[0]), _shape(call.output)) for call in trace(block, inputs)}
    frame = pd.DataFrame([_step_row(step, block, model_config) for step in _steps(block, side, shapes)])
    frame.insert(0, "variant", variant_name(model_config))
    return frame


def hybrid_table(configs: Mapping[str, HAEConfig], level: int | None = None) -> pd.DataFrame:
    """`hybrid_rows` of several configs, one below the other; the column `variant` holds their names.

    Without a `level` it is the finest that has a block in all of them. The column `changed` says whether the step
    belongs to a slot that differs from the config before. A slot differs if its steps do: `fusion` without a CNN
    branch, for example, never does.
    """
    common = set.intersection(*(set(model_config.hybrid_levels) for model_config in configs.values()))
    level = min(common, default=None) if level is None else level
    frames: list[pd.DataFrame] = []
    for name, model_config in configs.items():
        rows = hybrid_rows(model_config, level).assign(variant=name)
        slots = [slot for slot in rows["slot"].unique() if slot]
        changed = [slot for slot in slots if frames and _acts(rows, slot) != _acts(frames[-1], slot)]
        frames.append(rows.assign(changed=rows["slot"].isin(changed)))
    return pd.concat(frames, ignore_index=True)


def hybrid_family(preset: str = "brats128", level: int | None = None, **changes: Any) -> pd.DataFrame:
    """`hybrid_table` of the variants with hybrid blocks on a preset's body."""
    names = [name for name, variant in VARIANTS.items() if variant.has_blocks]
    return hybrid_table({name: config(name, preset, **changes) for name in names}, level)


def _hybrid_block(model_config: HAEConfig, level: int | None) -> tuple[HybridBlock, int]:
    """The first hybrid block of a level, and the side of its map."""
    levels = model_config.hybrid_levels
    known = f"levels with one are {sorted(set(levels))}" if levels else "the model has none"
    require(bool(levels) and level in (None, *levels), f"no hybrid block at level {level}: {known}")
    level = min(levels) if level is None else level
    blocks = [module for module in _on_meta(model_config).modules() if isinstance(module, HybridBlock)]
    return blocks[levels.index(level)], model_config.sizes[level]


def _shape(value: Any) -> str:
    """The shape of a tensor, or of the first of several, without the batch."""
    tensor = value if isinstance(value, Tensor) else value[0]
    return " × ".join(map(str, tensor.shape[1:]))


def _acts(rows: pd.DataFrame, slot: str) -> list[tuple[str, str]]:
    mine = rows[rows["slot"] == slot]
    return list(zip(mine["step"], mine["operation"], strict=True))


def _step_row(step: BlockStep, block: HybridBlock, model_config: HAEConfig) -> dict[str, Any]:
    mlp = "" if model_config.mlp == "gelu" else f"{model_config.mlp}, "
    choices = {
        "regions": model_config.regions,
        "mlp_ratio": f"{mlp}{model_config.mlp_ratio:g}",
        "fusion": model_config.fusion if len(block.branches) == 2 else "one branch",
    }
    modules = [block.get_submodule(path) for path in step.paths]
    row = asdict(step) | {"choice": choices.get(step.slot, ""), "params": _params(*modules)}
    row["path"] = " + ".join(row.pop("paths"))
    order = "step branch part slot choice operation shape_in shape_out path params".split()
    return {column: row[column] for column in order}


def _operation(module: nn.Module) -> str:
    return ", ".join(OPERATIONS[type(layer)](layer) for layer in module.modules() if type(layer) in OPERATIONS)


def _steps(block: HybridBlock, side: int, shapes: Shapes) -> Iterator[BlockStep]:
    feature_map = shapes[""][0]
    yield BlockStep("input", "both", feature_map, feature_map, "")
    timestep = f"{_operation(block.emb_layers)}, added"
    yield BlockStep("timestep", "both", *shapes["emb_layers"], timestep, ("emb_layers",), "timestep")
    if "conv_branch" in block.branches:
        conv = _operation(block.conv_branch)
        yield BlockStep("CNN branch", "CNN", *shapes["conv_branch"], conv, ("conv_branch",), "CNN branch")
    if MSTB_PATH in block.branches:
        yield from _token_steps(block.transformer_branch, side, shapes, feature_map)
        yield from _transformer_steps(block.transformer_branch, shapes, feature_map)
    paths, shape_in, shape_out, operation = _slot_layers(block, "fusion", "", shapes)
    operation = _joined(block.fusion if len(block.branches) == 2 else "", operation)
    yield BlockStep("fusion", "both", shape_in, shape_out, operation, paths, "fusion", "fusion")
    yield BlockStep("residual", "both", feature_map, feature_map, "+ block input")


def _token_steps(mstb: MSTB, side: int, shapes: Shapes, feature_map: str) -> Iterator[BlockStep]:
    """From the map to one token a pixel and one a patch."""
    of_slot: dict[str, Any] = {"branch": "Transformer", "part": "projections", "slot": "regions"}
    regional = [p for p in mstb.patch_sizes if p > 1]
    lists, shared = _region_layers(mstb, len(regional))
    pixels = shapes[f"{MSTB_PATH}.local_norm"][0]
    for path in shared:
        shape_in, shape_out = shapes.get(path, (feature_map, pixels))
        operation = _operation(mstb.get_submodule(path.removeprefix(f"{MSTB_PATH}.")))
        yield BlockStep(
            "shared projection", "Transformer", shape_in, shape_out, operation, (path,), "projections", "regions"
        )
    yield BlockStep("pixels", shape_in=feature_map, shape_out=pixels, operation="flatten", **of_slot)
    for index, p in enumerate(regional):
        paths = tuple(f"{MSTB_PATH}.{name}.{index}" for name in lists)
        own = [_operation(mstb.get_submodule(f"{name}.{index}")) for name in lists]
        operation = _joined(*own) if own else _patch_operation(mstb.regions)
        tokens, _ = shapes.get(f"{MSTB_PATH}.regional_norms.{index}", ("", ""))
        if not tokens:
            operation = f"left out, {p} does not divide {side}"
        before = feature_map if tokens else ""
        yield BlockStep(
            f"{p}×{p} patches", shape_in=before, shape_out=tokens, operation=operation, paths=paths, **of_slot
        )


def _region_layers(mstb: MSTB, scales: int) -> tuple[list[str], list[str]]:
    """Of the layers that make tokens: names of the lists with one a scale, paths of those that all scales share."""
    lists, shared = [], []
    for name in mstb.slot_layers["regions"]:
        layer = mstb.get_submodule(name)
        if isinstance(layer, nn.ModuleList) and len(layer) == scales:
            lists.append(name)
        elif _params(layer):
            shared.append(f"{MSTB_PATH}.{name}")
    return lists, shared


def _patch_operation(regions: str) -> str:
    """What makes one token of a patch, if no layer does."""
    part = SLOT_PARTS["regions"].find(regions)
    return str(getattr(part, "patch_operation", getattr(part, "__name__", regions)))


def _transformer_steps(mstb: MSTB, shapes: Shapes, feature_map: str) -> Iterator[BlockStep]:
    """From the tokens back to the map."""
    attention, norm_out = f"{MSTB_PATH}.multihead_attn", f"{MSTB_PATH}.norm_out"
    tokens, attended = shapes[attention]
    norms = (f"{MSTB_PATH}.local_norm", f"{MSTB_PATH}.regional_norms")
    unused = sum(f"{norms[1]}.{index}" not in shapes for index in range(len(mstb.regional_norms)))
    operation = f"{1 + len(mstb.regional_norms) - unused} × LayerNorm" + f", {unused} never called" * (unused > 0)
    yield BlockStep("norms", "Transformer", tokens, tokens, operation, norms, "norms")
    operation = f"{mstb.multihead_attn.heads} heads, mask {mstb.mask_rule} ({mstb.sparsity:g})"
    yield BlockStep("attention", "Transformer", tokens, attended, operation, (attention,), "attention")
    yield BlockStep("norm out", "Transformer", *shapes[norm_out], _operation(mstb.norm_out), (norm_out,), "norms")
    paths, shape_in, shape_out, operation = _slot_layers(mstb, "mlp", f"{MSTB_PATH}.", shapes)
    operation = _joined("" if mstb.mlp_name == "gelu" else mstb.mlp_name, operation)
    yield BlockStep("MLP", "Transformer", shape_in, shape_out, operation, paths, "MLP", "mlp_ratio")
    yield BlockStep("sums", "Transformer", attended, feature_map, "+ attention output, + branch input")


def _slot_layers(
    owner: MSTB | HybridBlock, slot: str, prefix: str, shapes: Shapes
) -> tuple[tuple[str, ...], str, str, str]:
    """Paths of the layers of a slot, the shape before the first and after the last, and what they do."""
    names = owner.slot_layers[slot]
    paths = tuple(f"{prefix}{name}" for name in names)
    called = [shapes[path] for path in paths if path in shapes] or [("", "")]
    operation = _joined(*(_operation(owner.get_submodule(name)) for name in names))
    return paths, called[0][0], called[-1][1], operation


def _joined(*operations: str) -> str:
    return ", ".join(operation for operation in operations if operation)
