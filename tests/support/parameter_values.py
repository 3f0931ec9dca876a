"""Values of parameters for tests that run over the registry, from what the parameters declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastmerge.methods import REQUIRED, Method, Parameter


def neutral(parameter: Parameter) -> Any:
    """Return the value with which one model alone returns itself."""
    value = parameter.default if parameter.neutral is None else parameter.neutral
    assert value is not REQUIRED, f"{parameter.name}: declare its neutral value, or neutral = False on the method"
    return value


def example(parameter: Parameter) -> Any:
    """Return a value at which fine-tunes show what the parameter does."""
    if parameter.example is not None:
        return parameter.example
    if parameter.choices or parameter.kind in (bool, str):
        return parameter.choices[0] if parameter.default is REQUIRED else parameter.default
    if parameter.minimum is not None and parameter.maximum is not None:
        return parameter.kind((parameter.minimum + parameter.maximum) / 2)
    value = parameter.neutral if parameter.default is REQUIRED else parameter.default
    assert value is not None, f"{parameter.name}: declare an example of its values"
    return value


def values_of(method: Method, choose: Callable[[Parameter], Any], models: int) -> dict[str, Any]:
    """Return what a group tells ``method``, under its default semantics: one value for all models."""
    known = method.parameters_of(method.semantics[0])
    return {p.name: (choose(p),) * models if p.per_model else choose(p) for p in known}
