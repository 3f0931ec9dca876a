"""The source of a survey of shards: whole chunks of the grid; those that are cut are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels import GRID
from ..inputs import Inputs
from ..source import Chunk
from .cuts import Fragments, cut
from .layout import Runs
from .lockstep import Add
from .ranks import Agreement, Ranks


@dataclass(frozen=True)
class Held:
    """The local parts of one tensor's inputs, flat, and what all ranks hold of it."""

    inputs: Inputs[Tensor]
    numel: int
    runs: Sequence[Runs]


class ShardSource:
    """What this rank surveys of one tensor: each chunk of the grid is surveyed by one rank, whole."""

    whole = False

    def __init__(self, numel: int, chunks: Sequence[Chunk], add: Add):
        self.numel = numel
        self._chunks = sorted(chunks, key=lambda chunk: chunk.offset)
        self._add = add

    def chunks(self) -> Iterator[Chunk]:
        yield from self._chunks

    def read(self, start: int, stop: int) -> Chunk | None:
        for chunk in self._chunks:
            first = start - chunk.offset
            if 0 <= first < chunk.tensors[0].numel():
                part = chunk.map(lambda tensor, first=first: tensor[first : first + stop - start])  # type: ignore[misc]
                return Chunk.of(part, start)
        return None

    def reduce(self, state: np.ndarray) -> np.ndarray:
        return self._add(state)


def put_together(ranks: Ranks, agreement: Agreement, parts: Sequence[Held]) -> list[list[Chunk]]:
    """Return, per tensor, the chunks that this rank surveys.

    A collective call with one message to each rank that surveys chunks of which this one holds a part: fewer than
    ``GRID`` elements at each end of a run. Only where the runs of all ranks are shorter than that, as those of a matrix
    that is split by columns, every element is sent once, or stays.
    """
    here = ranks.position
    cuts = [cut(part.runs, part.numel) for part in parts]
    every = [
        (tensor, fragments) for part, (_, fragments) in zip(parts, cuts, strict=True) for tensor in part.inputs.every
    ]
    sends, kinds = {}, {}
    for peer in range(len(ranks)):
        sends[peer] = [_taken(tensor, pieces.between(here, peer)) for tensor, pieces in every]
        kinds[peer] = [((pieces.between(peer, here).numel,), tensor.dtype) for tensor, pieces in every]
    received = ranks.exchange(sends, kinds, parts[0].inputs.every[0].device, agreement)
    found = []
    for part, (wholes, fragments) in zip(parts, cuts, strict=True):
        assembled = _Assembled(part, fragments, here)
        for peer in range(len(ranks)):
            pieces = fragments.between(peer, here)
            for i in range(len(part.inputs.every)):
                assembled.put(i, pieces, next(received[peer]))
        inside = [
            Chunk.of(part.inputs.map(lambda t, at=place, n=stop - start: t[at : at + n]), start)  # type: ignore[misc]
            for start, stop, place in wholes[here]
        ]
        nothing = Chunk.of(part.inputs.map(lambda tensor: tensor[:0]))
        found.append([*inside, *assembled.chunks()] or [nothing])
    return found


class _Assembled:
    """The cut chunks that this rank surveys of one tensor, one after the other in a buffer for each input."""

    def __init__(self, part: Held, fragments: Fragments, here: int):
        self._part = part
        self._numbers = fragments.chunks_of(here)
        sizes = np.minimum(GRID, part.numel - self._numbers * GRID)
        self._begins = np.cumsum(sizes) - sizes
        self._sizes = sizes
        self._buffers = [tensor.new_empty(int(sizes.sum())) for tensor in part.inputs.every]

    def put(self, i: int, pieces: Fragments, values: Tensor) -> None:
        slots = np.searchsorted(self._numbers, pieces.starts // GRID)
        places = (self._begins[slots] if len(slots) else slots) + pieces.starts % GRID
        self._buffers[i][_indices(places, pieces, values)] = values

    def chunks(self) -> Iterator[Chunk]:
        """Yield them, neighbours in one."""
        apart = np.flatnonzero(np.diff(self._numbers) != 1) + 1
        for some in np.split(np.arange(len(self._numbers)), apart):
            if len(some):
                begin, end = int(self._begins[some[0]]), int(self._begins[some[-1]] + self._sizes[some[-1]])
                inputs = self._part.inputs.like([buffer[begin:end] for buffer in self._buffers])
                yield Chunk.of(inputs, int(self._numbers[some[0]]) * GRID)


def _taken(tensor: Tensor, pieces: Fragments) -> Tensor:
    return tensor[_indices(pieces.places, pieces, tensor)]


def _indices(begins: np.ndarray, pieces: Fragments, like: Tensor) -> Tensor:
    """Return the indices of the elements of fragments that begin at these indices."""
    sizes = pieces.stops - pieces.starts
    within = np.arange(pieces.numel) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return torch.from_numpy(np.repeat(begins, sizes) + within).to(like.device)
