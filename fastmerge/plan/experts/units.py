"""Inputs by the unit that methods see: one projection of one expert, or the stack of a layer, whatever is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ...checkpoint.experts import ROLES, Naming, Stack, in_block, naming_of, single_of, stack_of
from ...checkpoint.layers import find_stacks, split_layer
from ...dtypes import promoted
from ...recipe.types import ModelRef, Recipe
from ..findings import Findings, listed
from ..models import OpenModel
from ..types import Gathered, InputTensor, Run


def as_units(
    recipe: Recipe, models: Mapping[ModelRef, OpenModel], findings: Findings
) -> tuple[dict[ModelRef, OpenModel], Naming]:
    """Return the models with their experts in one layout and under the names of the first model, and its own layout.

    With ``semantics: mergekit`` in the recipe, the unit is the stack of a layer, as in mergekit 0.1.5; else it is one
    projection of one expert. What is quantized or adapted as one stack stays one in all models, with a note.
    """
    namings = {reference: naming_of(model.tensors) for reference, model in models.items()}
    donor = namings[recipe.models[0]]
    whole = recipe.semantics == "mergekit"
    alike = all(naming.stacked is None or (naming.stacked == whole and naming == donor) for naming in namings.values())
    if alike or donor.stacked is None:
        return dict(models), donor
    renamed = {ref: _renamed(model, donor) for ref, model in models.items()}
    _compare(models, renamed, renamed[recipe.models[0]], findings)
    findings.stop()
    kept = {
        name
        for model in renamed.values()
        for name, t in model.items()
        if (stack := stack_of(name)) and not _cuttable(t, stack)
    }
    if kept and not whole:
        findings.note(
            f"{len(kept)} stacks of experts are quantized or adapted as one, so methods see them whole: "
            f"{listed(sorted(kept), 3)}"
        )
    changed = {}
    for reference, tensors in renamed.items():
        tensors = _joined(tensors, None if whole else kept)
        if not whole:
            tensors = _split(tensors, donor, kept)
        changed[reference] = _with(models[reference], tensors)
    return changed, donor


def _compare(
    models: Mapping[ModelRef, OpenModel],
    renamed: Mapping[ModelRef, Mapping[str, InputTensor]],
    donor: Mapping[str, InputTensor],
    findings: Findings,
) -> None:
    """Report stacks that are transposed in some model: their halves lie in other places."""
    for reference, tensors in renamed.items():
        for name, tensor in tensors.items():
            other = donor.get(name) if stack_of(name) else None
            if (
                other is not None
                and len(tensor.shape) == 3
                and tensor.shape[:0:-1] == other.shape[1:] != tensor.shape[1:]
            ):
                what = f"is {list(tensor.shape)}, but {list(other.shape)} in the first model: it is transposed"
                remedy = "save one of them again, as the other is: save_pretrained(..., save_original_format=...)"
                findings.problem(f"{models[reference].checkpoint.folder}: {name}", what, remedy)
                break


def _with(model: OpenModel, tensors: dict[str, InputTensor]) -> OpenModel:
    names = {name: parts for name in tensors if (parts := split_layer(name)) is not None}
    stacks = find_stacks(names.values(), model.checkpoint.config)
    return replace(model, tensors=tensors, layer_names=names, stacks=stacks)


def _renamed(model: OpenModel, donor: Naming) -> dict[str, InputTensor]:
    """Return a model's tensors under the donor's names: of the block with the experts, and of their projections."""
    tensors = {}
    for old, name in in_block(model.tensors, donor.block).items():
        if single := single_of(name):
            projection = donor.projections[ROLES[single.projection]]
            name = f"{single.before}{single.block}.experts.{single.expert}.{projection}.weight"
        tensors[name] = model.tensors[old] if name == old else replace(model.tensors[old], name=name)
    return tensors


def _cuttable(tensor: InputTensor, stack: Stack) -> bool:
    """True where experts are ranges of bytes of their stack."""
    stored = tensor.coded is None or tensor.coded.stacked
    whole = stored and not tensor.adapters and tensor.gathered is None and tensor.made is None
    return whole and len(tensor.shape) == stack.dimensions


def _split(tensors: dict[str, InputTensor], donor: Naming, kept: set[str]) -> dict[str, InputTensor]:
    found = {}
    for name, tensor in tensors.items():
        if (stack := stack_of(name)) is None or name in kept:
            found[name] = tensor
            continue
        down = tensors.get(f"{stack.before}{stack.block}.experts.down_proj")
        halves = stack.parameter == "gate_up_proj" and down is not None and _gate_above_up(tensor, down)
        if halves:
            called = [f"{donor.projections[role]}.weight" for role in ("gate", "up")]
        else:
            called = [_whole_part(stack, donor)]
        experts, rows = tensor.shape[:2]
        shape, size = (rows // len(called), *tensor.shape[2:]), tensor.nbytes // max(experts * len(called), 1)
        for i in range(experts * len(called)):
            own = f"{stack.before}{stack.block}.experts.{i // len(called)}.{called[i % len(called)]}"
            coded = tensor.coded and tensor.coded.entry(i)
            found[own] = replace(
                tensor, name=own, offset=tensor.offset + i * size, nbytes=size, shape=shape, coded=coded
            )
    return found


def _whole_part(stack: Stack, donor: Naming) -> str:
    """Return what one expert's part of a stack is called, where it is not cut into halves."""
    if stack.parameter.endswith("_bias"):
        return f"{stack.parameter.removesuffix('_bias')}.bias"
    return f"{donor.projections['down'] if stack.parameter == 'down_proj' else stack.parameter}.weight"


