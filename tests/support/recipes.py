"""The smallest valid recipe of any method, for tests that run over the registry."""

from __future__ import annotations

from typing import Any

from fastmerge.methods import REQUIRED, Method, Parameter


def legal_value(parameter: Parameter) -> Any:
    """Return a value that the parameter accepts."""
    if parameter.default is not REQUIRED:
        return parameter.default
    if parameter.choices:
        return parameter.choices[0]
    low = 0 if parameter.minimum is None else parameter.minimum
    high = low + 1 if parameter.maximum is None else parameter.maximum
    return {float: (low + high) / 2, int: int(low), bool: True, str: "text"}[parameter.kind]


def minimal_recipe(method: Method, models: int | None = None) -> dict[str, Any]:
    """Return a recipe with every required parameter at the top level and ``models`` inputs (default: the fewest)."""
    count = method.inputs[0] if models is None else models
    recipe: dict[str, Any] = {
        "merge_method": method.name,
        "models": [{"model": f"org/expert-{k}"} for k in range(count)],
        "parameters": {
            p.name: legal_value(p) for p in method.parameters_of(method.semantics[0]) if p.default is REQUIRED
        },
    }
    return recipe if method.base == "ignored" else {**recipe, "base_model": "org/base"}
