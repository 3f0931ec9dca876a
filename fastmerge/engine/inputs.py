"""Input tensors in the arena: read as they are, or made of several ranges: decoded, adapters folded in, rounded."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from ..checkpoint import TensorEntry
from ..checkpoint.types import matrix_shape
from ..dtypes import DType, float32, uint8
from ..errors import CheckpointError
from ..kernels import Stored
from ..plan.types import InputTensor
from .arena import LINE, PAGE, Arena, Memory, Slot, round_up
from .files import InputFiles
from .folding import made_shapes
from .folding.terms import Term, add_terms, make_term
from .mapping import InPlace, Mapped
from .report import Meter
from .watching import Watch

if TYPE_CHECKING:
    from torch import Tensor


class Reader:
    """Reads ranges of input tensors into the arena."""

    def __init__(
        self,
        arena: Arena,
        inputs: InputFiles,
        meter: Meter,
        watch: Watch | None = None,
        places: InPlace | None = None,
    ):
        self.arena, self._inputs, self._meter, self._watch = arena, inputs, meter, watch
        self.places = places or InPlace(inputs, wanted=False)

    def watched(self, watch: Watch) -> Reader:
        """Return a reader that shows ``watch`` what it reads, but for ``raw``."""
        return Reader(self.arena, self._inputs, self._meter, watch, self.places)

    def raw(self, path: str, offset: int, nbytes: int, at: int) -> None:
        """Read ``nbytes`` bytes of a file to the place ``at`` of the arena."""
        with self._meter.stage("read", nbytes):
            self._inputs.read(path, offset, self.arena.bytes[at : at + nbytes])

    def part(self, entry: InputTensor | TensorEntry, dtype: DType, start: int, stop: int, row: int, at: int) -> None:
        """Read the elements ``start .. stop - 1`` of a stored tensor to ``at``; ``row`` as ``Watch.look`` takes it."""
        nbytes = (stop - start) * dtype.itemsize
        self.raw(entry.path, entry.offset + start * dtype.itemsize, nbytes, at)
        if self._watch is not None:
            self._watch.look(entry, dtype, start, self.arena.bytes[at : at + nbytes], row)

    def stored(self, tensor: InputTensor, start: int) -> Stored | None:
        """Return where the elements from ``start`` on lie as they are, in a file in the page cache; None: elsewhere."""
        offset = tensor.offset + start * tensor.dtype.itemsize
        descriptor = self._inputs.plain(tensor.path, offset)
        if descriptor is None or not tensor.as_stored:
            return None
        return Stored(descriptor, offset, self._watch is not None and self._watch.finite)

    def note(self, tensor: InputTensor, start: int, digests: bytes) -> None:
        """Take note of what was read of a stored tensor in another way: of its cells from the element ``start`` on."""
        if self._watch is not None:
            self._watch.note(tensor, start, digests)

    def look(self, tensor: InputTensor, start: int, stop: int, mapped: Mapped) -> None:
        """Read elements of a tensor where they lie, as ``part`` does for those that it copies."""
        size = tensor.dtype.itemsize
        with self._meter.stage("read", (stop - start) * size):
            if self._watch is not None:
                data = mapped.bytes[tensor.offset + start * size : tensor.offset + stop * size]
                self._watch.look(tensor, tensor.dtype, start, data)
        self.places.check(tensor, mapped)

    def bring(self, entry: InputTensor | TensorEntry, start: int, stop: int, place: int, at: int, slot: Slot) -> bool:
        """Bring the elements ``start .. stop - 1`` from where they lie in memory; arguments are those of ``Slot.lend``.

        False where they have to be read.
        """
        begin, nbytes = start * entry.dtype.itemsize, (stop - start) * entry.dtype.itemsize
        data = self._inputs.memory(entry.path, entry.offset + begin, nbytes)
        if data is None or not slot.lend(place, at, data):
            return False
        self._meter.add(nbytes, 0)
        if self._watch is not None:
            self._watch.look(entry, entry.dtype, start, data)
        return True

    def elements(self, tensor: InputTensor, start: int, stop: int, beside: Beside | None, slot: Slot) -> Tensor:
        """Return the elements ``start .. stop - 1``, flat, where ``slot`` computes."""
        if beside is None:
            return self._view(tensor, tensor.dtype, start, stop, slot)
        columns = matrix_shape(tensor.shape)[1]
        first, last = start // columns, -(-stop // columns)
        rows = self._scratch(tensor.value_dtype, last - first, columns, slot)
        self.rows(tensor, first, last, beside, rows, slot)
        return rows.view(-1)[start - first * columns : stop - first * columns]

    def rows(self, tensor: InputTensor, first: int, last: int, beside: Beside, out: Tensor, slot: Slot) -> None:
        """Write the rows ``first .. last - 1`` of the values, with every adapter added, into ``out``."""
        columns = out.shape[1]
        rounds = tensor.rounded is not None
        if tensor.coded is None:
            weight = self._view(tensor, tensor.dtype, first * columns, last * columns, slot, columns).view(out.shape)
        else:
            made = rounds or tensor.adapters
            weight = self._scratch(tensor.dtype, last - first, columns, slot) if made else out
            self._decode(tensor, first, last, beside, weight, slot)
        summed = self._scratch(float32, last - first, columns, slot) if rounds and tensor.adapters else out
        with self._meter.stage("compute"):
            add_terms(summed, weight, beside.terms, first)
            if rounds:
                out.copy_(summed if tensor.adapters else weight)

    def _decode(self, tensor: InputTensor, first: int, last: int, beside: Beside, out: Tensor, slot: Slot) -> None:
        assert tensor.coded is not None
        rows = matrix_shape(tensor.shape)[0]
        parts = []
        for (entry, _), held in zip(tensor.coded.parts, beside.parts, strict=True):
            if held is None:
                width = math.prod(entry.shape) // rows
                held = self._view(entry, entry.dtype, first * width, last * width, slot, width)
                held = held.view(last - first, width)
            parts.append(held)
        with self._meter.stage("compute"):
            try:
                tensor.coded.decode(out, parts, first)
            except ValueError as error:
                raise CheckpointError(f"{tensor.path}: {tensor.name}: {error} (the file is damaged)") from error

    def _view(
        self, entry: InputTensor | TensorEntry, dtype: DType, start: int, stop: int, slot: Slot, row: int = 0
    ) -> Tensor:
        nbytes = (stop - start) * dtype.itemsize
        at = slot.take(nbytes, phase=entry.offset + start * dtype.itemsize)
        if row or not self.bring(entry, start, stop, slot.place(at), at, slot):
            self.part(entry, dtype, start, stop, row, at)
            slot.upload(at, nbytes)
        return slot.tensor(at, dtype, (stop - start,))

    @staticmethod
    def _scratch(dtype: DType, rows: int, columns: int, slot: Slot) -> Tensor:
        return slot.tensor(slot.take(dtype.itemsize * rows * columns), dtype, (rows, columns))


class Beside:
    """What the values of one input need beside the rows that are read for them, resident in ``memory`` from ``at`` on.

    Attributes:
        terms:    of every adapter.
        parts:    of the codes those that are needed whole, as stored; None in the place of the others.
    """

    def __init__(self, tensor: InputTensor, memory: Memory, at: int):
        self.terms: list[Term] = []
        self.parts: list[Tensor | None] = []
        self._stored: list[tuple[InputTensor, Tensor]] = []
        self._places: list[tuple[TensorEntry, int]] = []

        def room(shape: tuple[int, ...]) -> Tensor:
            nonlocal at
            view = memory.tensor(at, float32, shape)
            at += round_up(4 * view.numel())
            return view

        for adapter in tensor.adapters:
            stored = [room(part.shape) for part in adapter.parts]
            self._stored += zip(adapter.parts, stored, strict=True)
            self.terms.append(make_term(adapter, stored, [room(shape) for shape in made_shapes(adapter)]))
        for entry, by_row in tensor.coded.parts if tensor.coded else ():
            self.parts.append(None if by_row else memory.tensor(at, entry.dtype, entry.shape))
            if not by_row:
                self._places.append((entry, at))
                at += round_up(entry.nbytes)

    def load(self, reader: Reader, slot: Slot, step: int) -> None:
        """Read what is resident, ``step`` elements at a time."""
        for part, view in self._stored:
            flat = view.view(-1)
            for start in range(0, len(flat), step):
                stop = min(start + step, len(flat))
                slot.reset()
                flat[start:stop].copy_(reader.elements(part, start, stop, None, slot))
        for term in self.terms:
            term.make()
        for entry, at in self._places:
            for start in range(0, entry.nbytes, step):
                stop = min(start + step, entry.nbytes)
                slot.reset()
                read = partial(reader.part, entry, uint8, start, stop, 0)
                slot.fill(at + start, stop - start, entry.offset + start, read)


def beside_bytes(tensor: InputTensor) -> int:
    """Return the memory that ``Beside`` needs."""
    shapes = (
        shape
        for adapter in tensor.adapters
        for shape in (*(part.shape for part in adapter.parts), *made_shapes(adapter))
    )
    factors = sum(round_up(4 * math.prod(shape)) for shape in shapes)
    if tensor.coded is None:
        return factors
    return factors + sum(round_up(entry.nbytes) for entry, by_row in tensor.coded.parts if not by_row)


def slot_bytes(tensor: InputTensor, elements: int) -> int:
    """Return the most that ``Reader.elements`` takes of a slot for so many elements."""
    if tensor.plain:
        return elements * tensor.dtype.itemsize + PAGE
    rows, columns = matrix_shape(tensor.shape)
    covered = min(rows, elements // max(columns, 1) + 2)
    made = tensor.value_dtype.itemsize + (4 if tensor.rounded is not None and tensor.adapters else 0)
    if tensor.coded is None:
        return covered * columns * (made + tensor.dtype.itemsize) + 3 * PAGE
    made += tensor.dtype.itemsize if tensor.adapters or tensor.rounded is not None else 0
    read = sum(covered * (entry.nbytes // max(rows, 1)) + 2 * LINE for entry, by_row in tensor.coded.parts if by_row)
    return covered * columns * made + read + 3 * PAGE
