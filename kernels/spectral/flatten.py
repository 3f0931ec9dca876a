r"""Isotropic spectrum: every singular value becomes their mean, ``X' = (sum s / min(m, n)) U V^T``.

Iso-C (Marczak et al. 2025, arXiv 2502.04959). Needs only the polar factor P: ``sum s = <P, X>``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._info import Info
from ._routes import spectral_map
from ._rules import Mean, noise_floors

__all__ = ["flatten_spectrum"]


def flatten_spectrum(
    delta: Tensor, *, null: str = "keep", method: str = "auto", noise: float | Sequence[float] = 0.0
) -> tuple[Tensor, list[Info]]:
    """Return each matrix with all singular values set to their mean, and what was done.

    Arguments and errors as of ``subspace_boost``; null directions that are kept at zero count in the mean.
    """
    rules = [Mean(floor) for floor in noise_floors(noise, delta.shape)]
    return spectral_map(delta, rules, null, method)
