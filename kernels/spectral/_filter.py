r"""Leading singular triplets on a device: subspace iteration, filtered by Chebyshev polynomials.

A filter of degree d on G = X'X keeps what lies in [0, low] small and lets the rest grow like ``T_d``: as much as d
products could in any order. Values and residuals are found by a Rayleigh-Ritz step on X itself, not on its square;
what the first filter takes from one, an estimate gives.
Products with G are of n^2 b terms for b columns; what is orthonormalized, and decomposed, is small.
The host waits once per estimate and per Rayleigh-Ritz step. (Zhou, Saad, Tiago and Chelikowsky 2006.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._matrices import frobenius
from ._products import Operand, Products

# Products before a Rayleigh-Ritz step.
DEGREE = 8
# What the smallest and the largest direction of a block may grow apart before columns are orthonormalized: float32
# keeps three digits of the smallest.
SPREAD = 1e4
# Of the power iteration that bounds the largest value; so many products go together between orthonormal columns.
POWER_COLUMNS, POWERS, TOGETHER = 16, 8, 4
# Of the small matrix that is left of it, in the place of its eigenvectors.
PROJECTED_POWER = 64
# Columns of a search, at least this share of n; wider ones than LARGEST_SHARE do not pay.
FIRST, SHARE, LARGEST_SHARE = 32, 1 / 32, 1 / 4
# After so many Rayleigh-Ritz steps without an end, the block is too small.
PATIENCE = 3
# Left vectors of values below are not normalized.
LEAST = 1e-12


@dataclass(frozen=True)
class Triplets:
    """Approximate leading singular triplets, by falling value.

    Attributes:
        values:    [batch, b] float64 on the host.
        residuals: the same of the triplets: they bound the errors of the values.
        v:         [batch, n, b] right vectors, orthonormal.
        passes:    products with G, or with X and back, that it took to find them.
    """

    values: Tensor
    residuals: Tensor
    v: Tensor
    passes: int


class Search:
    """A search for the leading triplets of matrices.

    Args:
        x:    [batch, m, n] the matrices over their sizes: their singular values are 1 at most.
        gram: x'x.
        size: [batch] float64.
    """

    def __init__(self, x: Operand, gram: Tensor, size: Tensor, products: Products):
        self._x, self._gram, self._size, self._products = x, products.operand(gram), size, products
        self._passes = 0

    def until(self, enough: Callable[[Triplets], bool | None], least: int = FIRST) -> Triplets | None:
        """Return triplets that are ``enough``, or the last that pay; None where none do.

        Args:
            enough: returns None where more columns are needed.
            least:  columns.
        """
        gram = self._gram.whole
        n, v, triplets = gram.shape[-1], gram[..., :0], None
        columns = max(least, math.ceil(SHARE * n))
        while columns <= LARGEST_SHARE * n:
            v = torch.cat([v, start_block(gram, columns)[..., v.shape[-1] :]], dim=-1)
            image = self._product(by_cholesky(self._product(v)))
            v = by_cholesky(image)
            squares = _estimated(v, image)
            for _ in range(PATIENCE):
                triplets, squares = self._ritz(self._filtered(v, squares))
                found, v = enough(triplets), triplets.v
                if found:
                    return triplets
                if found is None:
                    break
            columns *= 2
        return triplets

    def _ritz(self, v: Tensor) -> tuple[Triplets, Tensor]:
        """Return the triplets of X in the space of orthonormal columns, and squares of their values over ``size``."""
        left = self._products.multiply(self._x, v).double()
        squares, turn = torch.linalg.eigh(self._products.total(left.mT @ left))
        squares, turn = squares.flip(-1).clamp(min=0), turn.flip(-1)
        values, v = squares.sqrt(), (v.double() @ turn).to(v)
        u = (left @ turn / values.clamp(min=LEAST).unsqueeze(-2)).to(v)
        residuals = torch.linalg.vector_norm(self._products.inner(self._x, u) - v * values.unsqueeze(-2), dim=-2)
        size = self._size.unsqueeze(-1)
        self._passes += 1
        # Here the host waits for the device.
        known = torch.stack([size * values, size * residuals, squares]).cpu()
        return Triplets(known[0], known[1], v, self._passes), known[2]

    def _product(self, v: Tensor) -> Tensor:
        self._passes += 1
        return self._products.multiply(self._gram, v)

    def _filtered(self, v: Tensor, squares: Tensor) -> Tensor:
        """Return orthonormal columns of ``T_d(G / half - 1) v`` after about DEGREE products.

        ``half`` is half of the smallest of ``squares``. One factor of Cholesky keeps what SPREAD bounds orthonormal.
        """
        half = torch.maximum(squares[:, -1] / 2, 1e-12 * squares[:, 0]).clamp(min=torch.finfo(torch.float32).tiny)
        top = torch.maximum(squares[:, 0], 2.001 * half)
        degree = max(1, min(DEGREE, int(math.acosh(SPREAD) / float((top / half - 1).acosh().max()))))
        scale = (2 / half).to(v)[:, None, None]
        for _ in range(-(-DEGREE // degree)):
            before, now = v, self._product(v).mul_(scale / 2).sub_(v)
            for _ in range(degree - 1):
                before, now = now, self._product(now).mul_(scale).sub_(now, alpha=2).sub_(before)
            v = by_cholesky(now)
        return v if degree > 1 else by_cholesky(v)


def _estimated(v: Tensor, image: Tensor) -> Tensor:
    """Return [batch, 2] on the host: a bound on the eigenvalues, 1 at most, and what those of a block end at, roughly.

    ``image`` is ``v r`` with r triangular, the product of the matrix with orthonormal columns. The squared end is the
    harmonic mean of the squares of the singular values of r.
    """
    r = v.mT.double() @ image.double()
    inverse = torch.linalg.solve_triangular(r, torch.diag_embed(torch.ones_like(r[..., 0])), upper=True)
    end = math.sqrt(r.shape[-1]) / frobenius(inverse)
    # Of a block with directions that are null there is no inverse.
    return torch.stack([frobenius(r).clamp(max=1), end.nan_to_num(0)], dim=-1).cpu()


def largest_bound(gram: Tensor, products: Products) -> Tensor:
    """Return upper bounds [batch] float64 on the largest eigenvalues of ``gram``, a few percent above; no proof."""
    operand = products.operand(gram)
    v = start_block(gram, min(POWER_COLUMNS, gram.shape[-1]))
    for _ in range(POWERS // TOGETHER):
        for _ in range(TOGETHER):
            v = products.multiply(operand, v)
        v = by_cholesky(v)
    v = by_cholesky(v)
    image, wide = products.multiply(operand, v).double(), v.double()
    projected = wide.mT @ image
    # A power of it stands for its leading eigenvectors, each with its weight.
    turn = torch.linalg.matrix_power(projected / frobenius(projected).view(-1, 1, 1), PROJECTED_POWER)
    turn = turn / frobenius(turn).view(-1, 1, 1)
    top = torch.sum(turn * (projected @ turn), dim=(-2, -1), keepdim=True)
    rest = image @ turn - top * (wide @ turn)
    return 1.005 * (top.flatten() + 2 * frobenius(rest))


def start_block(like: Tensor, columns: int) -> Tensor:
    """Return orthonormal columns [batch, n, columns], of a private generator on the host: for every matrix the same."""
    batch, n = len(like), like.shape[-1]
    return _block_on_host(n, columns, like.dtype).to(like.device).expand(batch, n, columns).contiguous()


# Of 8192 x 256, which a matrix needs twice, the QR takes the host as long as all products take a GPU.
@functools.lru_cache(maxsize=4)
def _block_on_host(n: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return the start block; nobody writes into it."""
    start = torch.randn(n, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(start).Q.to(dtype)


def orthonormal(x: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns, those of little weight last; columns of zeros stay."""
    return by_cholesky(by_cholesky(x.double())).to(x.dtype)


def by_cholesky(x: Tensor) -> Tensor:
    """Return q of ``x = q r`` through the Cholesky factor r of ``x^T x`` in float64: batched, without a wait.

    Twice gives an orthonormal q where the condition number is below 1e8, which float32 columns are unless one is zero;
    its q is zero then.
    """
    wide = x.double()
    gram = wide.mT @ wide
    # Relative to each: columns may be of any size.
    gram.diagonal(dim1=-2, dim2=-1).mul_(1 + gram.shape[-1] * 2.0**-50).add_(torch.finfo(torch.float64).tiny)
    r, _ = torch.linalg.cholesky_ex(gram, upper=True)
    return torch.linalg.solve_triangular(r, wide, upper=True, left=False).to(x.dtype)
