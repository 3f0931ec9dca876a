r"""Subspace Boosting: raise the small singular values of a merged delta to a common floor.

    s'_i = max(s_i, s_k),   k = first index with  s_0 + ... + s_k >= beta * sum s     (s falling, k from 0)

(Skorobogat et al. 2025, arXiv 2506.16506.) ``beta`` counts from the top: a larger one boosts LESS, and at 0 the
result is s_0 times the polar factor. Written as ``c P + sum_{i<k} (s_i - c) u_i v_i^T`` with c = s_k and the polar
factor P, whose product with X is the sum of singular values, it needs matrix products and k triplets, no full SVD.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._info import Info
from ._routes import spectral_map
from ._rules import Boost, noise_floors

__all__ = ["subspace_boost"]


def subspace_boost(
    delta: Tensor,
    beta: float = 0.01,
    *,
    tol: float = 1e-5,
    null: str = "keep",
    method: str = "auto",
    noise: float | Sequence[float] = 0.0,
) -> tuple[Tensor, list[Info]]:
    """Return the boosted delta of each matrix, and what was done.

    Args:
        delta:  [..., m, n] float32, finite. A matrix of zeros is returned as it is.
        beta:   share of the sum of singular values, in [0, 1]. 0.01 is the reference's default; 0.2 is used for LLMs.
        tol:    relative Frobenius error that ``auto`` may choose a route for on a GPU: ``accurate`` from 1e-5, else
                ``exact``.
        null:   singular values of at most 2^-22 of the largest are null: their directions are arbitrary. ``keep``
                leaves them at zero; ``reference`` raises them too, along the vectors that a float32 SVD returns (these
                differ from run to run between libraries, devices and thread counts).
        method: ``accurate`` (polynomial iteration at float32 accuracy), ``exact`` (Gram matrix and eigenvectors in
                float64), ``svd`` (float32), or ``auto``: ``exact`` on a CPU, then ``svd``; by ``tol`` on a GPU. Where
                the certificate of a route fails, the next one takes over; ``Info.method`` says which it was.
        noise:  standard deviation of the rounding in the elements of ``delta``, for ``Info.noise``; 0: not known. One
                for all matrices, or one for each, in row-major order.
    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """
    rules = [Boost(beta, floor) for floor in noise_floors(noise, delta.shape)]
    return spectral_map(delta, rules or Boost(beta), tol=tol, null=null, method=method)
