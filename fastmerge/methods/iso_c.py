"""Iso-C: the summed delta with an isotropic spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..steps.method import Group, method
from ..steps.stacks import Stack
from ._spectral import SpectralMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info


@method
class IsoC(SpectralMethod):
    """theta = base + lambda * mean(s) U V^T,  U diag(s) V^T = sum_k w_k (theta_k - base)   (Marczak et al. 2025).

    Every singular value of a matrix's summed delta becomes their mean. Other tensors (norms, biases, embeddings and
    head, unless ``matrices: all``) get ``base + lambda * weighted mean of the deltas``. Stacked experts are taken
    one by one. The weights default to 1: the paper has none. One factor on all of them scales the result on matrices
    and not elsewhere. (mergekit's pull request 639 takes ``weight`` and ignores it here.)

    The spectrum is that of a SUM of the models: with many models, lambda well below 1 keeps the delta at the size
    of one model's. The paper tunes it. A delta of zeros stays zero. Singular values of at most 2^-22 of the largest
    are null: see ``null_space``; they count in the mean. The others include rounding of bfloat16 weights, raised alike.

    How far results are reproducible, ``task_arithmetic_sb`` says.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "iso_c"
    summary = "sum of deltas, singular values made equal"
    paper = "Marczak et al. 2025, arXiv 2502.04959"
    stacked = False

    def change(self, group: Group) -> Stack:
        return Flattened(group["null_space"])


@dataclass(frozen=True)
class Flattened(Stack):
    """Makes the singular values of each matrix equal."""

    null_space: str

    def of_many(self, matrices: Tensor, noise: Sequence[float]) -> tuple[Tensor, list[Info]]:
        from ..kernels.spectral import flatten_spectrum

        return flatten_spectrum(matrices, null=self.null_space, noise=noise)
