"""DARE with a weighted sum: drop at random, rescale, add."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Solve, method
from ._sparse import DARE_PARAMETERS, divisor, dropped_at_random


@method
class DareLinear(Method):
    """theta = base + lambda * sum_k w_k r_k drop(theta_k - base)   (Yu et al. 2024, arXiv 2311.03099).

    ``drop`` keeps each element with probability density_k, by counter-based random numbers that depend
    on seed, tensor name, model and element alone. ``rescale`` (default on) takes for r_k the L1 norm
    of the whole delta over that of the kept part (1 where either is below 1e-7), as mergekit does; the
    paper's r_k is 1 / density_k. With ``normalize`` the sum is divided by ``sum_k w_k``.

    semantics peft: ``dare_linear`` of PEFT, on deltas; r_k = 1 / density_k.

    Raises ValueError when norms are matched and a delta holds NaN or infinity. Otherwise they propagate.
    """

    name = "dare_linear"
    base = "required"
    parameters = DARE_PARAMETERS
    semantics = ("mergekit", "peft")
    summary = "sum of deltas, elements dropped at random"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    on_strips = True
    leaves = True
    random = True

    def merge(self, group: Group) -> Solve:
        factors, keeps = yield from dropped_at_random(group)
        if group.semantics == "peft":
            return SparseMerge(factors, keeps)
        return SparseMerge(factors, keeps, group["weight"], divide=divisor(group), scale=group["lambda"])
