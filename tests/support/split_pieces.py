"""The arithmetic of split products on a CPU: pieces rounded to float16, their products and sums in float32.

The product of two float16 numbers is exact in float32. Takes the place of ``_triton.split_product``.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from fastmerge.kernels.spectral._products import Products


def on_hopper(device: torch.device) -> bool:
    return False


def split(x: Tensor, largest: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return float16 (high, low) with ``x = unit * (high + low)``, and the unit."""
    unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 14)
    rest = x / unit
    high = rest.half()
    return (high, (rest - high.float()).half()), unit


def product(a, b, units, shape, chunk, symmetric, alpha=1.0, beta=0.0, plus=None, largest=None) -> Tensor:
    """Return ``alpha units[0] units[1] a b + beta plus``, promoted every ``chunk`` terms."""
    total = a[0].new_zeros(len(a[0]), *shape, dtype=torch.float32)
    for start in range(0, a[0].shape[-1], chunk):
        high, low = (piece[..., start : start + chunk].float() for piece in a)
        high_b, low_b = (piece[..., start : start + chunk, :].float() for piece in b)
        # Small ones first.
        total += summed(torch.cat([high, low, high], dim=-1), torch.cat([low_b, high_b, high_b], dim=-2))
    total *= alpha * units[0] * units[1]
    total = total if plus is None else total + beta * plus
    total = total.triu() + total.triu(1).mT if symmetric else total
    if largest is not None:
        torch.linalg.vector_norm(total, torch.inf, dim=(-2, -1), keepdim=True, out=largest)
    return total


def summed(a: Tensor, b: Tensor) -> Tensor:
    """Sum the terms between two promotions."""
    return a @ b


# The products of a GPU.
SPLIT = Products(sys.modules[__name__])
