"""Fields of a model and its training as text, "name=value", as they are given on a command line."""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, get_origin

from hae_lab.checks import require, require_name
from hae_lab.diffusion.training import RECIPE_FIELDS, Recipe
from hae_lab.family import FIELDS, HAEConfig

WORDS = {"true": True, "false": False, "none": None}
SEQUENCES = {field.name for field in fields(HAEConfig) if get_origin(field.type) is tuple}


def with_settings(config: HAEConfig, recipe: Recipe, settings: Iterable[str]) -> tuple[HAEConfig, Recipe]:
    """Config and recipe with fields changed: "mlp_ratio=0.5", "patch_sizes=1,4", "middle_attention=false".

    Raises `HAELabError` for a text without "=", an unknown field and a value that makes no sense.
    """
    of_model: dict[str, Any] = {}
    of_training: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        require(bool(equals), f"a setting is NAME=VALUE, for example mlp_ratio=0.5, got {text!r}")
        require_name("field", name, (*FIELDS, *RECIPE_FIELDS))
        (of_model if name in FIELDS else of_training)[name] = _value(name, value)
    return config.replace(**of_model), replace(recipe, **of_training)


def _value(name: str, text: str) -> Any:
    if name in SEQUENCES:
        return [_scalar(part) for part in text.strip("[]()").split(",") if part.strip()]
    return _scalar(text)


def _scalar(text: str) -> Any:
    text = text.strip()
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
