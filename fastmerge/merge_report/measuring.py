"""The second read: every merged tensor with its inputs, on the cores and within the memory that a merge may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..analysis.measures import Measure, measure, measure_bytes
from ..analysis.spreading import spread, workers_within
from ..checkpoint import InputFile
from ..engine.gathering import PlannedFiles
from ..engine.needs import gathered_bytes
from ..engine.reading import DeltaReader, reading_bytes
from ..errors import Refused
from ..plan.types import Plan
from .effects import Effect, Moved, effect_of, moved
from .pairs import Paired, planned_pairs

__all__ = ["Account", "Measured", "measure_all"]


@dataclass(frozen=True)
class Measured:
    """One tensor.

    Attributes:
        pair:    inputs and output.
        effects: of the models that it was made of, by their index in the plan.
        moved:   where the result went; None where it was not measured.
        why:     why not.
    """

    pair: Paired
    effects: dict[int, Effect] = field(default_factory=dict)
    moved: Moved | None = None
    why: str = ""


@dataclass(frozen=True)
class Account:
    """What a merge did.

    Attributes:
        plan:    of the merge.
        labels:  short names of the plan's models.
        layers:  of the output.
        tensors: in the output's order.
    """

    plan: Plan
    labels: tuple[str, ...]
    layers: int
    tensors: tuple[Measured, ...]

    def effects(self, based: bool, layers: bool = False) -> list[tuple[Measured, int, Effect]]:
        """Return tensor, model and effect of all that was measured with a base, or without; ``layers`` alone."""
        return [
            (item, model, effect)
            for item in self.tensors
            if not layers or item.pair.layer is not None
            for model, effect in item.effects.items()
            if effect.based == based
        ]


def check_budget(plan: Plan, ram: int) -> None:
    """Raise BudgetError where ``measure_all`` will, before the output is made."""
    _workers(plan, [pair for pair in planned_pairs(plan) if pair.merged is not None], ram)


def measure_all(
    plan: Plan, pairs: Sequence[Paired], files: Sequence[InputFile], ram: int, told: Callable[[int], None] | None
) -> tuple[Measured, ...]:
    """Read every pair once and return what is found, in order.

    Args:
        files: of the output.
        ram:   memory budget in bytes.
        told:  called with the bytes that were read so far.
    Raises:
        BudgetError: the memory is too small.
    """
    found: dict[str, Measured] = {}
    todo = [pair for pair in pairs if pair.merged is not None]
    workers = _workers(plan, todo, ram)
    with PlannedFiles(plan, files) as inputs, DeltaReader(inputs, told) as reader:

        def look(pair: Paired) -> None:
            try:
                measured = measure(reader, pair.base, pair.results, ["it"] * len(pair.results))
            except Refused:
                found[pair.output.name] = Measured(pair, why="it holds NaN or infinity")
            else:
                found[pair.output.name] = _measured(pair, measured)

        spread(todo, look, lambda pair: pair.output.nbytes, workers)
    return tuple(found.get(pair.output.name, Measured(pair, why=pair.why)) for pair in pairs)


def _workers(plan: Plan, pairs: Sequence[Paired], ram: int) -> int:
    return workers_within([_needed(pair) for pair in pairs], ram, held=gathered_bytes(plan.outputs))


def _measured(pair: Paired, measured: Measure) -> Measured:
    based = pair.base is not None
    effects: dict[int, Effect] = {}
    for place, tensor in enumerate(pair.models):
        effects.setdefault(tensor.model, effect_of(measured, place, based))
    return Measured(pair, effects, moved(measured))


def _needed(pair: Paired) -> tuple[int, str]:
    need = reading_bytes([pair.group]) + measure_bytes(len(pair.results), pair.models[0].numel)
    return need, f"measuring {pair.output.name} for the report"
