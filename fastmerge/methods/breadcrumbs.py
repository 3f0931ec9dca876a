"""Model breadcrumbs: drop the largest outliers and the small rest of each delta."""

from __future__ import annotations

from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Solve, method
from ._bands import BAND_PARAMETERS, keep_bands
from ._sparse import divisor, rescaled


@method
class Breadcrumbs(Method):
    """theta = base + lambda * sum_k w_k band(theta_k - base)   (Davari and Belilovsky 2023, arXiv 2312.06795).

    ``band`` drops the int(gamma_k * n) largest magnitudes of a delta and keeps the int(density_k * n) that
    follow. Where these are more than n, it keeps the int(density_k * n) smallest. Of equal magnitudes the
    one with the lower index counts as larger. Density 1 keeps everything, whatever gamma is; density 0
    keeps nothing. ``normalize`` divides by the sum of the weights; ``rescale`` gives a delta its L1 norm back.

    As in mergekit the ranks are those of the whole tensor; the paper takes them per row.

    Raises ValueError with ``rescale`` when a delta holds NaN or infinity. Otherwise they propagate.
    """

    name = "breadcrumbs"
    base = "required"
    parameters = BAND_PARAMETERS
    summary = "sum of deltas without largest and smallest"
    paper = "Davari and Belilovsky 2023, arXiv 2312.06795"
    on_strips = True
    leaves = True

    def merge(self, group: Group) -> Solve:
        keeps = yield from keep_bands(group)
        factors = yield from rescaled(group, keeps)
        return SparseMerge(factors, keeps, group["weight"], divide=divisor(group), scale=group["lambda"])
