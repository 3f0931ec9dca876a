"""The slices of a recipe with their models opened: who takes part in what, from which layer on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..checkpoint.layers import find_stacks
from ..recipe.parts import Part, Parts, parts_of
from ..recipe.types import ModelRef, Module, Recipe, SourceSpec
from ..steps.inputs import Inputs
from .findings import Findings
from .models import OpenModel

Key: TypeAlias = tuple[ModelRef, tuple[int, int] | None]
"""What an input of a slice reads: a model, and its layers."""


@dataclass(frozen=True)
class Members:
    """A part of the recipe and its models, opened."""

    part: Part
    models: Inputs[OpenModel]

    def only(self, inputs: Inputs[SourceSpec], models: Inputs[OpenModel]) -> Members:
        """Return the members that merge these inputs alone."""
        return Members(replace(self.part, inputs=inputs), models)


@dataclass(frozen=True)
class OpenSlice:
    """A slice of the recipe.

    Attributes:
        parts:   by tensor.
        members: the parts opened, by the part's id.
        models:  every model that takes part, the base or the first input of the slice first.
        starts:  first layer of each; empty for a recipe without layer ranges.
        length:  number of layers; 0 for a recipe without layer ranges.
    """

    parts: Parts
    members: Mapping[int, Members]
    models: Mapping[Key, OpenModel]
    starts: Mapping[Key, int]
    length: int

    def of(self, tensor_name: str) -> Members:
        """Return what an output tensor is merged from."""
        return self.members[id(self.parts.of(tensor_name))]


def key_of(source: SourceSpec) -> Key:
    """Return what a source reads."""
    return source.model, source.layers


def open_slices(
    recipe: Recipe, module: Module, models: Mapping[ModelRef, OpenModel], findings: Findings
) -> list[OpenSlice] | None:
    """Open the slices of a module; ``models`` are restricted to its tensors. None where a layer range is wrong."""
    before = len(findings.problems)
    whole = len(module.slices) == 1 and module.slices[0].sources[0].layers is None
    slices = []
    for slice_ in module.slices:
        parts = parts_of(recipe, module, slice_)
        members = {
            id(part): Members(part, part.inputs.map(lambda source: models[source.model])) for part in parts.every
        }
        every = [parts.default, *parts.every]
        sources = list({key_of(source): source for part in every for source in part.inputs.every}.values())
        opened = {key_of(source): models[source.model] for source in sources}
        if whole:
            slices.append(OpenSlice(parts, members, opened, {}, 0))
            continue
        ranges = {key_of(source): source.layers or (0, models[source.model].stacks.layers) for source in sources}
        length = _length(sources, ranges, opened, findings)
        slices.append(OpenSlice(parts, members, opened, {key: start for key, (start, _) in ranges.items()}, length))
    return slices if len(findings.problems) == before else None


def _length(
    sources: list[SourceSpec],
    ranges: Mapping[Key, tuple[int, int]],
    opened: Mapping[Key, OpenModel],
    findings: Findings,
) -> int:
    """Return the number of layers of a slice; report ranges that do not fit."""
    first, last = ranges[key_of(sources[0])]
    for source in sources:
        model, (start, stop) = opened[key_of(source)], ranges[key_of(source)]
        if halves := model.stacks.halves:
            what = f"{model} has layers in {' and in '.join(halves)}, and layer_range does not say which it means"
            findings.problem(source.where, what, "write models: for whole models, or modules: for one of the two")
        elif stop > model.stacks.layers:
            what = f"layer_range [{start}, {stop}] exceeds the {model.stacks.layers} layers of {model}"
            findings.problem(source.where, what, f"end it at {model.stacks.layers} or less")
        elif stop - start != last - first:
            what = f"layer_range [{start}, {stop}] has another length than [{first}, {last}]"
            findings.problem(source.where, what, "give all sources of a slice as many layers")
    return last - first


def restrict(model: OpenModel, belongs: Callable[[str], bool]) -> OpenModel:
    """Return a model without the tensors that do not belong to a module."""
    tensors = {name: tensor for name, tensor in model.tensors.items() if belongs(name)}
    names = {name: parts for name, parts in model.layer_names.items() if name in tensors}
    return replace(
        model, tensors=tensors, layer_names=names, stacks=find_stacks(names.values(), model.checkpoint.config)
    )
