"""How a memory budget is divided: scratch for each worker, and a region for tensors that are held whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import kernels
from ..errors import BudgetError
from ..methods import get_method
from ..plan.types import InputTensor, OutputTensor
from .arena import PAGE, round_up
from .checksums import CELL
from .inputs import folded_bytes, slot_bytes

# Elements per chunk, best first: 2 MiB of bfloat16 are few system calls and still fit the cache.
CHUNKS = (1 << 20, 1 << 19, 1 << 18, 1 << 17, CELL)

# Bytes that a run may take beside its budget and the interpreter with torch: threads, modules, tables of the plan.
BESIDE = 64 << 20

# Scratch of a worker where tensors are tiny: that many bytes are gathered into a batch.
BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    workers: threads.
    chunk:   elements of an output that are computed at once, a multiple of ``CELL``.
    slot:    bytes of scratch of one worker.
    arena:   bytes of everything in the arena: the slots and the regions.
    """

    workers: int
    chunk: int
    slot: int
    arena: int

    @property
    def regions(self) -> int:
        """Bytes left for regions."""
        return self.arena - self.workers * self.slot


def divide(outputs: Iterable[OutputTensor], ram: int, workers: int, chunk: int | None = None) -> Sizes:
    """Return the best division of ``ram`` bytes for up to ``workers`` threads.

    ``chunk`` pins the elements per chunk. BudgetError says how much the least division needs.
    """
    kinds = _kinds(outputs)
    chunks = CHUNKS if chunk is None else (chunk,)
    inputs = max((len(o.every_input) for o in kinds), default=1)
    longest = max((_numel(o) for o in kinds if o.group is not None), default=0)
    outside = _outside_bytes(inputs)
    # What the operations take beside a region grows with the tensors in it, so the region gets a fixed share.
    merged = [o for o in kinds if o.group is not None and o.nbytes]
    share = 1 + max(((outside * _numel(o) + (scratch_bytes(o) or 0)) / whole_bytes(o) for o in merged), default=0)
    adapters = max((adapter_bytes(o) for o in kinds), default=0)
    largest = max((o for o in merged if scratch_bytes(o) is not None), key=whole_bytes, default=None)
    least = max(adapters, whole_bytes(largest) if largest else 0)
    options = [(count, elements) for count in dict.fromkeys((workers, min(workers, 2), 1)) for elements in chunks]
    needed = 0
    for count, elements in options:
        slot = round_up(max((_chunk_bytes(o, elements) for o in kinds), default=0)) + PAGE
        scratch = count * (slot + int(outside * min(elements, longest))) + _spare_bytes(count, inputs, longest)
        needed = scratch + int(least * share) + PAGE
        # Half of the budget is kept for tensors that are held whole: reading twice costs more than small chunks.
        roomy = scratch + int(adapters * share) + PAGE <= ram // 2 or (count, elements) == options[-1]
        if needed <= ram and roomy:
            # Tiny tensors are gathered into batches, which may take more than a chunk.
            extra = max(0, min(BATCH_BYTES - slot, (ram - needed) // (4 * count))) // PAGE * PAGE
            regions = int((ram - scratch - count * extra) / share)
            return Sizes(count, elements, slot + extra, count * (slot + extra) + regions)
    whole = f"; {largest.method} needs {int(least * share)} for {largest.name}, which it takes whole" if largest else ""
    raise BudgetError(
        f"the memory budget of {ram} bytes is too small: this merge needs at least {needed} (--ram){whole}"
    )


def _native() -> bool:
    """True when every operation on the CPU is the compiled one."""
    return all(op.choose("cpu")[0] != "reference" for op in kernels.OPERATIONS.values())


def _outside_bytes(inputs: int) -> float:
    """Return a bound of the memory per element that an operation takes besides its arguments.

    The compiled backend works in registers, except that a selection (csrc/cpu/select.cpp) collects up to 1/16
    of the magnitudes for each boundary and keeps 32 bytes per 16384 elements; methods ask for up to two
    boundaries per input. The reference makes float32 and int64 temporaries, one per input and about ten
    more, and malloc keeps as much again of those that were freed.
    """
    return 2 * inputs * (4 / 16 + 32 / 16384) if _native() else 2 * (8 * inputs + 64)


def _spare_bytes(workers: int, inputs: int, elements: int) -> int:
    """Return what selections may collect beyond that share: 2 MiB for each boundary, in every worker at once.

    Half of what a run may take beside its budget is there for it.
    """
    spare = workers * 2 * inputs * min(2 << 20, 4 * elements) if _native() else 0
    return max(0, spare - BESIDE // 2)


def _numel(output: OutputTensor) -> int:
    return output.nbytes // output.dtype.itemsize


def adapter_bytes(output: OutputTensor) -> int:
    """Return the bytes of the adapters of all inputs, as float32."""
    return sum(folded_bytes(tensor) for tensor in output.every_input)


def whole_bytes(output: OutputTensor) -> int:
    """Return the bytes of a region that holds every input of a tensor, its adapters, and an output made at once."""
    out = 0 if scratch_bytes(output) is None else round_up(output.nbytes) + PAGE
    return sum(input_bytes(tensor) for tensor in output.every_input) + adapter_bytes(output) + out


def scratch_bytes(output: OutputTensor) -> int | None:
    """Return what the apply step takes beside a region, for a tensor that it must see whole; None for others."""
    return None if output.group is None else get_method(output.method).scratch_bytes(output.group)


def input_bytes(tensor: InputTensor) -> int:
    """Return the bytes of one input in a region, with room to start at any place of a page."""
    size = tensor.nbytes // tensor.dtype.itemsize * 4 if tensor.adapters else tensor.nbytes
    return round_up(size) + PAGE


def _chunk_bytes(output: OutputTensor, elements: int) -> int:
    """Return the slot that one chunk of an output needs; copies read straight into the output's place."""
    elements = min(elements, _numel(output))
    out = elements * output.dtype.itemsize + PAGE
    if output.group is None:
        return out
    return out + sum(slot_bytes(tensor, elements) for tensor in output.every_input)


def _kinds(outputs: Iterable[OutputTensor]) -> list[OutputTensor]:
    """Return one output of each kind that matters for memory, so that thousands of tensors are measured in no time."""
    kinds: dict[tuple, OutputTensor] = {}
    for output in outputs:
        inputs = tuple((tensor.dtype, tensor.adapters) for tensor in output.every_input)
        key = (output.shape, output.dtype, output.group is None, scratch_bytes(output), inputs)
        kinds.setdefault(key, output)
    return list(kinds.values())
