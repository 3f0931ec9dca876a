"""Surveys: read a tensor's inputs and reduce them to a few numbers that a method solves with.

What a survey keeps while it reads is a small table that adds up: over chunks, and through
``Source.reduce`` over shards and machines. Chunks and shards start on the grid of the reductions
(``kernels.GRID`` elements), so the sums have the same bits however a tensor is cut.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import kernels
from ..dtypes import float64, int32, int64
from ..kernels import GRID, Boundary, Keep, empty, on_host, zeros
from ..kernels.histogram import descend, nth_equal
from .source import Chunk, Resident, Source

if TYPE_CHECKING:
    from torch import Tensor

# The kind of device on which nothing needs to be waited for.
HOST = "cpu"

# Elements of a tensor below which finding memory for bits takes longer than drawing again.
NOTED = 1 << 16


class Survey(ABC):
    """A question about the inputs of one tensor. ``run`` returns the answer; it is exact or states its bound."""

    @abstractmethod
    def run(self, source: Source) -> Any:
        """Read ``source`` as often as needed and return the answer, the same on every shard."""

    @classmethod
    def start_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> Callable[[], list[Any]]:
        """Begin to ask ``surveys``, all of this class, about whole tensors of one device, and do not wait for it.

        The function that is returned waits and returns the answers.
        """
        answers = [survey.run(source) for survey, source in zip(surveys, sources, strict=True)]
        return lambda: answers

    @classmethod
    def leave_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> list[Any] | None:
        """As ``start_all``, with answers that stay on the device: nothing is waited for. None where they are numbers.

        Only for methods that ``leave`` them; see ``kernels.answers``.
        """
        return None


class TableSurvey(Survey):
    """A survey whose answer follows from a table of partial sums, one row per chunk of the grid.

    It follows from the exact sums of the columns (``kernels.total``) alone, so that these may stand for all rows.
    """

    @abstractmethod
    def partials(self, chunk: Chunk) -> Tensor:
        """Return the rows [chunks of the grid, columns] (float64) of a chunk, on its device."""

    @abstractmethod
    def answer(self, table: np.ndarray) -> Any:
        """Return the answer of a whole table, or of one row that holds its exact sums."""

    def run(self, source: Source) -> Any:
        if isinstance(source, Resident):
            [answer] = self.start_all([self], [source])()
            return answer
        return self.answer(_over_grid(source, self.partials))

    @staticmethod
    def tables(surveys: Sequence[Any], sources: Sequence[Resident]) -> list[Tensor]:
        """Begin to make the tables of whole tensors, on their device."""
        return [survey.partials(*source.chunks()) for survey, source in zip(surveys, sources, strict=True)]

    @classmethod
    def start_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> Callable[[], list[Any]]:
        tables = cls.tables(surveys, sources)
        if tables[0].device.type == HOST:
            return lambda: [survey.answer(on_host(table)) for survey, table in zip(surveys, tables, strict=True)]
        wait = kernels.start_totals(tables)
        return lambda: [survey.answer(sums[None]) for survey, sums in zip(surveys, wait(), strict=True)]


@dataclass(frozen=True)
class Gram(TableSurvey):
    """The Gram matrix [N, N] (float64) of the deltas, or of all inputs (base first) when ``deltas`` is False.

    One read. Error bound of an entry: ``127 * 2**-53 * sum |v_i * v_j|`` (see ``kernels.gram``). ``arc`` is a place
    between two vectors: what ``kernels.arc_weights`` makes of it is all that is asked for, and may be the answer.
    """

    deltas: bool = True
    arc: float | None = None

    def partials(self, chunk: Chunk) -> Tensor:
        tensors = list(chunk.tensors) if self.deltas else chunk.every
        part = grid_table(tensors[0], len(kernels.pairs(len(tensors))))
        kernels.gram_partials(part, tensors, chunk.base if self.deltas else None)
        return part

    def answer(self, table: np.ndarray) -> np.ndarray:
        # N vectors have N (N + 1) / 2 pairs, one per column.
        count = (math.isqrt(8 * table.shape[1] + 1) - 1) // 2
        return kernels.gram_matrix(table, count)

    @classmethod
    def leave_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> list[Any] | None:
        places = [survey.arc for survey in surveys]
        return None if None in places else kernels.arc_weights(cls.tables(surveys, sources), places)


@dataclass(frozen=True)
class Norms(TableSurvey):
    """Per delta, ``(total, kept)``: the sum of ``|d|**power`` over all elements, and over those that are kept.

    One read. Relative error bound: ``72 * 2**-53`` (see ``kernels.norms``). ``factors_of`` has weights and the least
    norm: what ``kernels.matched_factors`` makes of them and the norms is all that is asked for, and may be the answer.
    """

    keeps: Sequence[Keep]
    power: int = 1
    factors_of: tuple[Sequence[float], float] | None = None

    def partials(self, chunk: Chunk) -> Tensor:
        part = grid_table(chunk.tensors[0], 2 * len(chunk.tensors))
        kernels.norm_partials(part, chunk.tensors, chunk.base, self.keeps, power=self.power, offset=chunk.offset)
        return part

    def answer(self, table: np.ndarray) -> list[tuple[float, float]]:
        sums = kernels.total(table)
        return list(zip(sums[::2], sums[1::2], strict=True))

    @classmethod
    def leave_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> list[Any] | None:
        rules = [survey.factors_of for survey in surveys]
        return None if None in rules else kernels.matched_factors(cls.tables(surveys, sources), rules)


@dataclass(frozen=True)
class NormsAndRules(Norms):
    """``Norms``, and the rules for the merge that follows: they keep the same elements as ``keeps``.

    Of a tensor that the processor has whole, what random rules draw is noted, one bit per element, so that the merge
    does not draw it again. The answer is ``(norms, rules)``, or factors alone as of ``Norms``.
    """

    def answer(self, table: np.ndarray) -> tuple[list[tuple[float, float]], list[Keep]]:  # type: ignore[override]
        return super().answer(table), [keep.noted for keep in self.keeps]

    @classmethod
    def start_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> Callable[[], list[Any]]:
        pairs = zip(surveys, sources, strict=True)
        return super().start_all([survey._noting(source.tensors[0]) for survey, source in pairs], sources)

    def _noting(self, like: Tensor) -> NormsAndRules:
        random, words = sum(keep.random for keep in self.keeps), kernels.mask_words(like.numel())
        if like.device.type != HOST or like.numel() < NOTED or not random:
            return self
        masks = iter(empty(like, int32, random * words).split(words))
        return replace(self, keeps=[keep.noting(next(masks)) if keep.random else keep for keep in self.keeps])


@dataclass(frozen=True)
class Boundaries(Survey):
    """Per delta, the boundary for each of its ranks: exactly so many of the largest magnitudes lie inside it.

    Exact. With ``for_rules`` they are only made keep rules of, and may be ``kernels.FoundBoundary``.

    One read of a whole tensor; of a tensor in chunks two reads, and a third where equal magnitudes lie on both sides of
    a boundary.
    """

    ranks: Sequence[Sequence[int]]
    for_rules: bool = False

    def run(self, source: Source) -> list[list[Boundary]]:
        if source.whole:
            chunk = next(source.chunks())
            return kernels.select_boundaries(chunk.tensors, chunk.base, self.ranks)
        wanted = [(k, rank) for k, ranks in enumerate(self.ranks) for rank in ranks if 0 < rank < source.numel]
        found = iter(_select_by_tables(source, wanted) if wanted else [])
        edges = {0: kernels.NOTHING, source.numel: kernels.EVERYTHING}
        return [[edges[rank] if rank in edges else next(found) for rank in ranks] for ranks in self.ranks]

    @classmethod
    def start_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> Callable[[], list[Any]]:
        return kernels.start_selection(cls._jobs(surveys, sources)).result

    @classmethod
    def leave_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> list[Any] | None:
        if not all(survey.for_rules for survey in surveys):
            return None
        return list(kernels.found_boundaries(cls._jobs(surveys, sources)))

    @staticmethod
    def _jobs(surveys: Sequence[Any], sources: Sequence[Resident]) -> list[kernels.SelectJob]:
        pairs = zip(surveys, sources, strict=True)
        return [kernels.SelectJob(source.tensors, source.base, survey.ranks) for survey, source in pairs]


def grid_table(like: Tensor, columns: int) -> Tensor:
    """Return an uninitialized float64 table with one row per chunk of the grid that ``like`` covers."""
    return empty(like, float64, -(-like.numel() // GRID), columns)


def _over_grid(source: Source, partials: Callable[[Chunk], Tensor | np.ndarray]) -> np.ndarray:
    """Return the table [chunks of the grid, columns] of the whole tensor; the rows of other shards are added in."""
    table = None
    for chunk in source.chunks():
        part = on_host(partials(chunk))
        if table is None:
            table = np.zeros((-(-source.numel // GRID), part.shape[1]), part.dtype)
        first = chunk.offset // GRID
        table[first : first + len(part)] = part
    assert table is not None, "a source yields at least one chunk"
    return source.reduce(table)


def _select_by_tables(source: Source, wanted: list[tuple[int, int]]) -> list[Boundary]:
    """Radix selection over chunks, for pairs of model and rank: two histograms, then the break indices."""
    models = [k for k, _ in wanted]
    highs, ranks, _ = bins(histograms(source, models, 0, []), [rank for _, rank in wanted])
    lows, ranks, equal = bins(histograms(source, models, 1, highs), ranks)
    boundaries = [Boundary((high << 16) | low, kernels.ALL_EQUAL) for high, low in zip(highs, lows, strict=True)]
    split = [i for i, (rank, count) in enumerate(zip(ranks, equal, strict=True)) if rank < count]
    if split:
        thresholds = [boundaries[i].threshold for i in split]
        breaks = break_indices(source, [models[i] for i in split], thresholds, [ranks[i] for i in split])
        for i, index in zip(split, breaks, strict=True):
            boundaries[i] = Boundary(boundaries[i].threshold, index)
    return boundaries


def histograms(source: Source, models: list[int], level: int, prefixes: list[int]) -> np.ndarray:
    counts = None
    for chunk in source.chunks():
        tensors = [chunk.tensors[k] for k in models]
        if counts is None:
            counts = zeros(tensors[0], int64, len(models), kernels.HISTOGRAM_BINS[level])
        kernels.magnitude_histogram(counts, tensors, chunk.base, level, prefixes)
    assert counts is not None, "a source yields at least one chunk"
    return source.reduce(on_host(counts))


def bins(counts: np.ndarray, ranks: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Return, per row, the bin of the element of that rank (largest first), its rank inside, and the bin's count."""
    found = [descend(row[::-1], rank) for row, rank in zip(counts, ranks, strict=True)]
    last = counts.shape[1] - 1
    return [last - place for place, _, _ in found], [rank for _, rank, _ in found], [count for _, _, count in found]


