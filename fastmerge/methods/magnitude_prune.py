"""Magnitude pruning: the sum of the largest elements of every delta."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Solve, method
from ._sparse import SCALE, WEIGHT, density_parameter, keep_largest


@method
class MagnitudePrune(Method):
    """theta = base + lambda * sum_k w_k prune(theta_k - base)   (magnitude_prune of PEFT).

    ``prune`` keeps the int(density_k * n) largest magnitudes of a delta, per tensor; of equal ones those with the
    lowest index. Density 0 keeps nothing, density 1 everything. NaN and infinity propagate.
    """

    name = "magnitude_prune"
    base = "required"
    parameters = (
        WEIGHT,
        density_parameter("share of each delta that is kept, largest magnitudes first"),
        SCALE,
    )
    semantics = ("peft",)
    paper = "PEFT (huggingface/peft), add_weighted_adapter"

    def merge(self, group: Group) -> Solve:
        keeps = yield from keep_largest(group, least=0)
        return SparseMerge(group["weight"], keeps, scale=group["lambda"])
