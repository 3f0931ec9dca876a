"""Radix selection: four digits of a magnitude, each counted in one reading. For few values, or a small tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._element import entry, load_delta, magnitude_bits
from ._launch import family, launch, multiprocessors, pointer_table, spans, to_device
from .histogram import BLOCK

# Shift and width of the digits of a 31-bit magnitude. Triton counts by ballots, at a cost that grows with the bins: by
# its instructions, two digits of 8 bits cost less than one of 11.
_DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))


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


def radix_select(tensors: Sequence[Tensor], base: Tensor | None, numel: int, ranks: Sequence[int]) -> Tensor:
    """Return, per tensor, the magnitude of a rank, the rank among its equals, and their number: int64 [N, 3].

    Args:
        numel: elements of each tensor that count, from the first on; no fewer than any rank.
    """
    like, items = tensors[0], len(tensors)
    table, constants = pointer_table(tensors)
    state = to_device([[0, rank, 0] for rank in ranks], like)
    settings = family(like.device)
    most = max(1, settings.programs * multiprocessors(like.device) // items)
    for shift, width in _DIGITS:
        counts = torch.zeros(items, 1 << width, dtype=torch.int64, device=like.device)
        for first, blocks, masked in spans(numel, BLOCK.value):
            workers = min(blocks, most)
            launch(
                _digit_kernel, (workers * items,), like, counts, table, base, state, items, workers, first, blocks,
                numel, SHIFT=shift, WIDTH=width, MASKED=masked, num_warps=settings.num_warps, **constants,
            )  # fmt: skip
        launch(_descend_kernel, (items,), like, counts, state, WIDTH=width, num_warps=settings.num_warps)
    return state
