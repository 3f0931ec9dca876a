"""Iso-CTS: an isotropic spectrum over shared and task-specific directions."""

from __future__ import annotations

from ..steps.method import Group, Parameter, method
from ._spectral import SPECTRAL_PARAMETERS, Change, SpectralMethod, on_moved


@method
class IsoCts(SpectralMethod):
    """theta = base + lambda * mean(s) polar([U_c U_1 .. U_T]) polar([V_c V_1 .. V_T])^T   (Marczak et al. 2025).

    Per matrix, of the deltas d_k = w_k (theta_k - base) with r = min(m, n)::

        common    U_c, s_c, V_c   the leading c triplets of sum_k d_k, c about common_share * r
        specific  U_k, s_k, V_k   the leading (r - c) / T triplets of what is left of d_k outside U_c
        merge     the vectors are made orthogonal, every singular value becomes the mean of all r

    ``common_share`` 1 is ``iso_c``. A model whose delta is zero here, or whose weight is 0, takes no part and does not
    count in T. Other tensors, and matrices with fewer rows or columns than there are models, get ``base + lambda *
    weighted mean of the deltas``. Scale, null directions and reproducibility as in ``iso_c`` and ``tsvm``.

    Raises ValueError when a delta holds NaN or infinity.
    """

    name = "iso_cts"
    parameters = (
        *SPECTRAL_PARAMETERS,
        Parameter(
            "common_share", float, 0.8, minimum=0.0, maximum=1.0,
            doc="share of the directions that come from the summed delta; the models' own share the others",
        ),
    )  # fmt: skip
    summary = "iso_c, with directions of each task"
    paper = "Marczak et al. 2025, arXiv 2502.04959"
    ordered = True

    def change(self, group: Group) -> Change:
        from ..kernels.spectral import flatten_tasks

        common, null = group["common_share"], group["null_space"]
        return on_moved(lambda deltas: flatten_tasks(deltas, common, null=null))
