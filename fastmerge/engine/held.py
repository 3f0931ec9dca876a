"""The inputs of a large tensor: what each needs beside its rows, and its values where a region holds it whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..checkpoint.types import matrix_shape
from ..kernels import Strip
from ..plan.types import InputTensor, OutputTensor
from ..steps.inputs import Inputs
from ..steps.source import Chunk
from .arena import Memory, Slot
from .inputs import Beside, Reader, beside_bytes
from .mapping import Mapped
from .needs import input_bytes, resident_bytes
from .scheduler import Task
from .sizing import Sizes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Placed:
    """One input, what it needs beside its rows, and the values where it is held whole.

    They are at ``at`` of the memory, or in a file that is ``mapped``: then their part of the region stays untouched.
    """

    tensor: InputTensor
    beside: Beside | None
    at: int = 0
    values: Tensor | None = None
    mapped: Mapped | None = None

    @property
    def held(self) -> Tensor:
        assert self.values is not None, "the input is read chunk by chunk"
        return self.values


class HeldInputs:
    """The inputs of an output in a region of the memory: first what they need beside their rows, then the inputs.

    Where they are not ``whole``, there is only the former, and each chunk is read where it is needed.

    Attributes:
        end: the first byte of the memory after them.
    """

    def __init__(
        self, output: OutputTensor, reader: Reader, sizes: Sizes, memory: Memory, region: int | None, whole: bool
    ):
        self._reader, self._sizes, self._memory, self._whole = reader, sizes, memory, whole
        self._resident = region or 0
        self.end = self._resident + resident_bytes(output)
        self._placed = output.inputs.map(self._place)

    @property
    def values(self) -> Inputs[Tensor]:
        """The inputs, which are whole."""
        return self._placed.map(lambda placed: placed.held)

    @property
    def plain(self) -> Inputs[tuple[InputTensor, Tensor | None]] | None:
        """The inputs and those values that are held; None where one needs more than its own rows."""
        if any(placed.beside for placed in self._placed.every):
            return None
        return self._placed.map(lambda placed: (placed.tensor, placed.values))

    def bring(self) -> Iterator[Sequence[Task]]:
        """Yield the stages that bring what is held into the region."""
        if any(placed.beside for placed in self._placed.every):
            yield [self._load_beside]
        if self._whole:
            # In turns, as chunks of all inputs are read: the order in which a run reads ahead.
            turns = itertools.zip_longest(*map(self._loads, self._placed.every))
            yield [task for turn in turns for task in turn if task is not None]

    def chunk(self, start: int, stop: int, first: int, slot: Slot, reader: Reader) -> Chunk:
        """Return elements ``start .. stop - 1`` of every input: views of the region, or read into ``slot``.

        Of the whole tensor the first of the inputs' elements is number ``first``.
        """

        def elements(placed: _Placed) -> Tensor:
            if placed.values is not None:
                return placed.values.view(-1)[start:stop]
            return reader.elements(placed.tensor, start, stop, placed.beside, slot)

        return Chunk.of(self._placed.map(elements), first + start)

    def check(self) -> None:
        """Raise CheckpointError if something of what is seen in place could not be read."""
        for placed in self._placed.every:
            if placed.mapped is not None:
                self._reader.places.check(placed.tensor, placed.mapped)

    def forget(self) -> None:
        """Let go of what is seen in place."""
        for placed in self._placed.every:
            if placed.mapped is not None:
                placed.mapped.forget(placed.tensor.offset, placed.tensor.nbytes)

    def _place(self, tensor: InputTensor) -> _Placed:
        beside = None if tensor.plain else Beside(tensor, self._memory, self._resident)
        self._resident += beside_bytes(tensor)
        if not self._whole:
            return _Placed(tensor, beside)
        at = self.end
        self.end += input_bytes(tensor)
        return self._held(tensor, beside, at)

    def _held(self, tensor: InputTensor, beside: Beside | None, at: int) -> _Placed:
        if (mapped := self._reader.places.of(tensor)) is not None:
            values: Any = Strip(mapped, tensor.offset, tensor.dtype, tensor.shape)
            return _Placed(tensor, beside, at, values, mapped)
        return _Placed(tensor, beside, at, self._memory.tensor(at, tensor.value_dtype, tensor.shape))

    def _load_beside(self, slot: Slot) -> None:
        for placed in self._placed.every:
            if placed.beside is not None:
                placed.beside.load(self._reader, slot, self._sizes.chunk)

    def _loads(self, placed: _Placed) -> Iterator[Task]:
        tensor, chunk = placed.tensor, self._sizes.chunk
        if placed.beside is None:
            step = self._sizes.step(tensor.dtype.itemsize)
            for start in range(0, tensor.numel, step):
                yield partial(self._read, placed, start, min(start + step, tensor.numel))
        else:
            rows, columns = matrix_shape(tensor.shape)
            step = max(1, chunk // max(columns, 1))
            held = placed.held.view(rows, columns)
            for first in range(0, rows, step):
                last = min(first + step, rows)
                yield partial(self._make_rows, tensor, first, last, placed.beside, held[first:last])

    def _read(self, placed: _Placed, start: int, stop: int, slot: Slot) -> None:
        slot.reset()
        tensor, at = placed.tensor, placed.at
        if placed.mapped is not None:
            self._reader.look(tensor, start, stop, placed.mapped)
            return
        begin, nbytes = start * tensor.dtype.itemsize, (stop - start) * tensor.dtype.itemsize
        if self._reader.bring(tensor, start, stop, at + begin, slot.take(nbytes), slot):
            return
        slot.reset()
        read = partial(self._reader.part, tensor, tensor.dtype, start, stop, 0)
        slot.fill(at + begin, nbytes, tensor.offset + begin, read)

    def _make_rows(self, tensor, first, last, beside, out, slot: Slot) -> None:
        slot.reset()
        self._reader.rows(tensor, first, last, beside, out, slot)
