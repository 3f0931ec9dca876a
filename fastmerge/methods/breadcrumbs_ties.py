"""Model breadcrumbs with the sign election of TIES."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Solve, method
from ._bands import BAND_PARAMETERS, keep_bands
from ._sparse import divisor, rescaled


@method
class BreadcrumbsTies(Method):
    """theta = base + lambda * elected sum of w_k band(theta_k - base)   (Davari et al. 2023; Yadav et al. 2023).

    ``band`` is that of ``breadcrumbs``: it drops the int(gamma_k * n) largest magnitudes of a delta and keeps the
    int(density_k * n) that follow. The sign of ``sum_k w_k band(d_k)`` is elected per element (+ where the sum is 0),
    as in ``ties``, and the terms that have it are added; with ``normalize`` (default off) they are divided by the sum
    of their weights. ``rescale`` gives a delta its L1 norm back.

    Raises ValueError with ``rescale`` when a delta holds NaN or infinity. Otherwise they propagate.
    """

    name = "breadcrumbs_ties"
    base = "required"
    parameters = BAND_PARAMETERS
    summary = "breadcrumbs, with signs elected as in ties"
    paper = "Davari and Belilovsky 2023, arXiv 2312.06795; Yadav et al. 2023, arXiv 2306.01708"
    on_strips = True
    leaves = True

    def merge(self, group: Group) -> Solve:
        keeps = yield from keep_bands(group)
        factors = yield from rescaled(group, keeps)
        return SparseMerge(
            factors, keeps, group["weight"], vote="weighted", divide=divisor(group), scale=group["lambda"]
        )
