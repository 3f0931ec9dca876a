"""Iso-C: the summed delta with an isotropic spectrum."""

from __future__ import annotations

from ..apply import Apply, SparseMerge
from ..kernels import keep_all
from ..kernels.spectral import flatten_spectrum
from ._base import Group, Parameter, method
from ._sparse import LAMBDA
from ._spectral import MATRICES, NULL_SPACE, SpectralMerge, SpectralMethod, is_spectral


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
    parameters = (
        Parameter("weight", float, 1.0, per_model=True, doc="coefficient of the model's delta"),
        LAMBDA,
        MATRICES,
        NULL_SPACE,
    )
    paper = "Marczak et al. 2025, arXiv 2502.04959"

    def merge(self, group: Group) -> Apply:
        keeps, null = [keep_all()] * group.models, group["null_space"]
        if not is_spectral(group):
            return SparseMerge(group["weight"], keeps, divide="weights", scale=group["lambda"])
        step = SparseMerge(group["weight"], keeps, scale=group["lambda"])
        return SpectralMerge(group, [step], lambda matrices: flatten_spectrum(matrices[0], null=null)[0])
