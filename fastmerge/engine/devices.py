"""A device with a memory of its own: one allocation handed out in ranges, and slots whose bytes are moved there."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..dtypes import DType, uint8
from ..errors import BudgetError, FastmergeError
from .arena import PAGE, Arena, Memory, Slot
from .report import Meter

# Bytes of somebody else's memory that are worth locking: less is copied as fast.
LENT_BYTES = 4 << 20

# How errors of devices begin or name themselves, whoever reports them.
_FAILED = re.compile(r"\b(CUDA|HIP|Triton) error|Triton Error|cudaError|hipError", re.IGNORECASE)


class Queue(Protocol):
    """Work that a device does in order, beside that of other queues. See ``gpus.Queue``."""

    def working(self) -> contextlib.AbstractContextManager[object]: ...
    def copy(self, to: Tensor, source: Tensor) -> None: ...
    def mark(self) -> None: ...
    def passed(self) -> bool: ...
    def wait(self) -> None: ...


class Driver(Protocol):
    """What the engine needs of a kind of device beside the operations. See ``gpus.Cuda``."""

    def free_bytes(self, device: torch.device) -> int: ...
    def pin(self, device: torch.device, address: int, nbytes: int) -> None: ...
    def unpin(self, device: torch.device, address: int) -> None: ...
    def synchronize(self, device: torch.device) -> None: ...
    def return_free_memory(self, device: torch.device) -> None: ...
    def begin_peak(self, device: torch.device) -> None: ...
    def peak_bytes(self, device: torch.device) -> int: ...
    def queue(self, device: torch.device) -> Queue: ...


class DeviceMemory(Memory):
    """One allocation on a device."""

    def __init__(self, device: torch.device, size: int):
        super().__init__(size)
        self.device = device
        try:
            self.bytes = torch.empty(self.size, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError as error:
            raise too_little(device) from error

    def tensor(self, start: int, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        data = self.bytes[start : start + math.prod(shape) * dtype.itemsize]
        # A file may hold elements at odd places; a device reads them only where they are aligned.
        return (data.clone() if start % dtype.itemsize else data).view(dtype.torch).view(shape)


class DeviceSlot(Slot):
    """A slot of pinned host memory and its mirror on a device: what lies in one at a place lies in the other there.

    Each has a queue of its own, so that uploads, kernels and downloads of different slots overlap; within a task they
    run in order. A worker does not wait for what its task began: it leaves the slot, and goes on with another one. Who
    finds that the queue has come to the task's end completes it, which writes the result and frees the slot.

    In the middle of a task the host waits where it must: before bytes are overwritten that are being copied
    (``reset``), and before a result is written piece by piece (``fetch``).
    """

    def __init__(self, arena: Arena, start: int, nbytes: int, memory: DeviceMemory, driver: Driver, meter: Meter):
        super().__init__(arena, start, nbytes)
        mirror = memory.take(nbytes)
        assert mirror is not None, "the mirrors are part of the memory"
        self.memory: DeviceMemory = memory
        self._shift = mirror - start
        self._driver, self._meter = driver, meter
        self._queue = driver.queue(memory.device)
        self._copying = False
        self._due: list[Callable[[], None]] = []
        self._lent: list[int] = []

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with failures_of(self.memory.device), self._queue.working():
            yield

    def reset(self) -> None:
        assert not self._due, "what is due later needs its bytes"
        if self._copying:
            self._settle()
        super().reset()

    def tensor(self, at: int, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        return self.memory.tensor(at + self._shift, dtype, shape)

    def upload(self, at: int, nbytes: int) -> None:
        self._copy(self._there(at + self._shift, nbytes), self._here(at, nbytes))

    def download(self, at: int, nbytes: int) -> None:
        self._copy(self._here(at, nbytes), self._there(at + self._shift, nbytes))

    def fill(self, place: int, nbytes: int, phase: int, read: Callable[[int], None]) -> None:
        at = self.take(nbytes, phase)
        read(at)
        self._copy(self._there(place, nbytes), self._here(at, nbytes))

    def place(self, at: int) -> int:
        return at + self._shift

    def lend(self, place: int, at: int, data: memoryview) -> bool:
        """Lock the whole pages of ``data`` until the task is completed; the ragged ends go through the slot."""
        if len(data) < LENT_BYTES or data.readonly:
            return False
        source = torch.frombuffer(data, dtype=torch.uint8)
        head, end = -source.data_ptr() % PAGE, len(data) - (source.data_ptr() + len(data)) % PAGE
        if source.is_pinned():
            head, end = 0, len(data)
        elif not self._locked(source[head:end]):
            return False
        self._copy(self._there(place + head, end - head), source[head:end])
        for start, stop in ((0, head), (end, len(data))):
            if start < stop:
                self.arena.bytes[at + start : at + stop] = data[start:stop]
                self._copy(self._there(place + start, stop - start), self._here(at + start, stop - start))
        return True

    def _locked(self, part: Tensor) -> bool:
        try:
            self._driver.pin(self.memory.device, part.data_ptr(), part.numel())
        except BudgetError:  # it is copied then
            return False
        self._lent.append(part.data_ptr())
        return True

    def give_back(self) -> None:
        """Unlock what was lent; nothing may be copying."""
        while self._lent:
            self._driver.unpin(self.memory.device, self._lent.pop())

    def fetch(self, place: int, nbytes: int, phase: int) -> int:
        at = self.take(nbytes, phase, align=PAGE)
        self._copy(self._here(at, nbytes), self._there(place, nbytes))
        self._settle()
        return at

    def later(self, function: Callable[[], None]) -> None:
        self._due.append(function)

    def write(self, function: Callable[[], None]) -> None:
        function()

    def left(self) -> bool:
        self._queue.mark()
        return True

    def finished(self) -> bool:
        with failures_of(self.memory.device):
            return self._queue.passed()

    def complete(self) -> None:
        with self._meter.stage("compute"):
            self._queue.wait()
        self._copying = False
        self.give_back()
        due, self._due = self._due, []
        for function in due:
            function()

    def return_free_memory(self) -> None:
        self._settle()
        self._driver.return_free_memory(self.memory.device)

    def _copy(self, to: Tensor, source: Tensor) -> None:
        self._copying = True
        self._queue.copy(to, source)

    def _settle(self) -> None:
        """Wait until all that the task began so far is done."""
        self._queue.mark()
        with self._meter.stage("compute"):
            self._queue.wait()
        self._copying = False
        self.give_back()

    def _here(self, at: int, nbytes: int) -> Tensor:
        return self.arena.tensor(at, uint8, (nbytes,))

    def _there(self, at: int, nbytes: int) -> Tensor:
        return self.memory.bytes[at : at + nbytes]


def too_little(device: torch.device) -> BudgetError:
    """Return the error of a device whose memory is used up, by this process or by others."""
    return BudgetError(f"{device}: out of memory; give --vram less than is free there, or merge with --device cpu")


@contextlib.contextmanager
def failures_of(*devices: torch.device) -> Iterator[None]:
    """Raise errors that a user can act on in place of those with which devices fail."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise too_little(devices[0]) from error
    except RuntimeError as error:
        if not _FAILED.search(str(error)):
            raise
        first = str(error).partition("\n")[0]
        raise FastmergeError(
            f"{', '.join(map(str, devices))}: {first}; run the same command again, with --device cpu if it fails again"
        ) from error
