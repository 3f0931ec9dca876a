r"""Odd polynomials whose composition maps ``[lower, 1]`` to 1: the steps of the polar iteration.

Step t is the minimax polynomial ``p(x) = x M(x^2)`` of the constant 1 on the interval that the steps before it left,
``[l, u]``; it maps that interval to ``[p(l), 2 - p(l)]``, and greedy choice is optimal for the whole composition (Polar
Express, arXiv 2505.16932), up to two concessions to rounding, CUSHION and SLACK.

M is of degree 4, which takes two products, as degree 3 would, or of degree 2, which takes one. With ``B = A - shift I``
it has no term of the degree below: ``M = quartic (B^2)^2 + square B^2 + linear B + constant``. The shift also keeps the
terms near the size of M: those in powers of A are a hundred times as large, and their rounding as well.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

# The minimax polynomial of a wide interval dips to its lower end: it maps large singular values to tiny ones, and loses
# their digits. Only values below this share of the largest may map below the minimax error of the interval above it.
CUSHION = {4: 0.08, 2: 0.15}
# Each step also serves values this share beyond its interval, which rounding in the step before may have added: the
# polynomials are steep at the upper end, and float16 products diverge without it.
SLACK = 0.01
# The last step serves at least this interval around 1.
NARROW = 0.03


class Step(NamedTuple):
    """The polynomial ``x M`` with ``M = quartic b^4 + square b^2 + linear b + constant`` and ``b = x^2 - shift``.

    Where ``quartic`` is 0, ``linear`` is.
    """

    shift: float
    quartic: float
    square: float
    linear: float
    constant: float

    def gain(self, squares: Tensor) -> Tensor:
        """Return what a value is multiplied by, given its square."""
        b = squares - self.shift
        return self.quartic * b**4 + self.square * b**2 + self.linear * b + self.constant


class Schedule(NamedTuple):
    """Attributes:
    groups: steps that grow values, one or two at a time.
    last:   the one after them, which brings those in [low, high] to 1, but for ``error``.
    gain:   what the smallest values are multiplied by in all steps but the last.
    """

    groups: tuple[tuple[Step, ...], ...]
    last: Step
    error: float
    low: float
    high: float
    gain: float


@functools.lru_cache(maxsize=8)
def schedule(lower: float, groups: tuple[tuple[int, ...], ...]) -> Schedule:
    """Return the steps that bring every singular value in [lower, 1] to 1.

    Args:
        lower:  smallest singular value to serve over the largest, in (0, 1).
        groups: of the degrees of M, 2 or 4, in all steps but the last.
    """
    low, high, gain, made = lower, 1.0, 1.0, []
    for degrees in groups:
        steps: list[Step] = []
        for degree in degrees:
            upper = high * (1 + SLACK)
            step, error = minimax(max(low, CUSHION[degree] * upper), upper, degree)
            # Values below the cushion end lower than the minimax error: centre the image on 1 again.
            bottom, top = min(1 - error, low * _gain(step, low**2)), 1 + error
            scale = 2 / (bottom + top)
            steps.append(Step(step.shift, *(scale * c for c in step[1:])))
            low, high, gain = scale * bottom, scale * top, gain * scale * _gain(step, 0.0)
        made.append(tuple(steps))
    low, high = min(low, 1 - NARROW), max(high, 1 + NARROW)
    return Schedule(tuple(made), *minimax(low, high, 4), low, high, gain)


def _gain(step: Step, square: float) -> float:
    return float(step.gain(torch.tensor(square, dtype=torch.float64)))


def minimax(low: float, high: float, degree: int) -> tuple[Step, float]:
    """Return the odd polynomial next to 1 on [low, high], 0 < low < high, and its error (Remez); M is of ``degree``."""
    middle, half, points = (high**2 + low**2) / 2, (high**2 - low**2) / 2, degree + 2
    # Of the error's extrema, in t = (x^2 - middle) / half: both ends are among them.
    spread = torch.arange(points, dtype=torch.float64).mul(math.pi / (points - 1)).cos()
    t = (((high + low) / 2 - (high - low) / 2 * spread).square() - middle) / half
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(points // 2)
    powers = torch.arange(degree + 1, dtype=torch.float64)
    error = math.inf
    for _ in range(100):
        terms = (middle + half * t).sqrt().unsqueeze(-1) * t.unsqueeze(-1) ** powers
        solved = torch.linalg.solve(torch.cat([terms, signs.unsqueeze(-1)], -1), torch.ones_like(t))
        m, previous = solved[:-1], float(solved[-1].abs())
        if abs(error - previous) < 1e-14:
            break
        error = previous
        # The derivative of x M is (M + 2 x^2 M') / x, with M' by x^2.
        slopes = (2 * powers + 1) * m
        slopes[:-1] += 2 * middle / half * (powers[1:] * m[1:])
        companion = torch.diag(torch.ones(degree - 1, dtype=torch.float64), -1)
        companion[:, -1] = -slopes[:-1] / slopes[-1]
        t[1:-1] = torch.linalg.eigvals(companion).real.sort().values
    # Around the mean of M's roots there is no term of the degree below.
    r = -float(m[-2] / m[-1]) / degree
    c0, c1, c2, c3, c4 = (*m.tolist(), 0.0, 0.0)[:5]
    square, linear = c2 + 3 * c3 * r + 6 * c4 * r * r, c1 + 2 * c2 * r + 3 * c3 * r**2 + 4 * c4 * r**3
    constant = c0 + r * (c1 + r * (c2 + r * (c3 + r * c4)))
    return Step(middle + half * r, c4 / half**4, square / half**2, linear / half, constant), error
