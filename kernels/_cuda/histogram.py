"""CUDA hooks of ``magnitude_histogram`` and ``equal_counts``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _native
from . import extension, place


def magnitude_histogram(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    """See ``kernels.magnitude_histogram``."""
    group = _native.group(tensors, base)
    extension().magnitude_histogram(counts.data_ptr(), group, level, list(prefixes), place(counts))


def equal_counts(counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]) -> None:
    """See ``kernels.equal_counts``."""
    extension().equal_counts(counts.data_ptr(), _native.group(tensors, base), list(thresholds), place(counts))
