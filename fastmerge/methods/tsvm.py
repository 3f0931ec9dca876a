"""TSV-M: task singular vectors, merged without interference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..apply import Apply, SparseMerge
from ..kernels import keep_all
from ..kernels.spectral import orthogonalize_blocks
from ._base import Group, Parameter, method
from ._sparse import LAMBDA
from ._spectral import MATRICES, NULL_SPACE, SpectralMerge, SpectralMethod, is_spectral, scratch_bytes


@method
class Tsvm(SpectralMethod):
    """theta = base + lambda * polar([U_1 .. U_T]) diag(s_1 .. s_T) polar([V_1 .. V_T])^T   (Gargiulo et al. 2025).

    Per matrix [m, n]: U_k diag(s_k) V_k^T is the leading part, of rank max(1, min(m, n) // T), of w_k (theta_k - base).
    Making the vectors of all T models orthogonal removes what one model adds along the directions of another.
    A model whose delta is zero here, or whose weight is 0, takes no part and does not count in T. Models that
    are orthogonal already are summed; one model alone returns itself.

    Other tensors (norms, biases, embeddings and head, unless ``matrices: all``), and matrices with fewer rows or
    columns than there are models, get ``base + lambda * weighted mean of the deltas``. Stacked experts are taken one by
    one. The weights default to 1: the paper has none. One factor on all of them scales the result on matrices and not
    elsewhere. (mergekit's pull request 639 takes ``weight`` and ignores it here.)

    Directions that models share leave null directions: see ``null_space``. With ``keep`` a model that is given
    twice counts once; with ``reference`` arbitrary directions take the second one's place. The result is a sum over
    models: lambda below 1 keeps its size near that of one model's delta.

    How far results are reproducible, ``task_arithmetic_sb`` says.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "tsvm"
    parameters = (
        Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta"),
        LAMBDA,
        MATRICES,
        NULL_SPACE,
    )
    paper = "Gargiulo et al. 2025, arXiv 2412.00081"

    def merge(self, group: Group) -> Apply:
        if not _is_merged_by_vectors(group):
            keeps = [keep_all()] * group.models
            return SparseMerge(group["weight"], keeps, divide="weights", scale=group["lambda"])
        null = group["null_space"]
        steps = [SparseMerge([weight], [keep_all()]) for weight in group["weight"]]
        return SpectralMerge(group, steps, lambda matrices: _orthogonalized(matrices, null), group["lambda"])

    def scratch_bytes(self, group: Group) -> int | None:
        return scratch_bytes(group, group.models) if _is_merged_by_vectors(group) else None


def _is_merged_by_vectors(group: Group) -> bool:
    return is_spectral(group) and min(group.shape[-2:]) >= group.models


def _orthogonalized(deltas: list[Tensor], null: str) -> Tensor:
    moved = [delta for delta in deltas if bool(delta.any())]
    return orthogonalize_blocks(moved, null=null)[0] if moved else torch.zeros_like(deltas[0])
