r"""Matrix products of the polar iteration in a chosen precision. Operands and results are float32 tensors.

- ``float32``: the library product, TF32 off.
- ``split16``: each operand is scaled by a power of two and split into two float16 pieces, ``x = high + low`` (22 bits
  down to 2^-17 of the largest element); ``high high + high low + low high`` on tensor cores. Their sum is promoted to
  a float32 sum every ``chunk`` terms, because tensor cores may truncate where they accumulate.
- ``half``: one float16 product of the leading pieces.

On a GPU two kernels make them: the library (one product per pair of pieces and chunk, which accumulates into the
result), or Triton (``_triton.split_product``: one launch, promotion in registers, half of a symmetric product).
On a CPU the pieces are multiplied in float32, which is exact for each term: the same arithmetic, slower, so that the
tests execute it.

Memory beside operands and result: the pieces, 4 bytes per element; by the library 4 more while they are made, and
for a Gram matrix two of its size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Operands are scaled to a largest magnitude in [2^13, 2^14): within float16, with 37 bits of range below.
TOP_EXPONENT = 14


@dataclass(frozen=True)
class Kernel:
    """Who makes split products on a GPU.

    Attributes:
        name:  ``library`` or ``triton``.
        chunk: terms of an inner product summed on tensor cores before promotion.
        why:   the reason for ``chunk``.
    """

    name: str
    chunk: int
    why: str


LIBRARY = Kernel("library", 1024, "64 steps of 16 terms stay near float32; promotion costs a pass over the result")
TRITON = Kernel("triton", 256, "promotion costs one addition per element of a tile in registers")


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


@dataclass(frozen=True)
class Products:
    """Products in one precision, by one kernel.

    Attributes:
        precision: ``float32``, ``split16`` or ``half``.
        kernel:    of ``split16`` and ``half``.
    """

    precision: str
    kernel: Kernel = LIBRARY

    def operand(self, x: Tensor) -> Operand:
        """Return ``x`` [batch, p, q] with the pieces that this precision multiplies."""
        if self.precision == "float32":
            return Operand(x)
        if not x.is_contiguous() and x.mT.is_contiguous():
            return self.operand(x.mT).mT
        largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
        scale = torch.ldexp(torch.ones_like(largest), TOP_EXPONENT - torch.frexp(largest).exponent)
        if self.kernel.name == "triton":
            from .._triton.split_product import split

            high, low = split(x.contiguous(), scale)
        else:
            rest = x * scale
            high = rest.half()
            low = rest.sub_(high).half()
        return Operand(x, (high, low) if self.precision == "split16" else (high,), scale)

    def multiply(self, a: Operand, b: Operand, beta: float = 0.0, plus: Tensor | None = None) -> Tensor:
        """Return ``a b + beta plus``."""
        return self._product(a, b, 1.0, beta, plus, symmetric=False)

    def gram(self, x: Operand, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None) -> Tensor:
        """Return ``alpha x^T x + beta plus`` for a symmetric ``plus``; by Triton symmetric to the bit."""
        return self._product(x.mT, x, alpha, beta, plus, symmetric=True)

    def _product(
        self, a: Operand, b: Operand, alpha: float, beta: float, plus: Tensor | None, symmetric: bool
    ) -> Tensor:
        if self.precision == "float32":
            start = a.whole.new_zeros(()) if plus is None else plus
            return torch.baddbmm(start, a.whole, b.whole, beta=beta, alpha=alpha)
        assert a.scale is not None and b.scale is not None
        factor = alpha / a.scale / b.scale
        if self.kernel.name == "triton":
            from .._triton.split_product import product

            shape = (a.whole.shape[-2], b.whole.shape[-1])
            return product(
                a.pieces, b.pieces, shape, factor, chunk=self.kernel.chunk, symmetric=symmetric, beta=beta, plus=plus
            )
        high, low = (a.pieces[0], b.pieces[0]), (a.pieces[-1], b.pieces[-1])
        if self.precision == "half":
            result = self._sum([high])
        elif symmetric:
            cross = self._sum([(high[0], low[1])])
            result = self._sum([high])
            result += cross + cross.mT
        else:
            # Small ones first.
            result = self._sum([(high[0], low[1]), (low[0], high[1]), high])
        result *= factor
        return result if plus is None else result.add_(plus, alpha=beta)

    def _sum(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the sum of the products of pairs of pieces, promoted to float32 every ``chunk`` terms."""
        a, b = pairs[0]
        result = torch.empty(len(a), a.shape[-2], b.shape[-1], dtype=torch.float32, device=a.device)
        beta = 0
        for a, b in pairs:
            for start in range(0, a.shape[-1], self.kernel.chunk):
                part = slice(start, start + self.kernel.chunk)
                _accumulate(result, a[..., part], b[..., part, :], beta)
                beta = 1
        return result


def _accumulate(result: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """Add ``a b``, of float16, to ``beta result``, in float32."""
    if result.is_cuda:
        torch.ops.aten.baddbmm.dtype_out(result, a, b, torch.float32, beta=beta, out=result)
    else:
        result.baddbmm_(a.float(), b.float(), beta=beta)
