"""Triton kernels of ``select_boundaries``: a sample, one pass that counts and gathers, radix search among few values.

A sample gives a bracket of magnitudes that holds rank k but for bad luck. One pass over the tensors counts what lies
above the bracket and what equals its ends, and gathers what lies strictly between: about 4 % of a tensor at most,
however often its values repeat. The host waits for the counts, then for the thresholds, and for each break index.

CUDA's selection waits once, and its pass takes a third of the instructions (18 per element of a bfloat16 tensor; here
55, since Triton moves what it compacts through shared memory and cannot keep it there).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._sampling import DEVIATIONS, SPARE
from ..histogram import descend, nth_equal
from ..keep import ALL_EQUAL, Boundary
from ._element import entry, load_delta, magnitude_bits
from ._launch import family, launch, pointer_table, spans, to_device
from ._radix import radix_select
from .histogram import BLOCK

# Elements of the sample, and neighbours that are sampled together. Smaller tensors are searched whole.
SAMPLE, _RUN = tl.constexpr(16384), tl.constexpr(8)

_COLUMNS = 4
_GATHERED, _ABOVE, _AT_HIGH, _AT_LOW = (tl.constexpr(column) for column in range(_COLUMNS))


@triton.jit(do_not_specialize=["stride"])
def _sample_kernel(sample_ptr, table, base_ptr, stride, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Write the magnitudes of a sample of each tensor."""
    k = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    run = at // _RUN
    # A jittered grid, so that no period of the data can fool it.
    random = run.to(tl.uint32) * 0x9E3779B9
    random = (random ^ (random >> 16)) * 0x85EBCA6B
    random = (random ^ (random >> 13)) * 0xC2B2AE35
    random = random ^ (random >> 16)
    spread = (random.to(tl.int64) * (stride - _RUN + 1)) >> 32
    places = run.to(tl.int64) * stride + spread + at % _RUN
    delta = load_delta(entry(table, k, DTYPE, ALIGN), base_ptr, places, None, DTYPE, ALIGN)
    tl.store(sample_ptr + k * SAMPLE + at, magnitude_bits(delta))


