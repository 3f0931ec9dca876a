"""Triton kernel of ``gram_partials``."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._element import entry, load_delta
from ._grid import GRID, LANES, NUM_WARPS, chunk_spans, rows_of, store_tree_sum
from ._launch import launch, pointer_table, to_device

# A program holds 16 registers per pair and thread: 10 pairs of up to 4 tensors, or 9 of a 3 x 3 tile of the matrix.
# Mixed dtypes need registers to tell them apart, which leaves room for 6 pairs, or a 2 x 2 tile.
_WHOLE, _TILE = 4, 3
_WHOLE_MIXED, _TILE_MIXED = 3, 2


@triton.jit(do_not_specialize=["count", "tile_count", "first", "numel"])
def _gram_kernel(
    partials_ptr, table, base_ptr, tiles, count, tile_count, first, numel,
    TILE: tl.constexpr, WHOLE: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    # Tiles of one chunk run side by side, so that the tensors come from memory once and then from the cache.
    program = tl.program_id(0)
    chunk = (first + program // tile_count).to(tl.int64)
    corner = tiles + 2 * (program % tile_count)
    top, side = tl.load(corner), tl.load(corner + 1)
    lefts = ()
    rights = ()
    sums = ()
    for i in tl.static_range(TILE):
        lefts = lefts + (entry(table, tl.minimum(top + i, count - 1), DTYPE, ALIGN),)
        if not WHOLE:
            rights = rights + (entry(table, tl.minimum(side + i, count - 1), DTYPE, ALIGN),)
        for _ in tl.static_range(i if WHOLE else 0, TILE):
            sums = sums + (tl.zeros([LANES], tl.float64),)
    for row in range(rows_of(chunk, numel, MASKED)):
        offsets = chunk * GRID + row * LANES + tl.arange(0, LANES)
        mask = offsets < numel if MASKED else None
        a = _deltas(lefts, base_ptr, offsets, mask, DTYPE, ALIGN)
        b = a if WHOLE else _deltas(rights, base_ptr, offsets, mask, DTYPE, ALIGN)
        added = ()
        for i in tl.static_range(TILE):
            for j in tl.static_range(i if WHOLE else 0, TILE):
                # The product is exact in float64, so that this rounds once, like the sum of the reference.
                added = added + (tl.fma(a[i], b[j], sums[len(added)]),)
        sums = added
    out = partials_ptr + chunk * (count * (count + 1) // 2)
    for i in tl.static_range(TILE):
        for j in tl.static_range(i if WHOLE else 0, TILE):
            row, column = top + i, side + j
            if (row <= column) & (column < count):
                store_tree_sum(out + row * count - row * (row - 1) // 2 + column - row, sums[0])
            sums = sums[1:]


@triton.jit
def _deltas(sources, base_ptr, offsets, mask, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    deltas = ()
    for k in tl.static_range(len(sources)):
        deltas = deltas + (load_delta(sources[k], base_ptr, offsets, mask, DTYPE, ALIGN).to(tl.float64),)
    return deltas


def gram(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    """See ``kernels.gram_partials``. The matrix of many tensors is made of tiles, with one compiled kernel."""
    count = len(tensors)
    table, constants = pointer_table(tensors)
    most, tile = (_WHOLE_MIXED, _TILE_MIXED) if constants["DTYPE"] is None else (_WHOLE, _TILE)
    whole = count <= most
    tile = count if whole else tile
    starts = range(0, count, tile)
    tiles = [[i, j] for i in starts for j in starts if i <= j]
    corners = to_device(tiles, partials)
    for first, chunks, masked in chunk_spans(tensors[0].numel()):
        launch(
            _gram_kernel, (chunks * len(tiles),), partials, partials, table, base, corners, count, len(tiles), first,
            tensors[0].numel(), TILE=tile, WHOLE=whole, MASKED=masked, num_warps=NUM_WARPS, **constants,
        )  # fmt: skip
