"""Accelerators for tests: devices with memories of their own, whose processor is the host's.

The engine moves every byte there and back as it would for a GPU. A queue copies to the host only when it is waited
for, and finds out if the host changes what is being copied; so a forgotten wait is a wrong result or an error.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from fastmerge.engine import places, running


class MirrorQueue:
    """See ``fastmerge.gpus.Queue``."""

    def __init__(self, driver: MirrorDriver):
        self._driver = driver
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._sources: list[tuple[Tensor, Tensor]] = []
        self._thread: int | None = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._thread = threading.get_ident()
        yield

    def copy(self, to: Tensor, source: Tensor) -> None:
        assert threading.get_ident() == self._thread, "a worker's queue is used by another thread"
        if self._driver.is_pinned(source):
            assert not self._driver.is_pinned(to)
            to.copy_(source)
            self._sources.append((source, source.clone()))
            self._driver.uploaded += source.numel()
        else:
            assert self._driver.is_pinned(to), "neither side of a copy is pinned host memory"
            self._pending.append((to, source))

    def wait(self) -> None:
        for source, copy in self._sources:
            assert torch.equal(source, copy), "host memory was overwritten while it was copied"
        for to, source in self._pending:
            to.copy_(source)
            self._driver.downloaded += to.numel()
        self._sources, self._pending = [], []

    @property
    def idle(self) -> bool:
        return not self._sources and not self._pending


class MirrorDriver:
    """See ``fastmerge.gpus.Cuda``."""

    def __init__(self, free: int = 1 << 30):
        self.free = free
        self.uploaded = self.downloaded = 0
        self._pinned = (0, 0)
        self.queues: list[MirrorQueue] = []

    def is_pinned(self, tensor: Tensor) -> bool:
        start, end = self._pinned
        return start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end

    def free_bytes(self, device: torch.device) -> int:
        return self.free

    def pin(self, address: int, nbytes: int) -> None:
        assert self._pinned == (0, 0)
        self._pinned = (address, address + nbytes)

    def unpin(self, address: int) -> None:
        assert address == self._pinned[0]
        assert all(queue.idle for queue in self.queues), "memory is unpinned while it is copied"
        self._pinned = (0, 0)

    def synchronize(self, device: torch.device) -> None:
        for queue in self.queues:
            queue.wait()

    def return_free_memory(self, device: torch.device) -> None:
        pass

    def begin_peak(self, device: torch.device) -> None:
        pass

    def peak_bytes(self, device: torch.device) -> int:
        return 7

    def queue(self, device: torch.device) -> MirrorQueue:
        self.queues.append(MirrorQueue(self))
        return self.queues[-1]


def compute_on_mirrors(monkeypatch, devices: int = 1, **options) -> MirrorDriver:
    """Let runs compute on so many mirrors with ``RunOptions.vram``; ``options`` are those of the driver."""
    driver = MirrorDriver(**options)

    def choose(device: str, vram: int | None) -> places.Place:
        return places.Accelerators([torch.device("cpu", i) for i in range(devices)], driver, vram, "a test")

    monkeypatch.setattr(running, "choose", choose)
    return driver
