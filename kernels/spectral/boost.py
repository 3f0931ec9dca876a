r"""Subspace Boosting: raise the small singular values of a merged delta to a common floor.

    s'_i = max(s_i, s_k),   k = first index with  s_0 + ... + s_k >= beta * sum s     (s falling, k from 0)

(Skorobogat et al. 2025, arXiv 2506.16506.) ``beta`` counts from the top: a larger one boosts LESS, and at 0 the
result is s_0 times the polar factor. Written as ``c P + sum_{i<k} (s_i - c) u_i v_i^T`` with c = s_k and the polar
factor P, whose product with X is the sum of singular values, it needs matrix products and k triplets, no full SVD.

A matrix that is split over ranks is boosted by all of them, each its part (``boost_part``): X'X is the sum over ranks
of that of their rows. With T Gram matrices per polar factor (5 of a square matrix, 3 of one that is 1.3 times as long
as wide; 2 more per extension of the schedule, 1 where the last step is made twice), R ranks together send
8 n^2 (R - 1) T bytes, and what is made of X'X is computed R times. For 8192 x 8192 on 8 ranks that is 19 GB, where
sending all of it to one rank and back takes 0.5 GB: it is for a matrix that no rank has room for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ._by_products import by_products
from ._exact import by_gram
from ._info import Info
from ._matrices import Total, full_float32
from ._products import Products
from ._routes import spectral_map
from ._rules import Boost, noise_floors

__all__ = ["boost_part", "subspace_boost"]


def subspace_boost(
    delta: Tensor,
    beta: float = 0.01,
    *,
    null: str = "keep",
    method: str = "auto",
    noise: float | Sequence[float] = 0.0,
) -> tuple[Tensor, list[Info]]:
    """Return the boosted delta of each matrix, and what was done.

    Args:
        delta:  [..., m, n] float32, finite. A matrix of zeros is returned as it is.
        beta:   share of the sum of singular values, in [0, 1]. 0.01 is the reference's default; 0.2 is used for LLMs.
        null:   singular values of at most 2^-22 of the largest are null: their directions are arbitrary. ``keep``
                leaves them at zero; ``reference`` raises them too, along the vectors that a float32 SVD returns (these
                differ from run to run between libraries, devices and thread counts).
        method: ``accurate`` (polynomial iteration at float32 accuracy), ``exact`` (Gram matrix and eigenvectors in
                float64), ``svd`` (float32), or ``auto``: ``exact`` on a CPU, then ``svd``; ``accurate`` on a GPU. Where
                the certificate of a route fails, the next one takes over; ``Info.method`` says which it was.
        noise:  standard deviation of the rounding in the elements of ``delta``, for ``Info.noise``; 0: not known. One
                for all matrices, or one for each, in row-major order.
    Raises:
        ValueError: an argument is out of range; the message names it and its value.
    """
    rule = Boost(beta)
    return spectral_map(delta, [replace(rule, floor=floor) for floor in noise_floors(noise, delta.shape)], null, method)


def boost_part(shard: Tensor, beta: float, *, dim: int, total: Total, noise: float = 0.0) -> tuple[Tensor, Info] | None:
    """Return this rank's part of a boosted matrix, and what was done, the same on every rank; None: not certified.

    A collective call: every rank that has a part makes it. What follows from a Gram matrix is computed by all of them
    alike: they have the same kind of device and the same versions. Null directions stay zero. Where the certificate of
    the polynomial iteration fails, the Gram matrix in float64 takes over, as in ``subspace_boost``.

    Args:
        shard: [m_r, n] or [m, n_r] float32; it may be empty.
        beta, noise: as in ``subspace_boost``.
        dim:   along which the matrix is split: -2 (rows) or -1 (columns). It is the longer side.
        total: returns the sum over the ranks, the same bits on all of them; may overwrite its argument.
    Raises:
        ValueError: on all ranks: an element of the matrix is NaN or infinite, ``beta`` is out of range, or ``dim`` is
            the shorter side.
    """
    x = shard if dim == -2 else shard.mT
    rows, n = x.shape
    # An empty part takes part with a row of zeros.
    x = (x if rows else x.new_zeros(1, n)).unsqueeze(0)
    squares = torch.linalg.vector_norm(x, dtype=torch.float64).square()
    m, square = total(torch.stack([squares.new_tensor(rows), squares])).tolist()
    if m < n:
        raise ValueError(f"shard is a part of {m:.0f} x {n}, split along its shorter side; expected the longer one")
    if not math.isfinite(square):
        raise ValueError(
            "shard, here or on another rank, has elements that are NaN or infinite; expected finite values"
        )
    if square == 0:
        return shard.clone(), Info("zero")
    rules = [Boost(beta, floor) for floor in noise_floors(noise, (m, n))]
    products = replace(Products.on(x.device), total=total, rows=int(m))
    with full_float32():
        result, (info,), (accepted,) = by_products(x, rules, products=products)
        if not accepted:
            result, (info,), (accepted,) = by_gram(x, rules, keep=True, total=total)
    if not accepted:
        return None
    result = result[0, :rows]
    return (result if dim == -2 else result.mT.contiguous()), info
