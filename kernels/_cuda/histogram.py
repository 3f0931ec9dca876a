"""CUDA hooks of ``magnitude_histogram`` and ``equal_counts``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import _native
from . import extension, stream

if TYPE_CHECKING:
    from torch import Tensor


def magnitude_histogram(
    counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, level: int, prefixes: Sequence[int]
) -> None:
    """See ``kernels.magnitude_histogram``."""
    inputs = _native.arrays(tensors, base)
    extension().magnitude_histogram(counts.data_ptr(), inputs, level, list(prefixes), stream(counts))


def equal_counts(counts: Tensor, tensors: Sequence[Tensor], base: Tensor | None, thresholds: Sequence[int]) -> None:
    """See ``kernels.equal_counts``."""
    extension().equal_counts(counts.data_ptr(), _native.arrays(tensors, base), list(thresholds), stream(counts))
