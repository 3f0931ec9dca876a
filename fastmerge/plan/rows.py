"""Pairs the tensors of the inputs: one row per tensor of the output, before dtypes, values and files are decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..checkpoint.layers import belongs_before_layers
from ..recipe.types import ModelRef, Module, Recipe, SliceSpec, SourceSpec
from ..steps.inputs import Inputs
from .findings import Findings, listed
from .heads import Table, settle_heads
from .missing import Missing
from .models import OpenModel, is_computed
from .slices import Key, Members, OpenSlice, key_of, open_slices, restrict
from .stacking import check_stack
from .types import InputTensor

if TYPE_CHECKING:
    from .mixtures.families import Shape

_REST = "the rest"


@dataclass(frozen=True)
class Row:
    """One tensor of the output.

    Attributes:
        name:    in the output.
        t:       its depth in the slice, 0 outside the layers.
        members: what it is merged from, and how.
        inputs:  the tensors.
        like:    name of the tensor that it is a copy of, whose parameters and random numbers it shares; mostly "".
        prefix:  what slices put before the names of its layer in the output; "" elsewhere.
        origins: what stands there in the inputs.
    """

    name: str
    t: float
    members: Members
    inputs: Inputs[InputTensor]
    like: str = ""
    prefix: str = ""
    origins: Mapping[Key, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name by which parameters are chosen and random numbers are drawn."""
        return self.like or self.name

    def name_in(self, source: SourceSpec) -> str:
        """Return the name by which an input has the tensor: another one where slices number the layers anew."""
        origin = self.origins.get(key_of(source))
        return self.key if origin is None else origin + self.key.removeprefix(self.prefix)

    @property
    def names(self) -> Iterator[str]:
        """The names that filters may mean: that of the output, and where slices number the layers anew, the inputs'."""
        yield self.key
        if self.origins:
            yield from map(self.name_in, self.members.part.inputs.tensors)

    @property
    def pairs(self) -> Iterator[tuple[InputTensor, OpenModel]]:
        """Every input with its model, the base first."""
        return zip(self.inputs.every, self.members.models.every, strict=True)


@dataclass(frozen=True)
class Stacked:
    """The layers of a module that slices cut: its stack in the output, and for each slice its first model."""

    stack: str
    slices: tuple[tuple[OpenModel, int, int], ...]


@dataclass
class Rows:
    """Every row, the reasons for tensors that are left out on purpose, and what is wrong.

    Attributes:
        rows:     in the order of the output.
        stacked:  the modules whose layers are cut and put together anew.
        dropped:  reason by (model, name).
        tied:     whether the output's head is tied to its embedding, where that is decided here; None elsewhere.
        findings: so far.
        mixture:  what the config of a mixture of experts says; None for other merges.
        missing:  what becomes of tensors that some models lack.
    """

    findings: Findings
    rows: list[Row] = field(default_factory=list)
    stacked: list[Stacked] = field(default_factory=list)
    dropped: dict[tuple[int, str], str] = field(default_factory=dict)
    tied: bool | None = None
    mixture: Shape | None = None
    missing: Missing = field(init=False)

    def __post_init__(self) -> None:
        self.missing = Missing(self.findings, self.dropped)


def pair_tensors(recipe: Recipe, models: Mapping[ModelRef, OpenModel], findings: Findings) -> Rows:
    """Return the rows of the output. ``models`` holds every model of the recipe."""
    found = Rows(findings)
    modules = [*recipe.modules, *_rest(recipe)]
    for module in modules:
        own = _restricted(modules, module, models)
        slices = open_slices(recipe, module, own, findings)
        if slices is None:
            continue
        before = len(found.rows)
        if slices[0].starts:
            _pair_slices(found, slices, by_token=recipe.tokenizer is not None)
        else:
            _check_names(found, slices[0])
            _pair_whole(found, slices[0])
        if module.name == _REST and len(found.rows) > before:
            names = listed([row.name for row in found.rows[before:]])
            donor = recipe.models[0]
            findings.note(f"{len(found.rows) - before} tensors belong to no module; they are {donor}'s: {names}")
    found.missing.report()
    return found


def _rest(recipe: Recipe) -> Iterator[Module]:
    """Yield a module of the tensors that no module of the recipe has: those of the base, or of the first model."""
    if all(module.filters for module in recipe.modules):
        where = recipe.where("modules")
        donor = SourceSpec(recipe.models[0], where=where)
        yield Module(_REST, (), (SliceSpec((donor,), donor.model, where=where, method="passthrough"),))


def _check_names(found: Rows, part: OpenSlice) -> None:
    """Refuse models whose tensors have other names than those of the first one: they would all be left out."""
    members = part.members[id(part.parts.default)]
    first, *others = members.models.every
    for model in others if members.part.missing == "base" else ():
        shared = len(first.tensors.keys() & model.tensors.keys())
        if 2 * shared < min(len(first.tensors), len(model.tensors)):
            what = f"only {shared} of its {len(model.tensors)} tensors have a name that {first} has"
            found.findings.problem(model.checkpoint.folder, what, "merge models of one architecture")


