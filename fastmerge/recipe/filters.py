"""Which tensors a value or a rule is for: a part of the name, a glob, or a regular expression."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

KEYS = ("filter", "glob", "regex")
"""How a recipe says which tensors it means. mergekit has the first one."""


@dataclass(frozen=True)
class NameFilter:
    """Matches names of output tensors.

    Attributes:
        kind: ``filter`` is a part of the name, ``glob`` a pattern with ``*``, ``?`` and ``[...]`` for the whole name
              (``*`` goes over dots), ``regex`` a regular expression that is searched in it.
        text: the part, pattern or expression.
    """

    kind: str
    text: str

    def matches(self, tensor_name: str) -> bool:
        if self.kind == "filter":
            return self.text in tensor_name
        found = self._expression.match if self.kind == "glob" else self._expression.search
        return found(tensor_name) is not None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.text) if self.kind == "glob" else self.text)


def parse_filter(mapping: Mapping[str, Any]) -> NameFilter | None:
    """Return the filter of a mapping with at most one of the ``KEYS``; None where it matches every tensor.

    Raises ValueError saying what is wrong.
    """
    given = [key for key in KEYS if mapping.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; expected one of them")
    if not given:
        return None
    kind, text = given[0], mapping[given[0]]
    if not isinstance(text, str):
        what = {"filter": "a part of a tensor name", "glob": "a pattern", "regex": "a regular expression"}[kind]
        raise ValueError(f"is {text!r}, expected {what}")
    if kind == "filter" and text == "*":
        return None
    found = NameFilter(kind, text)
    try:
        found.matches("")
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return found
