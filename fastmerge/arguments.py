"""What callers give as arguments: sizes, counts and lists of names, read, or refused by the name of the argument."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any

from .errors import InvalidInput, Problem
from .sizes import parse_size

__all__ = ["several", "size_of", "whole"]


def size_of(name: str, size: int | str) -> int:
    """Return the bytes of the argument ``name``, as ``parse_size`` reads them; InvalidInput where it is no size."""
    try:
        return parse_size(size)
    except ValueError as error:
        raise InvalidInput([Problem(name, str(error))]) from None


def whole(name: str, value: Any, least: int = 1) -> Iterator[Problem]:
    """Yield a problem where ``value`` is no whole number, or below ``least``; None is what was not given."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
        yield Problem(name, f"is {value!r}, expected a whole number of at least {least}")


def several(names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return names as a list: a single one, which is no list of its letters, stands for itself."""
    if isinstance(names, str | os.PathLike):
        return [os.fspath(names)]
    return [os.fspath(name) for name in names]
