"""The source of a survey of shards: whole chunks of the grid; those that are cut are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels import GRID
from ..inputs import Inputs
from ..source import Chunk
from .cuts import Fragments, cut
from .jobs import ShardJob
from .lockstep import Add
from .masks import Draw, sliced_masks
from .ranks import Agreement, Ranks


class ShardSource:
    """What this rank surveys of one tensor: each chunk of the grid is surveyed by one rank, whole."""

    whole = False

    def __init__(self, job: ShardJob, chunks: Sequence[Chunk], add: Add):
        self.numel = job.group.numel
        self._job = job
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

    def masks(self, count: int, draw: Draw) -> tuple[list[Tensor], int]:
        return sliced_masks(self._job, count, draw, self._add)


def put_together(ranks: Ranks, agreement: Agreement, jobs: Sequence[ShardJob]) -> list[list[Chunk]]:
    """Return, per tensor, the chunks that this rank surveys.

    A collective call with one message to each rank that surveys chunks of which this one holds a part: fewer than
    ``GRID`` elements at each end of a run. Only where the runs of all ranks are shorter than that, as those of a matrix
    that is split by columns, every element is sent once, or stays.
    """
    here = ranks.position
    flat = [job.inputs.map(lambda tensor: tensor.view(-1)) for job in jobs]
    cuts = [cut(job.layout.every, job.group.numel) for job in jobs]
    every = [(tensor, fragments) for inputs, (_, fragments) in zip(flat, cuts, strict=True) for tensor in inputs.every]
    sends, kinds = {}, {}
    for peer in range(len(ranks)):
        sends[peer] = [_taken(tensor, fragments.between(here, peer)) for tensor, fragments in every]
        kinds[peer] = [((fragments.between(peer, here).numel,), tensor.dtype) for tensor, fragments in every]
    received = ranks.exchange(sends, kinds, jobs[0].out.device, agreement)
    found = []
    for job, inputs, (wholes, fragments) in zip(jobs, flat, cuts, strict=True):
        assembled = _Assembled(inputs, job.group.numel, fragments.chunks_of(here))
        for peer in range(len(ranks)):
            pieces = fragments.between(peer, here)
            for i in range(len(inputs.every)):
                assembled.put(i, pieces, next(received[peer]))
        inside = [
            Chunk.of(inputs.map(lambda t, at=place, n=stop - start: t[at : at + n]), start)  # type: ignore[misc]
            for start, stop, place in wholes[here]
        ]
        nothing = Chunk.of(inputs.map(lambda tensor: tensor[:0]))
        found.append([*inside, *assembled.chunks()] or [nothing])
    return found


class _Assembled:
    """The cut chunks that this rank surveys of one tensor, one after the other in a buffer for each input."""

    def __init__(self, inputs: Inputs[Tensor], numel: int, numbers: np.ndarray):
        self._inputs, self._numbers = inputs, numbers
        self._sizes = np.minimum(GRID, numel - numbers * GRID)
        self._begins = np.cumsum(self._sizes) - self._sizes
        self._buffers = [tensor.new_empty(int(self._sizes.sum())) for tensor in inputs.every]

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
                inputs = self._inputs.like([buffer[begin:end] for buffer in self._buffers])
                yield Chunk.of(inputs, int(self._numbers[some[0]]) * GRID)


def _taken(tensor: Tensor, pieces: Fragments) -> Tensor:
    return tensor[_indices(pieces.places, pieces, tensor)]


def _indices(begins: np.ndarray, pieces: Fragments, like: Tensor) -> Tensor:
    """Return the indices of the elements of fragments that begin at these indices."""
    sizes = pieces.stops - pieces.starts
    within = np.arange(pieces.numel) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return torch.from_numpy(np.repeat(begins, sizes) + within).to(like.device)
