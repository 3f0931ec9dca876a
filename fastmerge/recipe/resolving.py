"""What a parameter is for one tensor, and which sources of a slice are inputs of its method."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInput, Problem
from ..methods import REQUIRED, Method, Parameter
from ..steps.inputs import Inputs
from .settings import at
from .types import Parameters, Recipe, SliceSpec, SourceSpec


def inputs_of(slice_: SliceSpec, method: Method, recipe: Recipe) -> Inputs[SourceSpec]:
    """Return the sources of a slice by their part in the merge, as mergekit chooses them.

    A method with a base does not count the base among its inputs, listed or not. A method without one treats it as
    an input like the others; with ``models:`` a base that is not listed is the last input, with ``slices:`` it is none.
    """
    ref = slice_.base or recipe.base
    if ref is None:
        return Inputs(None, slice_.sources)
    listed = next((source for source in slice_.sources if source.model == ref), None)
    base = listed or SourceSpec(ref, where=slice_.where)
    if method.base == "ignored":
        appended = () if listed or slice_.sources[0].layers else (base,)
        return Inputs(None, (*slice_.sources, *appended))
    return Inputs(base, tuple(source for source in slice_.sources if source.model != ref))


def parameters_of(recipe: Recipe, method: Method) -> tuple[Parameter, ...]:
    """Return the parameters that ``method`` has under the semantics of the recipe."""
    return method.parameters_of(recipe.semantics or method.semantics[0])


def levels(recipe: Recipe, slice_: SliceSpec, source: SourceSpec | None, parameter: Parameter) -> list[Parameters]:
    """Return the tables that may set ``parameter``, strongest first: source, slice, recipe."""
    own = [source.parameters] if source is not None and parameter.per_model else []
    return [*own, slice_.parameters, recipe.parameters]


def resolve(
    recipe: Recipe, slice_: SliceSpec, source: SourceSpec | None, parameter: Parameter, tensor_name: str, t: float
) -> Any:
    """Return the value of ``parameter`` for one tensor.

    The source's own value wins over the slice's, that over the recipe's, that over the method's default; a level whose
    filters do not match the tensor says nothing.

    Args:
        source:      the input, for per-model parameters; None for the others.
        tensor_name: name in the output; filters are parts of it.
        t:           depth of the tensor in its slice, 0 for the first layer, 1 for the last; mergekit takes 0 for
                     tensors outside the layers (embedding, final norm, head).
    Raises:
        InvalidInput: a required parameter has no value, or the value has the wrong type or is out of range.
    """
    for table in levels(recipe, slice_, source, parameter):
        setting = table.get(parameter.name)
        for branch in setting.branches if setting else ():
            if branch.matches(tensor_name):
                try:
                    return at(parameter, branch, t)
                except ValueError as error:
                    raise InvalidInput([Problem(branch.where, str(error))]) from None
    if parameter.default is not REQUIRED:
        return parameter.default
    place = source or slice_
    what = f"{recipe.method} needs {parameter.name!r}, and nothing sets it for {tensor_name}"
    raise InvalidInput([Problem(place.where, what, f"{how_to_set(parameter)}, without a filter")])


def how_to_set(parameter: Parameter) -> str:
    """Return what to do where a parameter has no value."""
    block, _, key = parameter.name.rpartition(".")
    return f"add {key}: under {block or 'parameters'}:"
