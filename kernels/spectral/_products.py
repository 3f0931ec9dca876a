r"""Matrix products of the polar iteration. Operands and results are float32 tensors.

- ``FLOAT32``: the library product, TF32 off.
- ``TRITON``, ``LIBRARY``: split products. Each operand is scaled by a power of two and split into two float16 pieces,
  ``x = high + low`` (22 bits down to 2^-17 of the largest element, 4 bytes); ``high high + high low + low high`` on
  tensor cores, which may truncate where they accumulate: a float32 sum takes what they summed every ``chunk`` terms.

Two make the latter on a GPU: Triton (``_triton.split_product``: one launch, promotion in registers), or the library
where there is no Triton (a product per chunk, of pieces that lie side by side). Both make half of a symmetric product.
On a CPU the library multiplies the pieces in float32, which is exact for each term: the arithmetic of a GPU, in tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import _triton
from ._matrices import Total, alone

# Operands are scaled to a largest magnitude in [2^13, 2^14): within float16, with 37 bits of range below.
TOP_EXPONENT = 14
# The library makes a symmetric product panel by panel of columns, each down to the diagonal: 9/16 of the work with 8.
PANELS, LEAST_PANEL = 8, 256


@dataclass(frozen=True)
class Operand:
    """A matrix [batch, p, q] as products take it, split once for all products that it takes part in.

    Attributes:
        whole:  the matrix.
        pieces: float16, the leading one first, padded by Triton to whole tiles; none in float32.
        unit:   [batch, 1, 1], a power of two: whole = unit (high + low).
    """

    whole: Tensor
    pieces: tuple[Tensor, ...] = ()
    unit: Tensor | None = None

    @property
    def mT(self) -> Operand:
        """The transpose, sharing memory."""
        return replace(self, whole=self.whole.mT, pieces=tuple(piece.mT for piece in self.pieces))

    def of(self, indices: list[int]) -> Operand:
        """Return some matrices of the batch."""
        unit = None if self.unit is None else chosen(self.unit, indices)
        return Operand(chosen(self.whole, indices), tuple(chosen(piece, indices) for piece in self.pieces), unit)


def chosen(x: Tensor, indices: list[int]) -> Tensor:
    """Return some matrices of a batch, in rising order: all of them as they are."""
    return x if len(indices) == len(x) else x[indices]


Matrices = Tensor | Operand


@dataclass(frozen=True)
class Products:
    """Who makes products, of operands or of matrices that become operands for this once.

    Attributes:
        maker: ``float32``; ``library`` or ``triton`` of split products.
        chunk: terms of an inner product of pieces summed on tensor cores before promotion.
        total: adds up over ranks, each of which has a part of the rows of tall matrices;
        rows:  of all of them together; 0: those of the matrix.
    """

    maker: str
    chunk: int = 0
    total: Total = alone
    rows: int = 0

    @staticmethod
    def on(device: torch.device) -> Products:
        """Return the products to make on ``device``.

        On a CPU float16 pieces save no time. On an H200 Triton's kernel took 0.84 to 0.90 of the time of the library's,
        which needs float16 products with a float32 result (torch 2.8); without either, products are float32: as
        accurate, and slower.
        """
        if device.type != "cuda":
            return FLOAT32
        if _triton.why_unavailable() is None:
            return TRITON
        return LIBRARY if hasattr(torch.ops.aten.baddbmm, "dtype_out") else FLOAT32

    def operand(self, x: Matrices) -> Operand:
        """Return ``x`` [batch, p, q] with the pieces that are multiplied."""
        if isinstance(x, Operand):
            return x
        if self.maker == "float32":
            return Operand(x)
        if not x.is_contiguous() and x.mT.is_contiguous():
            return self.operand(x.mT).mT
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
        if self.maker == "triton":
            from .._triton.split_product import split

            return Operand(x, *split(x.contiguous(), largest))
        unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - TOP_EXPONENT)
        rest = x / unit
        high = rest.half()
        return Operand(x, (high, rest.sub_(high).half()), unit)

    def inner(self, x: Matrices, y: Matrices) -> Tensor:
        """Return ``x^T y``, the sum over ranks."""
        return self.total(self.multiply(x.mT, y))

    def gram(self, x: Matrices) -> Tensor:
        """Return ``x^T x``, the sum over ranks."""
        x = self.operand(x)
        return self.total(self.multiply(x.mT, x, symmetric=True))

    def multiply(
        self, a: Matrices, b: Matrices, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None, *,
        symmetric: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha a b + beta plus``, of this rank; symmetric to the bit where it is said to be symmetric."""
        a, b = self.operand(a), self.operand(b)
        if self.maker == "float32":
            added = a.whole.new_zeros(()) if plus is None else plus
            result = torch.baddbmm(added, a.whole, b.whole, beta=beta, alpha=alpha)
            return _mirrored(result, result.shape[-1]) if symmetric else result
        assert a.unit is not None and b.unit is not None
        rows, columns = a.whole.shape[-2], b.whole.shape[-1]
        if self.maker == "triton":
            from .._triton.split_product import product

            units, shape = (a.unit, b.unit), (rows, columns)
            return product(a.pieces, b.pieces, units, shape, self.chunk, symmetric, alpha, beta, plus)
        result = torch.empty(len(a.whole), rows, columns, dtype=torch.float32, device=a.whole.device)
        panel = max(LEAST_PANEL, -(-columns // PANELS)) if symmetric else columns
        for start in range(0, columns, panel):
            part = slice(start, start + panel)
            above = slice(start + panel) if symmetric else slice(None)
            self._sum(result[:, above, part], [p[:, above] for p in a.pieces], [p[..., part] for p in b.pieces])
        if symmetric:
            _mirrored(result, panel)
        result *= alpha * a.unit * b.unit
        return result if plus is None else result.add_(plus, alpha=beta)

    def _sum(self, result: Tensor, a: list[Tensor], b: list[Tensor]) -> None:
        """Write the sum of the three products of pieces, promoted to float32 every ``chunk`` terms of each."""
        for start in range(0, a[0].shape[-1], self.chunk):
            part = slice(start, start + self.chunk)
            (high, low), (high_b, low_b) = [p[..., part] for p in a], [p[..., part, :] for p in b]
            # Side by side, small ones first.
            left, right = torch.cat([high, low, high], dim=-1), torch.cat([low_b, high_b, high_b], dim=-2)
            _accumulate(result, left, right, int(start > 0))


FLOAT32 = Products("float32")
# 64 steps of 16 terms stay near float32; promotion costs a pass over the result.
LIBRARY = Products("library", 1024)
# Promotion costs one addition per element of a tile in registers.
TRITON = Products("triton", 256)


def _accumulate(result: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """Add ``a b``, of float16, to ``beta result``, in float32."""
    if result.is_cuda:
        torch.ops.aten.baddbmm.dtype_out(result, a, b, torch.float32, beta=beta, out=result)
    else:
        torch.baddbmm(result, a.float(), b.float(), beta=beta, out=result)


def _mirrored(x: Tensor, panel: int) -> Tensor:
    """Copy what is above the diagonal of ``x`` [batch, n, n] below it, panel by panel, and return ``x``."""
    for start in range(0, x.shape[-1], panel):
        part, rest = slice(start, start + panel), slice(start + panel, None)
        x[:, rest, part] = x[:, part, rest].mT
        corner = x[:, part, part]
        corner.copy_(corner.triu() + corner.triu(1).mT)
    return x
