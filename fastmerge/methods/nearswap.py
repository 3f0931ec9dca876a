"""NearSwap: take over the model's weights where they are near the base's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import Apply, Copy, ElementwiseMerge
from ..steps.arrays import clamp, where
from ..steps.method import Group, Method, Parameter, method

if TYPE_CHECKING:
    from torch import Tensor

# mergekit's: smaller differences count as this.
_TINY = 1e-6


@method
class NearSwap(Method):
    """theta = base + min(t / |d|, 1) d,   d = theta_0 - base   (mergekit; Goddard et al. 2024).

    An element that differs by at most ``t`` becomes the model's, up to the rounding of base + d; another one moves
    towards it by ``t``. Differences below 1e-6 count as 1e-6. With t <= 0 the base stays as it is.

    ``t`` is in the units of the weights: fine-tunes differ by 1e-4 to 1e-2. NaN and infinity propagate.
    """

    name = "nearswap"
    base = "required"
    inputs = (1, 1)
    parameters = (
        Parameter(
            "t", float, doc="how far an element moves towards the model's at most; not above 0: not at all",
            neutral=1.0, example=1e-3,
        ),
    )  # fmt: skip
    summary = "takes a model where it is near the base"
    paper = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    on_strips = True
    homogeneous = False

    def merge(self, group: Group) -> Apply:
        return Copy(0) if group["t"] <= 0 else ElementwiseMerge([1.0], partial(_swapped, t=group["t"]))


def _swapped(deltas: Sequence[Tensor], merged: Tensor, t: float) -> Tensor:
    (delta,) = deltas
    step = clamp(delta, -t, t)
    if t < _TINY:
        step = where(abs(delta) < _TINY, delta * (t / _TINY), step)
    # Infinity less itself is NaN, so that what was infinite is not finite.
    step += delta - delta
    return step
