"""Runs: which elements of a tensor the ranks of a mesh hold, and who surveys the chunks of the grid that are cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...kernels import GRID

Split = tuple[int, int]
"""How a dimension of a mesh cuts a tensor: the tensor's dimension, and the pieces that each take part of, or 1."""


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

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield start, stop and place of each range."""
        return zip(self.starts.tolist(), self.stops.tolist(), self.places.tolist(), strict=True)

    def below(self, index: int) -> int:
        """Return how many of the elements have a global index below ``index``."""
        return int(np.clip(index - self.starts, 0, self.stops - self.starts).sum())


def indices_held(size: int, splits: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return the indices of a dimension that a rank holds, ascending.

    ``splits`` are (pieces, parts, part) of the dimensions of the mesh that cut it, in their order: what is left is cut
    into ``pieces``, and of each of them the rank has one of ``parts``. Sizes are as torch.chunk's: rounded up.
    """
    held = np.arange(size)
    for pieces, parts, part in splits:
        held = np.concatenate(
            [_chunk(piece, parts, part) for piece in (_chunk(held, pieces, i) for i in range(pieces))]
        )
    return held


def _chunk(held: np.ndarray, parts: int, part: int) -> np.ndarray:
    size = -(-len(held) // parts)
    return held[part * size : (part + 1) * size]


def local_shape(
    shape: Sequence[int], mesh: Sequence[int], splits: Sequence[Split | None], at: Sequence[int]
) -> tuple[int, ...]:
    """Return the shape of the part at a coordinate of the mesh."""
    return tuple(len(held) for held in _held(shape, mesh, splits, at))


def runs_of_ranks(shape: Sequence[int], mesh: Sequence[int], splits: Sequence[Split | None]) -> list[Runs]:
    """Return what every rank holds of a tensor, in the order of the flattened mesh.

    Where a dimension of the mesh replicates (None), all but its first rank have empty runs: every element counts once.
    """
    found = []
    for at in np.ndindex(*mesh):
        replica = any(split is None and place for split, place in zip(splits, at, strict=True))
        found.append(_runs(shape, [] if replica else _held(shape, mesh, splits, at)))
    return found


def runs_at(shape: Sequence[int], mesh: Sequence[int], splits: Sequence[Split | None], at: Sequence[int]) -> Runs:
    """Return what the rank at a coordinate of the mesh holds, replica or not."""
    return _runs(shape, _held(shape, mesh, splits, at))


def _held(
    shape: Sequence[int], mesh: Sequence[int], splits: Sequence[Split | None], at: Sequence[int]
) -> list[np.ndarray]:
    cuts: list[list[tuple[int, int, int]]] = [[] for _ in shape]
    for split, parts, part in zip(splits, mesh, at, strict=True):
        if split is not None:
            dim, pieces = split
            cuts[dim].append((pieces, parts, part))
    return [indices_held(size, cut) for size, cut in zip(shape, cuts, strict=True)]


def _runs(shape: Sequence[int], held: Sequence[np.ndarray]) -> Runs:
    """Return the runs of a tensor of which these indices of each dimension are held; none for a replica."""
    if len(held) != len(shape) or any(not len(indices) for indices in held):
        return Runs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    # The last dimension that is cut: behind it, everything is held.
    last = max((d for d, indices in enumerate(held) if len(indices) < shape[d]), default=-1)
    if last < 0:
        return Runs(np.zeros(1, np.int64), np.full(1, math.prod(shape), np.int64))
    inner = math.prod(shape[last + 1 :])
    first, after = _ranges(held[last])
    outer = np.zeros(1, np.int64)
    for d in range(last):
        outer = (outer[:, None] * shape[d] + held[d]).reshape(-1)
    starts = ((outer[:, None] * shape[last] + first) * inner).reshape(-1)
    stops = ((outer[:, None] * shape[last] + after) * inner).reshape(-1)
    apart = starts[1:] != stops[:-1]
    return Runs(starts[np.r_[True, apart]], stops[np.r_[apart, True]])


def _ranges(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and one after the last of the ranges of ascending indices."""
    gaps = np.flatnonzero(np.diff(indices) != 1) + 1
    bounds = [0, *gaps.tolist(), len(indices)]
    firsts = [int(indices[begin]) for begin, _ in pairwise(bounds)]
    afters = [int(indices[end - 1]) + 1 for _, end in pairwise(bounds)]
    return np.array(firsts, np.int64), np.array(afters, np.int64)


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
