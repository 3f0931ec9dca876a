r"""Flat spectra: the polar factor ``P = U V^T`` of ``X = U diag(s) V^T``, and its multiple by the mean of s.

P is the nearest matrix with orthonormal columns or rows. ``(sum s / min(m, n)) P`` with ``sum s = <P, X>`` is the
isotropic spectrum of Iso-C (Marczak et al. 2025, arXiv 2502.04959).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ._info import Info
from ._routes import spectral_map
from ._rules import Mean, Unit, noise_floors

__all__ = ["flatten_spectrum", "polar"]


def polar(x: Tensor, *, null: str = "keep", method: str = "auto") -> tuple[Tensor, list[Info]]:
    """Return the polar factor of each matrix [..., m, n], a partial isometry where null directions are kept at zero.

    And what was done. Arguments and errors as of ``subspace_boost``.
    """
    return spectral_map(x, [Unit()] * math.prod(x.shape[:-2]), null, method)


def flatten_spectrum(
    delta: Tensor, *, null: str = "keep", method: str = "auto", noise: float | Sequence[float] = 0.0
) -> tuple[Tensor, list[Info]]:
    """Return each matrix with all singular values set to their mean, and what was done.

    Arguments and errors as of ``subspace_boost``; null directions that are kept at zero count in the mean.
    """
    rules = [Mean(floor) for floor in noise_floors(noise, delta.shape)]
    return spectral_map(delta, rules, null, method)
