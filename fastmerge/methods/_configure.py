"""From keyword arguments to what a method is told: names, kinds, ranges and counts are checked, defaults filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InvalidInput, Problem, nearest
from ..steps.method import REQUIRED, Group, Layout, Method, Parameter
from ._blocks import BLOCKS, why_not, with_blocks


@dataclass(frozen=True)
class Configured:
    """A method with its parameters, the same for every tensor. ``layouts``: the places of the tensors in a model."""

    method: Method
    semantics: str
    models: int
    values: Mapping[str, Any]
    seed: int
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def within(self, names: Iterable[str]) -> Configured:
        """Return the merge of a whole model, whose tensors have these names."""
        if not self.method.uses_layout:
            return self
        from ..checkpoint.layers import layouts  # of no use to others, and slow to import

        return replace(self, layouts=layouts(names))

    def group(self, name: str, shape: Sequence[int]) -> Group:
        """Return what the method is told of a tensor."""
        return Group(name, tuple(shape), self.models, self.values, self.seed, self.semantics, self.layouts.get(name))


def configure(
    method: Method, *, base: bool, models: int, semantics: str | None, seed: int, parameters: Mapping[str, Any]
) -> Configured:
    """Check the arguments of a merge and return the configured method.

    Args:
        method:     the method.
        base:       True when there is a base.
        models:     number of inputs without the base.
        semantics:  a profile of the method; None takes its default.
        seed:       0 <= seed < 2**64.
        parameters: values by name, per-model ones as one value for all or one per model. A trailing
                    underscore is dropped (``lambda_``). A block is a mapping, ``boost={"beta": 0.2}``.
    Raises:
        InvalidInput: with everything that is wrong.
    """
    problems = _count_problems(method, base, models)
    method, parameters = _take_blocks(method, parameters, problems)
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        problems.append(Problem("seed", f"is {seed!r}; expected a whole number, 0 <= seed < 2**64"))
    semantics = semantics or method.semantics[0]
    if semantics not in method.semantics:
        offered = ", ".join(method.semantics)
        problems.append(
            Problem("semantics", f"{semantics!r} is not offered for {method.name}; expected one of {offered}")
        )
        raise InvalidInput(problems)
    known = {p.name: p for p in method.parameters_of(semantics)}
    for name in [name for name in parameters if name not in known]:
        close = nearest(name, known)
        remedy = f"did you mean {close}?" if close else f"it has {', '.join(known) or 'none'}"
        problems.append(Problem(name, f"is no parameter of {method.name} with semantics {semantics}", remedy))
    values = {}
    for name, parameter in known.items():
        value = _plain(parameters.get(name, parameter.default))
        if value is REQUIRED:
            problems.append(Problem(name, f"is required by {method.name}: {parameter.doc}"))
            continue
        problems += _value_problems(parameter, value, models)
        values[name] = _per_model(value, models) if parameter.per_model else value
    if problems:
        raise InvalidInput(problems)
    return Configured(method, semantics, models, values, seed)


def _plain(value: Any) -> Any:
    """Return the numbers of a tensor or an array; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _take_blocks(
    method: Method, parameters: Mapping[str, Any], problems: list[Problem]
) -> tuple[Method, dict[str, Any]]:
    """Return the method with the blocks among its arguments, and all values by their full names."""
    values, taken = {}, set()
    for name, value in parameters.items():
        reason = why_not(method, name) if name in BLOCKS and value is not None else None
        if name not in BLOCKS:
            values[name.removesuffix("_")] = value
        elif reason:
            problems.append(Problem(name, f"cannot be used: {reason}"))
        elif isinstance(value, Mapping):
            taken.add(name)
            values |= {f"{name}.{key.removesuffix('_')}": item for key, item in value.items()}
        elif value is not None:
            problems.append(Problem(name, f"is {value!r}; expected a mapping, {name}={{...}}"))
    return with_blocks(method, frozenset(taken)) if taken else method, values


def _count_problems(method: Method, base: bool, models: int) -> list[Problem]:
    problems = []
    if method.base == "required" and not base:
        problems.append(Problem("base", f"is None; {method.name} requires a base"))
    if method.base == "ignored" and base:
        problems.append(
            Problem("base", f"is given, but {method.name} takes none", "list it among the models or leave it out")
        )
    least, most = method.inputs
    if models < least or (most is not None and models > most):
        expected = (
            f"exactly {least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        )
        extra = " besides the base" if method.base == "required" else ""
        problems.append(Problem("models", f"has {models}; {method.name} takes {expected}{extra}"))
    return problems


def _value_problems(parameter: Parameter, value: Any, models: int) -> list[Problem]:
    name = parameter.name
    if not (parameter.per_model and _is_list(value)):
        return [] if parameter.accepts(value) else [Problem(name, f"is {value!r}; expected {parameter.expected}")]
    if len(value) != models:
        return [Problem(name, f"has {len(value)} values for {models} models; expected one value, or one per model")]
    return [
        Problem(f"{name}[{i}]", f"is {item!r}; expected {parameter.expected}")
        for i, item in enumerate(value)
        if not parameter.accepts(item)
    ]


def _per_model(value: Any, models: int) -> tuple:
    return tuple(value) if _is_list(value) else (value,) * models


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
