"""How memory budgets are divided.

On the processor all lies in the host's memory. A device with a memory of its own has its regions there; a slot lies in
both, at the same place::

    host    | slot | slot | .. | regions ................ |    operations, beside

    host    | slot | slot | .. |
    device  | slot | slot | .. | regions ................ |    operations, beside

A slot is the scratch of one task: a chunk of every input and of the output, or a batch of tiny tensors. The processor
has one for each worker, a device some more: those that are being copied. A region holds a tensor whole, or its
adapters. What operations take beside them is reckoned in bytes per element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import BudgetError
from ..plan.types import OutputTensor
from .arena import PAGE, round_up
from .checksums import BLOCK
from .needs import (
    beside_region,
    chunk_bytes,
    decoding_bytes,
    gathered_bytes,
    kinds_of,
    numel_of,
    outside_bytes,
    resident_bytes,
    scratch_bytes,
    spare_bytes,
    whole_bytes,
)

# Elements per chunk, best first. On the processor 2 MiB of bfloat16 are few system calls and still fit the cache; a
# device wants copies long enough that beginning them costs nothing.
CHUNKS = (1 << 20, 1 << 19, 1 << 18, 1 << 17, BLOCK)
DEVICE_CHUNKS = (1 << 23, 1 << 22, 1 << 21, *CHUNKS)

# Regions that keep a worker of the processor busy where no tensor is larger: all share the chunks of one that is.
BUSY_BYTES = 64 << 20

# Bytes of inputs for each byte of memory that is touched so that several large tensors are worked on at a time.
TOUCHED = 64

# The host's memory that is pinned for each device, at most: locking it takes time, and others may want it.
PINNED_BYTES = 1 << 30
# Slots of a device, at most, and those of them that no worker holds while all workers read: a copy of 32 MiB takes 0.6
# ms on PCIe 5, to notice its end 0.1 ms.
DEVICE_SLOTS, UNDER_WAY = 24, 6
# Slots of the processor, at most, that no worker holds while their results wait to be written.
WRITTEN = 6
# Bytes of an input that are brought to a region at once.
LOAD_BYTES = 32 << 20

# Bytes in which cold files are read ahead, where that is a small share of the budget: a device is brought more at once.
AHEAD_BYTES, DEVICE_AHEAD_BYTES = 96 << 20, 256 << 20
AHEAD_SHARE = 16

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

    @property
    def room(self) -> int:
        """Bytes of the memory that is computed in."""
        return self.ram if self.vram is None else self.vram


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    workers: threads, of all devices together.
    slots:   of all devices together; as many as there are workers, or more.
    chunk:   elements of an output that are computed at once, a multiple of ``BLOCK``.
    slot:    bytes of scratch of one task.
    regions: bytes beside the slots for regions, on each device.
    arena:   bytes of everything in the host's memory.
    most:    bytes of the host's memory that a run takes at most: the arena, what operations take beside it, what is
             read ahead, and what is held for the whole run. The budget or less.
    load:    bytes of an input that are brought to a region at once, where that may be more than a chunk.
    apart:   True where devices have memories of their own.
    ahead:   bytes beside the arena in which cold files are read before they are asked for.
    """

    workers: int
    slots: int
    chunk: int
    slot: int
    regions: int
    arena: int
    most: int = 0
    load: int = 0
    apart: bool = False
    ahead: int = 0

    def step(self, itemsize: int) -> int:
        """Return the elements of an input that are brought to a region at once, a multiple of ``BLOCK``."""
        return max(self.chunk, self.load // itemsize // BLOCK * BLOCK)


@dataclass(frozen=True)
class _Demand:
    """What a merge asks for however memory is divided.

    Attributes:
        kinds:    one output of each kind that matters here.
        inputs:   inputs of an output, at most.
        longest:  elements of a merged output, at most.
        outside:  bytes per element that operations take beside their arguments.
        share:    bytes of memory per byte of a region, with what operations on the tensors in it take beside it.
        decoding: bytes that the decoding of quantized inputs takes in each worker.
        resident: bytes of what one output's inputs need beside their rows, at most: adapters, parts of codes.
        largest:  the largest output that must be held whole; None where there is none.
    """

    kinds: Sequence[OutputTensor]
    inputs: int
    longest: int
    outside: float
    share: float
    decoding: int
    resident: int
    largest: OutputTensor | None

    @classmethod
    def of(cls, outputs: Sequence[OutputTensor], kind: str) -> _Demand:
        """Return what these outputs ask for on devices of a kind."""
        kinds = kinds_of(outputs)
        inputs = max((len(output.inputs.every) for output in kinds), default=1)
        outside = outside_bytes(inputs, kind)
        merged = [output for output in kinds if output.group is not None and output.nbytes]
        # What the operations take beside a region grows with the tensors in it, so the region gets a fixed share.
        beside = ((outside * numel_of(o) + beside_region(o, kind)) / whole_bytes(o) for o in merged)
        return cls(
            kinds, inputs, max(map(numel_of, merged), default=0), outside, 1 + max(beside, default=0),
            decoding_bytes(kinds), max(map(resident_bytes, kinds), default=0),
            max((output for output in merged if scratch_bytes(output) is not None), key=whole_bytes, default=None),
        )  # fmt: skip

    @property
    def least(self) -> int:
        """Bytes of memory that regions need at least, and what is taken beside them."""
        return int(max(self.resident, whole_bytes(self.largest) if self.largest else 0) * self.share)


@dataclass(frozen=True)
class _Option:
    """One way to divide a budget.

    Attributes:
        workers: on each device.
        slots:   on each device.
        chunk:   elements.
        slot:    bytes of scratch of one task.
        scratch: bytes of all slots of a device, with what operations take beside them.
        staging: bytes of all slots in the host's memory, where devices have memories of their own.
    """

    workers: int
    slots: int
    chunk: int
    slot: int
    scratch: int
    staging: int

    @classmethod
    def of(cls, demand: _Demand, budget: Budget, workers: int, slots: int, chunk: int) -> _Option:
        slot = round_up(max((chunk_bytes(output, chunk) for output in demand.kinds), default=0)) + PAGE
        beside = int(demand.outside * min(chunk, demand.longest))
        spare = spare_bytes(slots, demand.inputs, demand.longest, budget.kind)
        staging = 0 if budget.vram is None else budget.devices * slots * slot
        return cls(workers, slots, chunk, slot, slots * (slot + beside + demand.decoding) + spare, staging)

    def needed(self, regions: int) -> int:
        """Return the bytes that this takes on each device with so many for regions."""
        return self.scratch + regions + PAGE


def divide(outputs: Iterable[OutputTensor], budget: Budget, workers: int, chunk: int | None = None) -> Sizes:
    """Return the best division of ``budget`` for up to ``workers`` threads, and at least one for each device.

    Many workers go before large chunks. ``chunk`` pins the elements per chunk. BudgetError says how much the least
    division needs.
    """
    outputs = list(outputs)
    gathered = gathered_bytes(outputs)
    budget = replace(budget, ram=budget.ram - gathered)
    demand = _Demand.of(outputs, budget.kind)
    chunks = (CHUNKS if budget.vram is None else DEVICE_CHUNKS) if chunk is None else (chunk,)
    each = -(-workers // budget.devices)
    most = each if budget.vram is None else min(each + UNDER_WAY, DEVICE_SLOTS)
    counts = dict.fromkeys((most, *(min(most, fewer) for fewer in (each, 2, 1))))
    options = [_Option.of(demand, budget, min(each, count), count, elements) for count in counts for elements in chunks]
    for option in options:
        fits = option.needed(demand.least) <= budget.room and option.staging <= budget.ram
        if option is not options[-1]:
            fits = fits and option.staging <= budget.devices * PINNED_BYTES
        # Half of the budget is kept for tensors that are held whole: reading twice costs more than small chunks.
        roomy = option.needed(int(demand.resident * demand.share)) <= budget.room // 2
        if fits and (roomy or option is options[-1]):
            sizes = _sizes(option, outputs, demand, budget, load=LOAD_BYTES if chunk is None else 0)
            return replace(sizes, most=sizes.most + gathered)
    raise BudgetError(_too_small(options[-1], demand, budget, gathered))


def _sizes(option: _Option, outputs: Sequence[OutputTensor], demand: _Demand, budget: Budget, load: int) -> Sizes:
    """Return the sizes of an option that fits, with slots and regions as large as is of use; ``load`` as in them."""
    own, workers, slots = budget.vram is not None, budget.devices * option.workers, budget.devices * option.slots
    # Tiny tensors are gathered into batches, which may take more than a chunk. What operations take beside them is no
    # more than they take themselves.
    unused = budget.room - option.needed(demand.least)
    extra = min((DEVICE_BATCH_BYTES if own else BATCH_BYTES) - option.slot, unused // (4 * option.slots))
    if own:
        extra = min(extra // 2, (min(budget.ram, budget.devices * PINNED_BYTES) - option.staging) // slots)
    extra = max(0, extra) // PAGE * PAGE
    slot = option.slot + extra
    room = budget.room - option.scratch - option.slots * extra * (2 if own else 1)
    ahead = min(DEVICE_AHEAD_BYTES if own else AHEAD_BYTES, budget.ram // AHEAD_SHARE)
    if own:
        # A device's memory is taken at once.
        regions = min(int(room / demand.share), sum(map(whole_bytes, outputs)))
        load, ahead = min(load, slot - PAGE), min(ahead, budget.ram - slots * slot)
        arena = slots * slot
        return Sizes(
            workers, slots, option.chunk, slot, regions, arena, arena + ahead, load, apart=True, ahead=ahead
        )  # fmt: skip
    ahead = max(0, min(ahead, room - demand.least))
    regions = int((room - ahead) / demand.share)
    # The host's costs its first touch: more than the largest tensor needs is worth it where much more is moved.
    largest = max((whole_bytes(o) for o in demand.kinds if o.group is not None and o.nbytes), default=0)
    moved = sum(output.nbytes * len(output.inputs.every) for output in outputs)
    beside = min(largest // 2, moved // TOUCHED)
    regions = min(regions, max(largest + beside, option.workers * BUSY_BYTES))
    most = option.needed(int(regions * demand.share)) + slots * extra + ahead
    left = min(WRITTEN, (room - ahead - regions) // (4 * slot))
    slots, most = slots + left, most + left * slot
    arena = slots * slot + regions
    return Sizes(workers, slots, option.chunk, slot, regions, arena, min(most, budget.ram), ahead=ahead)


def _too_small(least: _Option, demand: _Demand, budget: Budget, gathered: int) -> str:
    """Say how much the least option needs, of which memory; ``gathered`` is gone before anything is divided."""
    needed = least.needed(demand.least)
    if needed > budget.room and budget.vram is not None:
        option, limit, where = "--vram", budget.vram, "of each device "
    else:
        option, limit, where = "--ram", budget.ram + gathered, ""
        needed = gathered + (needed if needed > budget.room else least.staging)
    what = f"the memory budget {where}of {limit} bytes is too small: this merge needs at least {needed} ({option})"
    if gathered > needed // 2 and option == "--ram":
        what += f"; {gathered} of them hold adapters and codes of embeddings that are merged by token"
    elif demand.largest is not None and needed > least.staging:
        what += f"; {demand.largest.method} needs {demand.least} for {demand.largest.name}, which it takes whole"
    elif demand.resident > needed // 2 and needed > least.staging:
        held = max(demand.kinds, key=resident_bytes)
        what += f"; {demand.resident} of them hold what {held.name} is decoded from"
    return what
