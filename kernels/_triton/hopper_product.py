"""The product of ``split_product`` on Hopper, in Gluon, which says when tensor cores are waited for.

Triton waits for each of the three products of a step before it issues the next one to the same accumulator, and starts
loading anew at each promotion. Here the products of a step are in flight while those of the step before finish and the
next tiles come by tensor-memory copies; tensor cores are drained once per promotion. A promotion needs no zeros: the
first product after it leaves the accumulator out.

What a step may overwrite: the tiles of the step before, once all warps have seen its products finish.
"""

from __future__ import annotations

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ._launch import launch

# Two warpgroups hold accumulator and sum of a tile of 128 x 128 in 64 registers each. Other tiles are those of one
# warpgroup: of 64 rows.
TILE, TERMS = 128, 64
# Steps whose tiles are there or come: three, which take 192 KB of large tiles, or four where two programs of small ones
# fit beside each other.
STAGES, SHARED = 3, 96 << 10


@gluon.jit
def _fetch(
    a_pieces, b_pieces, a_tiles, b_tiles, arrived, step, steps, a_row, a_term, b_term, b_column,
    A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr, TERMS: gl.constexpr, STAGES: gl.constexpr,
    BYTES: gl.constexpr,
):  # fmt: skip
    """Begin to copy the tiles of a step, if there is one."""
    stage, go = step % STAGES, step < steps
    barrier = arrived.index(stage)
    mbarrier.expect(barrier, BYTES, go)
    a_term += step * TERMS
    b_term += step * TERMS
    for piece in gl.static_range(2):
        a, b = a_tiles[piece].index(stage), b_tiles[piece].index(stage)
        if A_TRANSPOSED:
            tma.async_copy_global_to_shared(a_pieces[piece], [a_term, a_row], barrier, a, go)
        else:
            tma.async_copy_global_to_shared(a_pieces[piece], [a_row, a_term], barrier, a, go)
        if B_TRANSPOSED:
            tma.async_copy_global_to_shared(b_pieces[piece], [b_column, b_term], barrier, b, go)
        else:
            tma.async_copy_global_to_shared(b_pieces[piece], [b_term, b_column], barrier, b, go)


