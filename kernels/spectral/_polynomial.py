r"""Polar factor by a composition of odd polynomials of degree 5 that maps ``[lower, 1]`` to 1.

Step t is the minimax polynomial ``p(x) = a x + b x^3 + c x^5`` of the constant 1 on the interval that the steps
before it left, ``[l, u]``; it maps that interval to ``[p(l), 2 - p(l)]``, and greedy choice is optimal for the whole
composition (Polar Express, arXiv 2505.16932), up to two concessions to rounding, CUSHION and SLACK.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._matrices import frobenius
from ._products import Products

# Smallest singular value over the largest that the schedule serves: square matrices have a tail, tall ones an edge.
SQUARE_LOWER, TALL_LOWER = 1e-5, 1e-3
TALL = 1.3
# With this many steps after the schedule, what a square matrix has above 2.5e-7 of the largest converges: all but null.
CLEAN_UPS = 7
# Where the interval has shrunk to a point: the Taylor polynomial of the inverse square root at 1, of cubic convergence.
CLEAN_UP = (15 / 8, -10 / 8, 3 / 8)
# The minimax polynomial of a wide interval dips to its lower end: it maps large singular values to tiny ones, and loses
# their digits. Only values below this share of the largest may map below the minimax error of the interval above it.
CUSHION = 0.2
# Each step also serves values this share beyond its interval, which rounding in the step before may have added: the
# polynomials are steep at the upper end, and float16 products diverge without it.
SLACK = 0.01
# An interval this narrow is served by two steps of CLEAN_UP to float32 accuracy.
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


def polar_factor(
    x: Tensor,
    largest: Tensor,
    products: Products,
    tolerance: float,
    total: Callable[[Tensor], Tensor] = lambda part: part,
    rows: int | None = None,
) -> tuple[Tensor, int, list[float]]:
    """Return the polar factor of each matrix, the steps taken, and ||P'P - I||_F / sqrt(n) of each.

    ``X <- a X + X (b A + c A^2)``, A = X'X. X stays in float32: what the products lose in the multiplier costs their
    precision, whatever the condition number; rounding X itself would cost that times the condition number. Takes three
    matrices of that size beside ``x`` (X, its pieces, the next X) and four Gram matrices. The host waits for the device
    once per step, and only after the schedule.

    Args:
        x:         [batch, m, n], m >= n.
        largest:   [batch] upper bounds on the largest singular values.
        tolerance: stop when all residuals are below; at most CLEAN_UPS steps after the schedule.
        total:     adds up Gram matrices over ranks that have ``rows`` rows together, of which ``x`` is a part.
    """
    m, n = rows or x.shape[-2], x.shape[-1]
    steps = schedule(TALL_LOWER if m >= TALL * n else SQUARE_LOWER)
    eye = torch.eye(n, dtype=x.dtype, device=x.device)
    x = x / largest.to(x).view(-1, 1, 1)
    for step in range(len(steps) + CLEAN_UPS + 1):
        operand = products.operand(x)
        gram = total(products.gram(operand))
        if step >= len(steps):
            orth = (frobenius(gram - eye) / math.sqrt(n)).tolist()
            if step == len(steps) + CLEAN_UPS or all(value <= tolerance for value in orth):
                break
        a, b, c = steps[step] if step < len(steps) else CLEAN_UP
        multiplier = products.gram(products.operand(gram), c, b, gram)
        x = products.multiply(operand, products.operand(multiplier), a, x)
    return x, step, orth
