"""Everything about a recipe that can be checked without its models."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import Problem
from ..methods import REQUIRED, Method, Parameter, all_methods, get_method
from ..steps.inputs import Inputs
from .resolving import how_to_set, inputs_of, levels, parameters_of
from .settings import coerce
from .types import ModelRef, Parameters, Recipe, Scalar, SliceSpec, SourceSpec


def check(recipe: Recipe) -> list[Problem]:
    """Return every problem of ``recipe``; empty when it can be planned. A method that does not exist is not checked.

    Checked: base and number of models, duplicates, layer ranges, required parameters, types and ranges of all values
    (also in gradients and behind filters), and that the method follows the recipe's semantics.
    """
    method = get_method(recipe.method) if recipe.method.partition("+")[0] in all_methods() else None
    problems = list(_layers(recipe))
    if method is None:
        return problems
    if recipe.semantics not in (None, *method.semantics):
        what = f"{recipe.method} does not have the semantics {recipe.semantics!r}"
        problems.append(Problem(recipe.path, what, f"available: {', '.join(method.semantics)}"))
        return problems
    for slice_ in recipe.slices:
        inputs = inputs_of(slice_, method, recipe)
        problems += _models(recipe, slice_, method, inputs)
        problems += _required(recipe, slice_, method, inputs)
    problems += _values(recipe, method)
    return list(dict.fromkeys(problems))


def _models(recipe: Recipe, slice_: SliceSpec, method: Method, inputs: Inputs[SourceSpec]) -> Iterator[Problem]:
    listed: set[ModelRef] = set()
    for source in slice_.sources:
        if source.model in listed:
            yield Problem(source.where, f"{source.model} is listed twice", "list it once and add up its weights")
        listed.add(source.model)
    if inputs.base is None and method.base == "required":
        yield Problem(recipe.path, f"{method.name} needs a base model", "add base_model:")
        return
    if inputs.base and inputs.base.model not in listed and slice_.sources[0].layers:
        what = f"the base model {inputs.base.model} is not one of the sources, so its layers are not known"
        yield Problem(slice_.where, what, "add it to the sources with its layer_range")
        return
    least, most = method.inputs
    models = [str(source.model) for source in inputs.tensors]
    if len(models) < least or (most is not None and len(models) > most):
        expected = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        besides = " besides the base" if inputs.base else ""
        what = f"{method.name} takes {expected} model(s){besides}, found {len(models)}: {', '.join(models) or 'none'}"
        appended = len(models) > len(slice_.sources)
        remedy = "delete base_model: the method has none" if appended else "add or remove models"
        yield Problem(slice_.where, what, remedy)


def _required(recipe: Recipe, slice_: SliceSpec, method: Method, inputs: Inputs[SourceSpec]) -> Iterator[Problem]:
    """Yield required parameters that no level sets. Filters that match too little are found when tensors are known."""
    for parameter in parameters_of(recipe, method):
        if parameter.default is not REQUIRED:
            continue
        for place in inputs.tensors if parameter.per_model else (slice_,):
            source = place if isinstance(place, SourceSpec) else None
            if not any(parameter.name in table for table in levels(recipe, slice_, source, parameter)):
                name = f"{source.model}: " if source else ""
                what = f"{name}{method.name} needs a value for {parameter.name!r}"
                yield Problem(place.where, what, how_to_set(parameter))


def _values(recipe: Recipe, method: Method) -> Iterator[Problem]:
    own = {parameter.name: parameter for parameter in parameters_of(recipe, method)}
    for table in _tables(recipe):
        for name, setting in table.items():
            for branch in setting.branches:
                values = branch.value if isinstance(branch.value, tuple) else (branch.value,)
                for value in values:
                    problem = _wrong(own[name], value) if name in own else ""
                    if problem:
                        yield Problem(branch.where, problem)
                        break


def _tables(recipe: Recipe) -> Iterator[Parameters]:
    yield recipe.parameters
    for slice_ in recipe.slices:
        yield slice_.parameters
        for source in slice_.sources:
            yield source.parameters


def _wrong(parameter: Parameter, value: Scalar) -> str:
    try:
        coerce(parameter, value)
    except ValueError as error:
        return str(error)
    return ""


def _layers(recipe: Recipe) -> Iterator[Problem]:
    sources = [source for slice_ in recipe.slices for source in slice_.sources]
    if any(source.layers for source in sources) or len(recipe.slices) > 1:
        for source in sources:
            if source.layers is None:
                yield Problem(source.where, f"{source.model} has no layer_range", "add layer_range: [first, end]")
    for source in sources:
        if source.layers and not 0 <= source.layers[0] < source.layers[1]:
            what = f"layer_range is {list(source.layers)}, expected [first, end] with 0 <= first < end"
            yield Problem(source.where, what, "the end is not included")
    for slice_ in recipe.slices:
        lengths = {source.layers[1] - source.layers[0] for source in slice_.sources if source.layers}
        if len(lengths) > 1:
            ranges = ", ".join(str(list(source.layers)) for source in slice_.sources if source.layers)
            yield Problem(slice_.where, f"the sources have different numbers of layers: {ranges}", "make them equal")
