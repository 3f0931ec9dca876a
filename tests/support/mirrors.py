"""Accelerators for tests: devices with memories of their own, whose processor is the host's.

The engine moves every byte there and back as it would for a GPU. A queue copies when it likes: some of what it was
given each time it is asked how far it is, by dice, so that queues overtake each other; the rest as late as a GPU might,
when it is waited for, or when an operation of its own needs it. And it finds out if the host changes what is being
copied. So a forgotten wait, or a slot that is used again too early, is a wrong result or an error. No clock
is involved.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from fastmerge.engine import devices, running
from fastmerge.engine import targets as places
from fastmerge.engine.arena import Arena
from fastmerge.engine.ring import Ring
from fastmerge.errors import FastmergeError


class MirrorQueue:
    """See ``fastmerge.devices.gpus.Queue``."""

    def __init__(self, driver: MirrorDriver):
        self._driver = driver
        self.given: deque[tuple[Tensor, Tensor, Tensor | None]] = deque()
        self._marked = self._number = 0
        self._thread: int | None = None
        self.uploaded = self.downloaded = 0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._thread = threading.get_ident()
        yield

    def copy(self, to: Tensor, source: Tensor) -> None:
        assert threading.get_ident() == self._thread, "a queue is used by a thread that does not work in its slot"
        up = self._driver.is_pinned(source)
        assert up != self._driver.is_pinned(to), "a copy is not between pinned memory and a device"
        self.given.append((to, source, source.clone() if up else None))

    def compute(self) -> None:
        """Do what comes before an operation of this queue."""
        while self.given:
            self._copy()

    def mark(self) -> None:
        self._marked, self._number = len(self.given), next(self._driver.marks)
        self._driver.open.add(self._number)

    def passed(self) -> bool:
        for _ in range(min(self._driver.steps(self._number), self._marked)):
            self._copy()
        return self._marked == 0

    def wait(self) -> None:
        self._driver.waits += self._marked > 0
        while self._marked:
            self._copy()
        self._driver.passed.append(self._number)
        self._driver.open.discard(self._number)

    def _copy(self) -> None:
        to, source, snapshot = self.given.popleft()
        self._marked = max(0, self._marked - 1)
        if snapshot is None:
            self.downloaded += to.numel()
        else:
            assert torch.equal(source, snapshot), "host memory was overwritten while it was copied"
            self.uploaded += to.numel()
        to.copy_(source)


class MirrorDriver:
    """See ``fastmerge.devices.gpus.Cuda``.

    Attributes:
        speed:  decides how far a queue is that is asked: by dice ("any"); at its mark ("fast"); at its mark unless no
                older one is open ("overtaking").
        marks:  numbers them.
        open:   the marks that nobody found to be passed.
        passed: the marks, in the order in which they were found to be passed.
        waits:  for marks that were not.
    """

    def __init__(self, free: int = 1 << 30, speed: str = "any"):
        self.free, self.speed = free, speed
        self._dice = Random(0)
        self.marks = itertools.count()
        self.open: set[int] = set()
        self.passed: list[int] = []
        self.waits = 0
        self.pinned: dict[int, int] = {}
        self.queues: list[MirrorQueue] = []

    @property
    def uploaded(self) -> int:
        return sum(queue.uploaded for queue in self.queues)

    @property
    def downloaded(self) -> int:
        return sum(queue.downloaded for queue in self.queues)

    def steps(self, number: int) -> int:
        """Return how many copies the queue with that mark does while it is asked how far it is."""
        if self.speed == "any":
            return self._dice.randint(0, 2)
        return sys.maxsize if self.speed == "fast" or number > min(self.open) else 0

    def is_pinned(self, tensor: Tensor) -> bool:
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(start <= begin and end <= stop for start, stop in list(self.pinned.items()))

    def free_bytes(self, device: torch.device) -> int:
        return self.free

    def pin(self, device: torch.device, address: int, nbytes: int) -> None:
        ranges = list(self.pinned.items())
        assert not any(start < address + nbytes and address < stop for start, stop in ranges), "memory is pinned twice"
        self.pinned[address] = address + nbytes

    def unpin(self, device: torch.device, address: int) -> None:
        stop = self.pinned[address]
        moving = [tensor for queue in self.queues for copy in list(queue.given) for tensor in copy[:2]]
        assert not any(address <= tensor.data_ptr() < stop for tensor in moving), (
            "memory is unpinned while it is copied"
        )
        del self.pinned[address]

    def synchronize(self, device: torch.device) -> None:
        for queue in self.queues:
            queue.compute()

    def return_free_memory(self, device: torch.device) -> None:
        pass

    def begin_peak(self, device: torch.device) -> None:
        pass

    def peak_bytes(self, device: torch.device) -> int:
        return 7

    def queue(self, device: torch.device) -> MirrorQueue:
        self.queues.append(MirrorQueue(self))
        return self.queues[-1]


class MirrorRing(Ring):
    """A ring that ends with every run, and finds out whether all copies have."""

    @contextlib.contextmanager
    def taken(self, device: torch.device, nbytes: int) -> Iterator[Arena]:
        try:
            with super().taken(device, nbytes) as arena:
                yield arena
        except BaseException:
            with contextlib.suppress(RuntimeError, FastmergeError):  # the first error counts
                self.release()
            raise
        self.release()


class MirrorMemory(devices.DeviceMemory):
    """Memory that is full of NaN at first."""

    def __init__(self, device: torch.device, size: int):
        super().__init__(device, size)
        self.bytes.fill_(0xFF)


class MirrorSlot(devices.DeviceSlot):
    """A slot whose queue knows when its worker computes."""

    def tensor(self, at: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        self._queue.compute()
        return super().tensor(at, dtype, shape)


def compute_on_mirrors(monkeypatch, devices: int = 1, beside: bool = False, **options) -> MirrorDriver:
    """Let runs compute on so many mirrors with ``RunOptions.vram``; ``options`` are those of the driver.

    Runs ``beside`` each other, as of ranks in threads, have drivers of their own.
    """
    common = MirrorDriver(**options)

    def choose(device: str, vram: int | None) -> places.Place:
        driver = MirrorDriver(**options) if beside else common
        where = [torch.device("cpu", i) for i in range(devices)]
        return places.Accelerators(where, driver, MirrorRing(driver), vram, "a test")

    monkeypatch.setattr(running, "choose", choose)
    monkeypatch.setattr("fastmerge.engine.devices.DeviceMemory", MirrorMemory)
    monkeypatch.setattr("fastmerge.engine.devices.DeviceSlot", MirrorSlot)
    return common
