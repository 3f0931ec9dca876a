"""Triton kernels of ``magnitude_histogram`` and ``equal_counts``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._element import entry, load_delta, magnitude_bits
from ._grid import GRID, chunk_spans
from ._launch import family, launch, pointer_table, spans, to_device

BLOCK = tl.constexpr(2048)
# Each copy takes a share of the programs, so that fewer of them wait for the same counter.
_COPIES = tl.constexpr(16)


@triton.jit(do_not_specialize=["models", "first", "numel"])
def _histogram_kernel(
    counts_ptr, table, base_ptr, prefixes, models, first, numel,
    BINS: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    block = (first + program // models).to(tl.int64)
    k = program % models
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel if MASKED else None
    bits = magnitude_bits(load_delta(entry(table, k, DTYPE, ALIGN), base_ptr, offsets, mask, DTYPE, ALIGN))
    counts = counts_ptr + ((block % _COPIES) * models + k) * BINS
    if prefixes is None:
        bins = bits >> 16
        counted = bins != 0
        # Fine-tuning leaves many elements as they are; one addition per program counts them.
        unchanged = (bins == 0) & mask if MASKED else bins == 0
        tl.atomic_add(counts, tl.sum(unchanged.to(tl.int32), 0), sem="relaxed")
    else:
        bins = bits & 0xFFFF
        counted = (bits >> 16) == tl.load(prefixes + k).to(tl.int32)
    if MASKED:
        counted = counted & mask
    tl.atomic_add(counts + bins, tl.full([BLOCK], 1, tl.int32), mask=counted, sem="relaxed")


def magnitude_histogram(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    """See ``kernels.magnitude_histogram``. Extra memory: 16 copies of ``counts`` as int32."""
    numel = tensors[0].numel()
    table, constants = pointer_table(tensors)
    found = torch.zeros(_COPIES.value, *counts.shape, dtype=torch.int32, device=counts.device)
    wanted = to_device([prefixes], counts) if level else None
    for first, blocks, masked in spans(numel, BLOCK.value):
        launch(
            _histogram_kernel, (blocks * len(tensors),), counts, found, table, base, wanted, len(tensors), first, numel,
            BINS=counts.shape[1], MASKED=masked, num_warps=family(counts.device).num_warps, **constants,
        )  # fmt: skip
    counts += found.sum(0)


@triton.jit(do_not_specialize=["models", "chunks", "first", "numel"])
def _equal_counts_kernel(
    counts_ptr, table, base_ptr, thresholds, models, chunks, first, numel,
    DTYPE: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    chunk = (first + program // models).to(tl.int64)
    k = program % models
    threshold = tl.load(thresholds + k).to(tl.int32)
    source = entry(table, k, DTYPE, ALIGN)
    found = tl.zeros([BLOCK], tl.int32)
    for part in range(GRID // BLOCK):
        offsets = chunk * GRID + part * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel if MASKED else None
        equal = magnitude_bits(load_delta(source, base_ptr, offsets, mask, DTYPE, ALIGN)) == threshold
        if MASKED:
            equal = equal & mask
        found += equal.to(tl.int32)
    tl.store(counts_ptr + k * chunks.to(tl.int64) + chunk, tl.sum(found, 0).to(tl.int64))


def equal_counts(counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]) -> None:
    """See ``kernels.equal_counts``."""
    table, constants = pointer_table(tensors)
    models, chunks = counts.shape
    wanted, numel = to_device([thresholds], counts), tensors[0].numel()
    for first, programs, masked in chunk_spans(numel):
        launch(
            _equal_counts_kernel, (programs * models,), counts, counts, table, base, wanted, models, chunks, first,
            numel, MASKED=masked, num_warps=family(counts.device).num_warps, **constants,
        )  # fmt: skip
