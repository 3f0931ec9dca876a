r"""Odd polynomials of degree 5 whose composition maps ``[lower, 1]`` near 1: the steps of the polar iteration.

Step t is the minimax polynomial ``p(x) = a x + b x^3 + c x^5`` of the constant 1 on the interval that the steps
before it left, ``[l, u]``; it maps that interval to ``[p(l), 2 - p(l)]``, and greedy choice is optimal for the whole
composition (Polar Express, arXiv 2505.16932), up to two concessions to rounding, CUSHION and SLACK.
"""

from __future__ import annotations

import functools
import math

import torch

# The minimax polynomial of a wide interval dips to its lower end: it maps large singular values to tiny ones, and loses
# their digits. Only values below this share of the largest may map below the minimax error of the interval above it.
CUSHION = 0.2
# Each step also serves values this share beyond its interval, which rounding in the step before may have added: the
# polynomials are steep at the upper end, and float16 products diverge without it.
SLACK = 0.01
# An interval this narrow is left to the step that finishes.
NARROW = 0.05

Quintic = tuple[float, float, float]


@functools.lru_cache(maxsize=32)
def schedule(lower: float) -> tuple[Quintic, ...]:
    """Return coefficients (a, b, c) of the steps that bring every singular value in [lower, 1] near 1.

    Args:
        lower: smallest singular value to serve over the largest, in (0, 1).
    """
    low, high = lower, 1.0
    steps = []
    while high - low > NARROW:
        a, b, c = minimax(max(low, CUSHION * high), high)
        # Values below the cushion end lower than the minimax error: centre the image on 1 again.
        bottom, top = (a * x + b * x**3 + c * x**5 for x in (low, high))
        scale = 2 / (bottom + top)
        steps.append((scale * a / (1 + SLACK), scale * b / (1 + SLACK) ** 3, scale * c / (1 + SLACK) ** 5))
        low, high = scale * bottom / (1 + SLACK), scale * top
    return tuple(steps)


def minimax(low: float, high: float) -> Quintic:
    """Return the coefficients of the best odd quintic approximation of 1 on [low, high], 0 < low < high (Remez)."""
    # The error alternates at low < q < r < high, where q and r are the inner extrema of the polynomial.
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    error = math.inf
    for _ in range(100):
        points = torch.tensor([low, q, r, high], dtype=torch.float64)
        signs = torch.tensor([1, -1, 1, -1], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, previous = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        q, r = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        if abs(error - previous) < 1e-14:
            break
        error = previous
    return a, b, c
