"""DELLA with a weighted sum: drop by magnitude rank at random, rescale, add."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Solve, method
from ._ranked import RankedMethod, della_parameters, keep_by_rank
from ._sparse import divisor, rescaled


@method
class DellaLinear(RankedMethod):
    """theta = base + lambda * sum_k w_k r_k drop(theta_k - base)   (Deep et al. 2024, arXiv 2406.11617).

    ``drop`` and r_k as in ``della``; no sign is elected. With ``normalize`` (default off) the sum is divided by
    ``sum_k w_k``.

    Raises ValueError as ``della`` does.
    """

    name = "della_linear"
    parameters = della_parameters(normalize=False)
    summary = "della without the election of signs"
    paper = "Deep et al. 2024, arXiv 2406.11617"

    def merge(self, group: Group) -> Solve:
        keeps = yield from keep_by_rank(group)
        factors = yield from rescaled(group, keeps)
        return SparseMerge(factors, keeps, group["weight"], divide=divisor(group), scale=group["lambda"])
