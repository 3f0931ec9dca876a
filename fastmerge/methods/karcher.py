"""Karcher mean: the mean of directions on the sphere, scaled by the mean norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..steps.apply import WeightedSum
from ..steps.method import Group, Method, Parameter, Solve, method
from ._spans import Row, dot, finite_gram, norm


@method
class Karcher(Method):
    """theta = mean_k |theta_k| * m, m = Karcher mean of the theta_k / |theta_k|   (Karcher 1977).

    m is the direction with the least sum of squared angles to the inputs, each flattened to one vector. It starts as
    their normalized mean and moves by ``T = mean_k log_m(theta_k / |theta_k|)`` along the sphere, until ``|T| < tol``
    or ``max_iter`` steps were made; an input closer to m than ``tol`` adds nothing to T. Inputs whose norm is at most
    ``tol`` have no direction and take no part in m; where all are so, the result is 0. All inputs count alike.

    m stays in the span of the inputs: the iteration runs on the N coefficients, in float64, from one Gram matrix, and
    every step costs as much as the next, whatever the size of the tensor.

    Directions that cancel, so that their mean is shorter than ``tol``, start at the first of them. An input opposite to
    m has no shortest way to it, and adds nothing to T.

    Raises ValueError when an input holds NaN or infinity.
    """

    name = "karcher"
    base = "ignored"
    parameters = (
        Parameter("max_iter", int, 10, minimum=0, doc="number of steps at most"),
        Parameter("tol", float, 1e-5, minimum=0.0, doc="length of a step, in radians, that is taken for 0"),
    )
    summary = "mean of several models on the sphere"
    paper = "Karcher 1977 (10.1002/cpa.3160300502); mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    on_strips = True
    adds_delta = False

    def merge(self, group: Group) -> Solve:
        gram = yield from finite_gram(group)
        norms = [math.sqrt(gram[k][k]) for k in range(group.models)]
        units = [k for k, length in enumerate(norms) if length > group["tol"]]
        weights = [0.0] * group.models
        if units:
            cosines = [[gram[i][j] / (norms[i] * norms[j]) for j in units] for i in units]
            size = math.fsum(norms) / group.models
            for k, coefficient in zip(units, _mean(cosines, group["tol"], group["max_iter"]), strict=True):
                weights[k] = coefficient * size / norms[k]
        return WeightedSum(weights)


def _mean(cosines: Sequence[Row], tol: float, max_iter: int) -> Row:
    """Return the coefficients of the Karcher mean of unit vectors that have these cosines."""
    count = len(cosines)
    length = norm([1 / count] * count, cosines)
    mean = [1.0] + [0.0] * (count - 1) if length <= tol else [1 / count / length] * count
    for _ in range(max_iter):
        to_inputs = [max(-1.0, min(1.0, dot(row, mean))) for row in cosines]
        ways = [_way(math.acos(cosine), tol) / count for cosine in to_inputs]
        back = dot(ways, to_inputs)
        step = [way - back * coefficient for way, coefficient in zip(ways, mean, strict=True)]
        length = norm(step, cosines)
        if length < tol or length == 0:
            break
        forward = math.sin(length) / length
        mean = [math.cos(length) * m + forward * s for m, s in zip(mean, step, strict=True)]
        length = norm(mean, cosines)
        mean = [m / length for m in mean]
    return mean


def _way(angle: float, tol: float) -> float:
    """Return ``angle / sin(angle)``; 0 for an input that is reached, or opposite."""
    return 0.0 if angle < tol or math.sin(angle) < 1e-12 else angle / math.sin(angle)
