"""Spectral operations on deltas: matrix functions of singular values, by matrix products where they win.

All take float32 matrices [..., m, n] and return float32; ``Info`` says what was done with each matrix. Deterministic
for the same input on the same backend: random start blocks come from private generators.

A map of singular values (``boost``, ``flatten``, ``polar``) is a rule (``_rules``) that a route (``_routes``) carries
out: on a CPU decompositions (``_exact``), on a GPU products (``_by_products``: the polar factor by ``_polar`` and its
``_schedule``, the leading triplets by ``_filter``; ``_products`` says who multiplies). Leading triplets alone are those
of ``top``, searched for by ``_krylov`` on a CPU and by ``_filter`` on a GPU.
"""

from ._info import Info
from .align import shared_basis
from .blocks import orthogonalize_blocks
from .boost import boost_part, subspace_boost
from .diagnostics import spectrum, stable_rank
from .factored import boost_factored, factored_svd
from .flatten import flatten_spectrum, polar
from .hogsvd import HigherOrderGSVD, higher_order_gsvd
from .isotropic import flatten_tasks
from .leading import Leading, leading_values
from .top import top_singular

__all__ = [
    "HigherOrderGSVD",
    "Info",
    "Leading",
    "boost_factored",
    "boost_part",
    "factored_svd",
    "flatten_spectrum",
    "flatten_tasks",
    "higher_order_gsvd",
    "leading_values",
    "orthogonalize_blocks",
    "polar",
    "shared_basis",
    "spectrum",
    "stable_rank",
    "subspace_boost",
    "top_singular",
]
