"""LoRA of stacked experts (PEFT's ``target_parameters``), for models that store them stacked or one by one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ...checkpoint.experts import single_of
from ...checkpoint.peft.types import Experts
from ...checkpoint.types import TensorEntry
from ..findings import Findings
from ..types import Adapter, InputTensor

__all__ = ["attach_experts"]

# Models whose experts are stored as [experts, in, out], where the shapes do not tell.
_IN_OUT = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")

# PEFT wraps parameters in the order in which modules have them, the last one outermost.
_ORDER = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")

_LAYER = re.compile(r"(?:\w+\.)?\d+\.$")
_MODULE = re.compile(r"(.*\.)[^.]+\.experts")

Stored = Callable[[str, TensorEntry], InputTensor]
Pair = tuple[TensorEntry, TensorEntry]


class _Place(NamedTuple):
    """A tensor of the base that is all of a parameter, ``expert`` -1, or rows of one expert of it."""

    tensor: InputTensor
    expert: int
    first: int


class _Parameter(NamedTuple):
    """A parameter [experts, rows, columns] of the module, and where the base stores it."""

    shape: tuple[int, int, int]
    places: Sequence[_Place]


def attach_experts(
    adapters: Mapping[str, Experts],
    tensors: dict[str, InputTensor],
    config: Mapping[str, Any] | None,
    path: str,
    stored: Stored,
    found: Findings,
) -> None:
    """Give the experts of every module their terms; what does not fit is added to ``found``."""
    if not adapters:
        return
    in_out = (config or {}).get("model_type") in _IN_OUT
    stacked = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 3}
    single = _single_experts(tensors)
    for module, experts in adapters.items():
        layer = _layer(match[1]) if (match := _MODULE.fullmatch(module)) else ""
        parameters = {name: _stacked(module, name, stacked) or single.get((layer, name)) for name in experts.ranks}
        lacking = [name for name, parameter in parameters.items() if parameter is None]
        there = {name: parameter for name, parameter in parameters.items() if parameter is not None}
        if lacking:
            what = f"the model has no {module}.{lacking[0]}, neither stacked nor one expert after the other"
            found.problem(path, what, "name the base that the adapter was trained on")
            continue
        if any(place.tensor.adapters for parameter in there.values() for place in parameter.places):
            found.problem(path, f"{module} is changed twice", "merge the adapter with PEFT first")
            continue
        assigned = _assign(experts, there, in_out)
        if assigned is None:
            shapes = "; ".join(f"{name} {list(parameter.shape)}" for name, parameter in there.items())
            pairs = "; ".join(f"{list(up.shape)} {list(down.shape)}" for up, down in experts.pairs)
            what = f"{module}: the factors {pairs} do not fit the experts {shapes}"
            found.problem(path, what, "name the base that the adapter was trained on")
            continue
        for name, pair in assigned.items():
            for place in there[name].places:
                adapter = _adapter(f"{module}.{name}", pair, there[name], place, experts, in_out, stored)
                tensors[place.tensor.name] = replace(place.tensor, adapters=(adapter,))


def _stacked(module: str, name: str, tensors: Mapping[str, InputTensor]) -> _Parameter | None:
    """Return a parameter that the base stores under its name, or under one that differs before the layer's number."""
    ends = f"{module}.{name}"
    while any(part.isdigit() for part in ends.split(".")):
        own = [tensor for other, tensor in tensors.items() if f".{other}".endswith(f".{ends}")]
        if own:
            count, rows, columns = own[0].shape
            return _Parameter((count, rows, columns), [_Place(own[0], -1, 0)]) if len(own) == 1 else None
        ends = ends.partition(".")[2]
    return None


def _single_experts(tensors: Mapping[str, InputTensor]) -> dict[tuple[str, str], _Parameter]:
    """Return the parameters that the base stores expert by expert, by layer and name."""
    found: dict[tuple[str, str], dict[int, dict[int, InputTensor]]] = {}
    for own, tensor in tensors.items():
        single = single_of(own) if len(tensor.shape) == 2 else None
        if single and (layer := _layer(single.before)):
            _, _, name = single.stack
            found.setdefault((layer, name), {}).setdefault(single.expert, {})[single.half] = tensor
    parameters = {}
    for (layer, name), experts in found.items():
        halves = 2 if name == "gate_up_proj" else 1
        every = [experts.get(expert, {}) for expert in range(len(experts))]
        shapes = {tensor.shape for own in every for tensor in own.values()}
        if len(shapes) == 1 and all(len(own) == halves for own in every):
            (rows, columns) = shapes.pop()
            places = [_Place(t, expert, half * rows) for expert, own in enumerate(every) for half, t in own.items()]
            parameters[layer, name] = _Parameter((len(every), halves * rows, columns), places)
    return parameters


def _layer(before: str) -> str:
    """Return the end of what lies before a block that names its layer, ``layers.3.``; empty where none does."""
    match = _LAYER.search(before)
    return match[0] if match else ""


def _assign(experts: Experts, parameters: Mapping[str, _Parameter], in_out: bool) -> dict[str, Pair] | None:
    """Return the pair of every parameter: the order that fits, that of PEFT's wrappers first."""
    if len(experts.pairs) != len(parameters):
        return None
    known = sorted(parameters, key=lambda name: _ORDER.index(name) if name in _ORDER else -1, reverse=True)
    for names in itertools.permutations(known):
        each = dict(zip(names, experts.pairs, strict=True))
        if all(_fits(pair, parameters[name], experts.ranks[name], in_out) for name, pair in each.items()):
            return each
    return None


def _fits(pair: Pair, parameter: _Parameter, rank: int, in_out: bool) -> bool:
    """True for factors of this parameter. A single expert is a linear layer, [out, in]."""
    turned = _turned(pair, parameter.shape, rank, in_out)
    return turned is False or (turned is True and parameter.places[0].expert < 0)


def _turned(pair: Pair, shape: tuple[int, int, int], rank: int, in_out: bool) -> bool | None:
    """True for experts stored as [in, out], False for [out, in]; None where the factors fit neither."""
    (out, wide), (tall, width) = (entry.shape if len(entry.shape) == 2 else (-1, -1) for entry in pair)
    count, rows, columns = shape
    if wide != tall or wide != rank * count:
        return None
    fits = [turned for turned, own in ((False, (out, width)), (True, (width, out))) if own == (rows, columns)]
    return in_out if len(fits) == 2 else fits[0] if fits else None


def _adapter(
    name: str, pair: Pair, parameter: _Parameter, place: _Place, experts: Experts, in_out: bool, stored: Stored
) -> Adapter:
    own = name.rpartition(".")[2]
    rank, scale = experts.ranks[own], experts.scales[own]
    up, down = (stored(f"{name}:lora_{side}", entry) for side, entry in zip("BA", pair, strict=True))
    turned = bool(_turned(pair, parameter.shape, rank, in_out))
    if place.expert >= 0:
        # A stored expert needs its own rows of both factors: lora_A has one expert after the other.
        up = _rows(up, place.first, place.tensor.shape[0])
        down = _rows(down, place.expert * rank, rank)
    return Adapter("experts", (up, down), scale, turned, (parameter.shape[0], place.expert))


def _rows(tensor: InputTensor, first: int, count: int) -> InputTensor:
    each = tensor.nbytes // tensor.shape[0]
    offset = tensor.offset + first * each
    return replace(tensor, offset=offset, nbytes=count * each, shape=(count, *tensor.shape[1:]))
