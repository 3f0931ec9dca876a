"""TIES: trim, elect sign, disjoint merge."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ._sparse import (
    INT8_MASK,
    LAMBDA,
    SIGN_METHOD,
    SIGN_VOTES,
    WEIGHT,
    density_parameter,
    divisor,
    keep_largest,
    l1_factors,
)


@method
class Ties(Method):
    """theta = base + lambda * disjoint mean of the trimmed deltas   (Yadav et al. 2023, arXiv 2306.01708).

    Per tensor::

        trim    d_k = the max(1, int(density_k * n)) largest magnitudes of theta_k - base, the rest 0
        elect   s = sign of sum_k w_k d_k, per element; + where the sum is 0
        merge   sum of the w_k d_k with sign s / sum of their w_k          (not divided with ``normalize: false``)

    Exactly so many elements are kept: of equal magnitudes those with the lowest index. Density 0
    keeps nothing, density 1 everything. ``rescale`` multiplies a trimmed delta by the L1 norm it had
    before over the one that is left (left alone where either is below 1e-7).

    semantics peft: ``ties`` of PEFT, on deltas. Keeps int(density_k * n); the sign is elected by the
    deltas without their weights, by sum (``majority_sign_method: total``) or by number
    (``frequency``, which may outvote an infinite delta); divides by the number of models that agree.

    Raises ValueError with ``rescale`` when a delta holds NaN or infinity. Otherwise they propagate.
    """

    name = "ties"
    base = "required"
    parameters = (
        WEIGHT,
        density_parameter("share of each delta that is kept, largest magnitudes first"),
        Parameter("normalize", bool, True, semantics=("mergekit",), doc="divide by the weights that agree in sign"),
        Parameter("rescale", bool, False, semantics=("mergekit",), doc="give each trimmed delta its L1 norm back"),
        LAMBDA,
        INT8_MASK,
        SIGN_METHOD,
    )
    semantics = ("mergekit", "peft")
    paper = "Yadav et al. 2023, arXiv 2306.01708"

    def merge(self, group: Group) -> Solve:
        if group.semantics == "peft":
            keeps = yield from keep_largest(group, least=0)
            return SparseMerge(group["weight"], keeps, vote=SIGN_VOTES[group["majority_sign_method"]], divide="count")
        keeps = yield from keep_largest(group, least=1)
        weights = group["weight"]
        factors = (yield from l1_factors(group, keeps)) if group["rescale"] else weights
        return SparseMerge(factors, keeps, weights, vote="weighted", divide=divisor(group), scale=group["lambda"])