def _gate_above_up(both: InputTensor, down: InputTensor) -> bool:
    """True for stacks [experts, 2 inner, hidden] and [experts, hidden, inner]; False for their transposes."""
    return len(down.shape) == 3 and both.shape[2] == down.shape[1] and both.shape[1] == 2 * down.shape[2]


def _joined(tensors: dict[str, InputTensor], names: set[str] | None) -> dict[str, InputTensor]:
    """Return the tensors with single experts put together to stacks: those of ``names``, or all."""
    parts: dict[str, dict[tuple[int, str], InputTensor]] = {}
    for name, tensor in tensors.items():
        if single := single_of(name):
            before, block, parameter = single.stack
            stack = f"{before}{block}.experts.{parameter}"
            if names is None or stack in names:
                parts.setdefault(stack, {})[single.expert, ROLES[single.projection]] = tensor
    stacks = {name: made for name, own in parts.items() if (made := _stack(name, own)) is not None}
    found: dict[str, InputTensor] = {}
    for name, tensor in tensors.items():
        single = single_of(name)
        stack = "{}{}.experts.{}".format(*single.stack) if single else ""
        if stack in stacks:
            found.setdefault(stack, stacks[stack])
        else:
            found[name] = tensor
    return found


def _stack(name: str, parts: Mapping[tuple[int, str], InputTensor]) -> InputTensor | None:
    """Return the stack of single experts, which is put together as it is read; None where one is missing."""
    roles = ("down",) if name.endswith("down_proj") else ("gate", "up")
    experts = len(parts) // len(roles)
    order = [(expert, role) for expert in range(experts) for role in roles]
    if set(order) != parts.keys() or len({tensor.shape for tensor in parts.values()}) > 1:
        return None
    sources = tuple(parts[place] for place in order)
    rows, columns = sources[0].shape
    shape = (experts, rows * len(roles), columns)
    dtype = promoted(source.value_dtype for source in sources)
    runs = tuple(Run(i * rows, rows, ((i, 0),)) for i in range(len(sources)))
    return InputTensor(
        sources[0].model,
        name,
        f"{name} of model {sources[0].model}, stacked",
        0,
        math.prod(shape) * dtype.itemsize,
        dtype,
        shape,
        gathered=Gathered(sources, runs, len(sources) * rows, promoted(source.stored_dtype for source in sources)),
    )
