"""What the units of a run share: memory, inputs, the sink, and the way from an output tensor to its apply step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from ..errors import Refused
from ..methods import get_method
from ..plan.types import OutputTensor
from ..steps.apply import Apply
from ..steps.driver import Job, merge_on_device, solve, solve_without_data
from ..steps.source import Source
from .arena import Arena, Slot
from .finite import Suspect
from .inputs import Reader
from .report import Meter
from .sizing import Sizes
from .totals import Totals


class Sink(Protocol):
    """What becomes of the results."""

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        """Take the bytes of a shard from ``offset`` on, in any order; ``address`` is their place modulo a page."""

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        """Take note that every byte of an output was written; ``inputs`` are the checksums of what it was made of."""


@dataclass(frozen=True)
class RunContext:
    """What the units of a run share.

    Attributes:
        finite: insist on finite numbers, in inputs and outputs.
        totals: adds up what is asked of a tensor of which other ranks have parts.
    """

    arena: Arena
    sizes: Sizes
    reader: Reader
    sink: Sink
    meter: Meter
    finite: bool = False
    totals: Totals = field(default_factory=Totals)

    def write(self, slot: Slot, output: OutputTensor, start: int, at: int, nbytes: int) -> None:
        """Hand the bytes at ``at`` of the arena to the sink: ``output`` (and its successors) from byte ``start`` on."""
        slot.write(partial(self._write, output, start, at, nbytes))

    def _write(self, output: OutputTensor, start: int, at: int, nbytes: int) -> None:
        with self.meter.stage("write", nbytes):
            self.sink.write(output, output.offset + start, self.arena.bytes[at : at + nbytes], at)


def apply_without_survey(output: OutputTensor) -> Apply | None:
    """Return the apply step of an output whose method asks for no survey, else None."""
    assert output.group is not None
    try:
        return solve_without_data(get_method(output.method), output.group)
    except ValueError as error:
        raise Refused(str(error)) from error


def surveyed(output: OutputTensor) -> bool:
    """True where the method of an output asks for a survey, as far as no census is known."""
    return output.group is not None and apply_without_survey(output) is None


def apply_after_survey(output: OutputTensor, source: Source) -> Apply:
    """Let the method of an output survey its inputs and return the apply step."""
    assert output.group is not None
    try:
        return solve(get_method(output.method), output.group, source)
    except ValueError as error:
        raise Suspect([output], str(error)) from error


def merge_outputs(outputs: Sequence[OutputTensor], jobs: Sequence[Job]) -> None:
    """Merge outputs whose inputs are in memory, whole."""
    try:
        merge_on_device(jobs)
    except ValueError as error:
        raise Suspect(outputs, str(error)) from error
