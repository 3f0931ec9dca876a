"""The parts in which a tensor is stored, so that a rank reads what it needs of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["AT_ONCE", "Part", "parts_of"]

AT_ONCE = 1 << 26
"""Bytes of a part: larger tensors are cut into parts of whole rows."""


class Part(NamedTuple):
    """A part of a tensor: where it begins, and what it measures in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def parts_of(shape: Sequence[int], itemsize: int) -> list[Part]:
    """Return the parts of a tensor along its first dimension, one behind the other."""
    shape = tuple(shape)
    if not shape or not math.prod(shape):
        return [Part((0,) * len(shape), shape)]
    rows = max(1, AT_ONCE // (math.prod(shape[1:]) * itemsize))
    rest = (0,) * (len(shape) - 1)
    return [Part((at, *rest), (min(rows, shape[0] - at), *shape[1:])) for at in range(0, shape[0], rows)]
