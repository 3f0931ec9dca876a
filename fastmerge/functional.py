"""Merge methods as functions on tensors: ``fastmerge.functional.<method>``, one for every method there is.

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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .errors import InvalidInput, Problem, nearest
from .methods import REQUIRED, Method, all_methods, configure
from .steps.driver import merge_source
from .steps.source import Resident

__all__ = ["find_method", "merge_tensors"]


@torch.no_grad()
def merge_tensors(
    base: Tensor | None,
    tensors: Sequence[Tensor] | Tensor,
    *,
    method: str,
    semantics: str | None = None,
    seed: int = 0,
    name: str = "tensor",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
    **parameters: Any,
) -> Tensor:
    """Return the merge of ``tensors`` (float32, bfloat16, float16) by any method.

    Args:
        base:       [...] the base, or None for methods that take none.
        tensors:    N tensors shaped like ``base``, contiguous, on its device; dtypes may differ.
        method:     as in recipes, e.g. ``"ties"``.
        semantics:  whose definition of the method, e.g. ``"peft"``; None takes the method's default.
        seed, name: key of the random numbers of a random method. The same pair draws the same mask. Spectral methods
                    and ``boost`` know a projection by its name in checkpoints; ``matrices="all"`` takes any matrix.
        dtype:      of the result; by default the inputs' (where they differ, what torch promotes them to).
        backend:    pin a backend; by default the fastest available.
        out:        [...] written into and returned; may be one of the inputs.
        parameters: of the method; ``lambda`` is spelt ``lambda_``. ``boost={"beta": 0.2}`` boosts the merged delta of
                    any method on deltas: see ``fastmerge methods boost``.
    Raises:
        InvalidInput: names, values or counts of arguments are wrong; all of them are named.
        ValueError:   tensors do not fit together, or the method cannot merge their values.
        BackendError: a pinned backend cannot run.
    """
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    configured = configure(
        find_method(method), base=base is not None, models=len(tensors),
        semantics=semantics, seed=seed, parameters=parameters,
    )  # fmt: skip
    source = Resident(base, tuple(tensors))
    if out is None:
        every = tensors if base is None else [base, *tensors]
        out = torch.empty_like(tensors[0], dtype=dtype or promoted(every))
    elif dtype not in (None, out.dtype):
        raise ValueError(f"dtype is {dtype}, but out has dtype {out.dtype}; leave one of them out")
    kernels.check_group(tensors, base, out)
    with kernels.use_backend(backend):
        merge_source(configured.method, configured.group(name, out.shape), source, out)
    return out


def find_method(name: str) -> Method:
    """Return the merge method that recipes call ``name``; InvalidInput suggests one where there is none."""
    methods = all_methods()
    if name not in methods:
        close = nearest(name, methods)
        remedy = f"did you mean {close}?" if close else f"available: {', '.join(methods)}"
        raise InvalidInput([Problem("method", f"{name!r} is unknown", remedy)])
    return methods[name]


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype that holds every value of ``tensors``: of bfloat16 and float16 it is float32."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors))


def __getattr__(name: str) -> Callable[..., Tensor]:
    if name.startswith("_") or name not in all_methods():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *all_methods()])


@functools.cache
def _function(name: str) -> Callable[..., Tensor]:
    """Make the function of a method: ``merge_tensors`` with its parameters in the signature and its docstring."""
    method = all_methods()[name]

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
    parameters = [
        inspect.Parameter(
            "lambda_" if p.name == "lambda" else p.name, keyword, annotation=_annotation(p.kind, p.per_model),
            default=inspect.Parameter.empty if p.default is REQUIRED else p.default,
        )
        for p in method.parameters
    ]  # fmt: skip
    common = [
        p for p in inspect.signature(merge_tensors).parameters.values() if p.kind is keyword and p.name != "method"
    ]
    return inspect.Signature([*own, *parameters, *common], return_annotation="Tensor")


def _annotation(kind: type, per_model: bool) -> str:
    return f"{kind.__name__} | Sequence[{kind.__name__}]" if per_model else kind.__name__
