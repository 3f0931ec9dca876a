"""How memory budgets are divided: scratch for each worker, and regions for tensors that are held whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import kernels
from ..errors import BudgetError
from ..methods import get_method
from ..plan.types import InputTensor, OutputTensor
from .arena import PAGE, round_up
from .checksums import BLOCK
from .inputs import folded_bytes, slot_bytes

# Elements per chunk, best first. On the processor 2 MiB of bfloat16 are few system calls and still fit the cache; a
# device wants copies long enough that beginning them costs nothing.
CHUNKS = (1 << 20, 1 << 19, 1 << 18, 1 << 17, BLOCK)
DEVICE_CHUNKS = (1 << 23, 1 << 22, 1 << 21, *CHUNKS)

# Bytes that a run may take beside its budget and the interpreter with torch: threads, modules, tables of the plan.
BESIDE = 64 << 20

# Regions that keep a worker of the processor busy where no tensor is larger: all share the chunks of one that is.
BUSY_BYTES = 64 << 20

# Operations whose memory is part of what methods ask for by ``scratch_bytes``.
BOUNDED_BY_METHODS = {"rank_mask"}

# Scratch of a worker where tensors are tiny: that many bytes are gathered into a batch.
BATCH_BYTES = 4 << 20
DEVICE_BATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class Budget:
    """What there is to divide.

    Attributes:
        ram:     bytes of the host's memory.
        vram:    bytes on each device, where they have memories of their own; None computes in the host's.
        devices: how many there are.
        kind:    of the devices, as in ``torch.device.type``.
    """

    ram: int
    vram: int | None = None
    devices: int = 1
    kind: str = "cpu"


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    workers: threads, of all devices together.
    chunk:   elements of an output that are computed at once, a multiple of ``BLOCK``.
    slot:    bytes of scratch of one worker.
    regions: bytes beside the slots for regions, on each device.
    arena:   bytes of everything in the host's memory.
    """

    workers: int
    chunk: int
    slot: int
    regions: int
    arena: int


