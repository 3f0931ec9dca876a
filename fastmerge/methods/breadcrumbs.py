"""Model breadcrumbs: drop the largest outliers and the small rest of each delta."""

from __future__ import annotations

from ..kernels import keep_all, keep_band
from ..steps.apply import SparseMerge
from ..steps.method import Group, Method, Parameter, Solve, method
from ..steps.survey import Boundaries
from ._sparse import INT8_MASK, LAMBDA, WEIGHT, density_parameter, divisor, rescaled


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
    parameters = (
        WEIGHT,
        density_parameter("share of each delta that is kept, below the outliers"),
        Parameter("gamma", float, 0.01, True, 0.0, 1.0, doc="share of each delta that is dropped as outliers"),
        Parameter("normalize", bool, False, doc="divide by the sum of the weights"),
        Parameter("rescale", bool, False, doc="give each thinned delta its L1 norm back"),
        LAMBDA,
        INT8_MASK,
    )
    paper = "Davari and Belilovsky 2023, arXiv 2312.06795"

    def merge(self, group: Group) -> Solve:
        bands = [_band(d, g, group.numel) for d, g in zip(group["density"], group["gamma"], strict=True)]
        if all(band == (group.numel, 0) for band in bands):
            keeps = [keep_all()] * group.models
        else:
            boundaries = yield Boundaries(bands)
            keeps = [keep_band(inside, outside) for inside, outside in boundaries]
        factors = yield from rescaled(group, keeps)
        return SparseMerge(factors, keeps, group["weight"], divide=divisor(group), scale=group["lambda"])


def _band(density: float, gamma: float, numel: int) -> tuple[int, int]:
    """Return how many of the largest magnitudes lie above the lower end of the band, and above its upper end."""
    if density >= 1:
        return numel, 0
    kept = int(density * numel)
    outliers = min(int(gamma * numel), numel - kept)
    return outliers + kept, outliers
