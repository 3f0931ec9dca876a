"""Checksums of output tensors that are already on the disk."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

from ..plan.types import OutputTensor
from .arena import Memory, Slot
from .checksums import Checksum
from .context import RunContext
from .parts import Part
from .scheduler import Task

Read = Callable[[int, int, memoryview], None]
"""Fills memory with the bytes of a shard from an offset on."""


class Rehash:
    """A unit of work: reads one output tensor, or a part of one, back and tells the sink its checksum."""

    def __init__(self, context: RunContext, output: OutputTensor, read: Read):
        self._context, self._output, self._read = context, output, read

    def start(self, memory: Memory) -> bool:
        return True

    def finish(self) -> None:
        pass

    def stages(self) -> Generator[Sequence[Task], None, None]:
        output, size = self._output, self._output.dtype.itemsize
        checksum = Checksum(output.nbytes // size, size, part=isinstance(output, Part))
        step = self._context.sizes.chunk * size
        yield [partial(self._add, checksum, start, step) for start in range(0, max(output.nbytes, 1), step)]
        self._context.sink.finish(output, checksum.hex())

    def _add(self, checksum: Checksum, start: int, step: int, slot: Slot) -> None:
        slot.reset()
        nbytes = min(step, self._output.nbytes - start)
        at = slot.take(nbytes)
        data = self._context.arena.bytes[at : at + nbytes]
        with self._context.meter.stage("read", nbytes):
            self._read(self._output.shard, self._output.offset + start, data)
        checksum.add(start, data)


class Found:
    """A sink that collects the checksums by name."""

    def __init__(self) -> None:
        self.checksums: dict[str, str] = {}

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        raise AssertionError("a rehash writes nothing")

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        self.checksums[output.name] = checksum