@triton.jit(do_not_specialize=["items", "blocks", "first", "capacity", "numel"])
def _collect_kernel(
    records_ptr, places_ptr, gathered_ptr, used_ptr, table, base_ptr, ends, items, blocks, first, capacity, numel,
    DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    # Items side by side read the same part of the base.
    program = tl.program_id(0)
    block = (first + program // items).to(tl.int64)
    item = program % items
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel if MASKED else None
    bits = magnitude_bits(load_delta(entry(table, item, DTYPE, ALIGN), base_ptr, offsets, mask, DTYPE, ALIGN))
    if MASKED:
        bits = tl.where(mask, bits, -1)
    high, low = tl.load(ends + 2 * item).to(tl.int32), tl.load(ends + 2 * item + 1).to(tl.int32)
    inside = (bits > low) & (bits < high)
    # Two counts in one sum: each is at most the size of a block.
    at_high, at_low = (bits == high).to(tl.int32), ((bits == low) & (low < high)).to(tl.int32)
    upper = tl.sum((bits > high).to(tl.int32) + (at_high << 16), 0)
    lower = tl.sum(inside.to(tl.int32) + (at_low << 16), 0)
    count = lower & 0xFFFF
    place = tl.atomic_add(used_ptr + item, count.to(tl.int64), sem="relaxed")
    # Relative to the place, positions fit 32 bits; those of the others lie beyond any room.
    positions = tl.where(inside, tl.cumsum(inside.to(tl.int32), 0) - 1, BLOCK)
    room = tl.minimum(tl.maximum(capacity - place, 0), BLOCK).to(tl.int32)
    tl.store(gathered_ptr + item * capacity + place + positions, bits, mask=positions < room)
    row = item * blocks.to(tl.int64) + block
    tl.store(places_ptr + row, place)
    record = records_ptr + 4 * row
    tl.store(record + _GATHERED, count)
    tl.store(record + _ABOVE, upper & 0xFFFF)
    tl.store(record + _AT_HIGH, upper >> 16)
    tl.store(record + _AT_LOW, lower >> 16)


def select(
    tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[Sequence[int]]
) -> list[list[Boundary | None]]:
    """See ``kernels.select_boundaries``; None where a sample misled."""
    items = [(k, rank) for k, wanted in enumerate(ranks) for rank in wanted]
    if tensors[0].numel() <= SAMPLE.value:
        found = iter(_search_whole([tensors[k] for k, _ in items], base, [rank for _, rank in items]))
    else:
        found = iter(_search_brackets(tensors, base, items))
    return [[next(found) for _ in wanted] for wanted in ranks]


def _search_whole(tensors: Sequence[Tensor], base: Tensor | None, ranks: Sequence[int]) -> list[Boundary | None]:
    numel = tensors[0].numel()
    found: list[Boundary | None] = []
    for tensor, (threshold, rank, equal) in zip(
        tensors, radix_select(tensors, base, numel, ranks).tolist(), strict=True
    ):
        index = nth_equal(tensor, base, threshold, rank, 0, numel) + 1 if rank < equal else ALL_EQUAL
        found.append(Boundary(threshold, index))
    return found


def _search_brackets(
    tensors: Sequence[Tensor], base: Tensor | None, items: Sequence[tuple[int, int]]
) -> list[Boundary | None]:
    numel, like = tensors[0].numel(), tensors[0]
    blocks = triton.cdiv(numel, BLOCK.value)
    bounds = [_sample_ranks(rank, numel) for _, rank in items]
    ends = _bracket(tensors, base, [k for k, _ in items], bounds)
    widest = max(low - high for high, low in bounds) / SAMPLE.value
    capacity = math.ceil(SPARE * min(widest * numel + BLOCK.value, numel))
    records = torch.zeros(len(items), blocks, _COLUMNS, dtype=torch.int32, device=like.device)
    places = torch.zeros(len(items), blocks, dtype=torch.int64, device=like.device)
    # What is not filled counts as the smallest magnitude, below everything that is gathered.
    gathered = torch.zeros(len(items), capacity, dtype=torch.int32, device=like.device)
    used = torch.zeros(len(items), dtype=torch.int64, device=like.device)
    table, constants = pointer_table([tensors[k] for k, _ in items])
    for first, count, masked in spans(numel, BLOCK.value):
        launch(
            _collect_kernel, (count * len(items),), like, records, places, gathered, used, table, base, ends,
            len(items), blocks, first, capacity, numel, MASKED=masked, num_warps=family(like.device).num_warps,
            **constants,
        )  # fmt: skip
    found: list[Boundary | None] = [None] * len(items)
    inside = {}
    summary = torch.cat([ends, records.sum(1)], 1).tolist()
    for i, (high, low, between, above, at_high, at_low) in enumerate(summary):
        k, rank = items[i]
        rank -= above
        if 0 < rank <= at_high:
            found[i] = _at_end(tensors[k], base, high, rank, records[i, :, _AT_HIGH.value])
        elif at_high < rank <= at_high + between <= at_high + capacity:
            inside[i] = rank - at_high, between
        elif at_high + between < rank <= at_high + between + at_low:
            found[i] = _at_end(tensors[k], base, low, rank - at_high - between, records[i, :, _AT_LOW.value])
    if inside:
        rows = [gathered[i].view(torch.float32) for i in inside]
        most = max(between for _, between in inside.values())
        states = radix_select(rows, None, most, [rank for rank, _ in inside.values()]).tolist()
        for i, (threshold, rank, equal) in zip(inside, states, strict=True):
            index = ALL_EQUAL
            if rank < equal:
                positions = (gathered[i] == threshold).nonzero().flatten()
                counts = _blocks_of(positions, places[i], records[i, :, _GATHERED.value])
                index = _break_index(tensors[items[i][0]], base, threshold, rank, counts)
            found[i] = Boundary(threshold, index)
    return found


def _sample_ranks(rank: int, numel: int) -> tuple[int, int]:
    """Return the ranks in the sample that bracket a rank; below 1 or above SAMPLE where that end is open."""
    middle = SAMPLE.value * rank / numel
    margin = DEVIATIONS * math.sqrt(middle * (1 - rank / numel)) + _RUN.value
    return math.floor(middle - margin), math.ceil(middle + margin) + 1


def _bracket(
    tensors: Sequence[Tensor], base: Tensor | None, models: Sequence[int], bounds: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the ends [items, 2] of the brackets, upper end first: values of the sample, or the limits of all."""
    like, size = tensors[0], SAMPLE.value
    sample = torch.empty(len(tensors), size, dtype=torch.int32, device=like.device)
    table, constants = pointer_table(tensors)
    launch(
        _sample_kernel, (size // BLOCK.value, len(tensors)), like, sample, table, base,
        like.numel() // (size // _RUN.value), num_warps=family(like.device).num_warps, **constants,
    )  # fmt: skip
    rows = [sample[k].view(torch.float32) for k in models for _ in range(2)]
    clamped = [min(max(rank, 1), size) for pair in bounds for rank in pair]
    values = radix_select(rows, None, size, clamped)[:, 0].view(-1, 2)
    limits = to_device([[0x7FFFFFFF if high < 1 else -1, 0 if low > size else -1] for high, low in bounds], like)
    return torch.where(limits >= 0, limits, values)


def _at_end(tensor: Tensor, base: Tensor | None, threshold: int, rank: int, counts: Tensor) -> Boundary:
    counts = counts.to(torch.int64)
    if rank == int(counts.sum()):
        return Boundary(threshold, ALL_EQUAL)
    return Boundary(threshold, _break_index(tensor, base, threshold, rank, counts))


def _break_index(tensor: Tensor, base: Tensor | None, threshold: int, rank: int, counts: Tensor) -> int:
    """Return the index after the element of that rank among the equal ones, of which ``counts`` are in each block."""
    block, rank, _ = descend(counts, rank)
    return nth_equal(tensor, base, threshold, rank, block * BLOCK.value, BLOCK.value) + 1


def _blocks_of(positions: Tensor, places: Tensor, gathered: Tensor) -> Tensor:
    """Return how many of the ``positions`` among the gathered values came from each block."""
    filled = gathered.nonzero().flatten()
    first, order = places[filled].sort()
    blocks = filled[order[torch.searchsorted(first, positions, right=True) - 1]]
    return torch.bincount(blocks, minlength=len(places))
