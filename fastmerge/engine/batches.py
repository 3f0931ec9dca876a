"""Small output tensors: many in one go, with one read per file where they lie side by side, and one write each."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from functools import partial

from ..dtypes import DType
from ..methods import get_method
from ..plan.types import OutputTensor
from ..steps.driver import Job
from ..steps.source import Resident
from .alike import Gathering
from .arena import LINE, PAGE, Memory, Slot
from .checksums import checksum_of
from .context import RunContext, apply_without_survey, merge_outputs
from .finite import Suspect, all_finite
from .needs import scratch_bytes
from .parts import Part
from .scheduler import Task, Unit

# A batch is the work of one thread: few enough tensors that the last ones still go to several threads.
MOST = 256

Key = tuple[str, int]
"""Where a tensor lies: path and offset."""

Stretch = tuple[OutputTensor, int, int]
"""Outputs that lie side by side: the first one, where it is in the arena, and the bytes of all."""


def units(context: RunContext, outputs: Sequence[OutputTensor]) -> Iterator[Unit]:
    """Cut ``outputs`` (in the order of their places) into units of work.

    A device takes the small ones of a shard together, whatever large ones lie between: its time goes into beginning and
    ending, not into bytes. So it does with tensors of one shape that methods take whole (``Gathering``). The processor
    takes neighbours, so that files are read and written in their order.
    """
    scattered, gathering = context.sizes.apart, Gathering(context)
    batch: list[OutputTensor] = []
    filled = end = 0
    for output in outputs:
        need = _slot_bytes(output)
        # An empty tensor asks for no work, whatever its method would do.
        plain = output.through is None and all(tensor.plain for tensor in output.inputs.every)
        whole = scratch_bytes(output) is not None or not plain
        regional = (whole and output.nbytes > 0) or isinstance(output, Part)
        small = need <= context.sizes.slot - PAGE and not regional
        beside = output.offset == end
        if scattered and not beside:
            need += PAGE
        elsewhere = batch and (output.shard != batch[0].shard or not (beside or scattered))
        full = small and (filled + need > context.sizes.slot - PAGE or len(batch) == MOST)
        if batch and (elsewhere or full or not (small or scattered)):
            yield Batch(context, batch)
            batch, filled = [], 0
        if small:
            batch.append(output)
            filled += need
            end = output.offset + output.nbytes
        else:
            yield from gathering.take(output)
    if batch:
        yield Batch(context, batch)
    yield from gathering.rest()


def _consecutive(outputs: Sequence[OutputTensor]) -> list[list[OutputTensor]]:
    """Part outputs of one shard into runs of those that lie side by side."""
    runs: list[list[OutputTensor]] = []
    for output in outputs:
        if runs and runs[-1][-1].offset + runs[-1][-1].nbytes == output.offset:
            runs[-1].append(output)
        else:
            runs.append([output])
    return runs


def _slot_bytes(output: OutputTensor) -> int:
    return output.nbytes + sum(tensor.nbytes + LINE for tensor in output.inputs.every)


class Batch:
    """Outputs of one shard, in the order of their places, that fit a slot together with their inputs."""

    def __init__(self, context: RunContext, outputs: Sequence[OutputTensor]):
        self._context, self._outputs = context, outputs
        self._runs = _consecutive(outputs)
        self._made: list[tuple[OutputTensor, str, list[str]]] = []

    def start(self, memory: Memory) -> bool:
        return True

    def finish(self) -> None:
        pass

    def stages(self) -> Generator[Sequence[Task], None, None]:
        yield [self._run]
        for output, checksum, inputs in self._made:
            self._context.sink.finish(output, checksum, inputs)

    def _run(self, slot: Slot) -> None:
        slot.reset()
        outputs = self._outputs
        at: dict[str, int] = {}
        parts = []
        for run in self._runs:
            first = run[0]
            total = run[-1].offset + run[-1].nbytes - first.offset
            start = slot.take(total, phase=first.offset, align=PAGE)
            parts.append((first, start, total))
            at |= {output.name: start + output.offset - first.offset for output in run}
        places, sums = self._read(slot)
        with self._context.meter.stage("compute"):
            merge_outputs(
                outputs, [self._job(o, at[o.name], places, slot) for o in outputs if o.group is not None and o.nbytes]
            )
        for _, start, total in parts:
            slot.download(start, total)
        slot.later(partial(self._write, parts, at, places, sums, slot))

    def _write(
        self, parts: Sequence[Stretch], at: dict[str, int], places: dict[Key, int], sums: dict[Key, str], slot: Slot
    ) -> None:
        """Copy what is not merged to its place, sum all, and write it."""
        outputs, arena = self._outputs, self._context.arena
        for output in outputs:
            if output.group is None and output.nbytes:
                (tensor,) = output.inputs.every
                source, target = places[tensor.path, tensor.offset], at[output.name]
                arena.bytes[target : target + output.nbytes] = arena.bytes[source : source + output.nbytes]
        if self._context.finite:
            for run in self._runs:
                self._check([(at[output.name], output.nbytes, output.dtype) for output in run])
        for output in outputs:
            place = at[output.name]
            checksum = checksum_of(arena.bytes[place : place + output.nbytes], output.dtype.itemsize)
            own = output.inputs.every if output.group is not None else ()
            inputs = [sums[t.path, t.offset] if t.nbytes else checksum for t in own] or [checksum]
            self._made.append((output, checksum, inputs))
        for first, start, total in parts:
            self._context.write(slot, first, 0, start, total)

    def _job(self, output: OutputTensor, at: int, places: dict[Key, int], slot: Slot) -> Job:
        assert output.group is not None
        inputs = output.inputs.map(lambda t: slot.tensor(places[t.path, t.offset], t.dtype, t.shape))
        target = slot.tensor(at, output.dtype, output.shape)
        return Job(get_method(output.method), output.group, Resident.of(inputs), target)

    def _read(self, slot: Slot) -> tuple[dict[Key, int], dict[Key, str]]:
        """Read every input, neighbours in one request; return where each one lies, and its checksum.

        One upload brings them all.
        """
        # An empty tensor begins where another one does.
        tensors = {(t.path, t.offset): t for output in self._outputs for t in output.inputs.every if t.nbytes}
        ranges = [(*key, tensors[key].nbytes, tensors[key].dtype) for key in sorted(tensors)]
        finite = self._context.finite and self._may_hide()
        places: dict[Key, int] = {}
        sums: dict[Key, str] = {}
        i = filled = 0
        while i < len(ranges):
            path, begin, nbytes, _ = ranges[i]
            end, last = begin + nbytes, i + 1
            while last < len(ranges) and ranges[last][:2] == (path, end):
                end += ranges[last][2]
                last += 1
            at = slot.take(end - begin, phase=begin)
            self._context.reader.raw(path, begin, end - begin, at)
            for _, offset, nbytes, dtype in ranges[i:last]:
                place = places[path, offset] = at + offset - begin
                sums[path, offset] = checksum_of(self._context.arena.bytes[place : place + nbytes], dtype.itemsize)
            if finite:
                self._check([(at + offset - begin, nbytes, dtype) for _, offset, nbytes, dtype in ranges[i:last]])
            i, filled = last, at + end - begin
        if places:
            first = min(places.values())
            slot.upload(first, filled - first)
        return places, sums

    def _may_hide(self) -> bool:
        """True where an output may be finite though an input is not, as far as is known before a survey."""
        kinds = {(output.method, id(output.group and output.group.values)): output for output in self._outputs}
        steps = [apply_without_survey(output) for output in kinds.values() if output.group is not None]
        return any(step is None or not step.carries for step in steps)

    def _check(self, parts: Sequence[tuple[int, int, DType]]) -> None:
        """Raise Suspect unless all numbers of neighbours (place, bytes, dtype) in the arena are finite."""
        for dtype, run in itertools.groupby(parts, key=lambda part: part[2]):
            places = [(at, at + nbytes) for at, nbytes, _ in run]
            if not all_finite(self._context.arena.bytes[places[0][0] : places[-1][1]], dtype):
                raise Suspect(self._outputs)
