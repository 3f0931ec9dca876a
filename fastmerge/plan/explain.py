"""Why an output tensor is what it is: the method, its parameters after gradients and filters, and the sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..recipe.filters import NameFilter
from .rows import Row
from .types import InputTensor, OutputTensor, Plan


@dataclass(frozen=True)
class Origin:
    """What the recipe says of one output tensor.

    Attributes:
        method, semantics: of the part of the recipe that the tensor belongs to.
        where:  that part, with its line.
        depth:  in its slice, 0 for the first layer and outside the layers, 1 for the last layer.
        values: parameters by name; a tuple has one value per model.
        base:   that of the base, for methods that take one.
        inputs: of the other models, in the order of the recipe.
    """

    method: str
    semantics: str
    where: str
    depth: float
    values: Mapping[str, Any]
    base: InputTensor | None
    inputs: tuple[InputTensor, ...]

    @classmethod
    def of(cls, row: Row, values: Mapping[str, Any]) -> Origin:
        part = row.members.part
        where = f"{part.where}: {part.note}" if part.note else part.where
        return cls(part.method.name, part.semantics, where, row.t, values, row.inputs.base, row.inputs.tensors)


def explain(plan: Plan, pattern: str) -> Iterator[dict[str, Any]]:
    """Yield what is known of every tensor whose name is ``pattern``, or holds it, or matches it as a glob.

    ``plan`` is one that was made with ``explain=True``. Tensors that are left out are explained last.
    """
    names = {output.name for output in plan.outputs}
    left = [item for item in plan.dropped if item.name not in names]
    chosen = _chosen(pattern, names | {item.name for item in left})
    for output in plan.outputs:
        if output.name in chosen:
            yield _of_output(plan, output)
    for item in left:
        if item.name in chosen:
            yield {"name": item.name, "dropped": item.reason, "model": plan.models[item.model].reference}


def _chosen(pattern: str, names: set[str]) -> set[str]:
    if pattern in names:
        return {pattern}
    matches = NameFilter("glob" if set("*?[") & set(pattern) else "filter", pattern).matches
    return {name for name in names if matches(name)}


def _of_output(plan: Plan, output: OutputTensor) -> dict[str, Any]:
    origin: Origin = plan.origins[output.name]
    shared = {name: value for name, value in origin.values.items() if not isinstance(value, tuple)}
    own = {name: value for name, value in origin.values.items() if isinstance(value, tuple)}
    copied = output.inputs.every[0] if output.method == "copy" else None
    return {
        "name": output.name,
        "method": origin.method,
        "semantics": origin.semantics,
        "said_by": origin.where,
        "depth": origin.depth,
        "parameters": shared,
        "base": _source(plan, origin.base, {}),
        "sources": [
            _source(plan, tensor, {name: values[k] for name, values in own.items()})
            for k, tensor in enumerate(origin.inputs)
        ],
        "copied_from": None if copied is None else plan.models[copied.model].reference,
        "output": {
            "dtype": str(output.dtype),
            "rounded_first_to": None if output.through is None else str(output.through),
            "shape": list(output.shape),
            "file": plan.shards[output.shard].filename,
        },
    }


def _source(plan: Plan, tensor: InputTensor | None, parameters: dict[str, Any]) -> dict[str, Any] | None:
    if tensor is None:
        return None
    return {
        "model": plan.models[tensor.model].reference,
        "tensor": tensor.name,
        "dtype": str(tensor.dtype),
        "decoded_from": tensor.coded.format if tensor.coded else None,
        "adapters": len(tensor.adapters),
        "rounded_to": None if tensor.rounded is None else str(tensor.rounded),
        "file": tensor.path,
        "parameters": parameters,
    }
