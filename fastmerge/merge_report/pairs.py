"""The tensors of a merge beside what became of them: inputs of the plan, and where the output lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..analysis.family import places_of
from ..checkpoint import Checkpoint, TensorEntry
from ..engine.places import place_of, under_names_of
from ..plan.models import MERGED
from ..plan.types import InputTensor, OutputTensor, Plan

__all__ = ["Paired", "pair", "planned_pairs"]


@dataclass(frozen=True)
class Paired:
    """One tensor of the output.

    Attributes:
        output: as planned.
        layer, module: as in ``analysis.family.Matched``.
        base:   what deltas are formed with; None for methods that take none.
        models: the other inputs.
        merged: where the result lies; None where it is not measured.
        why:    why it is not measured; empty where it is.
    """

    output: OutputTensor
    layer: int | None
    module: str
    base: InputTensor | None
    models: tuple[InputTensor, ...]
    merged: InputTensor | None
    why: str = ""

    @property
    def group(self) -> list[InputTensor]:
        """What is read: the base, the models, the result."""
        base = [] if self.base is None else [self.base]
        return [*base, *self.models, *([] if self.merged is None else [self.merged])]

    @property
    def results(self) -> list[InputTensor]:
        """What is compared with the base: the models and, last, the result."""
        return [*self.models, *([] if self.merged is None else [self.merged])]


def pair(plan: Plan, checkpoint: Checkpoint) -> tuple[list[Paired], int]:
    """Return every tensor of the output, in its order, and how many layers it has."""
    checkpoint = under_names_of(plan, checkpoint)
    return _pairs(plan, lambda output: place_of(output, checkpoint))


def planned_pairs(plan: Plan) -> list[Paired]:
    """Return what ``pair`` will return of an output that is not there yet; it cannot be read."""

    def planned(output: OutputTensor) -> TensorEntry:
        return TensorEntry("", output.offset, output.nbytes, output.dtype, output.shape)

    return _pairs(plan, planned)[0]


def _pairs(plan: Plan, place: Callable[[OutputTensor], TensorEntry | None]) -> tuple[list[Paired], int]:
    places, layers = places_of(output.name for output in plan.outputs)
    return [_paired(output, *places[output.name], place(output)) for output in plan.outputs], layers


def _paired(output: OutputTensor, layer: int | None, module: str, entry: TensorEntry | None) -> Paired:
    base, models = output.inputs.base, output.inputs.tensors
    why = next(_obstacles(output), "")
    if entry is None or entry.shape != output.shape:
        why = "it does not lie in the output as planned"
    if why or entry is None:
        return Paired(output, layer, module, base, models, None, why)
    merged = InputTensor(-1, output.name, entry.path, entry.offset, entry.nbytes, entry.dtype, entry.shape)
    return Paired(output, layer, module, base, models, merged)


def _obstacles(output: OutputTensor) -> Iterator[str]:
    """Yield why an output is not measured."""
    if output.group is None:
        yield "its bytes are those of the input"
    elif not output.nbytes:
        yield "it is empty"
    elif output.dtype not in MERGED:
        yield f"it holds {output.dtype}"
    elif any(tensor.shape != output.shape for tensor in output.inputs.every):
        yield "its inputs have other shapes"
