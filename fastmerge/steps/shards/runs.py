"""Runs: the elements that a rank holds, as ranges of the flattened tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """The elements that one rank holds: ranges of the flattened tensor, ascending, as its local part has them.

    Attributes:
        starts, stops: [runs] int64, global indices; no two ranges touch.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def numel(self) -> int:
        return int((self.stops - self.starts).sum())

    @property
    def places(self) -> np.ndarray:
        """Where each range begins in the flattened local part."""
        return np.cumsum(self.stops - self.starts) - (self.stops - self.starts)

    @cached_property
    def rows(self) -> tuple[int, int, int] | None:
        """Start, length and stride of several ranges of one length and one distance; None of any others."""
        if len(self.starts) < 2 or len(self.alike) > 1:
            return None
        start, after = self.starts[:2].tolist()
        return start, int(self.stops[0]) - start, after - start

    @cached_property
    def alike(self) -> list[tuple[int, Runs]]:
        """The same in parts that each have one length and one distance, as few as can be, and where each begins."""
        if not len(self.starts):
            return []
        sizes, steps = self.stops - self.starts, np.diff(self.starts)
        resized = sizes[1:] != sizes[:-1]
        moved = np.diff(steps, prepend=steps[:1]) != 0
        begins = [0]
        for i in (np.flatnonzero(resized | moved) + 1).tolist():
            # The first two of a part say how far they are apart.
            if i - begins[-1] > 1 or resized[i - 1]:
                begins.append(i)
        places, ends = self.places, [*begins[1:], len(sizes)]
        return [
            (int(places[begin]), Runs(self.starts[begin:end], self.stops[begin:end]))
            for begin, end in zip(begins, ends, strict=True)
        ]

    @property
    def columns(self) -> Columns | None:
        """The runs as columns of rows that are alike, where there are more rows than runs in each; None else.

        The first run and the last one may have grown together with a neighbouring row, and stand outside.
        """
        starts, sizes = self.starts[1:-1], (self.stops - self.starts)[1:-1]
        for period in range(1, min(math.isqrt(len(starts)), (len(starts) - 1) // 2) + 1):
            if sizes[0] != sizes[period] or starts[2 * period] - starts[period] != starts[period] - starts[0]:
                continue  # the first runs tell most of them
            steps = starts[period:] - starts[:-period]
            if (steps == steps[0]).all() and (sizes[period:] == sizes[:-period]).all():
                return Columns(self, 1, period, len(starts) // period)
        return None

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield start, stop and place of each range."""
        return zip(self.starts.tolist(), self.stops.tolist(), self.places.tolist(), strict=True)

    def below(self, index: int) -> int:
        """Return how many of the elements have a global index below ``index``."""
        return int(np.clip(index - self.starts, 0, self.stops - self.starts).sum())


@dataclass(frozen=True)
class Columns:
    """Runs that repeat: from ``first`` on, ``each`` of them in each of ``rows``, which have one distance."""

    every: Runs
    first: int
    each: int
    rows: int

    @cached_property
    def _bounds(self) -> list[int]:
        """Where each column begins in a row of the local part, and where the last one ends."""
        row = slice(self.first, self.first + self.each)
        return [0, *np.cumsum((self.every.stops - self.every.starts)[row]).tolist()]

    @property
    def width(self) -> int:
        """Elements of a row of the local part."""
        return self._bounds[-1]

    @property
    def outside(self) -> list[tuple[int, Runs]]:
        """The runs before and behind these, and where each begins in the flattened local part."""
        every, places = self.every, self.every.places.tolist()
        others = (*range(self.first), *range(self.first + self.each * self.rows, len(places)))
        return [(places[i], Runs(every.starts[i : i + 1], every.stops[i : i + 1])) for i in others]

    def runs(self, column: int, top: int, below: int) -> Runs:
        """Return the runs of a column in some rows."""
        own = slice(self.first + column + self.each * top, self.first + self.each * below, self.each)
        return Runs(self.every.starts[own], self.every.stops[own])

    def view(self, flat: Tensor, column: int, top: int, below: int) -> Tensor:
        """Return a column of some rows of the flattened local part: [rows, columns], strided."""
        begin = int(self.every.places[self.first])
        rows = flat[begin : begin + self.rows * self.width].view(self.rows, self.width)
        return rows[top:below, self._bounds[column] : self._bounds[column + 1]]
