"""Exact sums of the partial sums that the reductions return."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

from . import _native


def total(partials: Tensor) -> list[float]:
    """Sum float64 ``partials`` [chunks, columns] over the chunks, exactly, rounded once: returns [columns].

    The sum is correctly rounded, ties to even, so it does not depend on the order of the chunks, on how they were
    split over devices, or on the backend. It is infinite only where the exact sum lies beyond float64; a zero sum is
    +0. NaN and infinity propagate.
    """
    if partials.dtype != torch.float64 or partials.dim() != 2:
        raise ValueError(f"partials is {partials.dtype} {tuple(partials.shape)}; expected a float64 table")
    if _native.why_no_cpu_extension():
        return [_exact(column) for column in partials.t().tolist()]
    table = partials.detach().cpu().contiguous()
    return _native.cpu_extension().exact_sums(table.data_ptr(), *table.shape)


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