def divide(outputs: Iterable[OutputTensor], budget: Budget, workers: int, chunk: int | None = None) -> Sizes:
    """Return the best division of ``budget`` for up to ``workers`` threads, and at least one for each device.

    ``chunk`` pins the elements per chunk. BudgetError says how much the least division needs.
    """
    outputs = list(outputs)
    kinds = _kinds(outputs)
    own = budget.vram is not None
    room = budget.ram if budget.vram is None else budget.vram
    inputs = max((len(o.inputs.every) for o in kinds), default=1)
    longest = max((_numel(o) for o in kinds if o.group is not None), default=0)
    outside = _outside_bytes(inputs, budget.kind)
    # What the operations take beside a region grows with the tensors in it, so the region gets a fixed share.
    merged = [o for o in kinds if o.group is not None and o.nbytes]
    share = 1 + max(((outside * _numel(o) + (scratch_bytes(o) or 0)) / whole_bytes(o) for o in merged), default=0)
    adapters = max((adapter_bytes(o) for o in kinds), default=0)
    largest = max((o for o in merged if scratch_bytes(o) is not None), key=whole_bytes, default=None)
    least = max(adapters, whole_bytes(largest) if largest else 0)
    chunks = (DEVICE_CHUNKS if own else CHUNKS) if chunk is None else (chunk,)
    each = -(-workers // budget.devices)
    options = [(count, elements) for count in dict.fromkeys((each, min(each, 2), 1)) for elements in chunks]
    needed = staging = 0
    for count, elements in options:
        slot = round_up(max((_chunk_bytes(o, elements) for o in kinds), default=0)) + PAGE
        beside = int(outside * min(elements, longest))
        scratch = count * (slot + beside) + _spare_bytes(count, inputs, longest, budget.kind)
        needed = scratch + int(least * share) + PAGE
        # Where devices have memories of their own, every slot lies in the host's as well.
        staging = budget.devices * count * slot if own else 0
        # Half of the budget is kept for tensors that are held whole: reading twice costs more than small chunks.
        roomy = scratch + int(adapters * share) + PAGE <= room // 2 or (count, elements) == options[-1]
        if needed <= room and staging <= budget.ram and roomy:
            # Tiny tensors are gathered into batches, which may take more than a chunk. What operations take beside
            # them is no more than they take themselves.
            extra = min((DEVICE_BATCH_BYTES if own else BATCH_BYTES) - slot, (room - needed) // (4 * count))
            if own:
                extra = min(extra // 2, (budget.ram - staging) // (budget.devices * count))
            extra = max(0, extra) // PAGE * PAGE
            regions = int((room - scratch - count * extra * (2 if own else 1)) / share)
            slot += extra
            # No more than is of use: a device's memory is taken at once, and the host's costs its first touch.
            busy = max(3 * max(map(whole_bytes, merged), default=0) // 2, count * BUSY_BYTES)
            regions = min(regions, sum(map(whole_bytes, outputs)) if own else busy)
            arena = budget.devices * count * slot + (0 if own else regions)
            return Sizes(budget.devices * count, elements, slot, regions, arena)
    option, limit, where = ("--vram", room, "of each device ") if own else ("--ram", room, "")
    if needed <= room:
        option, limit, where, needed = "--ram", budget.ram, "", staging
    what = f"the memory budget {where}of {limit} bytes is too small: this merge needs at least {needed} ({option})"
    if largest is not None and needed > staging:
        what += f"; {largest.method} needs {int(least * share)} for {largest.name}, which it takes whole"
    raise BudgetError(what)


def why_not_compiled(kind: str) -> str | None:
    """Return which operation has no compiled backend on that kind of device, and why, or None.

    BackendError for a pinned backend that cannot run.
    """
    for name, operation in kernels.OPERATIONS.items():
        backend, reason = operation.choose(kind)
        if backend == "reference" and name not in BOUNDED_BY_METHODS:
            return f"{name} has no kernel there ({reason})"
    return None


def _outside_bytes(inputs: int, kind: str) -> float:
    """Return a bound of the memory per element that an operation takes besides its arguments.

    The compiled backends work in registers, except that a selection (``kernels.select``) takes up to 0.26 bytes for
    each boundary; methods ask for up to two boundaries per input. The reference makes float32 and int64 temporaries,
    one per input and about ten more, and malloc keeps as much again of those that were freed.
    """
    return 2 * inputs * 0.26 if why_not_compiled(kind) is None else 2 * (8 * inputs + 64)


def _spare_bytes(workers: int, inputs: int, elements: int, kind: str) -> int:
    """Return what operations may take beyond that share, in every worker at once.

    A selection collects 2 MiB for each boundary; half of what a run may take beside its budget is there for it. On a
    GPU torch takes memory in blocks of 2 and 20 MiB, and each worker has its own.
    """
    spare = workers * 2 * inputs * min(2 << 20, 4 * elements) if why_not_compiled(kind) is None else 0
    return max(0, spare - BESIDE // 2) + (workers * (22 << 20) if kind == "cuda" else 0)


def _numel(output: OutputTensor) -> int:
    return output.nbytes // output.dtype.itemsize


def adapter_bytes(output: OutputTensor) -> int:
    """Return the bytes of the adapters of all inputs, as float32."""
    return sum(folded_bytes(tensor) for tensor in output.inputs.every)


def whole_bytes(output: OutputTensor) -> int:
    """Return the bytes of a region that holds every input of a tensor, its adapters, and an output made at once."""
    out = 0 if scratch_bytes(output) is None else round_up(output.nbytes) + PAGE
    return sum(input_bytes(tensor) for tensor in output.inputs.every) + adapter_bytes(output) + out


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
    return out + sum(slot_bytes(tensor, elements) for tensor in output.inputs.every)


def _kinds(outputs: Iterable[OutputTensor]) -> list[OutputTensor]:
    """Return one output of each kind that matters for memory, so that thousands of tensors are measured in no time."""
    kinds: dict[tuple, OutputTensor] = {}
    for output in outputs:
        inputs = tuple((tensor.dtype, tensor.adapters) for tensor in output.inputs.every)
        key = (output.shape, output.dtype, output.group is None, scratch_bytes(output), inputs)
        kinds.setdefault(key, output)
    return list(kinds.values())
