"""Chunks that are merged by cells, as their bytes come: of inputs in the page cache, where the step is one operation.

A chunk that is read whole leaves the cache of its core before it is summed, and again before it is merged. Here one
native call does all that with one cell after the other (``kernels.streamed``). What is not as usual, or is wrong, it
declines; ``Large`` goes its plain way then, which says what is wrong.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..kernels import Stored, Strip, can_stream, streamed
from ..plan.types import InputTensor, OutputTensor
from ..steps.apply import Apply
from ..steps.inputs import Inputs
from ..steps.source import Chunk
from .arena import PAGE, Slot
from .checksums import BLOCK
from .context import RunContext
from .inputs import Reader

if TYPE_CHECKING:
    from torch import Tensor

Placed = tuple[InputTensor, "Tensor | None"]
"""An input that is stored as it is, and its values where they are in memory."""


def merge_by_cells(
    context: RunContext,
    reader: Reader,
    apply: Apply,
    output: OutputTensor,
    inputs: Inputs[Placed],
    first: int,
    start: int,
    stop: int,
    slot: Slot,
) -> tuple[int, bytes] | None:
    """Merge the elements ``start .. stop - 1``; return where they lie in the arena, and the digests of their cells.

    None where it is declined. The output begins with the element ``first`` of what its method takes; ``reader`` is told
    the checksums of what was read.
    """
    count, size = stop - start, output.dtype.itemsize
    at = slot.take(count * size, phase=output.offset + start * size, align=PAGE)
    out = slot.tensor(at, output.dtype, (count,))
    if type(out) is not Strip or output.through is not None or not can_stream(out.device):
        return None
    values: list[Tensor] = []
    sources: list[Stored] = []
    for tensor, held in inputs.every:
        source = Stored() if held is not None else reader.stored(tensor, start)
        if source is None:
            return None
        if held is None:  # memory of one cell
            place = slot.take(BLOCK * tensor.dtype.itemsize, phase=source.offset)
            values.append(slot.tensor(place, tensor.dtype, (count,)))
        else:
            values.append(held.view(-1)[start:stop])
        sources.append(source)
    job = apply.job(out, Chunk.of(inputs.like(values), first + start))
    if job is None:
        return None
    read = [tensor.dtype.itemsize if held is None else 0 for tensor, held in inputs.every]
    reading = context.meter.stage("read", count * sum(read)) if any(read) else nullcontext()
    with reading, context.meter.stage("compute"):
        digests = streamed(job, sources, BLOCK, context.finite)
    if digests is None:
        return None
    for (tensor, held), found in zip(inputs.every, digests[:-1], strict=True):
        if held is None:
            reader.note(tensor, start, found)
    return at, digests[-1]
