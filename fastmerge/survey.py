"""Surveys: read a tensor's inputs and reduce them to a few numbers that a method solves with.

A survey's state is additive: over chunks, and through ``Source.reduce`` over shards and machines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import kernels
from .kernels import GRID, Boundary, Keep
from .source import Chunk, Source


class Survey(ABC):
    """A question about the inputs of one tensor. ``run`` returns the answer; it is exact or states its bound."""

    @abstractmethod
    def run(self, source: Source):
        """Read ``source`` as often as needed and return the answer."""


@dataclass(frozen=True)
class Gram(Survey):
    """The Gram matrix [N, N] (float64, CPU) of the deltas, or of all inputs (base first) when ``deltas`` is False."""

    deltas: bool = True

    def run(self, source: Source) -> Tensor:
        def partials(chunk: Chunk) -> Tensor:
            tensors = list(chunk.tensors) if self.deltas else chunk.every
            part = _grid_table(tensors[0], len(kernels.pairs(len(tensors))), torch.float64)
            kernels.gram_partials(part, tensors, chunk.base if self.deltas else None)
            return part

        table = _over_grid(source, partials)
        columns = table.shape[1]
        return kernels.gram_matrix(table, next(n for n in range(1, columns + 1) if n * (n + 1) // 2 == columns))


@dataclass(frozen=True)
class Norms(Survey):
    """Per delta, ``(total, kept)``: the sum of ``|d|**power`` over all elements, and over those that its keep rule keeps."""

    keeps: Sequence[Keep]
    power: int = 1

    def run(self, source: Source) -> list[tuple[float, float]]:
        def partials(chunk: Chunk) -> Tensor:
            part = _grid_table(chunk.tensors[0], 2 * len(chunk.tensors), torch.float64)
            kernels.norm_partials(part, chunk.tensors, chunk.base, self.keeps, power=self.power, offset=chunk.offset)
            return part

        sums = kernels.total(_over_grid(source, partials))
        return list(zip(sums[::2], sums[1::2], strict=True))


@dataclass(frozen=True)
class Boundaries(Survey):
    """Per delta, the boundary for each of its ranks: exactly so many of the largest magnitudes lie inside it."""

    ranks: Sequence[Sequence[int]]

    def run(self, source: Source) -> list[list[Boundary]]:
        if source.whole:
            chunk = next(iter(source.chunks()))
            return kernels.select_boundaries(chunk.tensors, chunk.base, self.ranks)
        wanted = [(k, rank) for k, ranks in enumerate(self.ranks) for rank in ranks if 0 < rank < source.numel]
        found = iter(_select_by_tables(source, wanted) if wanted else [])
        edges = {0: kernels.NOTHING, source.numel: kernels.EVERYTHING}
        return [[edges[rank] if rank in edges else next(found) for rank in ranks] for ranks in self.ranks]


def _grid_table(like: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(-(-like.numel() // GRID), columns, dtype=dtype, device=like.device)


def _over_grid(source: Source, partials) -> Tensor:
    """Return the table [chunks of the grid, columns] of the whole tensor; rows of other shards are added in."""
    table = None
    for chunk in source.chunks():
        part = partials(chunk).cpu()
        if table is None:
            table = torch.zeros(-(-source.numel // GRID), part.shape[1], dtype=part.dtype)
        table[chunk.offset // GRID : chunk.offset // GRID + len(part)] = part
    assert table is not None, "a source yields at least one chunk"
    return source.reduce(table)


def _select_by_tables(source: Source, wanted: list[tuple[int, int]]) -> list[Boundary]:
    """Radix selection over the chunks of a source: two histograms, then the break index of each boundary."""
    models = [k for k, _ in wanted]
    bins, ranks = _descend(_histograms(source, models, 0, []), [rank for _, rank in wanted])
    digits, ranks = _descend(_histograms(source, models, 1, bins), ranks)
    thresholds = [(high << 16) | low for high, low in zip(bins, digits, strict=True)]
    return _break_indices(source, models, thresholds, ranks)


def _histograms(source: Source, models: list[int], level: int, prefixes: list[int]) -> Tensor:
    counts = None
    for chunk in source.chunks():
        tensors = [chunk.tensors[k] for k in models]
        if counts is None:
            counts = torch.zeros(
                len(models), kernels.HISTOGRAM_BINS[level], dtype=torch.int64, device=tensors[0].device
            )
        kernels.magnitude_histogram(counts, tensors, chunk.base, level, prefixes)
    assert counts is not None, "a source yields at least one chunk"
    return source.reduce(counts.cpu())


def _descend(counts: Tensor, ranks: list[int]) -> tuple[list[int], list[int]]:
    """Return, per row, the bin that holds the element of that rank (largest first), and its rank inside the bin."""
    bins, inner = [], []
    for row, rank in zip(counts, ranks, strict=True):
        cumulative = row.flip(0).cumsum(0)
        position = int(torch.searchsorted(cumulative, rank))
        bins.append(len(row) - 1 - position)
        inner.append(rank - int(cumulative[position] - row[bins[-1]]))
    return bins, inner


def _break_indices(source: Source, models: list[int], thresholds: list[int], remaining: list[int]) -> list[Boundary]:
    """Turn "keep so many of the equal ones" into the index below which they are kept."""
    table = torch.zeros(len(models), -(-source.numel // GRID), dtype=torch.int64)
    for chunk in source.chunks():
        tensors = [chunk.tensors[k] for k in models]
        counts = torch.empty(len(models), -(-tensors[0].numel() // GRID), dtype=torch.int64, device=tensors[0].device)
        kernels.equal_counts(counts, tensors, chunk.base, thresholds)
        first = chunk.offset // GRID
        table[:, first : first + counts.shape[1]] = counts.cpu()
    table = source.reduce(table)
    boundaries = []
    for k, threshold, row, keep in zip(models, thresholds, table, remaining, strict=True):
        if keep == int(row.sum()):
            boundaries.append(Boundary(threshold, kernels.ALL_EQUAL))
            continue
        cumulative = row.cumsum(0)
        cell = int(torch.searchsorted(cumulative, keep))
        start = cell * GRID
        chunk = source.read(start, min(start + GRID, source.numel))
        nth = keep - int(cumulative[cell] - row[cell])
        boundaries.append(Boundary(threshold, start + _nth_equal(chunk, k, threshold, nth) + 1))
    return boundaries


def _nth_equal(chunk: Chunk, model: int, threshold: int, nth: int) -> int:
    tensor = chunk.tensors[model].float().flatten()
    delta = tensor if chunk.base is None else tensor - chunk.base.float().flatten()
    equal = (delta.view(torch.int32) & 0x7FFFFFFF) == threshold
    return int(equal.nonzero()[nth - 1])
