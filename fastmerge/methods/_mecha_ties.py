"""TIES as sd-mecha has it: thresholds kept with all that equal them, and no sign where the models are divided."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import ElementwiseMerge
from ..steps.arrays import above, clamp, zeros_like
from ..steps.method import Group, Solve
from ..steps.survey import Boundaries

if TYPE_CHECKING:
    from torch import Tensor


def merge_by_number(group: Group) -> Solve:
    """Survey the tensor and return the step that merges it."""
    thresholds, count = [0.0] * group.models, group.numel
    if count and min(group["density"]) < 1:
        ranks = [count + 1 - max(1, int((1 - density) * count)) for density in group["density"]]
        boundaries = yield Boundaries([[rank] for rank in ranks])
        # Everything lies inside a boundary of all elements, whose threshold is 0.
        thresholds = [struct.unpack("f", struct.pack("I", bits))[0] for ((bits, _),) in boundaries]
    change = partial(_agreeing, thresholds=thresholds, by_sum=group["majority_sign_method"] == "total")
    return ElementwiseMerge([1.0] * group.models, change, scale=group["lambda"])


def _agreeing(deltas: Sequence[Tensor], merged: Tensor, thresholds: Sequence[float], by_sum: bool) -> Tensor:
    """Return the mean of the kept deltas that have the elected sign; 0 where none is elected."""
    for delta, threshold in zip(deltas, thresholds, strict=True):
        # Not below: a NaN is kept.
        delta *= ~(abs(delta) < threshold)
        merged += delta if by_sum else above(delta, 0) - above(-delta, 0)
    sign = above(merged, 0) - above(-merged, 0)
    total, number = zeros_like(merged), zeros_like(merged)
    for delta in deltas:
        agrees = above(delta * sign, 0)
        # A product, so that NaN and infinity stay.
        total += delta * agrees
        number += agrees
    return total / clamp(number, 1)
