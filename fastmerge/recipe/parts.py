"""Parts: which method merges a tensor, from which models, with which tables of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..methods import Method, Parameter, get_method, why_not, with_blocks
from ..steps.inputs import Inputs
from .types import Module, Parameters, Recipe, Rule, SliceSpec, SourceSpec


@dataclass(frozen=True)
class Part:
    """The tensors of a slice that are merged in one way.

    Attributes:
        method:    with its blocks.
        inputs:    as the recipe has them; a base for methods that take one.
        stronger:  tables that set parameters before those of the models, strongest first.
        weaker:    tables that set what no model sets, strongest first.
        semantics: whose definition of the method is followed.
        missing:   what becomes of a tensor that some models lack.
        where:     place in the recipe.
        by_rule:   True where a rule says so.
        note:      what the author may not expect; empty for most.
    """

    method: Method
    inputs: Inputs[SourceSpec]
    stronger: tuple[Parameters, ...]
    weaker: tuple[Parameters, ...]
    semantics: str
    missing: str
    where: str
    by_rule: bool = False
    note: str = ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that the method has under these semantics."""
        return self.method.parameters_of(self.semantics)

    def levels(self, source: SourceSpec | None, parameter: Parameter) -> list[Parameters]:
        """Return the tables that may set ``parameter``, strongest first: rule, source, slice, module, recipe."""
        own = [source.parameters] if source is not None and parameter.per_model else []
        return [*self.stronger, *own, *self.weaker]

    def copying(self, source: SourceSpec, note: str = "") -> Part:
        """Return the part that copies one input."""
        method = get_method("passthrough")
        return replace(
            self, method=method, inputs=Inputs(None, (source,)), stronger=(), weaker=(),
            semantics=method.semantics[0], note=note,
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The parts of a slice. ``default`` is for the tensors that no rule matches."""

    default: Part
    rules: tuple[tuple[Rule, Part], ...] = ()

    def of(self, tensor_name: str) -> Part:
        """Return the part that an output tensor belongs to: that of the first rule that matches its name."""
        for rule, part in self.rules:
            if rule.filter is None or rule.filter.matches(tensor_name):
                return part
        return self.default

    @property
    def every(self) -> Iterator[Part]:
        """The parts of the rules, and the default."""
        yield from (part for _, part in self.rules)
        yield self.default


def parts_of(recipe: Recipe, module: Module, slice_: SliceSpec) -> Parts:
    """Return the parts of a slice. The methods of the recipe must exist."""
    default = _part(recipe, module, slice_, None)
    return Parts(default, tuple((rule, _part(recipe, module, slice_, rule)) for rule in recipe.rules))


def every_part(recipe: Recipe) -> Iterator[tuple[SliceSpec, Part]]:
    """Yield the parts of all slices."""
    for module in recipe.modules:
        for slice_ in module.slices:
            yield from ((slice_, part) for part in parts_of(recipe, module, slice_).every)


def method_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the merge methods that the recipe names, its own first, each once."""
    others = [*(part.method for part in recipe.slices), *(rule.method for rule in recipe.rules)]
    return tuple(dict.fromkeys([recipe.method, *(name for name in others if name)]))


def _part(recipe: Recipe, module: Module, slice_: SliceSpec, rule: Rule | None) -> Part:
    name = (rule and rule.method) or slice_.method or recipe.method
    method = _with_blocks_of(recipe, get_method(name))
    sources = rule.sources if rule and rule.sources else slice_.sources
    inputs = inputs_of(recipe, slice_, method, sources, copies=bool(rule and rule.sources))
    where = rule.where if rule else slice_.where
    semantics = recipe.semantics if recipe.semantics in method.semantics else method.semantics[0]
    stronger: tuple[Parameters, ...] = ()
    tables: tuple[Parameters, ...] = (slice_.parameters, module.parameters, recipe.parameters)
    missing = (rule and rule.missing) or recipe.missing
    if rule and rule.sources:
        tables = (rule.parameters, *tables)
    elif rule:
        stronger = (rule.parameters,)
    part = Part(method, inputs, stronger, tables, semantics, missing, where, rule is not None)
    if inputs.base and not inputs.tensors and merges_base_alone(method):
        return part.copying(inputs.base, f"only the base {inputs.base.model} is listed, so the result is the base")
    appended = inputs.tensors[len(sources) :]
    if appended:
        return replace(part, note=f"base_model {appended[0].model} is one more input: {method.name} has no base")
    return part


def place_of_method(recipe: Recipe, part: Part) -> str:
    """Return where the recipe names the method of a part, or the part that has one of its own."""
    own = part.method.name.partition("+")[0] != recipe.method.partition("+")[0]
    return part.where if own else recipe.where("merge_method")


def merges_base_alone(method: Method) -> bool:
    """True for a method that adds a sum of deltas to the base: without other models it gives the base."""
    return method.adds_delta and method.inputs[0] <= 1


def _with_blocks_of(recipe: Recipe, method: Method) -> Method:
    """Add the blocks of the recipe, where ``method`` can take them and has none yet."""
    blocks = [] if "+" in method.name else recipe.method.split("+")[1:]
    taken = frozenset(block for block in blocks if why_not(method, block) is None)
    return with_blocks(method, taken) if taken else method


def inputs_of(
    recipe: Recipe, slice_: SliceSpec, method: Method, sources: Sequence[SourceSpec], copies: bool = False
) -> Inputs[SourceSpec]:
    """Return the sources by their part in the merge, as mergekit chooses them.

    A method with a base does not count the base among its inputs, listed or not. A method without one treats it as
    an input like the others; with ``models:`` a base that is not listed is the last input, with ``slices:`` it is none.

    Args:
        sources: of the slice, or of a rule.
        copies:  a base that is not listed is no input.
    """
    ref = slice_.base or recipe.base
    if ref is None:
        return Inputs(None, tuple(sources))
    listed = next((source for source in (*sources, *slice_.sources) if source.model == ref), None)
    base = listed or SourceSpec(ref, where=slice_.where)
    if method.base == "ignored":
        appended = () if copies or listed or slice_.sources[0].layers else (base,)
        return Inputs(None, (*sources, *appended))
    return Inputs(base, tuple(source for source in sources if source.model != ref))