def _restricted(
    modules: Sequence[Module], module: Module, models: Mapping[ModelRef, OpenModel]
) -> Mapping[ModelRef, OpenModel]:
    """Return the models with the tensors of one module."""
    if len(modules) == 1 and not module.filters:
        return models
    others = [filter_ for other in modules if other is not module for filter_ in other.filters]

    def belongs(name: str) -> bool:
        if module.filters:
            return any(filter_.matches(name) for filter_ in module.filters)
        return not any(filter_.matches(name) for filter_ in others)

    return {reference: restrict(model, belongs) for reference, model in models.items()}


def _pair_whole(found: Rows, part: OpenSlice) -> None:
    """Pair models tensor by tensor, by name, in the order of the first one's files."""
    first = next(iter(part.models.values()))
    tables = {key: model.tensors for key, model in part.models.items()}
    settled = _settle_heads(found, part, tables, list(part.models.values()))
    for name, members, inputs in _align(found, part, settled):
        parts = first.layer_names.get(name)
        layers = first.stacks.counts.get(parts.stack, 0) if parts else 0
        t = min(_depth(parts.index, layers), 1.0) if parts and layers else 0.0
        found.rows.append(Row(name, t, members, inputs))


def _pair_slices(found: Rows, slices: Sequence[OpenSlice], by_token: bool) -> None:
    """Stack the layers of the slices. Tensors before the layers come from the first slice, the others from the last."""
    check_stack(slices, found.findings, by_token)
    head, tail = slices[0], slices[-1]
    stack, position = next(iter(head.models.values())).stacks.main, 0
    for name, members, inputs in _align(found, head, _outside(head, belongs_before_layers)):
        found.rows.append(Row(name, 0.0, members, inputs))
    for part in slices:
        for i in range(part.length):
            layer = {key: model.layers[part.starts[key] + i] for key, model in part.models.items()}
            prefix, t = _layer(stack, position), _depth(i, part.length)
            origins = {key: _layer(model.stacks.main, part.starts[key] + i) for key, model in part.models.items()}
            for name, members, inputs in _align(found, part, layer, prefix):
                found.rows.append(Row(name, t, members, inputs, prefix=prefix, origins=origins))
            position += 1
    # Layers that predict further ahead stay behind the last one, whatever its number is now.
    for i in range(max(model.stacks.beyond for model in tail.models.values())):
        ahead = {key: _ahead(model, i) for key, model in tail.models.items()}
        prefix = _layer(stack, position + i)
        origins = {key: _layer(model.stacks.main, model.stacks.layers + i) for key, model in tail.models.items()}
        for name, members, inputs in _align(found, tail, ahead, prefix):
            found.rows.append(Row(name, 1.0, members, inputs, prefix=prefix, origins=origins))
    every = list({model.index: model for part in slices for model in part.models.values()}.values())
    behind = _outside(tail, lambda name: not belongs_before_layers(name))
    settled = _settle_heads(found, tail, behind, every)
    for name, members, inputs in _align(found, tail, settled):
        found.rows.append(Row(name, 0.0, members, inputs))
    firsts = [(part, *next(iter(part.models.items()))) for part in slices]
    taken = tuple((model, part.starts[key], part.length) for part, key, model in firsts)
    found.stacked.append(Stacked(stack or "", taken))


def _settle_heads(
    found: Rows, part: OpenSlice, tables: Mapping[Key, Table], every: Sequence[OpenModel]
) -> dict[Key, Table]:
    settled, tied = settle_heads(tables, part.models, every, found.dropped, found.findings)
    if tied is not None and found.tied is not False:
        found.tied = tied
    return settled


def _ahead(model: OpenModel, index: int) -> Table:
    """Return a layer beyond those that the config counts; an empty one where there is none."""
    return model.layers[model.stacks.layers + index] if index < model.stacks.beyond else {}


def _outside(part: OpenSlice, belongs: Callable[[str], bool]) -> dict[Key, Table]:
    return {
        key: {name: tensor for name, tensor in model.outside.items() if belongs(name)}
        for key, model in part.models.items()
    }


def _layer(stack: str | None, number: int) -> str:
    return f"{stack}.{number}." if stack else f"{number}."


def _depth(index: int, layers: int) -> float:
    return index / (layers - 1) if layers > 1 else 1.0


def _align(
    found: Rows, part: OpenSlice, tables: Mapping[Key, Table], prefix: str = ""
) -> Iterator[tuple[str, Members, Inputs[InputTensor]]]:
    """Yield the tensors of the output by name, in the order of the first table, with what each is merged from."""
    every = list(tables.values())
    computed = {name for table in every for name in table if is_computed(table[name])}
    for key, table in tables.items():
        for name in computed & table.keys():
            found.dropped[part.models[key].index, table[name].name] = "a buffer that is computed from the config"
    for name in dict.fromkeys(name for table in every for name in table):
        if name in computed:
            continue
        members = part.of(prefix + name)
        tensors = [tables[key_of(source)].get(name) for source in members.part.inputs.every]
        present = [tensor for tensor in tensors if tensor is not None]
        if len(present) == len(tensors):
            yield prefix + name, members, members.models.like(present)
        elif settled := found.missing.settle(prefix + name, members, tensors):
            yield prefix + name, *settled
