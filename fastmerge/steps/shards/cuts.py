"""Cuts: who surveys the chunks of the grid that no rank holds whole, and which parts of them the ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...kernels import GRID
from .runs import Runs


@dataclass(frozen=True)
class Fragments:
    """Parts of chunks of the grid that no rank holds whole: one row per fragment, ascending on each rank.

    Attributes:
        holders, owners: the rank that holds it, and the one that surveys its chunk.
        starts, stops: global indices.
        places:  where it begins in the local part of its holder.
    """

    holders: np.ndarray
    owners: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    places: np.ndarray

    def between(self, holder: int, owner: int) -> Fragments:
        """Return those that one rank holds and another one surveys."""
        mine = (self.holders == holder) & (self.owners == owner)
        return Fragments(*(column[mine] for column in vars(self).values()))

    def chunks_of(self, owner: int) -> np.ndarray:
        """Return the chunks that a rank surveys, ascending."""
        return np.unique(self.starts[self.owners == owner] // GRID)

    @property
    def numel(self) -> int:
        return int((self.stops - self.starts).sum())


def cut(ranks: Sequence[Runs], numel: int) -> tuple[list[list[tuple[int, int, int]]], Fragments]:
    """Return per rank the ranges of whole chunks of the grid that it holds, and the fragments of all other chunks.

    A range is start, stop and place in the local part. Each cut chunk is surveyed by one of those that hold parts of
    it; they take about as many, one after the other.
    """
    wholes: list[list[tuple[int, int, int]]] = []
    rows = []
    for rank, runs in enumerate(ranks):
        starts, stops, places = runs.starts, runs.stops, runs.places
        first = -(-starts // GRID) * GRID
        last = np.where(stops == numel, stops, stops // GRID * GRID)
        inside = first < last
        columns = (starts[inside], first[inside], last[inside], places[inside])
        wholes.append([(f, e, p + f - s) for s, f, e, p in zip(*(c.tolist() for c in columns), strict=True)])
        # Before the first whole chunk, and behind the last one; a run without any may lie on one boundary of the grid.
        middle = np.where(inside, first, np.minimum(first, stops))
        tail = np.where(inside, last, middle)
        for begin, end in ((starts, middle), (tail, stops)):
            some = begin < end
            rows.append(
                np.stack([np.full(some.sum(), rank), begin[some], end[some], (places + begin - starts)[some]], 1)
            )
    table = np.concatenate(rows) if rows else np.zeros((0, 4), np.int64)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    holders, starts, stops, places = table.T
    return wholes, Fragments(holders, _owners(holders, starts // GRID), starts, stops, places)


def _owners(holders: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Return the rank that surveys the chunk of each fragment."""
    pairs = np.unique(np.stack([chunks, holders], 1), axis=0)
    cut_chunks, first, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    turn = np.arange(len(cut_chunks)) * count // max(1, len(cut_chunks))
    owners = pairs[first + turn, 1] if len(pairs) else np.zeros(0, np.int64)
    return owners[np.searchsorted(cut_chunks, chunks)]
