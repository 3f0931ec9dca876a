"""Merge methods as functions on tensors: ``fastmerge.functional.<method>``, one for every method there is.

An editor completes their names and parameters from ``functional.pyi``.

A method on a base and fine-tunes is called ``f(base, tensors, ...)``, one that takes no base
``f(tensors, ...)``; ``tensors`` is a sequence, or one tensor. Parameters are keywords, named as in
recipes (``lambda`` as ``lambda_``); per-model ones are one value for all or a sequence.

    >>> import torch
    >>> from fastmerge import functional
    >>> base = torch.zeros(4)
    >>> a, b = torch.tensor([1.0, 2.0, 3.0, -4.0]), torch.tensor([1.0, -1.0, 1.0, 2.0])
    >>> functional.linear([a, b], weight=[3, 1])
    tensor([ 1.0000,  1.2500,  2.5000, -2.5000])
    >>> functional.task_arithmetic(base, [a, b], weight=1, lambda_=0.5)
    tensor([ 1.0000,  0.5000,  2.0000, -1.0000])
    >>> functional.ties(base, [a, b], weight=1, density=0.5)
    tensor([ 1.,  0.,  3., -4.])
    >>> functional.slerp(base, a, t=1)
    tensor([ 1.,  2.,  3., -4.])
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .methods import BLOCKS, REQUIRED, Method, Parameter, get_method, method_called, method_names, why_not
from .tensors import merge_tensors

__all__ = ["merge_tensors"]


def __getattr__(name: str) -> Callable[..., Tensor]:
    if name.startswith("_") or method_called(name) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *method_names()])


@functools.cache
def _function(name: str) -> Callable[..., Tensor]:
    """Make the function of a method: ``merge_tensors`` with its parameters in the signature and its docstring."""
    method = get_method(name)

    def with_base(base: Tensor, tensors: Sequence[Tensor] | Tensor, **arguments: Any) -> Tensor:
        return merge_tensors(base, tensors, method=name, **arguments)

    def without_base(tensors: Sequence[Tensor] | Tensor, **arguments: Any) -> Tensor:
        return merge_tensors(None, tensors, method=name, **arguments)

    function: Any = without_base if method.base == "ignored" else with_base
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{inspect.getdoc(method)}\n\nThe other arguments are those of ``merge_tensors``."
    function.__signature__ = _signature(function, method)
    return function


def _signature(function: Callable, method: Method) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if method.base == "optional":
        own[0] = own[0].replace(annotation="Tensor | None")
    parameters = [
        inspect.Parameter(
            "lambda_" if p.name == "lambda" else p.name, keyword, annotation=_annotation(p),
            default=inspect.Parameter.empty if p.default is REQUIRED else p.default,
        )
        for p in method.parameters
    ]  # fmt: skip
    parameters += [
        inspect.Parameter(block, keyword, annotation="Mapping[str, Any] | None", default=None)
        for block in BLOCKS if why_not(method, block) is None
    ]  # fmt: skip
    common = [
        p for p in inspect.signature(merge_tensors).parameters.values() if p.kind is keyword and p.name != "method"
    ]
    return inspect.Signature([*own, *parameters, *common], return_annotation="Tensor")


def _annotation(parameter: Parameter) -> str:
    one = f"Literal{json.dumps(parameter.choices)}" if parameter.choices else parameter.kind.__name__
    return f"{one} | Sequence[{one}]" if parameter.per_model else one
