"""Pairs the tensors of the inputs: one row per tensor of the output, before dtypes, values and files are decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoint.layers import belongs_before_layers
from ..methods import Method
from ..recipe import inputs_of
from ..recipe.types import ModelRef, Recipe, SliceSpec, SourceSpec
from ..steps.inputs import Inputs
from .findings import Findings
from .models import OpenModel, is_computed, is_head
from .types import InputTensor


@dataclass(frozen=True)
class Members:
    """The inputs of a slice.

    Attributes:
        slice_:  of the recipe.
        sources: the inputs without the base, as the recipe has them.
        models:  the opened models, with a base where the method takes one.
        starts:  first layer of each model, base first; None for a recipe without layer ranges.
        length:  layers of the slice; 0 for a recipe without layer ranges.
    """

    slice_: SliceSpec
    sources: tuple[SourceSpec, ...]
    models: Inputs[OpenModel]
    starts: tuple[int, ...] | None
    length: int


@dataclass(frozen=True)
class Row:
    """One tensor of the output: its name, its depth t in the slice (0 outside the layers), its inputs."""

    name: str
    t: float
    members: Members
    inputs: Inputs[InputTensor]


@dataclass
class Rows:
    """Every row, the reasons for tensors that are left out on purpose, and what is wrong.

    Attributes:
        rows:     in the order of the output.
        dropped:  reason by (model, name).
        untied:   True when a head is written that is not tied to the embedding.
        findings: so far.
    """

    findings: Findings
    rows: list[Row] = field(default_factory=list)
    dropped: dict[tuple[int, str], str] = field(default_factory=dict)
    untied: bool = False


def pair_tensors(recipe: Recipe, method: Method, models: Mapping[ModelRef, OpenModel], findings: Findings) -> Rows:
    """Return the rows of the output. ``models`` holds every model of the recipe."""
    found = Rows(findings)
    slices = [m for slice_ in recipe.slices if (m := _members(recipe, slice_, method, models, findings))]
    if len(slices) != len(recipe.slices):
        return found
    if slices[0].starts is None:
        _pair_whole(found, slices[0])
    else:
        _pair_slices(found, slices)
    return found


def _members(
    recipe: Recipe, slice_: SliceSpec, method: Method, models: Mapping[ModelRef, OpenModel], findings: Findings
) -> Members | None:
    inputs = inputs_of(slice_, method, recipe)
    every = inputs.every
    opened = inputs.map(lambda source: models[source.model])
    if len(recipe.slices) == 1 and all(source.layers is None for source in every):
        return Members(slice_, inputs.tensors, opened, None, 0)
    ranges = [source.layers or (0, model.stacks.layers) for source, model in zip(every, opened.every, strict=True)]
    before = len(findings.problems)
    for source, model, (start, stop) in zip(every, opened.every, ranges, strict=True):
        if stop > model.stacks.layers:
            what = f"layer_range [{start}, {stop}] exceeds the {model.stacks.layers} layers of {model}"
            findings.problem(source.where, what, f"end it at {model.stacks.layers} or less")
        elif stop - start != ranges[0][1] - ranges[0][0]:
            what = f"layer_range [{start}, {stop}] has another length than [{ranges[0][0]}, {ranges[0][1]}]"
            findings.problem(source.where, what, "give all sources of a slice as many layers")
    if len(findings.problems) > before:
        return None
    starts = tuple(start for start, _ in ranges)
    return Members(slice_, inputs.tensors, opened, starts, ranges[0][1] - ranges[0][0])


def _pair_whole(found: Rows, members: Members) -> None:
    """Pair models tensor by tensor, by name, in the order of the first one's files."""
    first = members.models.every[0]
    tables = _settle_head(found, members, members.models.map(lambda model: model.tensors), members.models.every)
    for name, inputs in _align(found, members, tables):
        parts = first.layer_names.get(name)
        layers = first.stacks.counts.get(parts.stack, 0) if parts else 0
        t = min(_depth(parts.index, layers), 1.0) if parts and layers else 0.0
        found.rows.append(Row(name, t, members, inputs))


