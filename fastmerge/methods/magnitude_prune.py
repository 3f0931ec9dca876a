"""Magnitude pruning: the sum of the largest elements of every delta."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ._sparse import SCALE, WEIGHT, density_parameter, keep_largest, keep_largest_of_model


@method
class MagnitudePrune(Method):
    """theta = base + lambda * sum_k w_k prune(theta_k - base)   (magnitude_prune of PEFT).

    ``prune`` keeps the int(density_k * n) largest magnitudes of a delta: per tensor of n elements, or with
    ``scope: model`` of all tensors together. Of equal ones those with the lowest index, tensors by name. Density 0
    keeps nothing, density 1 everything. With ``scope: model`` the model is read twice before it is merged, and a third
    time where equal magnitudes lie on both sides of a threshold; a tensor that is merged by itself is a model.

    NaN and infinity propagate.
    """

    name = "magnitude_prune"
    base = "required"
    parameters = (
        WEIGHT,
        density_parameter("share of each delta that is kept, largest magnitudes first"),
        Parameter("scope", str, "tensor", choices=("tensor", "model"), doc="what magnitudes are compared with"),
        SCALE,
    )
    semantics = ("peft",)
    summary = "sum of deltas without small elements"
    paper = "PEFT (huggingface/peft), add_weighted_adapter"
    on_strips = True
    leaves = True

    def censuses(self, group: Group) -> int:
        return 3 if group["scope"] == "model" and any(0 < density < 1 for density in group["density"]) else 0

    def merge(self, group: Group) -> Solve:
        keep = keep_largest_of_model(group) if self.censuses(group) else keep_largest(group, least=0)
        keeps = yield from keep
        return SparseMerge(group["weight"], keeps, scale=group["lambda"])
