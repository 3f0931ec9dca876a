r"""Matrix products of the polar iteration. Operands and results are float32 tensors.

- ``FLOAT32``: the library product, TF32 off: on a CPU, where float16 pieces save no time, and on a GPU without Triton.
- Split products, by Triton (``_triton.split_product``). Each operand is scaled by a power of two and split into two
  float16 pieces, ``x = high + low`` (22 bits down to 2^-17 of the largest element, 4 bytes); ``high high + high low +
  low high`` on tensor cores, which may truncate where they accumulate: a float32 sum takes what they summed every
  ``chunk`` terms. Half of a symmetric product is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .. import _triton
from ._matrices import Total, alone


@dataclass(frozen=True)
class Operand:
    """A matrix [batch, p, q] as products take it, split once for all products that it takes part in.

    Attributes:
        whole:  the matrix.
        pieces: float16, the leading one first, padded to whole tiles; none in float32.
        unit:   [batch, 1, 1]: whole = unit (high + low).
    """

    whole: Tensor
    pieces: tuple[Tensor, ...] = ()
    unit: Tensor | None = None

    @property
    def mT(self) -> Operand:
        """The transpose, sharing memory."""
        return replace(self, whole=self.whole.mT, pieces=tuple(piece.mT for piece in self.pieces))

    def times(self, factors: Tensor) -> Operand:
        """Return the matrix times ``factors`` [batch, 1, 1], in its memory, its pieces as they are."""
        return replace(self, whole=self.whole.mul_(factors), unit=None if self.unit is None else self.unit * factors)

    def of(self, indices: list[int]) -> Operand:
        """Return some matrices of the batch."""
        unit = None if self.unit is None else chosen(self.unit, indices)
        return Operand(chosen(self.whole, indices), tuple(chosen(piece, indices) for piece in self.pieces), unit)


def chosen(x: Tensor, indices: list[int]) -> Tensor:
    """Return some matrices of a batch, in rising order: all of them as they are."""
    return x if len(indices) == len(x) else x[indices]


Matrices = Tensor | Operand


class Maker(Protocol):
    """Who makes pieces and multiplies them: ``_triton.split_product``, which says how; in tests its arithmetic."""

    def on_hopper(self, device: torch.device) -> bool: ...

    def split(self, x: Tensor, largest: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]: ...

    def product(
        self, a: tuple[Tensor, ...], b: tuple[Tensor, ...], units: tuple[Tensor, Tensor], shape: tuple[int, int],
        chunk: int, symmetric: bool, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None,
        largest: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip


@dataclass(frozen=True)
class Products:
    """Who makes products, of operands or of matrices that become operands for this once.

    Attributes:
        maker: of split products; None: products are float32.
        chunk: terms of an inner product of pieces summed on tensor cores before promotion.
        total: adds up over ranks, each of which has a part of the rows of tall matrices;
        rows:  of all of them together; 0: those of the matrix.
    """

    maker: Maker | None = None
    chunk: int = 256
    total: Total = alone
    rows: int = 0

    @staticmethod
    def on(device: torch.device) -> Products:
        """Return the products to make on ``device``."""
        if device.type != "cuda" or _triton.why_unavailable() is not None:
            return FLOAT32
        from .._triton import split_product

        return Products(split_product)

    def operand(self, x: Matrices, largest: Tensor | None = None) -> Operand:
        """Return ``x`` [batch, p, q] with the pieces that are multiplied; ``largest`` magnitudes in it, where known."""
        if isinstance(x, Operand):
            return x
        if self.maker is None:
            return Operand(x)
        if not x.is_contiguous() and x.mT.is_contiguous():
            return self.operand(x.mT, largest).mT
        if largest is None:
            largest = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
        return Operand(x, *self.maker.split(x.contiguous(), largest))

    def inner(self, x: Matrices, y: Matrices) -> Tensor:
        """Return ``x^T y``, the sum over ranks."""
        return self.total(self.multiply(x.mT, y))

    def gram(self, x: Matrices) -> Tensor:
        """Return ``x^T x``, the sum over ranks."""
        x = self.operand(x)
        return self.total(self.multiply(x.mT, x, symmetric=True))

    def multiply(
        self, a: Matrices, b: Matrices, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None, *,
        symmetric: bool = False, largest: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return ``alpha a b + beta plus``, of this rank; symmetric to the bit where it is said to be symmetric.

        A split product writes the largest magnitude in each result to ``largest``, [batch, 1, 1] zeros.
        """
        a, b = self.operand(a), self.operand(b)
        if self.maker is None:
            added = a.whole.new_zeros(()) if plus is None else plus
            result = torch.baddbmm(added, a.whole, b.whole, beta=beta, alpha=alpha)
            return result.triu() + result.triu(1).mT if symmetric else result
        assert a.unit is not None and b.unit is not None
        shape, units = (a.whole.shape[-2], b.whole.shape[-1]), (a.unit, b.unit)
        return self.maker.product(a.pieces, b.pieces, units, shape, self.chunk, symmetric, alpha, beta, plus, largest)

    def multiplied(
        self, a: Matrices, b: Matrices, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None, *,
        symmetric: bool = False,
    ) -> Operand:  # fmt: skip
        """Return the same as an operand, which no pass has to look through for its largest element."""
        if self.maker is None:
            return Operand(self.multiply(a, b, alpha, beta, plus, symmetric=symmetric))
        whole = a.whole if isinstance(a, Operand) else a
        largest = whole.new_zeros(len(whole), 1, 1)
        result = self.multiply(a, b, alpha, beta, plus, symmetric=symmetric, largest=largest)
        return Operand(result, *self.maker.split(result, largest))


FLOAT32 = Products()
