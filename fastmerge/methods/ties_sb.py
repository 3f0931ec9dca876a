"""TIES with Subspace Boosting."""

from __future__ import annotations

from dataclasses import replace

from ..steps.method import method
from ._blocks import BoostBlock, Extended
from ._boost import BOOST_PARAMETERS
from .ties import Ties


@method
class TiesSb(Extended):
    """theta = base + boost(lambda * disjoint mean of the trimmed deltas)   (Skorobogat et al. 2025, arXiv 2506.16506).

    Per matrix, with the singular values s of the merged delta, falling::

        boost   s'_i = max(s_i, s_j),   j = first index with  s_0 + ... + s_j >= beta * sum s

    The merged delta is that of ``ties``, in float32: trimmed, elected, divided, times lambda, then boosted. (A later
    state of mergekit's pull request 639 divides after the boost, which bends the spectrum again.) ``beta``, other
    tensors, null directions, noise and reproducibility as in ``task_arithmetic_sb``.

    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "ties_sb"
    inner, blocks = Ties(), (BoostBlock(prefix=""),)
    parameters = (
        *(replace(own, semantics=(), defaults=()) for own in Ties().parameters_of("mergekit")),
        *BOOST_PARAMETERS,
    )
    summary = "ties with a boosted spectrum"
    paper = "Skorobogat et al. 2025, arXiv 2506.16506"
