"""Accelerators for tests: devices with memories of their own, whose processor is the host's.

The engine moves every byte there and back as it would for a GPU. A queue copies as late as a GPU might: when it is
waited for, or when its own worker computes; and it finds out if the host changes what is being copied. So a forgotten
wait is a wrong result or an error.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from fastmerge.engine import devices, running
from fastmerge.engine import targets as places


class MirrorQueue:
    """See ``fastmerge.devices.gpus.Queue``."""

    def __init__(self, driver: MirrorDriver):
        self._driver = driver
        self._uploads: list[tuple[Tensor, Tensor, Tensor]] = []
        self._downloads: list[tuple[Tensor, Tensor]] = []
        self._begun = 0
        self._thread: int | None = None
        self.uploaded = self.downloaded = 0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self._thread = threading.get_ident()
        yield

    def copy(self, to: Tensor, source: Tensor) -> None:
        assert threading.get_ident() == self._thread, "a worker's queue is used by another thread"
        assert self._driver.is_pinned(source) != self._driver.is_pinned(to), "a copy is not between host and device"
        if self._driver.is_pinned(source):
            self._uploads.append((to, source, source.clone()))
        else:
            self._downloads.append((to, source))

    def compute(self) -> None:
        """Do what comes before an operation of this queue."""
        for to, source, _ in self._uploads[self._begun :]:
            to.copy_(source)
            self.uploaded += to.numel()
        self._begun = len(self._uploads)

    def wait(self) -> None:
        self.compute()
        for to, source in self._downloads:
            to.copy_(source)
            self.downloaded += to.numel()
        for _, source, snapshot in self._uploads:
            assert torch.equal(source, snapshot), "host memory was overwritten while it was copied"
        self._uploads, self._downloads, self._begun = [], [], 0

    @property
    def idle(self) -> bool:
        return not self._uploads and not self._downloads


class MirrorDriver:
    """See ``fastmerge.devices.gpus.Cuda``."""

    def __init__(self, free: int = 1 << 30):
        self.free = free
        self._pinned = (0, 0)
        self.queues: list[MirrorQueue] = []

    @property
    def uploaded(self) -> int:
        return sum(queue.uploaded for queue in self.queues)

    @property
    def downloaded(self) -> int:
        return sum(queue.downloaded for queue in self.queues)

    def is_pinned(self, tensor: Tensor) -> bool:
        start, end = self._pinned
        return start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end

    def free_bytes(self, device: torch.device) -> int:
        return self.free

    def pin(self, device: torch.device, address: int, nbytes: int) -> None:
        assert self._pinned == (0, 0)
        self._pinned = (address, address + nbytes)

    def unpin(self, device: torch.device, address: int) -> None:
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


def compute_on_mirrors(monkeypatch, devices: int = 1, **options) -> MirrorDriver:
    """Let runs compute on so many mirrors with ``RunOptions.vram``; ``options`` are those of the driver."""
    driver = MirrorDriver(**options)

    def choose(device: str, vram: int | None) -> places.Place:
        return places.Accelerators([torch.device("cpu", i) for i in range(devices)], driver, vram, "a test")

    monkeypatch.setattr(running, "choose", choose)
    monkeypatch.setattr("fastmerge.engine.devices.DeviceMemory", MirrorMemory)
    monkeypatch.setattr("fastmerge.engine.devices.DeviceSlot", MirrorSlot)
    return driver
