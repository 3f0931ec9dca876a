"""Exact sums of the partial sums that the reductions return."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from . import _native
from .strip import on_host

if TYPE_CHECKING:
    from torch import Tensor


def total(partials: Tensor | np.ndarray) -> list[float]:
    """Sum float64 ``partials`` [chunks, columns] over the chunks, exactly, rounded once: returns [columns].

    The sum is correctly rounded, ties to even, so it does not depend on the order of the chunks, on how they were
    split over devices, or on the backend. It is infinite only where the exact sum lies beyond float64; a zero sum is
    +0. NaN and infinity propagate.
    """
    table = on_host(partials)
    if table.dtype != np.float64 or table.ndim != 2:
        raise ValueError(f"partials is {partials.dtype} {tuple(partials.shape)}; expected a float64 table")
    if _native.why_no_cpu_extension():
        return [_exact(column) for column in table.T.tolist()]
    table = np.ascontiguousarray(table)
    return _native.cpu_extension().exact_sums(table.ctypes.data, *table.shape)


def _exact(values: list[float]) -> float:
    """The same in Python: Shewchuk's sum, and integers where that leaves float64 on its way."""
    try:
        return math.fsum(values)
    except ValueError:  # opposite infinities
        return math.nan
    except OverflowError:
        # math.fsum may overflow before it comes to an infinity.
        if infinite := [value for value in values if not math.isfinite(value)]:
            return sum(infinite)
        exact = sum(map(Fraction, values))
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
