"""The one block of memory that a run works in.

The first touch of fresh memory costs more than a merge's arithmetic (0.5-0.8 CPU seconds per GB where
every page faults), so a run maps its memory once, on huge pages, and hands the same ranges out again:
lowest address first, so that as little as possible is ever touched.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap

import torch
from torch import Tensor

PAGE = 4096
LINE = 64


def round_up(value: int, step: int = PAGE) -> int:
    """Return the smallest multiple of ``step`` that is not below ``value``."""
    return -(-value // step) * step


def return_free_memory() -> None:
    """Give memory that was freed outside of the arena back to the system.

    glibc keeps blocks of up to 32 MiB for the thread that freed them, so that every worker would hold what one takes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Arena:
    """An anonymous mapping of ``size`` bytes; physical memory is taken on first touch. Not thread-safe."""

    def __init__(self, size: int):
        self.size = max(round_up(size), PAGE)
        self._map = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = memoryview(self._map)
        self._free = [(0, self.size)]

    def take(self, nbytes: int) -> int | None:
        """Return the page-aligned start of a free range (first fit), or None when there is none."""
        nbytes = round_up(nbytes)
        for i, (start, end) in enumerate(self._free):
            if end - start >= nbytes:
                self._free[i] = (start + nbytes, end)
                return start
        return None

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

    def tensor(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return a view of the bytes from ``start`` on."""
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
        return flat if len(shape) == 1 else flat.view(shape)


class Slot:
    """The scratch range of one worker, filled from its start; ``reset`` empties it."""

    def __init__(self, arena: Arena, start: int, nbytes: int):
        self.arena = arena
        self._start, self._end = start, start + nbytes
        self._next = start

    def reset(self) -> None:
        """Forget everything that was taken."""
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