def _pair_slices(found: Rows, slices: Sequence[Members]) -> None:
    """Stack the layers of the slices. Tensors before the layers come from the first slice, the others from the last."""
    head, tail = slices[0], slices[-1]
    before = head.models.map(lambda model: {n: t for n, t in model.outside.items() if belongs_before_layers(n)})
    behind = tail.models.map(lambda model: {n: t for n, t in model.outside.items() if not belongs_before_layers(n)})
    for name, inputs in _align(found, head, before):
        found.rows.append(Row(name, 0.0, head, inputs))
    stack, position = head.models.every[0].stacks.main, 0
    for members in slices:
        assert members.starts is not None
        for i in range(members.length):
            starts = zip(members.models.every, members.starts, strict=True)
            layer = members.models.like([model.layers[start + i] for model, start in starts])
            prefix = f"{stack}.{position}." if stack else f"{position}."
            for rest, inputs in _align(found, members, layer):
                found.rows.append(Row(prefix + rest, _depth(i, members.length), members, inputs))
            position += 1
    every = list({model.index: model for members in slices for model in members.models.every}.values())
    for name, inputs in _align(found, tail, _settle_head(found, tail, behind, every)):
        found.rows.append(Row(name, 0.0, tail, inputs))


def _depth(index: int, layers: int) -> float:
    return index / (layers - 1) if layers > 1 else 1.0


def _settle_head(
    found: Rows, members: Members, tables: Inputs[dict[str, InputTensor]], models: Sequence[OpenModel]
) -> Inputs[dict[str, InputTensor]]:
    """Give every table an output head, or none of them one. ``models`` are those of all slices.

    A model that ties its head to its embedding has no tensor for it. Where any model has a head of its own, the tied
    ones take part with their embedding; where all are tied, redundant copies are left out.
    """
    settled = tables.map(dict[str, InputTensor])
    for name in {name for model in models for name in model.outside if is_head(name)}:
        having = [model for model in models if name in model.outside]
        if all(model.says_tied for model in having) and len(having) < len(models):
            for model, table in zip(members.models.every, settled.every, strict=True):
                if table.pop(name, None):
                    found.dropped[model.index, name] = "every model ties it to the embedding"
            continue
        for model, table in zip(members.models.every, settled.every, strict=True):
            if name not in table and model.says_tied is not False and model.embedding is not None:
                table[name] = model.embedding
        found.untied = found.untied or not all(model.says_tied for model in having)
    return settled


def _align(
    found: Rows, members: Members, tables: Inputs[dict[str, InputTensor]]
) -> Iterator[tuple[str, Inputs[InputTensor]]]:
    """Yield the names that all tables share, in the order of the first, with their tensors; report the others."""
    models, every = members.models.every, tables.every
    first = every[0]
    computed = {name for table in every for name in table if is_computed(table[name])}
    for model, table in zip(models, every, strict=True):
        for name in computed & table.keys():
            found.dropped[model.index, table[name].name] = "a buffer that is computed from the config"
    for model, table in zip(models[1:], every[1:], strict=True):
        if table.keys() != first.keys():
            _report(found.findings, models[0], model, first, table, computed)
    for name in first:
        if name not in computed and all(name in table for table in every):
            yield name, tables.like([table[name] for table in every])


def _report(findings: Findings, first: OpenModel, other: OpenModel, expected, got, computed: set[str]) -> None:
    for model, reference, names, mine in (
        (other, first, expected.keys() - got.keys() - computed, expected),
        (first, other, got.keys() - expected.keys() - computed, got),
    ):
        if names:
            listed = sorted(mine[name].name for name in names)
            what = f"{len(listed)} tensors of {reference} are missing: {', '.join(listed[:5])}"
            if len(listed) > 5:
                what += ", ..."
            findings.problem(model.checkpoint.folder, what, _remedy(listed))


def _remedy(names: Sequence[str]) -> str:
    if any(is_head(name) for name in names):
        return "its config says that the head is not tied to the embedding: the checkpoint is incomplete"
    return "merge models of one architecture, or remove the tensors from the model that has them"
