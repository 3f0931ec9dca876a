"""MagMax: of every element, the largest change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..steps.apply import Apply, ElementwiseMerge
from ..steps.method import Group, Method, Parameter, method
from ._sparse import SCALE


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
    paper = "Marczak et al. 2024, arXiv 2407.06322"

    def merge(self, group: Group) -> Apply:
        return ElementwiseMerge(group["weight"], _largest, scale=group["lambda"])


def _largest(deltas: Sequence[Tensor], merged: Tensor) -> Tensor:
    highest, lowest = deltas[0].clone(), deltas[0]
    for delta in deltas[1:]:
        torch.maximum(highest, delta, out=highest)
        torch.minimum(lowest, delta, out=lowest)
    # Both are NaN where any delta is.
    return torch.where(lowest.neg() > highest, lowest, highest)
