"""Everything about a recipe that can be checked without its models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..errors import Problem
from ..methods import REQUIRED, Parameter, get_method, method_called
from .parts import Part, every_part, method_names, place_of_method
from .resolving import how_to_set
from .settings import coerce
from .types import Recipe, Scalar, SliceSpec, SourceSpec


def check(recipe: Recipe) -> list[Problem]:
    """Return every problem of ``recipe``; empty when it can be planned. Methods that do not exist are not checked.

    Checked: base and number of models, layer ranges, required parameters, types and ranges of all values (also in
    gradients and behind filters), and that the methods follow the recipe's semantics where they have a choice.
    """
    problems = list(_layers(recipe))
    names = method_names(recipe)
    if any(method_called(name.partition("+")[0]) is None for name in names):
        return problems
    unfit = [name for name in names if recipe.semantics not in (None, *get_method(name).semantics)]
    if len(unfit) < len(names):
        # Beside a method that has them, one of which there is a single definition needs no choice.
        unfit = [name for name in unfit if len(get_method(name).semantics) > 1]
    if unfit:
        for name in unfit:
            what = f"{name} does not have the semantics {recipe.semantics!r}"
            where = recipe.where("semantics", "merge_method")
            problems.append(Problem(where, what, f"available: {', '.join(get_method(name).semantics)}"))
        return problems
    for slice_, part in every_part(recipe):
        problems += _models(recipe, slice_, part)
        problems += _required(part)
        problems += _values(part)
    return list(dict.fromkeys(problems))


def notes(recipe: Recipe) -> Iterator[str]:
    """Yield what mergekit does without saying so, and what it does not do, once the recipe is sound."""
    for _, part in every_part(recipe):
        if part.note:
            yield f"{part.where}: {part.note}"
        base = part.inputs.base
        if base and base.parameters:
            yield f"{base.where}: is the base model; its own parameters have no effect"
        for model, count in Counter(source.model for source in part.inputs.tensors).items():
            if count > 1:
                yield f"{part.where}: {model} is listed {count} times; every entry counts"
        yield from _saturated(part)


def _saturated(part: Part) -> Iterator[str]:
    for parameter in part.parameters:
        if not parameter.saturates or parameter.maximum is None:
            continue
        for source in part.inputs.tensors:
            for table in part.levels(source, parameter):
                for branch in table[parameter.name].branches if parameter.name in table else ():
                    values = branch.value if isinstance(branch.value, tuple) else (branch.value,)
                    if any(float(value) > parameter.maximum for value in values):
                        yield f"{branch.where}: what is above {parameter.maximum:g} counts as {parameter.maximum:g}"


def _models(recipe: Recipe, slice_: SliceSpec, part: Part) -> Iterator[Problem]:
    inputs, method = part.inputs, part.method
    if inputs.base is None and method.base == "required":
        yield Problem(place_of_method(recipe, part), f"{method.name} needs a base model", "add base_model:")
        return
    sliced = slice_.sources[0].layers is not None
    listed = {source.model for source in slice_.sources}
    for source in inputs.every if sliced else ():
        if source.model not in listed:
            if source is inputs.base:
                what = f"the base model {source.model} is not one of the sources, so its layers are not known"
                yield Problem(slice_.where, what, "add it to the sources with its layer_range")
            else:
                what = f"{source.model} is not one of the sources of every slice, so its layers are not known"
                yield Problem(part.where, what, "name a model of the slices")
            return
    least, most = method.inputs
    models = [str(source.model) for source in inputs.tensors]
    if len(models) < least or (most is not None and len(models) > most):
        expected = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        besides = " besides the base" if inputs.base else ""
        what = f"{method.name} takes {expected} model(s){besides}, found {len(models)}: {', '.join(models) or 'none'}"
        appended = len(models) > len(slice_.sources)
        remedy = "delete base_model: the method has none" if appended else "add or remove models"
        yield Problem(part.where, what, remedy)


def _required(part: Part) -> Iterator[Problem]:
    """Yield required parameters that no level sets. Filters that match too little are found when tensors are known."""
    for parameter in part.parameters:
        if parameter.default is not REQUIRED:
            continue
        sources: tuple[SourceSpec | None, ...] = part.inputs.tensors if parameter.per_model else (None,)
        for source in sources:
            if not any(parameter.name in table for table in part.levels(source, parameter)):
                name = f"{source.model}: " if source else ""
                what = f"{name}{part.method.name} needs a value for {parameter.name!r}"
                yield Problem((source or part).where, what, how_to_set(parameter))


def _values(part: Part) -> Iterator[Problem]:
    for parameter in part.parameters:
        # The parameters of a base have no effect, but a value that is none is a mistake there, too.
        for source in part.inputs.every:
            for table in part.levels(source, parameter):
                for branch in table[parameter.name].branches if parameter.name in table else ():
                    values = branch.value if isinstance(branch.value, tuple) else (branch.value,)
                    problem = next((what for value in values if (what := _wrong(parameter, value))), "")
                    if problem:
                        yield Problem(branch.where, problem)


def _wrong(parameter: Parameter, value: Scalar) -> str:
    try:
        coerce(parameter, value)
    except ValueError as error:
        return str(error)
    return ""


def _layers(recipe: Recipe) -> Iterator[Problem]:
    for module in recipe.modules:
        sources = [source for slice_ in module.slices for source in slice_.sources]
        if any(source.layers for source in sources) or len(module.slices) > 1:
            for source in sources:
                if source.layers is None:
                    yield Problem(source.where, f"{source.model} has no layer_range", "add layer_range: [first, end]")
        for source in sources:
            if source.layers and not 0 <= source.layers[0] < source.layers[1]:
                what = f"layer_range is {list(source.layers)}, expected [first, end] with 0 <= first < end"
                yield Problem(source.where, what, "the end is not included")
        for slice_ in module.slices:
            lengths = {source.layers[1] - source.layers[0] for source in slice_.sources if source.layers}
            if len(lengths) > 1:
                ranges = ", ".join(str(list(source.layers)) for source in slice_.sources if source.layers)
                what = f"the sources have different numbers of layers: {ranges}"
                yield Problem(slice_.where, what, "make them equal")
