"""RAM+: RAM whose unique deltas make up for what averaging took from the shared ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import ElementwiseMerge
from ..steps.arrays import clamp, float_of, where, zeros_like
from ..steps.elements import ElementSums
from ..steps.method import Group, Method, Parameter, Solve, method
from ._changes import EPSILON, changes

if TYPE_CHECKING:
    from torch import Tensor

# Where epsilon is 0, no unique change leaves every ratio at alpha.
_TINY = 1e-30


@method
class RamPlusTl(Method):
    """theta = base + f_k d_k where only model k changed an element, elsewhere as ``ram``   (Yuan et al. 2026).

    d_k = theta_k - base, and model k changed an element where |d_k| > epsilon. Where several did, the result is the
    mean of their deltas. Per tensor::

        f_k = 1 + r * min(alpha, shared_k / max(unique_k, epsilon))

    unique_k counts the elements that model k alone changed, and shared_k those that it changed with others: what it
    lost by averaging. This is mergekit's tensor-local RAM+.

    NaN and infinity propagate; a NaN counts as unchanged.
    """

    name = "ramplus_tl"
    base = "required"
    parameters = (
        Parameter("r", float, 0.1, doc="how much unique deltas are enlarged"),
        Parameter("alpha", float, 0.2, doc="largest ratio of shared to unique changes that counts"),
        EPSILON,
    )
    summary = "ram, amplified where one model changed"
    paper = "Yuan et al. 2026, arXiv 2601.13572"
    on_strips = True
    homogeneous = False

    def merge(self, group: Group) -> Solve:
        models, epsilon = group.models, group["epsilon"]
        ones = [1.0] * models
        counts = yield ElementSums(ones, partial(_unique_and_shared, epsilon=epsilon), 2 * models)
        pairs = zip(counts[:models], counts[models:], strict=True)
        ratios = [shared / max(unique, epsilon, _TINY) for unique, shared in pairs]
        factors = [1 + group["r"] * min(ratio, group["alpha"]) for ratio in ratios]
        return ElementwiseMerge(ones, partial(_merged, epsilon=epsilon, factors=factors))


def _unique_and_shared(deltas: Sequence[Tensor], merged: Tensor, epsilon: float) -> list[Tensor]:
    changed, count = changes(deltas, epsilon)
    alone = float_of(count == 1)
    return [mask * alone for mask in changed] + [mask * (1 - alone) for mask in changed]


def _merged(deltas: Sequence[Tensor], merged: Tensor, epsilon: float, factors: Sequence[float]) -> Tensor:
    changed, count = changes(deltas, epsilon)
    alone = count == 1
    count, scale = clamp(count, 1), zeros_like(merged)
    ones = scale + 1
    for delta, mask, factor in zip(deltas, changed, factors, strict=True):
        scale[:] = factor
        delta *= mask
        delta *= where(alone, scale, ones)
        delta /= count
        merged += delta
    return merged
