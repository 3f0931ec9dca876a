"""Checks of state dicts that are to be merged: names, shapes, dtypes, devices, and memory that tensors share."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from ..errors import Problem
from ..kernels import FLOATS, why_not_plain

_FLOATS = tuple(dtype.torch for dtype in FLOATS)

StateDict = Mapping[str, Tensor]
"""Tensors by name. Where one is expected, a module stands for its own."""


def input_problems(named: Mapping[str, StateDict]) -> list[Problem]:
    """Find what keeps the state dicts from being merged; the first one is what the others are compared with."""
    problems = []
    (first, reference), *others = named.items() or [("models", {})]
    for label, state in others:
        if missing := reference.keys() - state.keys():
            problems.append(Problem(label, f"lacks tensors that {first} has: {_listed(missing)}"))
        if extra := state.keys() - reference.keys():
            problems.append(Problem(label, f"has tensors that {first} lacks: {_listed(extra)}"))
    for label, state in named.items():
        for name, tensor in state.items():
            if name in reference:
                problems += _tensor_problems(f"{label}[{name!r}]", tensor, f"{first}[{name!r}]", reference[name])
    return problems


def _listed(names: Set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _tensor_problems(where: str, tensor: Any, like_where: str, like: Any) -> list[Problem]:
    if not isinstance(tensor, Tensor):
        return [Problem(where, f"is a {type(tensor).__name__}; expected a tensor", "take it out of the state dicts")]
    if not isinstance(like, Tensor):
        return []
    if why := why_not_plain(tensor):
        return [Problem(where, why)]
    if tensor.shape != like.shape:
        return [Problem(where, f"has shape {tuple(tensor.shape)}, {like_where} has {tuple(like.shape)}")]
    if tensor.device != like.device:
        return [Problem(where, f"is on {tensor.device}, {like_where} is on {like.device}")]
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        return [Problem(where, f"has dtype {tensor.dtype}; expected float32, bfloat16 or float16", "convert it")]
    if tensor.is_floating_point() != like.is_floating_point():
        return [Problem(where, f"has dtype {tensor.dtype}, {like_where} has {like.dtype}")]
    if not tensor.is_contiguous():
        return [Problem(where, f"is not contiguous (strides {tensor.stride()})", "call .contiguous() first")]
    if not tensor.is_floating_point() and not torch.equal(tensor, like):
        return [Problem(where, f"has dtype {tensor.dtype} and differs from {like_where}", "only equal ones are copied")]
    return []


def out_problems(reference: StateDict, out: Mapping[str, Tensor] | None, dtype: torch.dtype | None) -> list[Problem]:
    if dtype is not None and dtype not in _FLOATS:
        return [Problem("dtype", f"is {dtype}; expected float32, bfloat16 or float16")]
    if out is None:
        return []
    if missing := reference.keys() - out.keys():
        return [Problem("out", f"lacks {_listed(missing)}", "it needs a tensor for every name")]
    problems = []
    for name, like in reference.items():
        where, target = f"out[{name!r}]", out[name]
        if why := why_not_plain(target):
            problems.append(Problem(where, why))
        elif target.shape != like.shape or target.device != like.device or not target.is_contiguous():
            expected = f"a contiguous tensor of shape {tuple(like.shape)} on {like.device}"
            problems.append(Problem(where, f"is {tuple(target.shape)} on {target.device}; expected {expected}"))
        elif like.is_floating_point() and target.dtype not in (_FLOATS if dtype is None else (dtype,)):
            expected = "float32, bfloat16 or float16" if dtype is None else str(dtype)
            problems.append(Problem(where, f"has dtype {target.dtype}; expected {expected}"))
        elif not like.is_floating_point() and target.dtype != like.dtype:
            problems.append(Problem(where, f"has dtype {target.dtype}; expected {like.dtype}"))
    return problems


def shared_memory(
    named: Mapping[str, StateDict], out: Mapping[str, Tensor] | None
) -> tuple[dict[str, str], list[Problem]]:
    """Return the first name of every name that is tied to one, and where an output would overwrite what is read later.

    Tied names are one tensor in the outputs, if given, and in every input. They are merged once, under the first name.
    """
    reference = next(iter(named.values()))
    floats = [name for name, tensor in reference.items() if tensor.is_floating_point() and tensor.numel()]
    names = [name for name in floats if reference[name].data_ptr()]
    states = dict(named) if out is None else {"out": out, **named}
    first: dict[tuple, str] = {}
    tied = {}
    for name in names:
        key = (reference[name].shape, *(_range(state[name]) for state in states.values()))
        if first.setdefault(key, name) != name:
            tied[name] = first[key]
    if out is None:
        return tied, []
    untied = list(first.values())
    problems = []
    reached: list[tuple[_Range, str, str]] = []
    for here, label, name in sorted(
        (_range(state[name]), label, name) for label, state in states.items() for name in untied
    ):
        reached = [item for item in reached if item[0][0] == here[0] and item[0][2] > here[1]]
        for there, other_label, other in reached:
            # An output may be the input of its own name: every element is read before it is written.
            if "out" in (label, other_label) and (name, here) != (other, there):
                where = f"{label}[{name!r}]"
                problems.append(Problem(where, f"shares memory with {other_label}[{other!r}]", "clone one of them"))
        reached.append((here, label, name))
    return tied, problems


# A device, the first address, and the one after the last.
_Range = tuple[str, int, int]


def _range(tensor: Tensor) -> _Range:
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
