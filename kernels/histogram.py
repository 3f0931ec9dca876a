r"""Counts of magnitudes: additive integer tables from which a rank is found, whatever the parts of a tensor are.

The order is that of ``keep``: magnitude of ``tensors[k] - base`` (one float32 subtraction) as 31 bits, all NaNs alike.
``magnitude_histogram`` level 0 counts the high 15 bits, level 1 the low 16 bits of the bin that holds the rank, and
``equal_counts`` leads to the break index. ``descend`` and ``nth_equal`` read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastmerge.dtypes import float32, int64

from . import _cuda, _native, _triton
from ._checks import GRID, check_group, check_table, grid_chunks
from ._cuda import histogram as _cuda_histogram
from ._registry import Order, operation
from .keep import NAN_MAGNITUDE, magnitude_bits
from .strip import Strip, empty, on_host
from .weighted_sum import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HISTOGRAM_BINS", "descend", "equal_counts", "magnitude_histogram", "nth_equal"]

# Level 0 counts the high 15 bits of the 31-bit magnitude, level 1 the low 16.
HISTOGRAM_BINS = (2**15, 2**16)


def magnitude_histogram(
    counts: Tensor,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    level: int,
    prefixes: Sequence[int] = (),
    *,
    backend: str | None = None,
) -> None:
    """Add the magnitude histogram of a part of N deltas to ``counts``.

    Args:
        counts:   [N, HISTOGRAM_BINS[level]] int64; added to, so that chunks and shards sum up.
        tensors:  N tensors: a whole tensor or any part of it.
        base:     shaped like them, or None.
        level:    0 counts ``bits >> 16``; 1 counts ``bits & 0xffff`` where ``bits >> 16`` is the prefix.
        prefixes: N integers, for level 1 only.
        backend:  pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, level or prefixes disagree.
    """
    check_group(tensors, base)
    if level not in (0, 1) or len(prefixes) != (len(tensors) if level else 0):
        raise ValueError(
            f"level is {level} with {len(prefixes)} prefixes; expected 0 with none, or 1 with {len(tensors)}"
        )
    shape = (len(tensors), HISTOGRAM_BINS[level])
    check_table("counts", counts, int64, shape)
    _histogram(counts, tensors, base, level, list(prefixes), backend=backend)


@operation("magnitude_histogram", gpu=Order(("cuda", "triton"), "4.9 to 13 times as fast as Triton on an H200"))
def _histogram(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    import torch

    for i, tensor in enumerate(tensors):
        delta = tensor.float() if base is None else tensor.float() - base.float()
        bits = magnitude_bits(delta.flatten())
        bins = bits >> 16 if level == 0 else bits[(bits >> 16) == prefixes[i]] & 0xFFFF
        counts[i] += torch.bincount(bins, minlength=HISTOGRAM_BINS[level])


@_histogram.backend("cpu", probe=_native.why_no_cpu_extension)
def _histogram_cpu(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    _native.cpu_extension().magnitude_histogram(counts.data_ptr(), _native.arrays(tensors, base), level, list(prefixes))


def equal_counts(
    counts: Tensor,
    tensors: Sequence[Tensor],
    base: Tensor | None,
    thresholds: Sequence[int],
    *,
    backend: str | None = None,
) -> None:
    """Write, per delta and grid chunk, how many magnitudes equal the threshold.

    Args:
        counts:     [N, ceil(n / GRID)] int64; overwritten.
        tensors:    N tensors of n elements: a whole tensor, or a part that starts on the grid.
        base:       shaped like them, or None.
        thresholds: N magnitudes as float32 bits.
        backend:    pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes or counts disagree.
    """
    check_group(tensors, base)
    if len(thresholds) != len(tensors):
        raise ValueError(f"thresholds has {len(thresholds)} values; expected {len(tensors)}, one per tensor")
    shape = (len(tensors), grid_chunks(tensors[0].numel()))
    check_table("counts", counts, int64, shape)
    _equal_counts(counts, tensors, base, list(thresholds), backend=backend)


@operation("equal_counts", gpu=Order(("triton", "cuda"), "1.0 to 1.9 times as fast as CUDA on an H200"))
def _equal_counts(counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]) -> None:
    import torch

    for i, tensor in enumerate(tensors):
        delta = tensor.float() if base is None else tensor.float() - base.float()
        equal = magnitude_bits(delta.flatten()) == thresholds[i]
        padded = torch.zeros(counts.shape[1] * GRID, dtype=torch.int64, device=equal.device)
        padded[: equal.numel()] = equal
        counts[i] = padded.view(-1, GRID).sum(1)


@_equal_counts.backend("cpu", probe=_native.why_no_cpu_extension)
def _equal_counts_cpu(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]
) -> None:
    _native.cpu_extension().equal_counts(counts.data_ptr(), _native.arrays(tensors, base), list(thresholds))


@_histogram.backend("triton", probe=_triton.why_unavailable)
def _histogram_triton(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    from ._triton.histogram import magnitude_histogram as run

    run(counts, tensors, base, level, prefixes)


@_equal_counts.backend("triton", probe=_triton.why_unavailable)
def _equal_counts_triton(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]
) -> None:
    from ._triton.histogram import equal_counts as run

    run(counts, tensors, base, thresholds)


_histogram.backend("cuda", probe=_cuda.why_unavailable)(_cuda_histogram.magnitude_histogram)
_equal_counts.backend("cuda", probe=_cuda.why_unavailable)(_cuda_histogram.equal_counts)


def nth_equal(tensor: Tensor, base: Tensor | None, threshold: int, nth: int, begin: int, size: int) -> int:
    """Return the index of the nth (from 1) magnitude that equals ``threshold``, counted from ``begin``.

    It must be one of the ``size`` elements from there on.
    """
    part = slice(begin, begin + size)
    models, signs = [tensor.flatten()[part]], [1.0]
    if base is not None:
        models, signs = [*models, base.flatten()[part]], [1.0, -1.0]
    delta = empty(tensor, float32, models[0].numel())
    weighted_sum(delta, models, signs)
    if type(delta) is Strip:
        bits = np.minimum(delta.numpy().view(np.int32) & 0x7FFFFFFF, NAN_MAGNITUDE)
        return begin + int(np.flatnonzero(bits == threshold)[nth - 1])
    return begin + int((magnitude_bits(delta) == threshold).nonzero()[nth - 1])


def descend(counts: Tensor | np.ndarray, rank: int) -> tuple[int, int, int]:
    """Return where the running sum of ``counts`` reaches ``rank``, the rank from there on, and the count there."""
    counts = on_host(counts)
    sums = np.cumsum(counts)
    place = int(np.searchsorted(sums, rank))
    count = int(counts[place])
    return place, rank - int(sums[place]) + count, count
