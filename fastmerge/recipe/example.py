"""A recipe that shows how a method is used."""

from __future__ import annotations

from typing import Any

import yaml

from ..methods import REQUIRED, Block, Method, Parameter

MODELS = ("math", "code", "chat")


def example_recipe(method: Method, block: Block | None = None) -> str:
    """Return YAML text of a recipe with the method, the parameters that it needs, and those most often set.

    ``block`` is added to it. The models are folders that need not exist.
    """
    least, greatest = method.inputs
    count = max(least, 2 if greatest is None else min(2, greatest))
    shown = {p.name: value for p in method.parameters_of(method.semantics[0]) if (value := _value(p)) is not None}
    per_model = {p.name for p in method.parameters if p.per_model}
    own = {name: value for name, value in shown.items() if name in per_model}
    recipe: dict[str, Any] = {"merge_method": method.name}
    if method.base == "required":
        recipe["base_model"] = "./base"
    recipe["models"] = [
        {"model": f"./{name}", **({"parameters": {k: _of_model(v, name) for k, v in own.items()}} if own else {})}
        for name in MODELS[:count]
    ]
    if overall := {name: value for name, value in shown.items() if name not in per_model}:
        recipe["parameters"] = overall
    if block is not None:
        values = {p.name.removeprefix(f"{block.name}."): _block_value(p) for p in block.parameters[:2]}
        recipe[block.name] = {name: value for name, value in values.items() if value is not None}
    return yaml.safe_dump(recipe | {"dtype": "bfloat16"}, sort_keys=False)


def _value(parameter: Parameter) -> Any:
    """Return a value of a parameter that the example shows, or None."""
    if parameter.example is not None:
        return parameter.example
    if parameter.kind is str and not parameter.choices:
        return "{model}/statistics.safetensors"
    ranged = parameter.per_model and parameter.minimum is not None and parameter.maximum is not None
    if parameter.default is not REQUIRED and not ranged:
        return None
    if parameter.minimum is not None and parameter.maximum is not None:
        return parameter.kind((parameter.minimum + parameter.maximum) / 2)
    return parameter.neutral if parameter.neutral is not None else 1.0


def _of_model(value: Any, name: str) -> Any:
    return value.replace("{model}", f"./{name}") if isinstance(value, str) else value


def _block_value(parameter: Parameter) -> Any:
    if parameter.example is not None:
        return parameter.example
    return 1.0 if parameter.default is REQUIRED else parameter.default
