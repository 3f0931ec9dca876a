"""TSV-C: one model's delta, compressed to its leading singular vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..steps.method import Group, Parameter, method
from ._spectral import LAMBDA, MATRICES, Change, SpectralMethod

if TYPE_CHECKING:
    from torch import Tensor

    from ..kernels.spectral import Info


@method
class TsvC(SpectralMethod):
    """theta = base + lambda * U_r diag(s_r) V_r^T   (Gargiulo et al. 2025, arXiv 2412.00081).

    The leading r = max(1, int(share * min(m, n))) singular triplets of each matrix's delta theta_1 - base: what is left
    of one model when T models share the memory of one delta, share = 1 / T. Other tensors (norms, biases, embeddings
    and head, unless ``matrices: all``) keep their whole delta. Stacked experts are taken one by one.

    How far results are reproducible, ``task_arithmetic_sb`` says.
    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "tsv_c"
    inputs = (1, 1)
    parameters = (
        Parameter(
            "share", float, minimum=0.0, maximum=1.0, doc="share of the singular vectors that is kept", neutral=1.0
        ),
        LAMBDA,
        MATRICES,
    )
    summary = "one delta, cut to its largest directions"
    paper = "Gargiulo et al. 2025, arXiv 2412.00081"
    stacked = False

    def change(self, group: Group) -> Change:
        size = min(group.shape[-2:])
        rank = max(1, int(group["share"] * size))
        return lambda matrices, _: (matrices[0], []) if rank == size else _truncated(matrices[0], rank)


def _truncated(delta: Tensor, rank: int) -> tuple[Tensor, list[Info]]:
    from ..kernels.spectral import top_singular

    u, s, vh, infos = top_singular(delta, rank)
    return (u * s) @ vh, infos
