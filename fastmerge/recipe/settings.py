"""Values of parameters: their forms in a recipe, their types and ranges, and gradients over layers."""

from __future__ import annotations

from typing import Any

from ..methods import Parameter
from .document import Findings, KeyPath
from .filters import KEYS, NameFilter, parse_filter
from .names import did_you_mean
from .types import Branch, Scalar, Setting

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_setting(findings: Findings, path: KeyPath, value: Any) -> Setting:
    """Make a Setting of a scalar, a gradient list, ``{filter, value}`` or a list of those; report what it cannot be."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        branches = [_read_branch(findings, (*path, index), item) for index, item in enumerate(value)]
    else:
        branches = [_read_branch(findings, path, value)]
    return Setting(tuple(branch for branch in branches if branch), findings.document.where(path))


def _read_branch(findings: Findings, path: KeyPath, part: Any) -> Branch | None:
    if not isinstance(part, dict):
        return _read_value(findings, path, part, None)
    for key in part:
        if key in (*KEYS, "value"):
            continue
        if close := did_you_mean(str(key), (*KEYS, "value")):
            findings.problem((*path, str(key)), "unknown key; a conditional value has filter and value", close)
            return None
        what = "has no effect: what chooses tensors is filter: (a part of the name), glob: or regex:"
        findings.note((*path, str(key)), what)
    try:
        matches = parse_filter(part)
    except ValueError as error:
        findings.problem((*path, next(key for key in KEYS if key in part)), str(error), "put it in quotes")
        return None
    if "value" not in part:
        what = "has a filter without a value" if matches else f"is {part!r}, expected a value"
        findings.problem(path, what, "add value:")
        return None
    if matches and matches.kind == "filter" and set("*?") & set(matches.text):
        findings.note((*path, "filter"), f"{matches.text!r} is a part of no name; patterns are written with glob:")
    return _read_value(findings, (*path, "value"), part["value"], matches)


def _read_value(findings: Findings, path: KeyPath, value: Any, matches: NameFilter | None) -> Branch | None:
    items = value if isinstance(value, list) else [value]
    if not items:
        findings.problem(path, "is an empty list", "give a value, or a list of values for a gradient")
        return None
    if not all(isinstance(item, bool | int | float | str) for item in items):
        forms = "a number, a list of numbers (a gradient) or {filter, value}"
        findings.problem(path, f"is {value!r}, expected {forms}", "give a value or delete the key")
        return None
    return Branch(tuple(items) if isinstance(value, list) else value, matches, findings.document.where(path))


def coerce(parameter: Parameter, value: Scalar) -> Scalar:
    """Return ``value`` as the kind of ``parameter``, within its range.

    Text counts when it spells a number or a truth: YAML reads 1e-8 as text, and people quote. A bool may be 0 or 1
    (mergekit-evolve writes 1.0).
    Raises ValueError saying what was expected.
    """
    number = _number(value)
    result: Scalar = value
    if parameter.kind is bool and isinstance(value, str):
        result = _TRUTHS.get(value.strip().lower(), value)
    elif parameter.kind is bool and number in (0, 1):
        result = number == 1
    elif parameter.kind is float and number is not None:
        result = number
    elif parameter.kind is int and number is not None and number.is_integer():
        result = int(number)
    if parameter.saturates and parameter.maximum is not None and isinstance(result, float):
        result = min(result, parameter.maximum)
    if not parameter.accepts(result):
        raise ValueError(f"is {value!r}, expected {parameter.expected}")
    return result


def _number(value: Scalar) -> float | None:
    """Return the number that ``value`` is or spells; None for others."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def at(parameter: Parameter, branch: Branch, t: float) -> Scalar:
    """Return the value of ``branch`` at depth ``t`` in [0, 1] of its slice.

    Gradients of numbers are interpolated linearly (whole numbers are then cut), other gradients take element
    ``int(t * (length - 1))``, as in mergekit.
    """
    if not isinstance(branch.value, tuple):
        return coerce(parameter, branch.value)
    values = [coerce(parameter, value) for value in branch.value]
    place = t * (len(values) - 1)
    low = int(place)
    if parameter.kind not in (int, float):
        return values[low]
    high, share = min(low + 1, len(values) - 1), place - low
    return parameter.kind((1 - share) * float(values[low]) + share * float(values[high]))
