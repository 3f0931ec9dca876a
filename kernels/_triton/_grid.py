"""The reduction grid on the device: 256 lanes that take the elements of a chunk in turn, added up in a binary tree."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from .._checks import GRID as _GRID
from .._checks import LANES as _LANES
from ._launch import spans

GRID, LANES = tl.constexpr(_GRID), tl.constexpr(_LANES)

# One warp owns a chunk: eight lanes a thread, a 16-byte load of a 16-bit dtype. The order of the 64 additions per lane
# is part of the contract, so a chunk cannot be spread over warps.
NUM_WARPS = 1


def chunk_spans(numel: int) -> Iterator[tuple[int, int, bool]]:
    """Yield ``(first chunk, chunks, masked)``."""
    return spans(numel, _GRID)


@triton.jit
def rows_of(chunk, numel, MASKED: tl.constexpr):
    """Return the rows of 256 elements in a chunk. Missing ones would add +0, which changes no lane."""
    if MASKED:
        rows = tl.cdiv(numel - chunk * GRID, LANES)
    else:
        rows = GRID // LANES
    return rows


@triton.jit
def store_tree_sum(ptr, lanes):
    """Store the sum of float64 ``lanes`` [LANES]: lane i with lane i + 128, then i + 64, and so on."""
    for step in tl.static_range(8):
        # A sum of two has one order.
        lanes = tl.sum(tl.reshape(lanes, [2, 128 >> step]), axis=0)
    tl.store(ptr + tl.arange(0, 1), lanes)
