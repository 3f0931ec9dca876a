"""Exact sums of the partial sums that the reductions return."""

from __future__ import annotations

import math

from torch import Tensor


def total(partials: Tensor) -> list[float]:
    """Sum float64 ``partials`` [chunks, columns] over the chunks, exactly, rounded once: returns [columns].

    The sum is correctly rounded (Shewchuk), so it does not depend on the order of the chunks, on
    how they were split over devices, or on the backend. NaN and infinity propagate.
    """
    return [_exact(column) for column in partials.t().tolist()]


def _exact(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):  # opposite infinities, or a sum beyond float64
        return sum(values)