@gluon.jit(do_not_specialize=["tiles", "row_tiles", "column_tiles", "a_start", "b_start", "alpha", "beta"])
def _hopper_product_kernel(
    out_ptr, largest_ptr, plus_ptr, a_units, b_units, a_high, a_low, b_high, b_low, rows, columns, terms, a_start,
    b_start, tiles, row_tiles, column_tiles, alpha, beta, A_TRANSPOSED: gl.constexpr, B_TRANSPOSED: gl.constexpr,
    SYMMETRIC: gl.constexpr, PLUS: gl.constexpr, LARGEST: gl.constexpr, CHUNK: gl.constexpr, ROWS: gl.constexpr,
    COLUMNS: gl.constexpr, TERMS: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    batch = gl.program_id(0) // tiles
    tile = gl.program_id(0) % tiles
    first = tile // (GROUP * column_tiles) * GROUP
    height = gl.minimum(row_tiles - first, GROUP)
    top = first + tile % (GROUP * column_tiles) % height
    side = tile % (GROUP * column_tiles) // height
    row, column = top * ROWS, side * COLUMNS
    if SYMMETRIC:
        if row >= column + COLUMNS:
            return
    # Matrices of a batch lie one below the other.
    a_row, a_term, b_term, b_column = row, 0, 0, column
    if A_TRANSPOSED:
        a_term += batch * a_start
    else:
        a_row += batch * a_start
    if B_TRANSPOSED:
        b_column += batch * b_start
    else:
        b_term += batch * b_start

    a_high_tiles = gl.allocate_shared_memory(gl.float16, [STAGES] + a_high.block_shape, a_high.layout)
    a_low_tiles = gl.allocate_shared_memory(gl.float16, [STAGES] + a_low.block_shape, a_low.layout)
    b_high_tiles = gl.allocate_shared_memory(gl.float16, [STAGES] + b_high.block_shape, b_high.layout)
    b_low_tiles = gl.allocate_shared_memory(gl.float16, [STAGES] + b_low.block_shape, b_low.layout)
    a_tiles, b_tiles = (a_high_tiles, a_low_tiles), (b_high_tiles, b_low_tiles)
    arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(STAGES):
        mbarrier.init(arrived.index(place), count=1)

    BYTES: gl.constexpr = 4 * (ROWS + COLUMNS) * TERMS
    PROMOTED: gl.constexpr = CHUNK // TERMS
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, COLUMNS, 16]
    )
    steps = (terms + TERMS - 1) // TERMS
    for place in gl.static_range(STAGES - 1):
        _fetch(
            (a_high, a_low), (b_high, b_low), a_tiles, b_tiles, arrived, place, steps, a_row, a_term, b_term, b_column,
            A_TRANSPOSED, B_TRANSPOSED, TERMS, STAGES, BYTES,
        )  # fmt: skip
    total = gl.zeros([ROWS, COLUMNS], gl.float32, LAYOUT)
    acc = warpgroup_mma_init(gl.zeros([ROWS, COLUMNS], gl.float32, LAYOUT))
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(arrived.index(stage), step // STAGES % 2)
        a, a_low_tile = a_high_tiles.index(stage), a_low_tiles.index(stage)
        b, b_low_tile = b_high_tiles.index(stage), b_low_tiles.index(stage)
        if A_TRANSPOSED:
            a, a_low_tile = a.permute([1, 0]), a_low_tile.permute([1, 0])
        if B_TRANSPOSED:
            b, b_low_tile = b.permute([1, 0]), b_low_tile.permute([1, 0])
        acc = warpgroup_mma(a, b_low_tile, acc, use_acc=step % PROMOTED != 0, is_async=True)
        acc = warpgroup_mma(a_low_tile, b, acc, is_async=True)
        acc = warpgroup_mma(a, b, acc, is_async=True)
        # All but the three of this step.
        acc = warpgroup_mma_init(warpgroup_mma_wait(3, deps=[acc]))
        _fetch(
            (a_high, a_low), (b_high, b_low), a_tiles, b_tiles, arrived, step + STAGES - 1, steps, a_row, a_term,
            b_term, b_column, A_TRANSPOSED, B_TRANSPOSED, TERMS, STAGES, BYTES,
        )  # fmt: skip
        if (step % PROMOTED == PROMOTED - 1) | (step == steps - 1):
            done = warpgroup_mma_wait(0, deps=[acc])
            total += done
            acc = warpgroup_mma_init(done)
    for place in gl.static_range(STAGES):
        mbarrier.invalidate(arrived.index(place))

    total *= alpha * gl.load(a_units + batch) * gl.load(b_units + batch)
    i = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    j = column + gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    start = batch.to(gl.int64) * rows * columns
    here = start + i.to(gl.int64)[:, None] * columns + j[None, :]
    if PLUS:
        total += beta * gl.load(plus_ptr + here, mask, other=0.0)
    if LARGEST:
        bits = gl.where(mask, total.to(gl.int32, bitcast=True) & 0x7FFFFFFF, 0)
        gl.atomic_max(largest_ptr + batch, gl.max(gl.max(bits, 1), 0))
    if SYMMETRIC:
        # The two cross products of an element were added in another order on the other side of the diagonal.
        mask = mask & (i[:, None] <= j[None, :])
        gl.store(out_ptr + start + j.to(gl.int64)[None, :] * columns + i[:, None], total, mask)
    gl.store(out_ptr + here, total, mask)


def launch_product(
    pointers: tuple[Tensor, ...], a: tuple[Tensor, ...], b: tuple[Tensor, ...], tile: tuple[int, int], alpha: float,
    beta: float, constants: dict[str, object],
) -> None:  # fmt: skip
    """Launch the kernel.

    Args:
        pointers:  its first arguments: the result, [batch, rows, columns], and what belongs to it.
        a, b:      as in ``split_product.product``.
        tile:      the largest that divides the padded result, TILE x TILE at most.
        constants: of both kernels.
    """
    out, terms = pointers[0], a[0].shape[-1]
    rows, columns = out.shape[-2:]
    row_tile, num_warps = (TILE, 8) if min(tile) == TILE else (TILE // 2, 4)
    row_tiles, column_tiles = triton.cdiv(rows, row_tile), triton.cdiv(columns, tile[1])
    stages = max(STAGES, min(STAGES + 1, SHARED // (4 * (row_tile + tile[1]) * TERMS)))
    a_transposed, b_transposed = not a[0].is_contiguous(), not b[0].is_contiguous()
    launch(
        _hopper_product_kernel, (len(out) * row_tiles * column_tiles,), out, *pointers,
        *(_descriptor(piece, a_transposed, (row_tile, TERMS)) for piece in a),
        *(_descriptor(piece, b_transposed, (TERMS, tile[1])) for piece in b),
        rows, columns, terms, a[0].shape[-1 if a_transposed else -2], b[0].shape[-1 if b_transposed else -2],
        row_tiles * column_tiles, row_tiles, column_tiles, alpha, beta, A_TRANSPOSED=a_transposed,
        B_TRANSPOSED=b_transposed, ROWS=row_tile, COLUMNS=tile[1], TERMS=TERMS, STAGES=stages, **constants,
        num_warps=num_warps,
    )  # fmt: skip


def _descriptor(piece: Tensor, transposed: bool, block: tuple[int, int]) -> TensorDescriptor:
    """Describe the tiles of the matrices of a batch, as they lie in memory: one below the other."""
    stored = (piece.mT if transposed else piece).flatten(0, 1)
    shape = list(block[::-1] if transposed else block)
    layout = gl.NVMMASharedLayout.get_default_for(shape, gl.float16)
    return TensorDescriptor(stored, list(stored.shape), list(stored.stride()), shape, layout)
