"""What a merge will cost, told from its plan: bytes, actions, and the tensors that do not fit a memory budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..methods import get_method
from .types import OutputTensor, Plan


@dataclass(frozen=True)
class Forecast:
    """The cost of a plan under a budget.

    Attributes:
        bytes_read:    of the inputs; tensors that do not fit and are surveyed count twice.
        bytes_written: of the output shards.
        actions:       number of output tensors by method ("copy" for those that are copied).
        dropped:       number of input tensors that no output uses.
        largest:       name of the tensor that needs most memory, "" for an empty plan.
        largest_bytes: its inputs and its output together.
        chunked:       names of the tensors that do not fit the budget whole and are merged in chunks.
    """

    bytes_read: int
    bytes_written: int
    actions: Mapping[str, int]
    dropped: int
    largest: str
    largest_bytes: int
    chunked: tuple[str, ...]


def forecast(plan: Plan, ram: int) -> Forecast:
    """Return the cost of ``plan`` when ``ram`` bytes may hold tensors."""
    merged = [output for output in plan.outputs if output.method != "copy"]
    largest = max(merged or plan.outputs, key=_resident, default=None)
    chunked = [output for output in merged if _resident(output) > ram]
    surveys = {output.method for output in chunked if get_method(output.method).surveys}
    again = sum(_inputs(output) for output in chunked if output.method in surveys)
    return Forecast(
        bytes_read=plan.bytes_read + again,
        bytes_written=plan.bytes_written,
        actions=Counter(output.method for output in plan.outputs),
        dropped=len(plan.dropped),
        largest=largest.name if largest else "",
        largest_bytes=_resident(largest) if largest else 0,
        chunked=tuple(output.name for output in chunked),
    )


def _inputs(output: OutputTensor) -> int:
    factors = [f for tensor in output.every_input for a in tensor.adapters for f in (a.up, a.down)]
    return sum(tensor.nbytes for tensor in (*output.every_input, *factors))


def _resident(output: OutputTensor) -> int:
    return _inputs(output) + output.nbytes
