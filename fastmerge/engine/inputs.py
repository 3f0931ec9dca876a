"""Input tensors in the arena: read as they are, or folded with their adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ..plan.types import Adapter, InputTensor
from .arena import PAGE, Arena, Memory, Slot, round_up
from .files import InputFiles
from .report import Meter


class Reader:
    """Reads ranges of input tensors into the arena."""

    def __init__(self, arena: Arena, inputs: InputFiles, meter: Meter):
        self.arena, self._inputs, self._meter = arena, inputs, meter

    def raw(self, path: str, offset: int, nbytes: int, at: int) -> None:
        """Read ``nbytes`` bytes of a file to the place ``at`` of the arena."""
        with self._meter.stage("read", nbytes):
            self._inputs.read(path, offset, self.arena.bytes[at : at + nbytes])

    def elements(self, tensor: InputTensor, start: int, stop: int, folded: Folded | None, slot: Slot) -> Tensor:
        """Return the elements ``start .. stop - 1``, flat, where ``slot`` computes."""
        if folded is None:
            return self._view(tensor, start, stop, slot)
        columns = tensor.shape[1]
        first, last = start // columns, -(-stop // columns)
        rows = slot.tensor(slot.take(4 * (last - first) * columns), torch.float32, (last - first, columns))
        self.fold(tensor, first, last, folded, rows, slot)
        return rows.view(-1)[start - first * columns : stop - first * columns]

    def fold(self, tensor: InputTensor, first: int, last: int, folded: Folded, out: Tensor, slot: Slot) -> None:
        """Write the rows ``first .. last - 1``, with every adapter added, into ``out`` (float32)."""
        columns = tensor.shape[1]
        weight = self._view(tensor, first * columns, last * columns, slot).view(last - first, columns)
        with self._meter.stage("compute"):
            for up, down, scale in folded.matrices:
                kernels.low_rank_update(out, weight, up[first:last], down, scale)
                weight = out

    def _view(self, tensor: InputTensor, start: int, stop: int, slot: Slot) -> Tensor:
        size = tensor.dtype.itemsize
        offset, nbytes = tensor.offset + start * size, (stop - start) * size
        at = slot.take(nbytes, phase=offset)
        self.raw(tensor.path, offset, nbytes, at)
        slot.upload(at, nbytes)
        return slot.tensor(at, tensor.dtype, (stop - start,))


class Folded:
    """The adapter matrices of one input, resident in ``memory`` as float32 from ``at`` on."""

    def __init__(self, tensor: InputTensor, memory: Memory, at: int):
        self._parts: list[tuple[InputTensor, Tensor]] = []
        self.matrices: list[tuple[Tensor, Tensor, float]] = []
        for adapter in tensor.adapters:
            pair = []
            for part in (adapter.up, adapter.down):
                view = memory.tensor(at, torch.float32, part.shape)
                at += round_up(4 * view.numel())
                pair.append(view)
                self._parts.append((part, view))
            self.matrices.append((pair[0], pair[1], adapter.scale))

    def load(self, reader: Reader, slot: Slot, step: int) -> None:
        """Read the matrices, ``step`` elements at a time."""
        for part, view in self._parts:
            flat = view.view(-1)
            for start in range(0, len(flat), step):
                stop = min(start + step, len(flat))
                slot.reset()
                flat[start:stop].copy_(reader.elements(part, start, stop, None, slot))


def folded_bytes(tensor: InputTensor) -> int:
    """Return the memory that ``Folded`` needs."""
    parts: list[InputTensor] = [p for a in tensor.adapters for p in _matrices(a)]
    return sum(round_up(4 * _numel(part.shape)) for part in parts)


def slot_bytes(tensor: InputTensor, elements: int) -> int:
    """Return the most that ``Reader.elements`` takes of a slot for so many elements."""
    if not tensor.adapters:
        return elements * tensor.dtype.itemsize + PAGE
    rows, columns = tensor.shape
    covered = min(rows, elements // columns + 2) * columns
    return covered * (4 + tensor.dtype.itemsize) + 2 * PAGE


def _matrices(adapter: Adapter) -> tuple[InputTensor, InputTensor]:
    return adapter.up, adapter.down


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
