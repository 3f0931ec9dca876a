r"""Answers that stay on a GPU: boundaries and factors that the next kernel reads there, without a visit to the host.

``start_selection`` and ``total`` bring numbers to the host, and a method waits for them. What it only makes keep rules
and factors of need not come: ``found_boundaries``, ``matched_factors`` and ``arc_weights`` return where their kernels
will have written it, at once; ``norm_partials``, ``sparse_merge`` and ``weighted_sum`` take that in place of numbers:
those of CUDA, and the weighted sum of Triton. A merge of which any answer was not found (a sample misled, a delta is
not finite, a weight is not certain) writes nothing: ``all_found`` tells, later and for many merges at a time, and the
caller makes those again with numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from fastmerge.dtypes import float32, int64

from . import _cuda
from ._download import download
from ._found import FoundBoundary, FoundFactors
from ._sums import device_sums
from .strip import empty, on_host

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FoundBoundary", "FoundFactors", "all_found", "answers_stay", "arc_weights", "matched_factors"]

# The kernels compare numbers; a boundary among the NaNs is left to the host.
_INFINITY = 0x7F800000


Answer = FoundBoundary | FoundFactors


def answers_stay(tensors: Sequence[Tensor]) -> bool:
    """Return whether kernels can leave the answers about deltas of ``tensors`` on their device."""
    return _cuda.serves(tensors[0]) and len(tensors) <= _cuda.extension().max_tensors


def matched_factors(tables: Sequence[Tensor], rules: Sequence[tuple[Sequence[float], float]]) -> list[FoundFactors]:
    """Begin to compute factors that give deltas back their norms, and return where they will be.

    A factor is ``weight * (total / kept)`` in float64, rounded to float32; the weight where a norm is below the
    least. They are not found where a total, or a factor in float32, is not finite.

    Args:
        tables: per tensor, what ``norm_partials`` wrote of its N deltas, on one GPU.
        rules:  per tensor, its weights, one per delta, and the least norm.
    """
    given = [(list(weights), least) for weights, least in rules]
    return _found(
        tables,
        [weights for weights, _ in rules],
        lambda to, sums, where: _cuda.extension().matched_factors(to, sums, given, where),
    )


def arc_weights(tables: Sequence[Tensor], places: Sequence[float]) -> list[FoundFactors]:
    """Begin to compute the weights of two vectors in their spherical interpolation, and return where they will be.

    They are those of ``methods/slerp.py`` in float64, rounded to float32, to the last bit. They are not found where a
    product is not finite, or where acos and sin of two libraries might round differently: of one tensor in some hundred
    thousand (csrc/arc.h).

    Args:
        tables: per tensor, what ``gram_partials`` wrote of the two vectors, on one GPU.
        places: per tensor, the place on the arc: 0 is the first vector, 1 the second.
    """
    return _found(
        tables,
        [(1 - place, place) for place in places],
        lambda to, sums, where: _cuda.extension().arc_weights(to, sums, list(places), where),
    )


def _found(
    tables: Sequence[Tensor], weights: Sequence[Sequence[float]], launch: Callable[[int, int, tuple[int, int]], None]
) -> list[FoundFactors]:
    """Return where factors will be, per tensor one for each of its ``weights``, then a status.

    Args:
        launch: starts the kernel, given the addresses of the factors and of the sums of the tables, and a stream.
    """
    sums = device_sums(tables)
    assert sums is not None, "answers stay on this device"
    *starts, size = accumulate((len(each) + 1 for each in weights), initial=0)
    values = empty(sums, float32, size)
    launch(values.data_ptr(), sums.data_ptr(), _cuda.stream(values))
    return [FoundFactors(values, start, each) for start, each in zip(starts, weights, strict=True)]


def all_found(answers: Sequence[Sequence[Answer]]) -> list[bool]:
    """Return, for each group of answers of one device, whether all of them were found; waits once for the kernels."""
    blocks: dict[int, Tensor] = {}
    for answer in (answer for group in answers for answer in group):
        block = answer.rows if isinstance(answer, FoundBoundary) else answer.values
        blocks.setdefault(block.data_ptr(), block)
    if not blocks:
        return [True] * len(answers)
    import torch

    # One download: int64 rows, and float32 factors bit by bit.
    words = [block.view(torch.int32).flatten() for block in blocks.values()]
    copied = on_host(download(torch.cat(words))())
    places, start = {}, 0
    for address, part in zip(blocks, words, strict=True):
        places[address] = copied[start : start + len(part)]
        start += len(part)

    def found(answer: Answer) -> bool:
        if isinstance(answer, FoundBoundary):
            threshold, _, status = places[answer.rows.data_ptr()].view(int64.name).reshape(-1, 3)[answer.row].tolist()
            return status == 0 and threshold <= _INFINITY
        return places[answer.values.data_ptr()].view(float32.name)[answer.start + len(answer.weights)] == 0

    return [all(map(found, group)) for group in answers]
