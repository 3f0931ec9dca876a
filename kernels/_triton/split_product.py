r"""Triton kernels of the split products of ``spectral._products``: float32 matrices multiplied as float16 pieces.

``split`` writes the pieces, and their unit, in one pass. ``product`` makes the three tensor-core products of a tile in
one accumulator, which moves to a float32 sum every ``chunk`` terms; the sum is scaled and added to another matrix as it
is stored. A symmetric product computes the tiles on and above the diagonal and stores each twice. Hopper has a kernel
of its own for it (``hopper_product``).

On an H200 boosting by products of the library, one per chunk of pieces that lie side by side, took 1.11 to 1.19 times
as long.

Splitting inside the product, from float32 tiles, would move as many bytes, but send each tile through registers and
back to shared memory in every one of its n / 128 uses; it was tried, and compiles to spills on the three families.
Sizes that are no multiple of 16 spill in the epilogue.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import elementwise_block, family, launch

# A matrix is scaled to a largest magnitude in [2^13, 2^14): within float16, with 37 bits of range below.
_TOP = 13
# Eight warps hold accumulator and sum of a tile of 128 x 128 in 64 registers each. ``_GROUP`` rows of tiles share
# columns of b in the L2 cache.
TILE, _GROUP, _NUM_WARPS = 128, 8, 8
# Narrow matrices have narrow tiles, down to what tensor cores take.
_LEAST = 16
# Terms of a step, and steps whose loads are in flight: before Hopper the operands go through registers, and 32 spill.
_STEPS = {True: (32, 3), False: (16, 4)}


@triton.jit(do_not_specialize=["padded_rows", "blocks"])
def _split_kernel(
    high_ptr, low_ptr, units, x_ptr, largest_ptr, rows, columns, padded_rows, padded_columns, blocks,
    COLUMNS: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0) // blocks
    batch, row = (line // padded_rows).to(tl.int64), (line % padded_rows).to(tl.int64)
    j = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < rows) & (j < columns)
    # Of the largest; the unit, its power of two over 2^TOP, is not subnormal.
    exponent = tl.maximum(tl.load(largest_ptr + batch).to(tl.int32, bitcast=True) >> 23, TOP + 1)
    if tl.program_id(0) % (padded_rows * blocks) == 0:
        tl.store(units + batch, ((exponent - TOP) << 23).to(tl.float32, bitcast=True))
    scale = ((254 + TOP - exponent) << 23).to(tl.float32, bitcast=True)
    x = tl.load(x_ptr + (batch * rows + row) * columns + j, mask, other=0.0) * scale
    high = x.to(tl.float16)
    out = (batch * padded_rows + row) * padded_columns + j
    tl.store(high_ptr + out, high, j < padded_columns)
    tl.store(low_ptr + out, (x - high.to(tl.float32)).to(tl.float16), j < padded_columns)


@triton.jit(do_not_specialize=["tiles", "row_tiles", "column_tiles", "alpha", "beta"])
def _split_product_kernel(
    out_ptr, largest_ptr, plus_ptr, a_units, b_units, a_high, a_low, b_high, b_low, rows, columns, terms, a_batch,
    a_row, a_term, b_batch, b_term, b_column, tiles, row_tiles, column_tiles, alpha, beta, SYMMETRIC: tl.constexpr,
    PLUS: tl.constexpr, LARGEST: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TERMS: tl.constexpr, GROUP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first = tile // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    top = first + tile % (GROUP * column_tiles) % height
    side = tile % (GROUP * column_tiles) // height
    if SYMMETRIC:
        if top > side:
            return
    i, j, k = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, TERMS)
    row, column = (top * ROWS).to(tl.int64), (side * COLUMNS).to(tl.int64)
    a_high += batch * a_batch + row * a_row
    a_low += batch * a_batch + row * a_row
    b_high += batch * b_batch + column * b_column
    b_low += batch * b_batch + column * b_column
    a_tile = i[:, None] * a_row + k[None, :] * a_term  # [ROWS, TERMS]
    b_tile = k[:, None] * b_term + j[None, :] * b_column  # [TERMS, COLUMNS]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, terms, CHUNK):
        acc = tl.zeros([ROWS, COLUMNS], tl.float32)
        for _ in range(tl.minimum(CHUNK, terms - start) // TERMS):
            a, b = tl.load(a_high + a_tile), tl.load(b_high + b_tile)
            acc = tl.dot(a, tl.load(b_low + b_tile), acc)
            acc = tl.dot(tl.load(a_low + a_tile), b, acc)
            acc = tl.dot(a, b, acc)
            a_high += TERMS * a_term
            a_low += TERMS * a_term
            b_high += TERMS * b_term
            b_low += TERMS * b_term
        total += acc
    total *= alpha * tl.load(a_units + batch) * tl.load(b_units + batch)
    out_ptr += batch * rows * columns
    here = row * columns + column + i[:, None] * columns + j[None, :]
    mask = (row + i < rows)[:, None] & (column + j < columns)[None, :] if MASKED else None
    if PLUS:
        total += beta * tl.load(plus_ptr + batch * rows * columns + here, mask)
    if SYMMETRIC:
        if top == side:
            # The two cross products of an element were added in another order on the other side of the diagonal.
            total = tl.where(i[:, None] <= j[None, :], total, tl.trans(total))
    if LARGEST:
        # Bits of magnitudes have the order of the magnitudes, with NaN above infinity.
        bits = total.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        if MASKED:
            bits = tl.where(mask, bits, 0)
        tl.atomic_max(largest_ptr + batch, tl.max(tl.max(bits, 1), 0))
    tl.store(out_ptr + here, total, mask)
    if SYMMETRIC:
        there = column * columns + row + j[:, None] * columns + i[None, :]
        mirror_mask = (column + j < columns)[:, None] & (row + i < rows)[None, :] if MASKED else None
        tl.store(out_ptr + there, tl.trans(total), mirror_mask)


def split(x: Tensor, largest: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return float16 (high, low) with ``x = unit * (high + low)``, padded with zeros to whole tiles, and the unit.

    A tile has TILE rows and as many columns, or 16, 32 or 64 where that is enough.

    Args:
        x:       [batch, p, q] float32, contiguous.
        largest: [batch, 1, 1] float32, the largest magnitude in each. The unit is of this shape, a power of two.
    """
    batch, rows, columns = x.shape
    column_tile = min(TILE, max(_LEAST, triton.next_power_of_2(columns)))
    padded = [batch, triton.cdiv(rows, TILE) * TILE, triton.cdiv(columns, column_tile) * column_tile]
    high, low = (torch.empty(padded, dtype=torch.float16, device=x.device) for _ in range(2))
    unit = torch.empty_like(largest)
    block, num_warps = elementwise_block(x, 1, 2)
    blocks = triton.cdiv(padded[2], block)
    launch(
        _split_kernel, (batch * padded[1] * blocks,), x, high, low, unit, x, largest, rows, columns, *padded[1:],
        blocks, COLUMNS=block, TOP=_TOP, num_warps=num_warps,
    )  # fmt: skip
    return (high, low), unit


