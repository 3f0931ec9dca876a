"""What a parameter is for one tensor."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInput, Problem
from ..methods import REQUIRED, Parameter
from .parts import Part
from .settings import at
from .types import SourceSpec


def resolve(
    part: Part,
    source: SourceSpec | None,
    parameter: Parameter,
    tensor_name: str,
    t: float,
    name_in_source: str | None = None,
) -> Any:
    """Return the value of ``parameter`` for one tensor.

    A rule's value wins over the source's own, that over the slice's, the module's, the recipe's and the method's
    default; a level whose filters do not match the tensor says nothing.

    Args:
        part:        the part that the tensor belongs to.
        source:      the input, for per-model parameters; None for the others.
        tensor_name: name in the output, for filters.
        t:           depth of the tensor in its slice, 0 for the first layer, 1 for the last; mergekit takes 0 for
                     tensors outside the layers (embedding, final norm, head).
        name_in_source: its name in the input, where that is another one: mergekit's ``filter`` goes by it.
    Raises:
        InvalidInput: a required parameter has no value, or the value has the wrong type or is out of range.
    """
    for table in part.levels(source, parameter):
        setting = table.get(parameter.name)
        for branch in setting.branches if setting else ():
            if branch.matches(tensor_name, name_in_source):
                try:
                    return at(parameter, branch, t)
                except ValueError as error:
                    raise InvalidInput([Problem(branch.where, str(error))]) from None
    if parameter.default is not REQUIRED:
        return parameter.default
    what = f"{part.method.name} needs {parameter.name!r}, and nothing sets it for {tensor_name}"
    raise InvalidInput([Problem((source or part).where, what, f"{how_to_set(parameter)}, without a filter")])


def how_to_set(parameter: Parameter) -> str:
    """Return what to do where a parameter has no value."""
    block, _, key = parameter.name.rpartition(".")
    return f"add {key}: under {block or 'parameters'}:"
