r"""Matrix products of the polar iteration in a chosen precision. Operands and results are float32 (or float64) tensors.

- ``float32``, ``float64``: the library product, TF32 off.
- ``split16``: each operand is scaled by a power of two and split into two float16 pieces, ``x = hi + lo / 2048``
  (22 bits); ``hi hi + (hi lo + lo hi) / 2048`` on tensor cores with float32 accumulation, which is promoted to a
  float32 sum every ``chunk`` terms, because tensor cores may truncate where they accumulate.
- ``half``: one float16 product of the leading pieces.

Where the library has no float16 product with a float32 result (CPU), the pieces are multiplied in float32, which is
exact for each term: the same arithmetic, slower, so that the tests execute it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT = 2.0**11
# Operands are scaled to a largest magnitude in [2^13, 2^14): within float16, with 27 bits of range below.
TOP_EXPONENT = 14


@dataclass(frozen=True)
class Products:
    """Products in one precision.

    Attributes:
        precision: ``float32``, ``float64``, ``split16`` or ``half``.
        chunk:     terms of an inner product summed on tensor cores before promotion. 1024 keeps a truncating
                   accumulator (64 steps of 16 terms) near float32 accuracy; it costs one pass over the result each.
    """

    precision: str
    chunk: int = 1024

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b`` for [batch, p, q] and [batch, q, r]."""
        if self.precision in ("float32", "float64"):
            return a @ b
        (a_high, a_low, a_scale), (b_high, b_low, b_scale) = _split(a), _split(b)
        result = self._sum(a_high, b_high)
        if self.precision == "split16":
            result += (self._sum(a_high, b_low) + self._sum(a_low, b_high)) / SPLIT
        return result / (a_scale * b_scale)

    def gram(self, x: Tensor) -> Tensor:
        """Return ``x^T x``; the two cross terms of a split are one product and its transpose."""
        if self.precision in ("float32", "float64"):
            return x.mT @ x
        high, low, scale = _split(x)
        result = self._sum(high.mT, high)
        if self.precision == "split16":
            cross = self._sum(high.mT, low)
            result += (cross + cross.mT) / SPLIT
        return result / scale.square()

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        product = _float16_product(a.device)
        parts = [(start, min(start + self.chunk, a.shape[-1])) for start in range(0, a.shape[-1], self.chunk)]
        result = product(a[..., slice(*parts[0])], b[..., slice(*parts[0]), :])
        for start, stop in parts[1:]:
            result += product(a[..., start:stop], b[..., start:stop, :])
        return result


def _split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return float16 (high, low) and the power-of-two scale [batch, 1, 1] with ``x * scale = high + low / SPLIT``."""
    largest = x.abs().amax(dim=(-2, -1), keepdim=True)
    scale = torch.ldexp(torch.ones_like(largest), TOP_EXPONENT - torch.frexp(largest).exponent)
    scaled = x * scale
    high = scaled.half()
    low = ((scaled - high.float()) * SPLIT).half()
    return high, low, scale


def _float16_product(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    if device.type == "cuda" and hasattr(torch.ops.aten.bmm, "dtype"):
        return lambda a, b: torch.bmm(a, b, out_dtype=torch.float32)
    return lambda a, b: a.float() @ b.float()
