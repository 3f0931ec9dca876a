"""Divisions by few divisors as products: ``divided`` of csrc/fastmerge_math.h, for backends that have no such header.

``float32(float64(m) * high + float64(m) * low)`` is the correctly rounded ``m / d`` for every float32 ``m``.
"""

from __future__ import annotations

import functools
import struct

from ._checks import float32

__all__ = ["elected_quotients", "quotient"]


def quotient(divisor: float) -> tuple[float, float]:
    """Return ``(high, low)``: 1 / ``divisor`` as a sum of two numbers of one sign, ``high`` with 29 bits.

    Args:
        divisor: a float32 other than 0.
    """
    (bits,) = struct.unpack("<Q", struct.pack("<d", 1 / divisor))
    (high,) = struct.unpack("<d", struct.pack("<Q", bits & ~0xFFFFFF))
    if high == 0:
        return high, high
    # Exact up to the last division: ``high * divisor`` has 53 bits.
    rest = (1 - high * divisor) / divisor
    return high, rest if rest != 0 else high * 2.0**-110


@functools.lru_cache(maxsize=64)
def elected_quotients(weights: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Return the quotients of all sums of ``weights`` in float32, a sum of 0 as 1.

    Entry b is that of the weights k with bit k in b, added in their order.
    """
    table = []
    for models in range(1 << len(weights)):
        divisor = 0.0
        for k, weight in enumerate(weights):
            if models >> k & 1:
                divisor = float32(divisor + weight)
        table.append(quotient(divisor or 1.0))
    return tuple(table)
