"""RAM: the mean over the models that changed an element."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import Apply, ElementwiseMerge
from ..steps.arrays import clamp
from ..steps.method import Group, Method, method
from ._changes import EPSILON, changes

if TYPE_CHECKING:
    from torch import Tensor


@method
class Ram(Method):
    """theta = base + sum_k [|d_k| > epsilon] d_k / c,   c = number of k with |d_k| > epsilon   (Yuan et al. 2026).

    d_k = theta_k - base. An element that one model changed gets its whole delta, where an average over all models would
    shrink it; what several changed gets the mean of theirs. Where c = 0 the base stays.

    ``epsilon`` is in the units of the weights. NaN and infinity propagate.
    """

    name = "ram"
    base = "required"
    parameters = (EPSILON,)
    summary = "mean of each element over who changed it"
    paper = "Yuan et al. 2026, arXiv 2601.13572"
    on_strips = True
    homogeneous = False

    def merge(self, group: Group) -> Apply:
        return ElementwiseMerge([1.0] * group.models, partial(_mean, epsilon=group["epsilon"]))


def _mean(deltas: Sequence[Tensor], merged: Tensor, epsilon: float) -> Tensor:
    changed, count = changes(deltas, epsilon)
    count = clamp(count, 1)
    for delta, mask in zip(deltas, changed, strict=True):
        delta *= mask
        delta /= count
        merged += delta
    return merged
