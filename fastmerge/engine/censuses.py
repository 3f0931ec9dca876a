"""Censuses of a run: what methods ask of all tensors of the model, before the first one is merged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..methods import get_method
from ..plan.types import OutputTensor
from ..steps.census import Round, take_censuses
from .arena import Slot
from .context import RunContext, Sink
from .files import InputFiles
from .finite import Suspect
from .large import Large
from .ranks import ALONE, Ranks
from .report import Meter
from .scheduler import Task, Unit
from .sizing import Sizes
from .targets import Target
from .together import combined_round
from .working import work


def censuses_of(output: OutputTensor) -> int:
    """Return how often the inputs of an output are read before the model is merged, at most."""
    return 0 if output.group is None or not output.nbytes else get_method(output.method).censuses(output.group)


def take_all(
    outputs: Sequence[OutputTensor],
    target: Target,
    sizes: Sizes,
    inputs: InputFiles,
    meter: Meter,
    tick: Callable[[], None],
    strips: bool,
    ranks: Ranks = ALONE,
    own: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return what the censuses found that the methods of a model's outputs ask for, by name.

    Every rank surveys its ``own`` tensors (None: all), and all get the sums.

    The censuses of a run that goes on are taken again: they depend on tensors that are merged already.
    """
    asking = {output.name: output for output in outputs if censuses_of(output)}

    def take(names: Sequence[str], found: dict[str, Any]) -> Round:
        taken = Round()

        def make_units(context: RunContext) -> Iterator[Unit]:
            return (
                Counted(context, knowing(asking[name], found), taken) for name in names if own is None or name in own
            )

        work(make_units, target, sizes, inputs, _Nothing(), meter, tick, strips=strips)
        return combined_round(ranks, taken)

    return take_censuses(list(asking), take)


def knowing(output: OutputTensor, found: dict[str, Any]) -> OutputTensor:
    """Return an output that knows what the censuses of its model found."""
    group = output.group
    if group is None or not (found or group.censuses):  # no copies of thousands of tensors where no census was taken
        return output
    return replace(output, group=replace(group, censuses=found))


class _Nothing(Sink):
    """A census writes nothing."""

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        raise AssertionError(f"{output.name}: a census wrote")

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        raise AssertionError(f"{output.name}: a census finished a tensor")


class Counted(Large):
    """One output tensor whose inputs are surveyed for a census; nothing is written."""

    def __init__(self, context: RunContext, output: OutputTensor, taken: Round):
        super().__init__(context, output)
        self._taken = taken

    def stages(self) -> Generator[Sequence[Task], None, None]:
        yield from self._bring()
        yield [self._count]

    def _count(self, slot: Slot) -> None:
        assert self._output.group is not None
        slot.reset()
        try:
            with self._surveying():
                self._taken.ask(get_method(self._output.method), self._output.group, self._source(slot))
            self._held.check()
        except ValueError as error:
            raise Suspect([self._output], str(error)) from error
