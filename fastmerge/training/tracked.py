"""What is averaged of a model: its parameters by name, and each one's part on this rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidInput, Problem
from ..kernels import FLOATS, why_not_plain
from ..sharded import local
from .shards import reshard, unwrapped

__all__ = ["Buffers", "Named", "Source", "Tracked"]

Source = torch.nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Named = dict[str, Tensor]
Buffers = Literal["copy", "average"]

_OTHER = "is another parameter than the one averaged"
_FLOATS = tuple(dtype.torch for dtype in FLOATS)


class Tracked:
    """The tensors that are averaged, by name, and the model that they belong to, where there is one.

    Attributes:
        model: as it is inside of wrappers; None for parameters without one.
        named: parameters and buffers, as they were when this was made.
    """

    def __init__(self, model_or_params: Source, buffers: Buffers, trainable_only: bool):
        source = unwrapped(model_or_params)
        self.model = source if isinstance(source, torch.nn.Module) else None
        if not isinstance(source, torch.nn.Module | Mapping):
            source = list(source)
        reshard(source)
        self.named = _named_of(source, buffers, trainable_only)
        others = () if self.model is None else self.named.items()
        self._buffers = frozenset(name for name, tensor in others if not isinstance(tensor, torch.nn.Parameter))
        modules = {} if self.model is None else dict(self.model.named_modules())
        places = ((name, *name.rpartition(".")) for name in self.named if name not in self._buffers)
        self._homes = [(name, modules[home]._parameters, own) for name, home, _, own in places if modules]
        given = source.values() if isinstance(source, Mapping) else source
        every = given.parameters() if isinstance(given, torch.nn.Module) else given
        known = {id(tensor) for tensor in self.named.values()}
        self._left = [parameter for parameter in every if id(parameter) not in known]

    @property
    def unfrozen(self) -> bool:
        """True where a parameter that was left out as frozen is trained now."""
        return any(parameter.requires_grad for parameter in self._left)

    def values(self) -> Named:
        """Return what lies on this rank of all that is averaged.

        Raises:
            InvalidInput: the model has another parameter under a name by now.
        """
        if self._replaced():
            reshard(self.model)  # whole weights of ``fully_shard`` stand in their place
            if replaced := self._replaced():
                raise InvalidInput([Problem(name, _OTHER, "make a new averager") for name in replaced])
        values = {}
        for name, tensor in self.named.items():
            # A buffer is whichever tensor the model has under its name: moving a model makes new ones.
            if name in self._buffers and self.model is not None:
                tensor = self.model.get_buffer(name)
            values[name] = local(tensor)
        return values

    def _replaced(self) -> list[str]:
        """Return the names under which the model has other parameters than those that are averaged."""
        return [name for name, home, own in self._homes if home.get(own) is not self.named[name]]

    def target(self, model: Any) -> Any:
        """Return the model that is meant, this one for None, with shards where it has some."""
        target = self.model if model is None else unwrapped(model)
        reshard(target)
        return target

    def targets(self, model: Source | None) -> Named:
        """Return the tensors of a model that averages go into; None is for parameters without a model.

        Raises:
            InvalidInput: it lacks some, or they have another layout.
        """
        if model is None:
            return self.named
        found = _named_of(model, "average" if self._buffers else "copy", trainable_only=False)
        problems = []
        for name, mine in self.named.items():
            other = found.get(name)
            if other is None:
                problems.append(Problem(name, "is averaged, and the model has no such tensor"))
            elif model is self.model and other is not mine and name not in self._buffers:
                problems.append(Problem(name, _OTHER, "make a new averager"))
            elif _layout(other) != _layout(mine):
                problems.append(Problem(name, f"is {_layout(other)}, and its average {_layout(mine)}"))
        if problems:
            raise InvalidInput(problems)
        return {name: found[name] for name in self.named}

    def copy_buffers(self, target: Any) -> None:
        """Give another model the buffers that are not averaged, as they are."""
        if self.model is None or not isinstance(target, torch.nn.Module) or target is self.model:
            return
        buffers = _persistent_buffers(target)
        for name, buffer in _persistent_buffers(self.model).items():
            if name in buffers and name not in self._buffers:
                buffers[name].copy_(buffer)


def _named_of(source: Source, buffers: Buffers, trainable_only: bool) -> Named:
    """Return the tensors to average by name, tied ones once, under their first name.

    Args:
        source:  a model, or parameters: by name, or numbered from 0.
        buffers: "average" takes the float ones along that belong to the state of a model.
        trainable_only: leave parameters out that are frozen now.
    """
    if isinstance(source, torch.nn.Module):
        named: Named = dict(source.named_parameters())
    elif isinstance(source, Mapping):
        named = dict(source)
    else:
        named = {str(i): parameter for i, parameter in enumerate(source)}
    found: Named = {}
    seen: set[int] = set()
    for name, parameter in named.items():
        floats = parameter.is_floating_point() or parameter.requires_grad
        if floats and id(parameter) not in seen and not (trainable_only and not parameter.requires_grad):
            seen.add(id(parameter))
            found[name] = parameter
    if buffers == "average" and isinstance(source, torch.nn.Module):
        found |= {name: buffer for name, buffer in _persistent_buffers(source).items() if buffer.is_floating_point()}
    problems = [problem for name, tensor in found.items() for problem in _problems(name, tensor)]
    if not found:
        problems = [Problem("model_or_params", "has no parameters to average", "unfreeze some, or give others")]
    if problems:
        raise InvalidInput(problems)
    return found


def _persistent_buffers(model: torch.nn.Module) -> Named:
    """Return the buffers that belong to the state of a model, each once."""
    transient = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules() for name in module._non_persistent_buffers_set
    }  # fmt: skip
    return {name: buffer for name, buffer in model.named_buffers() if name not in transient}


def _problems(name: str, tensor: Tensor) -> list[Problem]:
    if tensor.dtype not in _FLOATS:
        return [Problem(name, f"has dtype {tensor.dtype}; expected float32, bfloat16 or float16", "leave it out")]
    if any(placement.is_partial() for placement in getattr(tensor, "placements", ())):
        return [Problem(name, "is a DTensor of partial sums", "redistribute it first")]
    with torch.no_grad():
        why = why_not_plain(local(tensor))
    return [Problem(name, why)] if why else []


def _layout(tensor: Tensor) -> str:
    where = getattr(tensor, "placements", None)
    return str(tuple(tensor.shape)) + ("" if where is None else f" {where} on {tensor.device_mesh}")  # type: ignore[attr-defined]
