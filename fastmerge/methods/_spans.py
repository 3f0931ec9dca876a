"""Parts of methods whose result lies in the span of their inputs: the Gram matrix says all that they need to know.

Sums over the inputs are rounded once, so that the order of the inputs changes no bit of the coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np

from ..steps.method import Group
from ..steps.survey import Gram, Survey

Row = list[float]


def divided(group: Group, switch: str = "normalize") -> tuple[float, ...]:
    """Return the weights over their sum; ValueError where they cancel. ``switch`` is the parameter that asks for it."""
    weights = group["weight"]
    total = math.fsum(weights)
    # Also 0.1 + 0.2 - 0.3, whose rounding error would become the divisor.
    if abs(total) <= 1e-7 * sum(map(abs, weights)):
        raise ValueError(f"{group.name}: the weights {weights} cancel; set {switch}: false or change them")
    return tuple(w / total for w in weights)


def finite_gram(group: Group) -> Generator[Survey, np.ndarray, list[Row]]:
    """Return the Gram matrix [N][N] (float64) of the deltas, or of the inputs where there is no base."""
    gram = yield Gram()
    if not np.isfinite(gram).all():
        raise ValueError(f"{group.name}: an input holds NaN or infinity; there are no directions to average")
    return gram.tolist()


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Return ``sum_k a_k b_k``."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def norm(coefficients: Sequence[float], gram: Sequence[Row]) -> float:
    """Return the norm of the vector ``sum_k coefficients[k] v_k``, where the v_k have this Gram matrix."""
    products = (x * y * gram[i][j] for i, x in enumerate(coefficients) for j, y in enumerate(coefficients))
    return max(0.0, math.fsum(products)) ** 0.5
