"""The memory that a run works in: one block of the host's, and the scratch of its workers.

The first touch of fresh memory costs more than a merge's arithmetic (0.5-0.8 CPU seconds per GB where
every page faults), so a run maps its memory once, on huge pages, and hands the same ranges out again:
lowest address first, so that as little as possible is ever touched.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import DType
from ..kernels import Strip

if TYPE_CHECKING:
    from torch import Tensor

PAGE = 4096
LINE = 64
HUGE_PAGE = 2 << 20

# Threads that touch memory.
POPULATING = 4

_libc = ctypes.CDLL(None)
# MADV_POPULATE_WRITE of madvise(2).
_POPULATE = 23


def round_up(value: int, step: int = PAGE) -> int:
    """Return the smallest multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


class Memory(ABC):
    """A block of ``size`` bytes that is handed out in ranges. Not thread-safe."""

    def __init__(self, size: int):
        self.size = max(round_up(size), PAGE)
        self._free = [(0, self.size)]

    def take(self, nbytes: int) -> int | None:
        """Return the page-aligned start of a free range (first fit), or None when there is none."""
        nbytes = round_up(nbytes)
        for i, (start, end) in enumerate(self._free):
            if end - start >= nbytes:
                self._free[i] = (start + nbytes, end)
                return start
        return None

    def clear(self) -> None:
        """Free all ranges."""
        self._free = [(0, self.size)]

    def give_back(self, start: int, nbytes: int) -> None:
        """Free a range that ``take`` returned."""
        end = start + round_up(nbytes)
        i = bisect.bisect(self._free, (start, end))
        if i < len(self._free) and self._free[i][0] == end:
            end = self._free.pop(i)[1]
        if i and self._free[i - 1][1] == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, end))

    @abstractmethod
    def tensor(self, start: int, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        """Return a view of the bytes from ``start`` on: a tensor, or a strip (see ``Arena``)."""


class Arena(Memory):
    """An anonymous mapping of the host's memory; physical memory is taken on first touch.

    Attributes:
        bytes:   all of it.
        address: of the first byte.
    """

    def __init__(self, size: int, strips: bool = False):
        """Make a mapping that hands out strips, which need no torch, or tensors."""
        super().__init__(size)
        self._strips = strips
        self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = memoryview(self._map)
        self.address = np.frombuffer(self._map, np.uint8).ctypes.data

    def populate(self) -> None:
        """Touch all of it, on several threads: what locks memory would do it on one."""
        from concurrent.futures import ThreadPoolExecutor  # slow to load

        part = round_up(-(-self.size // POPULATING), HUGE_PAGE)
        with ThreadPoolExecutor(POPULATING) as pool:
            for start in range(0, self.size, part):
                nbytes = min(part, self.size - start)
                # A system that does not know the advice (before Linux 5.14) touches pages as they are used.
                pool.submit(_libc.madvise, ctypes.c_void_p(self.address + start), ctypes.c_size_t(nbytes), _POPULATE)

    def tensor(self, start: int, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        if self._strips:
            strip: Any = Strip(self, start, dtype, shape)
            return strip
        import torch

        count = math.prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=dtype.torch)
        flat = torch.frombuffer(self._map, dtype=dtype.torch, count=count, offset=start)
        return flat if len(shape) == 1 else flat.view(shape)


class Slot:
    """The scratch of one worker: a range of the arena, filled from its start, and the way to where the worker computes.

    This one computes in the arena itself, so nothing is moved. ``devices.DeviceSlot`` has the same methods for a
    device with a memory of its own.

    Attributes:
        arena:  the host's memory; files are read into it and written from it.
        memory: where regions are taken that outlast a task.
    """

    def __init__(self, arena: Arena, start: int, nbytes: int):
        self.arena = arena
        self.memory: Memory = arena
        self._start, self._end = start, start + nbytes
        self._next = start
        self._writes: list[Callable[[], None]] = []

    def reset(self) -> None:
        """Forget everything that was taken."""
        Slot.complete(self)
        self._next = self._start

    def take(self, nbytes: int, phase: int = 0, align: int = LINE) -> int:
        """Return a range that starts at ``phase`` modulo ``align``.

        With the offset in a file as the phase, elements are aligned as they are in the file, and whole
        pages of the file are whole pages of memory (``align=PAGE``), as direct I/O requires.
        """
        start = self._next + (phase - self._next) % align
        if start + nbytes > self._end:
            raise AssertionError(f"a slot of {self._end - self._start} bytes is too small: it was sized wrongly")
        self._next = start + nbytes
        return start

    def working(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the worker's thread runs all its tasks."""
        return contextlib.nullcontext()

    def tensor(self, at: int, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        """Return a view, where the worker computes, of what was taken at ``at``."""
        return self.arena.tensor(at, dtype, shape)

    def upload(self, at: int, nbytes: int) -> None:
        """Let the views show the bytes that lie at ``at`` of the arena."""

    def download(self, at: int, nbytes: int) -> None:
        """Let the arena hold, at ``at``, what was computed in the views."""

    def fill(self, place: int, nbytes: int, phase: int, read: Callable[[int], None]) -> None:
        """Bring bytes to ``place`` of ``memory``; ``read`` brings them to a place of the arena."""
        read(place)

    def place(self, at: int) -> int:
        """Return where in ``memory`` the views lie of what was taken at ``at``."""
        return at

    def lend(self, place: int, at: int, data: memoryview) -> bool:
        """Bring ``data``, somebody else's memory of the host, to ``place`` of ``memory`` without a copy on the way.

        It must stay as it is until the task is completed. What was taken at ``at``, as many bytes, may be overwritten.
        False where that cannot be; nothing is done then.
        """
        return False

    def fetch(self, place: int, nbytes: int, phase: int) -> int:
        """Return where in the arena the bytes lie that were computed at ``place`` of ``memory``."""
        return place

    def later(self, function: Callable[[], None]) -> None:
        """Call ``function`` when all that the task has begun is done. The slot is not used again before that."""
        function()

    def write(self, function: Callable[[], None]) -> None:
        """Call ``function``, which writes what lies in the slot or in a region, before either is used again.

        Where the processor computes, that is when the task has returned: others compute while one waits for the disk.
        """
        self._writes.append(function)

    def left(self) -> bool:
        """Note the end of a task; return True where what it began may still be under way.

        ``complete`` is due then, on any thread, before anybody builds on it and before the slot is used again.
        """
        return bool(self._writes)

    def finished(self) -> bool:
        """True when ``complete`` would not wait for a device."""
        return True

    def complete(self) -> None:
        """Wait until all that the task began is done, and do what is due later."""
        writes, self._writes = self._writes, []
        for write in writes:
            write()

    def return_free_memory(self) -> None:
        """Give memory that the operations freed back to the system.

        glibc keeps blocks of up to 32 MiB for the thread that freed them, so that every worker would hold what one
        takes.
        """
        trim = getattr(_libc, "malloc_trim", None)
        if trim is not None:
            trim(0)
