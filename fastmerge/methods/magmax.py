"""MagMax: of every element, the largest change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..steps.apply import Apply, ElementwiseMerge
from ..steps.arrays import above, copy, maximum, minimum, where
from ..steps.method import Group, Method, Parameter, method
from ._sparse import SCALE

if TYPE_CHECKING:
    from torch import Tensor


@method
class MagMax(Method):
    """theta = base + lambda * d_k with the largest |d_k|,   d_k = w_k (theta_k - base)   (Marczak et al. 2024).

    Element by element; of two opposite deltas of one magnitude the positive one. The weights default to 1. A NaN is
    larger than any number.
    """

    name = "magmax"
    base = "required"
    parameters = (
        Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta"),
        SCALE,
    )
    semantics = ("paper",)
    summary = "the largest change of each element"
    paper = "Marczak et al. 2024, arXiv 2407.06322"
    on_strips = True

    def merge(self, group: Group) -> Apply:
        return ElementwiseMerge(group["weight"], _largest, scale=group["lambda"])


def _largest(deltas: Sequence[Tensor], merged: Tensor) -> Tensor:
    highest, lowest = copy(deltas[0]), deltas[0]
    for delta in deltas[1:]:
        maximum(highest, delta, out=highest)
        minimum(lowest, delta, out=lowest)
    # Both are NaN where any delta is.
    return where(above(-lowest, highest), lowest, highest)
