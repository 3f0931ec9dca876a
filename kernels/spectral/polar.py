r"""Orthogonal polar factor ``P = U V^T`` of ``X = U diag(s) V^T``: the nearest matrix with orthonormal columns or rows.

By a polynomial iteration on a GPU (``_polar``), by the Gram matrix in float64 on a CPU (``_exact``).
"""

from __future__ import annotations

import math

from torch import Tensor

from ._info import Info
from ._routes import spectral_map
from ._rules import Unit

__all__ = ["polar"]


def polar(x: Tensor, *, null: str = "keep", method: str = "auto") -> tuple[Tensor, list[Info]]:
    """Return the polar factor of each matrix, and what was done.

    Args:
        x:      [..., m, n] float32, finite.
        null:   ``keep`` maps null directions to zero (a partial isometry); ``reference`` completes them with the
                arbitrary vectors of a float32 SVD, as the reference codes do.
        method: ``auto``, ``accurate``, ``exact`` or ``svd``; see ``subspace_boost``.
    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """
    return spectral_map(x, [Unit()] * math.prod(x.shape[:-2]), null, method)
