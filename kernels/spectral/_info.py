"""What a spectral operation did with one matrix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Info:
    """One per matrix of the batch, in row-major order. A field that the route did not compute is None.

    Attributes:
        method:     the route that produced the result: ``accurate`` (polynomial iteration), ``exact`` (Gram matrix in
                    float64), ``svd`` (float32), ``svd64``, ``krylov``, ``filter``, or ``zero`` (returned as it was).
        k:          number of singular values above the cut that were left as they were.
        cut:        the value c that the others were set to, in the units of the input.
        nuclear:    nuclear norm (sum of singular values) of the input.
        margin:     distance of the cumulated share of singular values from ``beta`` at the cut. Below 1e-6 the rounding
                    of the input decides ``k``.
        nullity:    number of singular values counted as zero, of min(m, n).
        iterations: steps of the polynomial iteration.
        passes:     products with the matrix, its transpose or its Gram matrix made by the search for leading triplets.
        orth:       ||P'P - I||_F / sqrt(n) of the polar factor P, estimated from 16 random vectors.
        skew:       ||skew(P'X)||_F / ||X||_F, estimated from them as well; zero for the exact polar factor.
        noise:      share of the singular values that were raised or flattened which rounding noise alone would have: at
                    most ``noise * (sqrt(m) + sqrt(n))``. A lower bound where the route knows only leading ones.
        residual:   largest ||X'u - s v|| / s_1 over the singular triplets that the search returned.
    """

    method: str
    k: int | None = None
    cut: float | None = None
    nuclear: float | None = None
    margin: float | None = None
    nullity: int | None = None
    iterations: int | None = None
    passes: int | None = None
    orth: float | None = None
    skew: float | None = None
    residual: float | None = None
    noise: float | None = None
