"""Triton kernel of ``low_rank_update``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._element import load_float, store_rounded
from ._launch import launch

# Eight columns a thread, so that every row loads and stores 16 bytes; four rows share what is read of ``down``.
_ROWS, _COLUMNS, _NUM_WARPS = 4, 1024, 4


@triton.jit(do_not_specialize=["rows", "row_tiles", "rank"])
def _low_rank_kernel(
    out_ptr, weight_ptr, up_ptr, down_ptr, rows, columns, row_tiles, rank, scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Tiles below each other run side by side: they share the same columns of ``down``.
    program = tl.program_id(0)
    top = (program % row_tiles).to(tl.int64) * ROWS
    j = (program // row_tiles) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    mask = j < columns
    # The first product stands alone: added to +0 it could lose the sign of a zero.
    right = load_float(down_ptr + j, mask)
    sums = ()
    for i in tl.static_range(ROWS):
        sums = sums + (tl.load(up_ptr + tl.minimum(top + i, rows - 1) * rank) * right,)
    for r in range(1, rank):
        down_ptr += columns
        right = load_float(down_ptr + j, mask)
        added = ()
        for i in tl.static_range(ROWS):
            added = added + (sums[i] + tl.load(up_ptr + tl.minimum(top + i, rows - 1) * rank + r) * right,)
        sums = added
    for i in tl.static_range(ROWS):
        if top + i < rows:
            offset = (top + i) * columns
            weight = load_float(weight_ptr + offset + j, mask)
            store_rounded(out_ptr + offset + j, weight + sums[i] * scale, mask)


def low_rank(out: Tensor, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    """See ``kernels.low_rank_update``. Tensor cores cannot serve: they round otherwise."""
    rows, columns = out.shape
    row_tiles, column_tiles = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    if out.numel():
        launch(
            _low_rank_kernel, (row_tiles * column_tiles,), out, out, weight, up, down, rows, columns, row_tiles,
            up.shape[1], scale, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=_NUM_WARPS,
        )  # fmt: skip
