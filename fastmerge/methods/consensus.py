"""Consensus merging: keep the elements of the merged delta that several models need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..kernels import keep_all
from ..steps.apply import ElementwiseMerge, SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ._sparse import LAMBDA, density_parameter, keep_largest


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
        Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta"),
        Parameter(
            "mask_lambda", float, 0.6, per_model=True, minimum=0.0,
            doc="how large a model's delta must be beside the rest of the merged one to count as needed",
        ),
        Parameter("threshold", int, 2, minimum=0, doc="number of models that must need an element", neutral=1),
        Parameter("merge", str, "sum", choices=("sum", "ties"), doc="how the merged delta is made"),
        density_parameter("share of each delta that takes part with merge: ties"),
        LAMBDA,
    )  # fmt: skip
    paper = "Wang et al. 2024, arXiv 2405.07813"

    def merge(self, group: Group) -> Solve:
        weights = group["weight"]
        if group["merge"] == "ties":
            keeps = yield from keep_largest(group, least=1)
            step = SparseMerge(weights, keeps, vote="weighted")
        else:
            step = SparseMerge(weights, [keep_all()] * group.models)
        change = partial(_needed, mask_lambdas=group["mask_lambda"], threshold=group["threshold"])
        return ElementwiseMerge(step.factors, change, step, group["lambda"])


def _needed(deltas: Sequence[Tensor], merged: Tensor, mask_lambdas: Sequence[float], threshold: int) -> Tensor:
    """Return the elements of ``merged`` that at least ``threshold`` models need, and 0 for the others."""
    votes, rest = torch.zeros(merged.shape, dtype=torch.int16, device=merged.device), torch.empty_like(merged)
    for delta, mask_lambda in zip(deltas, mask_lambdas, strict=True):
        torch.sub(merged, delta, out=rest).abs_().mul_(mask_lambda)
        votes += delta.abs_() > rest
    # A product, so that NaN and infinity stay.
    return merged.mul_(votes >= threshold)
