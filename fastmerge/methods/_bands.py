"""What the two breadcrumbs methods share: keep rules for a band of magnitudes, and the parameters."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ..kernels import Keep, keep_all, keep_band
from ..steps.method import Group, Parameter
from ..steps.survey import Boundaries, Survey
from ._sparse import INT8_MASK, LAMBDA, WEIGHT, density_parameter

BAND_PARAMETERS = (
    WEIGHT,
    density_parameter("share of each delta that is kept, below the outliers"),
    Parameter("gamma", float, 0.01, True, 0.0, 1.0, doc="share of each delta that is dropped as outliers"),
    Parameter("normalize", bool, False, doc="divide by the sum of the weights that take part"),
    Parameter("rescale", bool, False, doc="give each thinned delta its L1 norm back"),
    LAMBDA,
    INT8_MASK,
)


def keep_bands(group: Group) -> Generator[Survey, Any, list[Keep]]:
    """Return rules that drop the int(gamma * n) largest magnitudes of each delta and keep int(density * n) below them.

    Where these are more than n, the int(density * n) smallest are kept. Density 1 keeps everything, whatever gamma is;
    no survey where that holds for every model.
    """
    bands = [_band(d, g, group.numel) for d, g in zip(group["density"], group["gamma"], strict=True)]
    if all(band == (group.numel, 0) for band in bands):
        return [keep_all()] * group.models
    boundaries = yield Boundaries(bands, for_rules=True)
    return [keep_band(inside, outside) for inside, outside in boundaries]


def _band(density: float, gamma: float, numel: int) -> tuple[int, int]:
    """Return how many of the largest magnitudes lie above the lower end of the band, and above its upper end."""
    if density >= 1:
        return numel, 0
    kept = int(density * numel)
    outliers = min(int(gamma * numel), numel - kept)
    return outliers + kept, outliers
