"""KnOTS: sparse merges of deltas that were aligned in one basis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..steps.driver import merge_source
from ..steps.method import Group, Parameter, method
from ..steps.source import Resident
from ._sparse import density_parameter
from ._spectral import LAMBDA, MATRICES, SPECTRAL_PARAMETERS, Change, SpectralMethod, delta_bytes
from .dare_linear import DareLinear
from .dare_ties import DareTies
from .ties import Ties

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info

_MERGES = {inner.name: inner for inner in (Ties(), DareTies(), DareLinear())}


@method
class Knots(SpectralMethod):
    """theta = base + lambda * U merge(U^T d_1, .., U^T d_T),   d_k = w_k (theta_k - base)   (Stoica et al. 2025).

    Per matrix, U holds the left singular vectors of all deltas side by side, [d_1 .. d_T] = U diag(s) V^T, computed in
    float64. The aligned parts ``U^T d_k`` are merged by ``ties`` (KnOTS-TIES), ``dare_ties`` or ``dare_linear``, with
    ``density`` and the defaults of that method; it sees float32 and weights of 1.

    Made for models tuned by LoRA, whose deltas share few directions; singular values of at most 2^-22 of the largest
    are left out. Masks depend on the seed, the name and the model; directions with equal singular values are arbitrary.
    Other tensors (norms, biases, embeddings and head, unless ``matrices: all``), and matrices with fewer rows or
    columns than there are models, get ``base + lambda * weighted mean of the deltas``. Stacked experts are taken one by
    one.

    How far results are reproducible, ``task_arithmetic_sb`` says.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "knots"
    parameters = (
        SPECTRAL_PARAMETERS[0],
        density_parameter("share of each aligned part that is kept"),
        Parameter(
            "merge", str, "ties", choices=tuple(_MERGES), doc="how the aligned parts are merged", example="dare_ties"
        ),
        LAMBDA,
        MATRICES,
    )
    summary = "deltas in one basis, merged there"
    paper = "Stoica et al. 2025, arXiv 2410.19735"
    random = True

    def change(self, group: Group) -> Change:
        import torch

        from ..kernels.spectral import shared_basis

        inner = _MERGES[group["merge"]]
        values = {p.name: (p.default,) * group.models if p.per_model else p.default for p in inner.parameters}
        values |= {"weight": (1.0,) * group.models, "density": group["density"]}

        def merged(deltas: list[Tensor], _: float) -> tuple[Tensor, list[Info]]:
            basis = shared_basis(deltas)
            parts = [(basis.mT @ delta.double()).float() for delta in deltas]
            out = torch.empty_like(parts[0])
            told = Group(group.name, tuple(out.shape), group.models, values, group.seed)
            merge_source(inner, told, Resident(torch.zeros_like(out), tuple(parts)), out)
            return (basis @ out.double()).float(), []

        return merged

    def scratch_bytes(self, group: Group) -> int | None:
        if not self.is_changed(group):
            return None
        rows, columns = group.shape[-2:]
        # Gram matrix and eigenvectors; aligned parts, their merge, matrices in float64. At most 0.95 was measured.
        return delta_bytes(group, group.models) + 4 * (9 * rows + (6 + 2 * group.models) * columns) * rows
