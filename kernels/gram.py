r"""Gram matrix of N vectors: ``G[i, j] = <v_i, v_j>``, with ``v_k = tensors[k] - base`` or ``tensors[k]``.

A delta is one float32 subtraction. Products are exact in float64; they are accumulated in float64
over a fixed grid of chunks (``_checks.lane_sums``), and the chunks are summed exactly. Every
backend, thread count and chunking returns the same bits. Error bound: each entry is within
``127 * 2**-53 * sum |v_i * v_j|`` (64 + 8 roundings in a chunk, one at the end) of the exact product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastmerge.dtypes import float64

from . import _cuda, _native, _triton
from ._checks import check_group, check_table, grid_chunks, lane_sums
from ._registry import Order, operation
from ._sums import total

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["gram_matrix", "gram_partials", "pairs"]


def pairs(count: int) -> list[tuple[int, int]]:
    """Return the entries (i, j), i <= j, of a count x count matrix, in the order of the columns of the partials."""
    return [(i, j) for i in range(count) for j in range(i, count)]


def gram_partials(
    partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None = None, *, backend: str | None = None
) -> None:
    """Write the partial dot products of every grid chunk into ``partials``.

    Args:
        partials: [ceil(n / GRID), N (N + 1) / 2] float64; overwritten. Columns as in ``pairs(N)``.
        tensors:  N tensors of n elements: a whole tensor, or a part that starts on the grid.
        base:     shaped like ``tensors``; None takes the tensors themselves, not their deltas.
        backend:  pin a backend; by default the fastest available on the device.
    Raises:
        ValueError: shapes, dtypes or devices disagree; the message names the argument and its value.
    """
    check_group(tensors, base)
    shape = (grid_chunks(tensors[0].numel()), len(pairs(len(tensors))))
    check_table("partials", partials, float64, shape)
    _gram(partials, tensors, base, backend=backend)


def gram_matrix(partials: Tensor | np.ndarray, count: int) -> np.ndarray:
    """Return the [count, count] float64 Gram matrix of the summed ``partials``."""
    matrix = np.zeros((count, count))
    for (i, j), value in zip(pairs(count), total(partials), strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


@operation("gram", gpu=Order(("cuda", "triton"), "expected to be 1.0 to 5 times as fast as Triton on an H200"))
def _gram(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    vectors = [t.float().flatten() if base is None else (t.float() - base.float()).flatten() for t in tensors]
    for column, (i, j) in enumerate(pairs(len(tensors))):
        partials[:, column] = lane_sums(vectors[i].double() * vectors[j].double())


@_gram.backend("cpu", probe=_native.why_no_cpu_extension)
def _cpu(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    _native.cpu_extension().gram(partials.data_ptr(), _native.arrays(tensors, base))


@_gram.backend("triton", probe=_triton.why_unavailable)
def _run_triton(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    from ._triton.gram import gram as run

    run(partials, tensors, base)


@_gram.backend("cuda", probe=_cuda.why_unavailable)
def _run_cuda(partials: Tensor, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    _cuda.extension().gram(partials.data_ptr(), _native.arrays(tensors, base), _cuda.stream(partials))
