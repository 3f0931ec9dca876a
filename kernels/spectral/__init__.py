"""Spectral operations on deltas: matrix functions of singular values, by matrix products where they win.

All take float32 matrices [..., m, n] and return float32; ``Info`` says what was done with each matrix. Deterministic
for the same input on the same backend: random start blocks come from private generators.
"""

from ._info import Info
from .boost import subspace_boost
from .flatten import flatten_spectrum
from .polar import polar

__all__ = ["Info", "flatten_spectrum", "polar", "subspace_boost"]
