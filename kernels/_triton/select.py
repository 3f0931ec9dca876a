"""Triton kernels of ``select_boundaries``: radix selection on the device, four digits and the break index.

Five passes over the tensors at most, whatever the values; the host waits once, for the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import grid_chunks
from ..keep import ALL_EQUAL, Boundary
from ._element import entry, load_delta, magnitude_bits
from ._grid import GRID
from ._launch import family, launch, multiprocessors, pointer_table, spans, to_device
from .histogram import BLOCK, count_equal

# Shift and width of the digits of a 31-bit magnitude. Triton counts by ballots, at a cost that grows with the bins: by
# its instructions, two digits of 8 bits cost less than one of 11.
_DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))
_CELLS = tl.constexpr(1024)


@triton.jit(do_not_specialize=["items", "workers", "first", "blocks", "numel"])
def _digit_kernel(
    counts_ptr, table, base_ptr, state, items, workers, first, blocks, numel,
    SHIFT: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Count the digits of the elements whose higher digits are those found so far."""
    # Items side by side read the same part of the base.
    program = tl.program_id(0)
    item = program % items
    worker = program // items
    source = entry(table, item, DTYPE, ALIGN)
    prefix = tl.load(state + 3 * item).to(tl.int32)
    found = tl.zeros([1 << WIDTH], tl.int32)
    start = (first + worker).to(tl.int64) * BLOCK
    for _ in range(worker, blocks, workers):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < numel if MASKED else None
        bits = magnitude_bits(load_delta(source, base_ptr, offsets, mask, DTYPE, ALIGN))
        counted = (bits >> (SHIFT + WIDTH)) == prefix
        if MASKED:
            counted = counted & mask
        found += tl.histogram((bits >> SHIFT) & ((1 << WIDTH) - 1), 1 << WIDTH, mask=counted)
        start += workers.to(tl.int64) * BLOCK
    bins = tl.arange(0, 1 << WIDTH)
    tl.atomic_add(counts_ptr + item * (1 << WIDTH) + bins, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def _descend_kernel(counts_ptr, state, WIDTH: tl.constexpr):
    """Find the digit of the element of the wanted rank, and its rank among those that share it."""
    row = state + 3 * tl.program_id(0)
    prefix, rank = tl.load(row), tl.load(row + 1)
    places = tl.arange(0, 1 << WIDTH)
    # From the largest digit down.
    counts = tl.load(counts_ptr + tl.program_id(0) * (1 << WIDTH) + ((1 << WIDTH) - 1 - places))
    above = tl.cumsum(counts, 0) < rank
    place = tl.sum(above.to(tl.int32), 0)
    tl.store(row, (prefix << WIDTH) | ((1 << WIDTH) - 1 - place))
    tl.store(row + 1, rank - tl.sum(tl.where(above, counts, 0), 0))
    tl.store(row + 2, tl.sum(tl.where(places == place, counts, 0), 0))


@triton.jit(do_not_specialize=["chunks", "numel"])
def _locate_kernel(
    boundaries_ptr, equal_ptr, table, base_ptr, state, chunks, numel, DTYPE: tl.constexpr, ALIGN: tl.constexpr
):
    """Write the threshold of an item and, where it splits its equals, the index after the last one inside."""
    item = tl.program_id(0)
    threshold, rank, size = tl.load(state + 3 * item), tl.load(state + 3 * item + 1), tl.load(state + 3 * item + 2)
    tl.store(boundaries_ptr + 2 * item, threshold)
    if rank < size:
        # The chunk that holds the equal element of that rank, then its position in the chunk.
        before = tl.zeros([], tl.int64)
        cell = tl.zeros([], tl.int64)
        skipped = tl.zeros([], tl.int64)
        for start in range(0, chunks, _CELLS):
            cells = start + tl.arange(0, _CELLS)
            counts = tl.load(equal_ptr + item * chunks.to(tl.int64) + cells, mask=cells < chunks, other=0)
            passed = (before + tl.cumsum(counts, 0) < rank) & (cells < chunks)
            cell += tl.sum(passed.to(tl.int64), 0)
            skipped += tl.sum(tl.where(passed, counts, 0), 0)
            before += tl.sum(counts, 0)
        source = entry(table, item, DTYPE, ALIGN)
        wanted = (rank - skipped).to(tl.int32)
        seen = tl.zeros([], tl.int32)
        position = cell * GRID
        for part in range(GRID // BLOCK):
            offsets = cell * GRID + part * BLOCK + tl.arange(0, BLOCK)
            mask = offsets < numel
            equal = magnitude_bits(load_delta(source, base_ptr, offsets, mask, DTYPE, ALIGN)) == threshold.to(tl.int32)
            counted = (equal & mask).to(tl.int32)
            position += tl.sum((seen + tl.cumsum(counted, 0) < wanted).to(tl.int64), 0)
            seen += tl.sum(counted, 0)
        tl.store(boundaries_ptr + 2 * item + 1, position + 1)


def select(tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[Sequence[int]]) -> list[list[Boundary]]:
    """See ``kernels.select_boundaries``. Extra memory: 2 KB per boundary and digit, and 8 bytes per 16384 elements."""
    items = [(k, rank) for k, wanted in enumerate(ranks) for rank in wanted]
    numel, like = tensors[0].numel(), tensors[0]
    table, constants = pointer_table([tensors[k] for k, _ in items])
    state = to_device([[0, rank, 0] for _, rank in items], like)
    settings = family(like.device)
    most = max(1, settings.programs * multiprocessors(like.device) // len(items))
    for shift, width in _DIGITS:
        counts = torch.zeros(len(items), 1 << width, dtype=torch.int64, device=like.device)
        for first, blocks, masked in spans(numel, BLOCK.value):
            workers = min(blocks, most)
            launch(
                _digit_kernel, (workers * len(items),), like, counts, table, base, state, len(items), workers, first,
                blocks, numel, SHIFT=shift, WIDTH=width, MASKED=masked, num_warps=settings.num_warps, **constants,
            )  # fmt: skip
        launch(_descend_kernel, (len(items),), like, counts, state, WIDTH=width, num_warps=settings.num_warps)
    equal = torch.empty(len(items), grid_chunks(numel), dtype=torch.int64, device=like.device)
    count_equal(equal, table, constants, base, state, numel)
    boundaries = torch.full((len(items), 2), ALL_EQUAL, dtype=torch.int64, device=like.device)
    launch(
        _locate_kernel, (len(items),), like, boundaries, equal, table, base, state, equal.shape[1], numel,
        num_warps=settings.num_warps, **constants,
    )  # fmt: skip
    found = iter(boundaries.tolist())
    return [[Boundary(*next(found)) for _ in wanted] for wanted in ranks]
