r"""Matrix products of the polar iteration. Operands and results are float32 tensors.

- ``FLOAT32``: the library product, TF32 off.
- ``TRITON``, ``LIBRARY``: split products. Each operand is scaled by a power of two and split into two float16 pieces,
  ``x = high + low`` (22 bits down to 2^-17 of the largest element); ``high high + high low + low high`` on tensor
  cores. Their sum is promoted to a float32 sum every ``chunk`` terms, because tensor cores may truncate where they
  accumulate.

Two make the latter on a GPU: Triton (``_triton.split_product``: one launch, promotion in registers), or the library
where there is no Triton (a product per chunk, of pieces that lie side by side). Both make half of a symmetric product.
On a CPU the library multiplies the pieces in float32, which is exact for each term: the same arithmetic, slower, so
that the tests execute it.

Memory beside operands and result: the pieces, 4 bytes per element; by the library 4 more while they are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import _triton

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
        scale:  [batch, 1, 1], the power of two that the pieces carry.
    """

    whole: Tensor
    pieces: tuple[Tensor, ...] = ()
    scale: Tensor | None = None

    @property
    def mT(self) -> Operand:
        """The transpose, sharing memory."""
        return replace(self, whole=self.whole.mT, pieces=tuple(piece.mT for piece in self.pieces))

    def of(self, indices: list[int]) -> Operand:
        """Return some matrices of the batch."""
        scale = None if self.scale is None else chosen(self.scale, indices)
        return Operand(chosen(self.whole, indices), tuple(chosen(piece, indices) for piece in self.pieces), scale)


def chosen(x: Tensor, indices: list[int]) -> Tensor:
    """Return some matrices of a batch, in rising order: all of them as they are."""
    return x if len(indices) == len(x) else x[indices]


@dataclass(frozen=True)
class Products:
    """Who makes products.

    Attributes:
        maker: ``float32``; ``library`` or ``triton`` of split products.
        chunk: terms of an inner product of pieces summed on tensor cores before promotion.
    """

    maker: str
    chunk: int = 0

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

    def operand(self, x: Tensor) -> Operand:
        """Return ``x`` [batch, p, q] with the pieces that are multiplied."""
        if self.maker == "float32":
            return Operand(x)
        if not x.is_contiguous() and x.mT.is_contiguous():
            return self.operand(x.mT).mT
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
        scale = torch.ldexp(torch.ones_like(largest), TOP_EXPONENT - torch.frexp(largest).exponent)
        if self.maker == "triton":
            from .._triton.split_product import split

            return Operand(x, split(x.contiguous(), scale), scale)
        rest = x * scale
        high = rest.half()
        return Operand(x, (high, rest.sub_(high).half()), scale)

    def multiply(self, a: Operand, b: Operand, beta: float = 0.0, plus: Tensor | None = None) -> Tensor:
        """Return ``a b + beta plus``."""
        return self._product(a, b, 1.0, beta, plus, symmetric=False)

    def gram(self, x: Operand) -> Tensor:
        """Return ``x^T x``."""
        return self._product(x.mT, x, 1.0, 0.0, None, symmetric=True)

    def symmetric(
        self, a: Operand, b: Operand, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None
    ) -> Tensor:
        """Return ``alpha a b + beta plus`` of symmetric matrices that commute: symmetric to the bit."""
        return self._product(a, b, alpha, beta, plus, symmetric=True)

    def _product(
        self, a: Operand, b: Operand, alpha: float, beta: float, plus: Tensor | None, symmetric: bool
    ) -> Tensor:
        if self.maker == "float32":
            added = a.whole.new_zeros(()) if plus is None else plus
            result = torch.baddbmm(added, a.whole, b.whole, beta=beta, alpha=alpha)
            return _mirrored(result, result.shape[-1]) if symmetric else result
        assert a.scale is not None and b.scale is not None
        factor = alpha / a.scale / b.scale
        if self.maker == "triton":
            from .._triton.split_product import product

            shape = (a.whole.shape[-2], b.whole.shape[-1])
            return product(a.pieces, b.pieces, shape, factor, self.chunk, symmetric, beta, plus)
        columns = b.whole.shape[-1]
        result = torch.empty(len(a.whole), a.whole.shape[-2], columns, dtype=torch.float32, device=a.whole.device)
        panel = max(LEAST_PANEL, -(-columns // PANELS)) if symmetric else columns
        for start in range(0, columns, panel):
            part = slice(start, start + panel)
            rows = slice(start + panel) if symmetric else slice(None)
            self._sum(result[:, rows, part], [p[:, rows] for p in a.pieces], [p[..., part] for p in b.pieces])
        if symmetric:
            _mirrored(result, panel)
        result *= factor
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
