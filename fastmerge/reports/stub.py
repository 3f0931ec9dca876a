"""What editors and type checkers know of ``fastmerge.functional``, whose functions are made on first use."""

from __future__ import annotations

import inspect
import json

from .. import functional
from ..methods import all_methods

_HEAD = '''\
"""The functions of all methods, for editors. Made by: fastmerge methods --update fastmerge/functional.pyi"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .tensors import merge_tensors as merge_tensors

__all__: list[str]
'''


def functional_stub() -> str:
    """Return the text of ``functional.pyi`` for the methods that have a file in this package."""
    names = [name for name, method in all_methods().items() if type(method).__module__ == f"fastmerge.methods.{name}"]
    return _HEAD + "".join(map(_function, names))


def _function(name: str) -> str:
    """Return one function: its parameters as its signature has them, and the formula of the method."""
    function = getattr(functional, name)
    parameters = list(inspect.signature(function).parameters.values())
    lines = [_parameter(p) for p in parameters]
    lines.insert(next(i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), "*")
    formula = (inspect.getdoc(function) or "").split("\n", 1)[0].split("   (")[0]
    return f"\ndef {name}(\n" + "".join(f"    {line},\n" for line in lines) + f') -> Tensor:\n    """{formula}"""\n'


def _parameter(parameter: inspect.Parameter) -> str:
    declared = f"{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return declared
    default = json.dumps(parameter.default) if isinstance(parameter.default, str) else repr(parameter.default)
    return f"{declared} = {default}"
