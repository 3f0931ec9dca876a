r"""Leading eigenvectors of X'X on a device: subspace iteration, filtered by Chebyshev polynomials.

A filter of degree d on G = X'X keeps what lies in [0, low] small and lets the rest grow like ``T_d``: as much as d
products could in any order. What is asked of the result is found by a Rayleigh-Ritz step on X itself, not on its
square (``Ritz``). Products with G are of n^2 b terms for b columns; what is orthonormalized, and decomposed, is small.
The host waits once per Rayleigh-Ritz step. (Zhou, Saad, Tiago and Chelikowsky 2006 for the scaled recurrence.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._products import Products

# Products between two Rayleigh-Ritz steps.
DEGREE = 8
# What the smallest and the largest direction of a block may grow apart before columns are orthonormalized: float32
# keeps three digits of the smallest.
SPREAD = 1e4
# Of the power iteration that bounds the largest value.
POWER_COLUMNS, POWERS = 16, 8
# Columns of a search, at least this share of n; wider ones than LARGEST_SHARE do not pay.
FIRST, SHARE, LARGEST_SHARE = 32, 1 / 32, 1 / 4
# After so many Rayleigh-Ritz steps without an end, the block is too small.
PATIENCE = 4


@dataclass(frozen=True)
class Triplets:
    """Approximate leading singular triplets, by falling value.

    Attributes:
        values:    [batch, b] float64 on the host.
        residuals: [batch, b] float64 on the host, of the triplets: they bound the errors of the values.
        v:         [batch, n, b] right vectors, orthonormal.
    """

    values: Tensor
    residuals: Tensor
    v: Tensor


# Takes orthonormal columns [batch, n, b]; returns values and residuals, [batch, b] float64 on the device and by falling
# value, and the columns turned to them.
Ritz = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Search:
    """A block of columns on its way to the leading triplets.

    Attributes:
        columns: of the block; 0 where a search does not pay.
        passes:  products with G, or with X and back, so far.
    """

    def __init__(self, gram: Tensor, size: Tensor, products: Products, ritz: Ritz, least: int = FIRST):
        """``gram`` [batch, n, n] is X'X / size^2; ``least`` columns are needed."""
        self._gram, self._size, self._products, self._ritz = gram, size, products, ritz
        self._operand = products.operand(gram)
        # Of the columns: squares of their values over size^2, on the device and on the host; None where not known.
        self._squares: tuple[Tensor, Tensor] | None = None
        n = gram.shape[-1]
        columns = max(least, math.ceil(SHARE * n))
        self.columns, self.passes = columns if columns <= LARGEST_SHARE * n else 0, 0
        self._v = start_block(gram, self.columns)
        if self.columns:
            self._start(self._v)

    def step(self) -> Triplets:
        """Filter the block, but for the first time, and return its triplets."""
        if self._squares is not None:
            self._v = self._filtered(self._v, *self._squares)
        values, residuals, self._v = self._ritz(self._v)
        squares = (values / self._size.unsqueeze(-1)).square()
        # The only time that the host waits for the device.
        found = torch.stack([values, residuals, squares]).cpu()
        self._squares = squares, found[2]
        self.passes += 1
        return Triplets(found[0], found[1], self._v)

    def widen(self) -> bool:
        """Double the block; False where it would be too wide to pay."""
        if 2 * self.columns > LARGEST_SHARE * self._gram.shape[-1]:
            return False
        more = start_block(self._gram, 2 * self.columns)[..., : self.columns]
        self.columns *= 2
        self._start(torch.cat([self._v, more], dim=-1))
        return True

    def _start(self, v: Tensor) -> None:
        for _ in range(2):
            v = orthonormal(self._product(v))
        self._v = v
        self._squares = None

    def _product(self, v: Tensor) -> Tensor:
        self.passes += 1
        return self._products.multiply(self._operand, self._products.operand(v))

    def _filtered(self, v: Tensor, squares: Tensor, known: Tensor) -> Tensor:
        """Return the columns after about DEGREE products, orthonormal; their squares are ``known`` to the host."""
        growth = (2 * known[:, 0] / known[:, -1].clamp(min=torch.finfo(torch.float64).tiny) - 1).clamp(min=1 + 1e-6)
        degree = max(1, min(DEGREE, int(math.acosh(SPREAD) / float(growth.acosh().max()))))
        half = (squares[:, -1] / 2).clamp(min=torch.finfo(torch.float32).tiny).view(-1, 1, 1)
        top = torch.maximum(squares[:, 0].view(-1, 1, 1), 2.001 * half)
        for _ in range(-(-DEGREE // degree)):
            v = orthonormal(self._chebyshev(v, degree, half, top))
        return v

    def _chebyshev(self, v: Tensor, degree: int, half: Tensor, top: Tensor) -> Tensor:
        """Return ``T_degree(G / half - 1) v`` over its value at ``top``."""
        first = sigma = half / (top - half)
        before, now = v, self._shifted(v, half, sigma / half)
        for _ in range(degree - 1):
            following = 1 / (2 / first - sigma)
            after = self._shifted(now, half, 2 * following / half)
            before, now = now, after.sub_((sigma * following).to(v) * before)
            sigma = following
        return now

    def _shifted(self, v: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        """Return ``factor (G v - shift v)``."""
        return self._product(v).sub_(shift.to(v) * v).mul_(factor.to(v))


def largest_bound(gram: Tensor, products: Products) -> Tensor:
    """Return upper bounds [batch] float64 on the largest eigenvalues of ``gram``, a few percent above; no proof."""
    operand = products.operand(gram)
    v = start_block(gram, min(POWER_COLUMNS, gram.shape[-1]))
    for _ in range(POWERS):
        v = orthonormal(products.multiply(operand, products.operand(v)))
    image = products.multiply(operand, products.operand(v)).double()
    values, turn = torch.linalg.eigh(v.double().mT @ image)
    top, turn = values[..., -1], turn[..., -1:]
    rest = image @ turn - top.view(-1, 1, 1) * (v.double() @ turn)
    return 1.005 * (top + 2 * torch.linalg.vector_norm(rest, dim=(-2, -1)))


def start_block(like: Tensor, columns: int) -> Tensor:
    """Return orthonormal columns [batch, n, columns], from a private generator on the host: the same for every matrix.

    The result depends on the input and the backend alone.
    """
    batch, n = len(like), like.shape[-1]
    return _block_on_host(n, columns, like.dtype).to(like.device).expand(batch, n, columns)


# Of 8192 x 256, which a matrix needs twice, the QR takes the host as long as all products take a GPU.
@functools.lru_cache(maxsize=4)
def _block_on_host(n: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return the start block; nobody writes into it."""
    start = torch.randn(n, columns, generator=torch.Generator().manual_seed(columns), dtype=torch.float64)
    return torch.linalg.qr(start).Q.to(dtype)


def orthonormal(x: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns, those of little weight last; columns of zeros stay."""
    return by_cholesky(by_cholesky(x / torch.linalg.vector_norm(x, dim=-2, keepdim=True).clamp(min=1e-37)))


def by_cholesky(x: Tensor) -> Tensor:
    """Return q of ``x = q r`` through the Cholesky factor r of ``x^T x`` in float64: batched, without a wait.

    Twice gives an orthonormal q where the condition number is below 1e8, which float32 columns are unless one is zero;
    its q is zero then.
    """
    wide = x.double()
    gram = wide.mT @ wide
    shift = 2.0**-50 * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(torch.float64).tiny
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    r, _ = torch.linalg.cholesky_ex(gram + shift.view(-1, 1, 1) * eye, upper=True)
    return torch.linalg.solve_triangular(r, wide, upper=True, left=False).to(x.dtype)
