"""DARE with sign election: drop at random, rescale, elect signs as TIES does."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Solve, method
from ._sparse import DARE_PARAMETERS, SIGN_METHOD, SIGN_VOTES, divisor, dropped_at_random


@method
class DareTies(Method):
    """theta = base + lambda * elected sum of w_k r_k drop(theta_k - base)   (Yu et al. 2024, arXiv 2311.03099).

    ``drop`` and r_k as in dare_linear; then the sign of ``sum_k w_k r_k d_k`` is elected per element (+ where
    the sum is 0) and the terms that have it are added. With ``normalize`` (default off) the sum is
    divided by the sum of their weights.

    semantics peft: ``dare_ties`` of PEFT, on deltas, with one density for all models; r_k = 1 / density;
    signs are elected without weights, by sum or by number, and the sum is divided by the number of
    models that agree.

    Raises ValueError when norms are matched and a delta holds NaN or infinity (otherwise they
    propagate), and with semantics peft when the densities differ.
    """

    name = "dare_ties"
    base = "required"
    parameters = (*DARE_PARAMETERS, SIGN_METHOD)
    semantics = ("mergekit", "peft")
    summary = "dare_linear, with signs elected as in ties"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    on_strips = True
    leaves = True
    random = True

    def merge(self, group: Group) -> Solve:
        if group.semantics == "peft":
            if len(set(group["density"])) > 1:
                raise ValueError(
                    f"{group.name}: the densities {group['density']} differ; PEFT takes one for all models"
                )
            factors, keeps = yield from dropped_at_random(group)
            return SparseMerge(factors, keeps, vote=SIGN_VOTES[group["majority_sign_method"]], divide="count")
        factors, keeps = yield from dropped_at_random(group)
        return SparseMerge(
            factors, keeps, group["weight"], vote="weighted", divide=divisor(group), scale=group["lambda"]
        )
