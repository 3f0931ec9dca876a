"""Layout: which elements of a tensor the ranks of a mesh hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from .runs import Runs

Split = tuple[int, int]
"""How a dimension of a mesh cuts a tensor: the tensor's dimension, and the pieces that each take part of, or 1."""


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


class Block(NamedTuple):
    """What a rank holds of a tensor, or a box of it: slices of the whole tensor, and of the rank's part."""

    whole: tuple[slice, ...]
    part: tuple[slice, ...]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies on a mesh.

    Attributes:
        shape:  of the whole tensor.
        mesh:   sizes of its dimensions.
        splits: how each dimension of the mesh cuts the tensor; None: it replicates it.
        here:   of this rank, its position on the flattened mesh.
    """

    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    splits: tuple[Split | None, ...]
    here: int

    @cached_property
    def every(self) -> list[Runs]:
        """What each rank holds, in the order of the flattened mesh; of replicas the first: every element counts once.

        Where a dimension of the mesh replicates, all but its first rank have empty runs.
        """
        positions = range(math.prod(self.mesh))
        return [_runs(self.shape, self._held(at) if self.is_first(at) else None) for at in positions]

    @cached_property
    def runs(self) -> Runs:
        """What this rank holds, replica or not."""
        return _runs(self.shape, self._held(self.here))

    @property
    def whole(self) -> bool:
        """True when every rank holds the whole tensor."""
        return not self.cut

    @property
    def cut(self) -> set[int]:
        """The dimensions of the tensor that are cut."""
        return {split[0] for split, size in zip(self.splits, self.mesh, strict=True) if split is not None and size > 1}

    @property
    def long_side(self) -> int | None:
        """The dimension, -2 or -1, of a matrix that is cut along its longer side alone; None for all others."""
        if len(self.shape) != 2 or len(self.cut) != 1:
            return None
        (dim,) = self.cut
        return dim - 2 if self.shape[dim] >= self.shape[1 - dim] else None

    def is_first(self, position: int) -> bool:
        """Return True for a rank that is the first one of those that hold the same elements by replication."""
        return not any(split is None and place for split, place in zip(self.splits, self._at(position), strict=True))

    def of_one_copy(self, position: int, other: int) -> bool:
        """Return True for ranks that hold parts of one copy of the tensor: they are alike where it is replicated."""
        places = zip(self.splits, self._at(position), self._at(other), strict=True)
        return all(split is not None or mine == theirs for split, mine, theirs in places)

    def part_shape(self, position: int) -> tuple[int, ...]:
        """Return the shape of a rank's part."""
        return tuple(len(indices) for indices in self._held(position))

    def blocks(self, position: int) -> list[Block]:
        """Return what a rank holds as boxes: one, or several where its parts of a dimension do not touch."""
        spans = []
        for first, after in map(_ranges, self._held(position)):
            places = np.cumsum(after - first)
            columns = first.tolist(), after.tolist(), (places - (after - first)).tolist(), places.tolist()
            spans.append([(slice(f, a), slice(p, q)) for f, a, p, q in zip(*columns, strict=True)])
        return [Block(tuple(w for w, _ in box), tuple(p for _, p in box)) for box in product(*spans)]

    def _at(self, position: int) -> tuple[int, ...]:
        return tuple(int(place) for place in np.unravel_index(position, self.mesh))

    def _held(self, position: int) -> list[np.ndarray]:
        """Return the indices of each dimension that a rank holds."""
        cuts: list[list[tuple[int, int, int]]] = [[] for _ in self.shape]
        for split, parts, part in zip(self.splits, self.mesh, self._at(position), strict=True):
            if split is not None:
                dim, pieces = split
                cuts[dim].append((pieces, parts, part))
        return [indices_held(size, cut) for size, cut in zip(self.shape, cuts, strict=True)]


def _runs(shape: Sequence[int], held: Sequence[np.ndarray] | None) -> Runs:
    """Return the runs of a tensor of which these indices of each dimension are held; None: nothing is."""
    if held is None or any(not len(indices) for indices in held):
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
    if not len(indices):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    gaps = np.flatnonzero(np.diff(indices) != 1) + 1
    bounds = [0, *gaps.tolist(), len(indices)]
    firsts = [int(indices[begin]) for begin, _ in pairwise(bounds)]
    afters = [int(indices[end - 1]) + 1 for _, end in pairwise(bounds)]
    return np.array(firsts, np.int64), np.array(afters, np.int64)
