"""What is averaged of a model: its parameters by name, and each one's part on this rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InvalidInput, Problem
from ..kernels import FLOATS, why_not_plain

__all__ = [
    "Buffers",
    "Named",
    "Source",
    "is_sharded",
    "like_shard",
    "local",
    "named_of",
    "reshard",
    "targets_in",
    "unwrapped",
]

Source = torch.nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Named = dict[str, Tensor]
Buffers = Literal["copy", "average"]

_FLOATS = tuple(dtype.torch for dtype in FLOATS)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which this rank has a part."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return what lies on this rank: a DTensor's own part, any other tensor as it is. No collective, no copy."""
    given: Any = tensor
    return given.to_local() if is_sharded(tensor) else tensor


def like_shard(part: Tensor, like: Tensor) -> Tensor:
    """Return a part of this rank as the DTensor that ``like`` is, or as it is where that one is none."""
    if not is_sharded(like):
        return part
    given: Any = like
    return type(given).from_local(
        part, given.device_mesh, given.placements, run_check=False, shape=given.shape, stride=given.stride()
    )


def unwrapped(model: Any) -> Any:
    """Return the model in the wrapper of torch.compile or of DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ == "DistributedDataParallel":
            inner = model.module
        if inner is None:
            return model
        model = inner


def reshard(model: Any) -> None:
    """Let modules under ``fully_shard`` drop whole weights that they keep after a forward pass.

    Until then they compute with these, not with their shards; and their parameters are no DTensors.
    """
    modules: Iterable[Any] = model.modules() if isinstance(model, torch.nn.Module) else ()
    for module in modules:
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FSDPModule" in kinds:
            module.reshard()
        elif "FullyShardedDataParallel" in kinds:
            what = "is under FullyShardedDataParallel, whose flat parameters have no shards of their own"
            raise InvalidInput([Problem("model", what, "shard it by torch.distributed.fsdp.fully_shard")])


def named_of(source: Source, buffers: Buffers, trainable_only: bool) -> Named:
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
        found |= {name: buffer for name, buffer in persistent_buffers(source).items() if buffer.is_floating_point()}
    problems = [problem for name, tensor in found.items() for problem in _problems(name, tensor)]
    if not found:
        problems = [Problem("model_or_params", "has no parameters to average", "unfreeze some, or give others")]
    if problems:
        raise InvalidInput(problems)
    return found


def persistent_buffers(model: torch.nn.Module) -> Named:
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


def targets_in(model: Source, tracked: Named, of: torch.nn.Module | None, buffers: frozenset[str]) -> Named:
    """Return the tensors of a model that averages go into.

    Args:
        model:   in which they are looked up by name.
        tracked: what is averaged, ``buffers`` among it.
        of:      the model that is averaged, where there is one.
    """
    found = named_of(model, "average" if buffers else "copy", trainable_only=False)
    problems = []
    for name, mine in tracked.items():
        other = found.get(name)
        if other is None:
            problems.append(Problem(name, "is averaged, and the model has no such tensor"))
        elif model is of and other is not mine and name not in buffers:
            problems.append(Problem(name, "is another parameter than the one averaged", "make a new averager"))
        elif _layout(other) != _layout(mine):
            problems.append(Problem(name, f"is {_layout(other)}, and its average {_layout(mine)}"))
    if problems:
        raise InvalidInput(problems)
    return {name: found[name] for name in tracked}


def _layout(tensor: Tensor) -> str:
    where = getattr(tensor, "placements", None)
    return str(tuple(tensor.shape)) + ("" if where is None else f" {where} on {tensor.device_mesh}")  # type: ignore[attr-defined]
