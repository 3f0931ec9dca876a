"""A large output tensor, or a part of one: chunk by chunk."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from ..dtypes import DType
from ..kernels import Strip
from ..plan.types import OutputTensor
from ..steps.apply import Apply
from ..steps.source import Chunk, Resident, Source
from .arena import PAGE, Memory, Slot
from .cells import merge_by_cells
from .checksums import Checksum
from .context import RunContext, apply_after_survey, apply_without_survey
from .finite import Suspect, all_finite
from .held import HeldInputs
from .needs import resident_bytes, scratch_bytes, whole_bytes
from .parts import Part
from .scheduler import Task
from .streamed import Streamed
from .watching import Watch

if TYPE_CHECKING:
    from torch import Tensor


class Large:
    """One output tensor, or a part of one, chunk by chunk.

    Its inputs are brought into a region of the memory, whole, when a survey has to see them first and
    they fit. Otherwise each chunk is read where it is needed: once, or once more for every survey.
    Where the apply step needs all of the tensor at once, the region holds inputs and output; it always fits.
    """

    def __init__(self, context: RunContext, output: OutputTensor):
        self._context, self._output = context, output
        self._numel = output.nbytes // output.dtype.itemsize
        self._part = output if isinstance(output, Part) else None
        self._first = self._part.first if self._part else 0
        self._checksum = Checksum(self._numel, output.dtype.itemsize, part=self._part is not None)
        self._apply = None if output.group is None else apply_without_survey(output)
        self._watch = Watch(output, finite=context.finite and self._apply is not None and not self._apply.carries)
        self._reader = context.reader.watched(self._watch)
        self._at_once = scratch_bytes(output) is not None
        self._whole = self._at_once or (_surveyed(output, self._apply) and _fits(output, context.sizes.regions))
        self._need = whole_bytes(output) if self._whole else resident_bytes(output)
        self._memory: Memory = context.arena
        self._region: int | None = None
        # What is only copied has none.
        self._inputs: HeldInputs | None = None
        self._out = 0

    def start(self, memory: Memory) -> bool:
        self._memory = memory
        if self._need:
            self._region = memory.take(self._need)
            if self._region is None:
                return False
        return True

    def finish(self) -> None:
        if self._inputs is not None:
            self._inputs.forget()
            self._inputs = None
        if self._region is not None:
            self._memory.give_back(self._region, self._need)

    def stages(self) -> Generator[Sequence[Task], None, None]:
        output = self._output
        chunk = self._context.sizes.chunk
        spans = [(start, min(start + chunk, self._numel)) for start in range(0, self._numel, chunk)]
        if output.group is None:
            yield [partial(self._copy, *span) for span in spans]
        else:
            yield from self.prepared()
            if self._at_once:
                yield [self._merge_at_once]
            else:
                yield [partial(self._merge, *span) for span in spans]
        self.complete()

    def complete(self) -> None:
        """Report the output, which was written, as finished."""
        if self._inputs is not None:
            self._inputs.check()
        output = self._output
        checksum = self._checksum.hex()
        # What is copied has the checksum of the copy.
        self._context.sink.finish(output, checksum, [checksum] if output.group is None else self._watch.checksums())

    def prepared(self) -> Generator[Sequence[Task], None, None]:
        """Bring what is held, and solve what the method asks for."""
        yield from self._bring()
        if self._apply is None:
            yield [self._solve]
            if self._whole and self._watch.finite:  # they were read before it was known that the output may hide it
                chunk = self._context.sizes.chunk
                held = [part for values in self._held.values.every for part in values.view(-1).split(chunk)]
                yield [partial(self._check_held, part) for part in held]

    def _bring(self) -> Generator[Sequence[Task], None, None]:
        """Bring what is held into the region."""
        sizes = self._context.sizes
        held = HeldInputs(self._output, self._reader, sizes, self._memory, self._region, self._whole)
        self._inputs, self._out = held, held.end + (self._output.offset - held.end) % PAGE
        yield from held.bring()

    @property
    def _held(self) -> HeldInputs:
        assert self._inputs is not None, "nothing was brought"
        return self._inputs

    def _solve(self, slot: Slot) -> None:
        with self._surveying():
            self._apply = apply_after_survey(self._output, self._source(slot))
        self._watch.finite = self._context.finite and not self._apply.carries

    def _check_held(self, tensor: Tensor, slot: Slot) -> None:
        finite = all_finite(tensor.memory(), tensor.dtype) if isinstance(tensor, Strip) else tensor.isfinite().all()
        if not finite:
            raise Suspect([self._output])

    def _source(self, slot: Slot) -> Source:
        part, first = self._part, self._first
        if self._whole and (part is None or part.apart):
            return Resident.of(self._held.values)

        def read(start: int, stop: int) -> Chunk:
            slot.reset()
            # Unwatched: surveys read what they need, some of it more than once.
            return self._held.chunk(start - first, stop - first, first, slot, self._context.reader)

        numel, add = (part.whole_numel, self._context.totals.adder(part)) if part else (self._numel, None)
        step = self._numel if self._whole else self._context.sizes.chunk
        return Streamed(read, numel, range(first, first + self._numel), step, add)

    def _surveying(self) -> AbstractContextManager[object]:
        """Time a survey, which reads by itself where it is streamed."""
        return self._context.meter.stage("compute") if self._whole else nullcontext()

    def _merge(self, start: int, stop: int, slot: Slot) -> None:
        assert self._apply is not None
        slot.reset()
        if self._merge_by_cells(start, stop, slot):
            return
        slot.reset()
        chunk = self._held.chunk(start, stop, self._first, slot, self._reader)
        size, through, shape = self._output.dtype.itemsize, self._output.through, (stop - start,)
        at = slot.take((stop - start) * size, phase=self._output.offset + start * size, align=PAGE)
        out = slot.tensor(at, self._output.dtype, shape)
        made = out if through is None else slot.tensor(slot.take((stop - start) * through.itemsize), through, shape)
        with self._context.meter.stage("compute"):
            self._apply(made, chunk)
            if through is not None:
                out.copy_(made)
        slot.download(at, (stop - start) * size)
        slot.later(partial(self._write, start, stop, at, slot))

    def _merge_by_cells(self, start: int, stop: int, slot: Slot) -> bool:
        """Merge and write elements by cells as they are read; False where they have to be read first."""
        assert self._apply is not None
        if (inputs := self._held.plain) is None:
            return False
        made = merge_by_cells(
            self._context, self._reader, self._apply, self._output, inputs, self._first, start, stop, slot
        )
        if made is None:
            return False
        at, digests = made
        size = self._output.dtype.itemsize
        self._checksum.put(start * size, digests)
        self._context.write(slot, self._output, start * size, at, (stop - start) * size)
        return True

    def whole_job(self, slot: Slot) -> tuple[Apply, Tensor, Chunk]:
        """Return the apply step of a tensor that it takes whole, its output in the region, and its inputs."""
        assert self._apply is not None
        out = self._memory.tensor(self._out, self._output.through or self._output.dtype, (self._numel,))
        return self._apply, out, self._held.chunk(0, self._numel, self._first, slot, self._reader)

    def _merge_at_once(self, slot: Slot) -> None:
        apply, out, chunk = self.whole_job(slot)
        with self._context.meter.stage("compute"):
            try:
                apply(out, chunk)
            except ValueError as error:
                raise Suspect([self._output], str(error)) from error
        slot.return_free_memory()
        self.deliver(slot)

    def deliver(self, slot: Slot) -> None:
        """Write the output that was made at once, chunk by chunk."""
        assert self._apply is not None
        self._context.meter.remark(self._output.name, self._apply.remarks)
        through, step = self._output.through or self._output.dtype, self._context.sizes.chunk
        size = through.itemsize
        for start in range(0, self._numel, step):
            stop = min(start + step, self._numel)
            slot.reset()
            at = slot.fetch(self._out + start * size, (stop - start) * size, self._output.offset + start * size)
            if self._output.through is not None:
                at = self._widened(start, stop, at, through, slot)
            self._write(start, stop, at, slot)

    def _widened(self, start: int, stop: int, at: int, through: DType, slot: Slot) -> int:
        """Convert what was rounded before, in the host's memory; return where it lies."""
        dtype, arena = self._output.dtype, self._context.arena
        place = self._output.offset + start * dtype.itemsize
        to = slot.take((stop - start) * dtype.itemsize, phase=place, align=PAGE)
        arena.tensor(to, dtype, (stop - start,)).copy_(arena.tensor(at, through, (stop - start,)))
        return to

    def _copy(self, start: int, stop: int, slot: Slot) -> None:
        slot.reset()
        (tensor,) = self._output.inputs.every
        size = self._output.dtype.itemsize
        at = slot.take((stop - start) * size, phase=self._output.offset + start * size, align=PAGE)
        self._context.reader.raw(tensor.path, tensor.offset + start * size, (stop - start) * size, at)
        self._write(start, stop, at, slot)

    def _write(self, start: int, stop: int, at: int, slot: Slot) -> None:
        size = self._output.dtype.itemsize
        data = self._context.arena.bytes[at : at + (stop - start) * size]
        if self._context.finite and not all_finite(data, self._output.dtype):
            raise Suspect([self._output])
        self._checksum.add(start * size, data)
        self._context.write(slot, self._output, start * size, at, len(data))


def reads_once(output: OutputTensor, regions: int) -> bool:
    """True where every input of an output is read once, with so many bytes of regions; censuses come on top."""
    return (
        output.group is None
        or scratch_bytes(output) is not None
        or not _surveyed(output, apply_without_survey(output))
        or _fits(output, regions)
    )


def _surveyed(output: OutputTensor, step: Apply | None) -> bool:
    return output.group is not None and step is None


def _fits(output: OutputTensor, regions: int) -> bool:
    return whole_bytes(output) <= regions
