"""DELLA: drop by magnitude rank at random, rescale, elect signs as TIES does."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Solve, method
from ._ranked import RankedMethod, della_parameters, keep_by_rank
from ._sparse import divisor, rescaled


@method
class Della(RankedMethod):
    """theta = base + lambda * elected mean of w_k r_k drop(theta_k - base)   (Deep et al. 2024, arXiv 2406.11617).

    ``drop`` ranks the magnitudes of each row, ascending, r = 0 .. n - 1, equal ones by position, and keeps an element
    with probability ``density - epsilon + 2 epsilon r / (n - 1)``, by counter-based random numbers as ``dare_linear``.
    Rows lie along the second dimension, also of a tensor with more than two; a vector is one row. An element alone in
    its row is kept with probability density. r_k is the L1 norm of the whole delta over that of the kept part (1 where
    either is below 1e-7), as mergekit has it; the paper divides each element by its probability. The sign of
    ``sum_k w_k r_k d_k`` is elected per element (+ where the sum is 0); the terms that have it are added and, with
    ``normalize`` (default on), divided by the sum of their weights.

    Density 1 keeps everything and density 0 nothing, whatever epsilon is. mergekit holds ranks in the dtype of the
    tensors, so that bfloat16 gives a row of 4096 only 704 of them; here they are exact.

    Raises ValueError when density - epsilon or density + epsilon leaves (0, 1), and, when norms are matched, for a
    delta with NaN or infinity. Otherwise these propagate.
    """

    name = "della"
    parameters = della_parameters(normalize=True)
    summary = "drops by rank of magnitude, elects signs"
    paper = "Deep et al. 2024, arXiv 2406.11617"

    def merge(self, group: Group) -> Solve:
        keeps = yield from keep_by_rank(group)
        factors = yield from rescaled(group, keeps)
        return SparseMerge(
            factors, keeps, group["weight"], vote="weighted", divide=divisor(group), scale=group["lambda"]
        )
