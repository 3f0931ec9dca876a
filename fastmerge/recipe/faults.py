"""What pydantic finds wrong with a recipe, in the words of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .document import Findings

_EXPECTED = {
    "dict_type": "names and values",
    "model_type": "names and values",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


def report(findings: Findings, fault: Mapping[str, Any]) -> None:
    """Add a fault (of ``ValidationError.errors()``) to what was found."""
    path = fault["loc"]
    if fault["type"] == "missing":
        findings.problem(path[:-1], f"{path[-1]} is missing", f"add {path[-1]}:")
    else:
        findings.problem(path, said(fault))


def said(fault: Mapping[str, Any]) -> str:
    """Return what is wrong with the value of a fault."""
    context, value = fault.get("ctx", {}), repr(fault["input"])
    if "error" in context:  # raised by one of our own validators
        return str(context["error"])
    expected = _EXPECTED.get(fault["type"], "{expected}" if "expected" in context else "")
    return f"is {value}, expected {expected.format(**context)}" if expected else f"{fault['msg']}, got {value}"