def equal_by_grid(chunk: Chunk, models: Sequence[int], thresholds: Sequence[int]) -> np.ndarray:
    """Return the number of magnitudes that equal the thresholds, int64 [chunks of the grid, models]."""
    tensors = [chunk.tensors[k] for k in models]
    counts = empty(tensors[0], int64, len(models), -(-tensors[0].numel() // GRID))
    kernels.equal_counts(counts, tensors, chunk.base, thresholds)
    return on_host(counts).T


def break_indices(source: Source, models: list[int], thresholds: list[int], keep: list[int]) -> list[int]:
    """Return, per model, the index below which exactly ``keep`` magnitudes equal its threshold."""
    counts = _over_grid(source, lambda chunk: equal_by_grid(chunk, models, thresholds))
    found = np.zeros(len(models), np.int64)
    for i, (model, threshold, rank) in enumerate(zip(models, thresholds, keep, strict=True)):
        position, rank, _ = descend(counts[:, i], rank)
        start = position * GRID
        chunk = source.read(start, min(start + GRID, source.numel))
        # Where another shard holds the chunk of the grid, it adds the index in the reduction.
        if chunk is not None:
            found[i] = start + nth_equal(chunk.tensors[model], chunk.base, threshold, rank, 0, GRID) + 1
    return source.reduce(found).tolist()
