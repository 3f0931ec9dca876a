"""SCE: select elements by their variance over the models, calculate weights, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..kernels import float32, keep_top
from ..steps.apply import ElementwiseMerge
from ..steps.arrays import above, clamp, float_of, zeros_like
from ..steps.blocks import Selection
from ..steps.elements import ElementSums, OfElements
from ..steps.method import Group, Method, Parameter, Solve, method
from ..steps.survey import Boundaries
from ._sparse import INT8_MASK

if TYPE_CHECKING:
    from torch import Tensor

# mergekit's: weights whose sum is smaller are taken for equal, and divisors are at least this.
_TINY = 1e-6


@method
class Sce(Method):
    """theta = base + sum_k w_k M_k d_k / max(sum_k w_k M_k, 1e-6)   (Wan et al. 2024, arXiv 2408.07990).

    Per tensor, with d_k = theta_k - base::

        select     of the elements whose variance over the models is not 0, the share select_topk with the largest
                   variance; the others become the base's. With select_topk >= 1 every element stays
        calculate  w_k = mean of the squares of the selected d_k, over their sum
        erase      M_k = 1 where d_k is selected and has the sign of sum_k d_k (+ where that is 0)

    As mergekit has it: the number of selected elements is int(select_topk * count), the product in float32, and the
    weights are equal where the sum of the mean squares is below 1e-6, as it is for most fine-tunes. Of equal variances
    those with the lowest index are selected; mergekit takes any of them.

    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "sce"
    base = "required"
    parameters = (
        Parameter(
            "select_topk", float, 1.0, minimum=0.0, doc="share of the elements that is kept, by variance", example=0.5
        ),
        INT8_MASK,
    )
    summary = "selects by variance, weighs, elects signs"
    paper = "Wan et al. 2024, arXiv 2408.07990"
    on_strips = True

    def merge(self, group: Group) -> Solve:
        ones, share = [1.0] * group.models, group["select_topk"]
        selection = None
        if share < 1:
            (count,) = yield ElementSums(ones, _varies, 1)
            rank = int(float32(float32(count) * float32(share)))
            ((boundary,),) = yield OfElements(ones, _variances, Boundaries([[rank]]))
            selection = Selection(_variance, keep_top(boundary))
        squares = yield ElementSums(ones, _same, group.models, power=2, selection=selection)
        if not all(map(math.isfinite, squares)):
            raise ValueError(f"{group.name}: a delta holds NaN or infinity; there are no weights for the models")
        total = math.fsum(squares) / max(1, group.numel)
        weights = [square / group.numel / total if total >= _TINY else 1 / group.models for square in squares]
        return ElementwiseMerge(ones, partial(_erased, weights=weights), selection=selection)


def _same(deltas: Sequence[Tensor], merged: Tensor) -> Sequence[Tensor]:
    return deltas


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Return the variance of every element over the models."""
    mean, sum_of_squares = zeros_like(deltas[0]), zeros_like(deltas[0])
    for delta in deltas:
        mean += delta
    mean /= len(deltas)
    for delta in deltas:
        apart = delta - mean
        apart *= apart
        sum_of_squares += apart
    sum_of_squares /= len(deltas)
    return sum_of_squares


def _variances(deltas: Sequence[Tensor], merged: Tensor) -> Sequence[Tensor]:
    return [_variance(deltas)]


def _varies(deltas: Sequence[Tensor], merged: Tensor) -> Sequence[Tensor]:
    return [float_of(_variance(deltas) != 0)]


def _erased(deltas: Sequence[Tensor], merged: Tensor, weights: Sequence[float]) -> Tensor:
    vote, divisor = zeros_like(merged), zeros_like(merged)
    for delta in deltas:
        vote += delta
    sign = float_of(vote >= 0) * 2 - 1
    for delta, weight in zip(deltas, weights, strict=True):
        agrees = above(delta * sign, 0)
        delta *= weight
        delta *= agrees
        merged += delta
        agrees *= weight
        divisor += agrees
    merged /= clamp(divisor, _TINY)
    return merged
