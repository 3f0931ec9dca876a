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
    """Return the polar factor of each matrix [..., m, n], a partial isometry where null directions are kept at zero.

    And what was done. Arguments and errors as of ``subspace_boost``.
    """
    return spectral_map(x, [Unit()] * math.prod(x.shape[:-2]), null, method)
