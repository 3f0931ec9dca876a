r"""Answers that stay on a GPU: boundaries and factors that the next kernel reads there, without a visit to the host.

``start_selection`` and ``total`` bring numbers to the host, and a method waits for them. What it only makes keep rules
and factors of need not come: ``found_boundaries`` and ``matched_factors`` return where their kernels will have written
it, at once, and ``norm_partials``, ``sparse_merge`` and ``sparse_merge_many`` take that in place of numbers. CUDA alone
reads it. A merge of which any answer was not found (a sample misled, a delta is not finite) writes nothing:
``all_found`` tells, later and for many merges at a time, and the caller makes those again with numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastmerge.dtypes import float32, int64

from . import _cuda
from ._download import download
from ._found import FoundBoundary, FoundFactors
from ._registry import serves
from ._sums import device_sums
from .strip import empty, on_host

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FoundBoundary", "FoundFactors", "all_found", "answers_stay", "matched_factors"]

# The kernels compare numbers; a boundary among the NaNs is left to the host.
_INFINITY = 0x7F800000


Answer = FoundBoundary | FoundFactors


def answers_stay(tensors: Sequence[Tensor]) -> bool:
    """Return whether kernels can leave the answers about deltas of ``tensors`` on their device."""
    return serves("cuda", tensors[0], _cuda.why_unavailable) and len(tensors) <= _cuda.extension().max_tensors


def matched_factors(tables: Sequence[Tensor], rules: Sequence[tuple[Sequence[float], float]]) -> list[FoundFactors]:
    """Begin to compute factors that give deltas back their norms, and return where they will be.

    A factor is ``weight * (total / kept)`` in float64, rounded to float32; the weight where a norm is below the
    least. They are not found where a total, or a factor in float32, is not finite.

    Args:
        tables: per tensor, what ``norm_partials`` wrote of its N deltas, on one GPU.
        rules:  per tensor, its weights, one per delta, and the least norm.
    """
    sums = device_sums(tables)
    assert sums is not None, "answers stay on this device"
    values = empty(sums, float32, sum(len(weights) + 1 for weights, _ in rules))
    found, columns, start = [], 0, 0
    for weights, least in rules:
        _cuda.extension().matched_factors(
            values.data_ptr() + 4 * start, sums.data_ptr() + 8 * columns, list(weights), least, _cuda.stream(values)
        )
        found.append(FoundFactors(values, start, weights))
        columns, start = columns + 2 * len(weights), start + len(weights) + 1
    return found


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