def product(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], units: tuple[Tensor, Tensor], shape: tuple[int, int], chunk: int,
    symmetric: bool, alpha: float = 1.0, beta: float = 0.0, plus: Tensor | None = None, largest: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``alpha units[0] units[1] a b + beta plus`` [batch, *shape] in float32.

    Args:
        a, b:      float16 pieces of ``split``, or their transposes, the leading one first.
        units:     of a and of b, as ``split`` returns them.
        shape:     rows and columns without padding.
        chunk:     terms of an inner product between promotions, a multiple of 64.
        symmetric: the product is known to be, as is ``plus``.
        plus:      [batch, *shape] float32, contiguous.
        largest:   [batch, 1, 1] float32 zeros: becomes the largest magnitude in each result, as ``split`` takes it.
    """
    out = torch.empty(len(a[0]), *shape, dtype=torch.float32, device=a[0].device)
    tile = min(TILE, a[0].shape[-2]), min(TILE, b[0].shape[-1])
    if symmetric:
        tile = min(tile), min(tile)
    elif min(tile) < TILE:
        # More tiles, of half as many warps, to read the wide operand.
        tile = min(TILE // 2, tile[0]), tile[1]
    bits = out if largest is None else largest.view(torch.int32)
    constants = {"SYMMETRIC": symmetric, "PLUS": plus is not None, "LARGEST": largest is not None, "CHUNK": chunk}
    pointers = (out, bits, out if plus is None else plus, *units)
    if on_hopper(out.device):
        from .hopper_product import launch_product

        launch_product(pointers, a, b, tile, alpha, beta, {**constants, "GROUP": _GROUP})
        return out
    tiles = [triton.cdiv(size, of) for size, of in zip(shape, tile, strict=True)]
    terms = a[0].shape[-1]
    step, stages = _STEPS[family(out.device).capability >= (9, 0)]
    launch(
        _split_product_kernel, (len(out) * tiles[0] * tiles[1],), out, *pointers, *a, *b, *shape, terms,
        *a[0].stride(), *b[0].stride(), tiles[0] * tiles[1], *tiles, alpha, beta, **constants, ROWS=tile[0],
        COLUMNS=tile[1], TERMS=min(step, terms), GROUP=_GROUP,
        MASKED=any(size % of for size, of in zip(shape, tile, strict=True)), num_stages=stages,
        num_warps=_NUM_WARPS if min(tile) == TILE else _NUM_WARPS // 2,
    )  # fmt: skip
    return out


def on_hopper(device: torch.device) -> bool:
    """Return whether products are made by the kernel of Hopper, which the interpreter does not take."""
    return isinstance(_split_product_kernel, triton.JITFunction) and family(device).capability == (9, 0)
