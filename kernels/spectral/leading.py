r"""Leading singular values with what is known of their error, from a few steps of block Krylov.

A value found is never above the true one, and a true value lies within its residual. Whatever the spectrum, after q
steps from BLOCK random columns of length n, s_0^2 is missed by more than a share eps of itself with a probability below

    (1.648 sqrt(n) exp(-sqrt(eps) (2 q - 1)))^BLOCK

(Kuczynski and Wozniakowski 1992, theorem 4.1, for one column; the space of the block holds that of each).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._krylov import BlockKrylov
from ._matrices import check_matrices, full_float32
from .diagnostics import spectrum
from .top import SMALL

__all__ = ["Leading", "leading_values", "missed_share"]

BLOCK = 8
# Fewer steps say too little of an unknown spectrum: 8 bound what s_0^2 lacks by 13.5 % at n = 4096, 16 by 3.2 %.
LEAST_STEPS, STEPS = 8, 16
# The search stops early at this residual of the largest value, relative to it: its square is what is off, mostly.
RESIDUAL = 0.03


@dataclass(frozen=True)
class Leading:
    """Attributes:
    values:   [count] float64, falling.
    residual: ||X^T u - s v|| of the largest over its value; 0 of a whole spectrum.
    missed:   share of s_0^2 that the largest value may lack, but for one case in a thousand; 0 of a whole spectrum.
    """

    values: Tensor
    residual: float = 0.0
    missed: float = 0.0


def leading_values(x: Tensor, count: int) -> Leading:
    """Return the ``count`` largest singular values of ``x`` [m, n] float32 (fewer where its sides are shorter).

    Those behind the first are less certain than it; the search does not wait for them.

    Args:
        x:     finite.
        count: from 1 to 8.
    """
    check_matrices("x", x)
    if x.dim() != 2 or not 1 <= count <= BLOCK:
        raise ValueError(f"x has shape {tuple(x.shape)} and count is {count}; expected [m, n] and 1 to {BLOCK}")
    short = min(x.shape)
    if short <= SMALL or not x.any():
        return Leading(spectrum(x)[:count] if short <= SMALL else torch.zeros(count, dtype=torch.float64))
    tall = x if len(x) == max(x.shape) else x.mT
    with full_float32():
        search = BlockKrylov(tall.unsqueeze(0), BLOCK)
        residual = math.inf
        while search.size < LEAST_STEPS * BLOCK or (residual > RESIDUAL and search.size < STEPS * BLOCK):
            search.expand()
            residual = float(search.residuals[0, 0] / search.values[0, 0])
    return Leading(search.values[0, :count], residual, missed_share(short, search.size // BLOCK))


def missed_share(columns: int, steps: int) -> float:
    """Return the eps of the formula above that is exceeded in one case in a thousand."""
    single = 1e-3 ** (1 / BLOCK)
    return min(1.0, (math.log(1.648 * math.sqrt(columns) / single) / (2 * steps - 1)) ** 2)
