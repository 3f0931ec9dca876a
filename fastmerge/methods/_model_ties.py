"""TIES as its paper's code has it: one threshold for the whole model, and its majority decides where signs cancel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..kernels import ALL_EQUAL, Boundary, keep_all, keep_top
from ..kernels.sparse_merge import Divide
from ..steps.apply import ElementwiseMerge, SparseMerge
from ..steps.arrays import float_of, maximum, minimum, where, zeros_like
from ..steps.census import Census, model_thresholds
from ..steps.elements import ElementSums
from ..steps.method import Group, Solve

if TYPE_CHECKING:
    from torch import Tensor


def merge_whole_model(group: Group) -> Solve:
    """Survey the model and return the step that merges one tensor of it."""
    thresholds, densities = [0] * group.models, group["density"]
    if min(densities) < 1:
        thresholds, *_ = yield from model_thresholds(
            group, str(densities), lambda k, n: min(n, int(n * densities[k]) + 1)
        )
    keeps = [keep_top(Boundary(bits, ALL_EQUAL)) if bits else keep_all() for bits in thresholds]
    ones = [1.0] * group.models
    survey = ElementSums(ones, _signs, 2, step=SparseMerge(ones, keeps))
    plus, minus = yield Census(f"signs {densities}", survey, _added, group)
    # Where the sum is 0 the kernel elects +: of the negated deltas, if the model has more - than +.
    sign = 1.0 if plus > minus else -1.0
    scale = group["lambda"]
    if group["merge_func"] == "max":
        change = partial(_largest, thresholds=[_magnitude(bits) for bits in thresholds], plus=sign > 0)
        return ElementwiseMerge(ones, change, scale=scale)
    divide: Divide = "count" if group["merge_func"] == "mean" else "none"
    return SparseMerge([sign] * group.models, keeps, vote="weighted", divide=divide, scale=sign * scale)


def _added(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _signs(deltas: Sequence[Tensor], merged: Tensor) -> list[Tensor]:
    return [float_of(merged > 0), float_of(merged < 0)]


def _magnitude(bits: int) -> float:
    return struct.unpack("f", struct.pack("I", bits))[0]


def _largest(deltas: Sequence[Tensor], merged: Tensor, thresholds: Sequence[float], plus: bool) -> Tensor:
    """Return the largest of the kept deltas that have the elected sign."""
    highest, lowest = zeros_like(merged), zeros_like(merged)
    for delta, threshold in zip(deltas, thresholds, strict=True):
        delta *= abs(delta) >= threshold
        merged += delta
        maximum(highest, delta, out=highest)
        minimum(lowest, delta, out=lowest)
    return where(merged >= 0 if plus else merged > 0, highest, lowest)
