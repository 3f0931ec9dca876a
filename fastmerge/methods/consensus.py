"""Consensus merging: keep the elements of the merged delta that several models need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..steps.apply import ElementwiseMerge
from ..steps.arrays import float_of, zeros_like
from ..steps.method import Group, Method, Parameter, Solve, method
from ._sparse import SCALE
from ._tasks import MASK_LAMBDA, MERGE, TASK_DENSITY, TASK_WEIGHT, merged_tasks, needed

if TYPE_CHECKING:
    from torch import Tensor


@method
class Consensus(Method):
    """theta = base + lambda * t, where |d_k| > mask_lambda_k |t - d_k| for >= threshold models   (Wang et al. 2024).

    d_k = w_k (theta_k - base), and t is the merged delta: their sum, or with ``merge: ties`` the sum of the elements
    that agree with the elected sign, each delta trimmed to ``density`` first. The condition is the mask of one task
    (TALL mask) in t: d_k is there, and not drowned by the others. An element that fewer than ``threshold`` models need
    becomes the base's. ``threshold`` 0 keeps all of t, 1 drops what no model needs, 2 (the paper's) also what only one
    needs.

    The paper tunes ``mask_lambda`` per task over 0.2 .. 0.6; a larger one keeps less. The weights default to 1.
    Where t is NaN or infinite, the result is NaN or infinite.
    """

    name = "consensus"
    base = "required"
    parameters = (
        TASK_WEIGHT,
        MASK_LAMBDA,
        Parameter("threshold", int, 2, minimum=0, doc="number of models that must need an element", neutral=1),
        MERGE,
        TASK_DENSITY,
        SCALE,
    )
    summary = "sum of deltas where several tasks agree"
    paper = "Wang et al. 2024, arXiv 2405.07813"
    on_strips = True

    def merge(self, group: Group) -> Solve:
        step = yield from merged_tasks(group)
        change = partial(_needed, mask_lambdas=group["mask_lambda"], threshold=group["threshold"])
        return ElementwiseMerge(group["weight"], change, step, group["lambda"])


def _needed(deltas: Sequence[Tensor], merged: Tensor, mask_lambdas: Sequence[float], threshold: int) -> Tensor:
    """Return the elements of ``merged`` that at least ``threshold`` models need, and 0 for the others."""
    votes = zeros_like(merged)
    for delta, mask_lambda in zip(deltas, mask_lambdas, strict=True):
        votes += needed(delta, merged, mask_lambda)
    # A product, so that NaN and infinity stay.
    merged *= float_of(votes >= threshold)
    return merged
