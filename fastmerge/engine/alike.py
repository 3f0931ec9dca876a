"""Tensors of one shape that methods take whole, side by side: a device changes their matrices as batches."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence

from ..methods import get_method
from ..plan.types import OutputTensor
from ..steps.apply import Apply
from ..steps.stacks import matrices_at_once
from .arena import Memory, Slot
from .context import RunContext
from .finite import Suspect
from .large import Large
from .needs import numel_of, scratch_bytes, whole_bytes
from .scheduler import Task, Unit


class Gathering:
    """Tensors that wait for others of their shape, on a device with a memory of its own."""

    def __init__(self, context: RunContext):
        self._context = context
        self._waiting: dict[object, list[OutputTensor]] = {}

    def take(self, output: OutputTensor) -> Iterator[Unit]:
        """Yield units that are full; the tensor is in one of them, or waits."""
        most = self._most(output)
        if most < 2:
            yield Large(self._context, output)
            return
        inputs = tuple((tensor.dtype, tensor.adapters) for tensor in output.inputs.every)
        key = (output.method, id(output.group and output.group.values), output.shape, output.dtype, inputs)
        waiting = self._waiting.setdefault(key, [])
        waiting.append(output)
        if len(waiting) >= most:
            yield self._unit(self._waiting.pop(key))

    def rest(self) -> Iterator[Unit]:
        """Yield units of all that still wait."""
        for waiting in self._waiting.values():
            yield self._unit(waiting)
        self._waiting.clear()

    def _unit(self, outputs: list[OutputTensor]) -> Unit:
        return Alike(self._context, outputs) if len(outputs) > 1 else Large(self._context, outputs[0])

    def _most(self, output: OutputTensor) -> int:
        """Return how many tensors like this are worth a unit: a batch, in half of a device's regions."""
        group = output.group
        if not self._context.sizes.apart or scratch_bytes(output) is None or not output.nbytes:
            return 1
        if group is None or not get_method(output.method).stacks(group):
            return 1
        rows, columns = output.shape[-2:]
        batch = matrices_at_once(output.shape) // max(1, numel_of(output) // (rows * columns))
        return min(batch, self._context.sizes.regions // 2 // whole_bytes(output))


class Alike:
    """Outputs of one shape, each in a region of its own."""

    def __init__(self, context: RunContext, outputs: Sequence[OutputTensor]):
        self._context, self._outputs = context, outputs
        self._members = [Large(context, output) for output in outputs]

    def start(self, memory: Memory) -> bool:
        for i, member in enumerate(self._members):
            if not member.start(memory):
                for begun in self._members[:i]:
                    begun.finish()
                return False
        return True

    def finish(self) -> None:
        for member in self._members:
            member.finish()

    def stages(self) -> Generator[Sequence[Task], None, None]:
        for stages in itertools.zip_longest(*(member.prepared() for member in self._members), fillvalue=()):
            yield [task for stage in stages for task in stage]
        yield [self._merge]
        yield [member.deliver for member in self._members]
        for member in self._members:
            member.complete()

    def _merge(self, slot: Slot) -> None:
        jobs = [member.whole_job(slot) for member in self._members]
        kinds: dict[type[Apply], list[int]] = {}
        for i, (step, _, _) in enumerate(jobs):
            kinds.setdefault(type(step), []).append(i)
        with self._context.meter.stage("compute"):
            try:
                for kind, members in kinds.items():
                    kind.apply_all(*zip(*(jobs[i] for i in members), strict=True))
            except ValueError as error:
                raise Suspect(self._outputs, str(error)) from error
        slot.return_free_memory()
