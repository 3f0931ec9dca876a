"""Pinned memory of the host that is made once, and reused: by the tasks of a run in turns, and by run after run.

To touch memory first and to lock it takes the system some tenths of a second per GB. A command that will need it lets
it be made while recipes and headers are read (``targets.prepare``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .arena import Arena

if TYPE_CHECKING:
    import torch

    from .devices import Driver


class Ring:
    """Pinned memory for the devices of one driver, kept for the life of the process."""

    def __init__(self, driver: Driver):
        self._driver = driver
        self._lock = threading.Lock()
        self._maker: threading.Thread | None = None
        self._kept: tuple[torch.device, Arena] | None = None
        self._busy = False

    def prepare(self, wanted: Callable[[], tuple[torch.device, int] | None]) -> None:
        """Make memory on a thread of its own, for a device and of so many bytes as ``wanted`` finds out there.

        Does nothing where it is made already. A failure is left to the run, which tries again and explains it.
        """

        def make() -> None:
            with contextlib.suppress(Exception):
                if (found := wanted()) is not None:
                    self._kept = self._made(*found)

        with self._lock:
            if self._maker is None and self._kept is None and not self._busy:
                # Not a daemon: the process must not end while CUDA begins.
                self._maker = threading.Thread(target=make, name="fastmerge-pinned")
                self._maker.start()

    @contextlib.contextmanager
    def taken(self, device: torch.device, nbytes: int) -> Iterator[Arena]:
        """Yield ``nbytes`` or more for one run. One that runs beside it gets its own, for its time.

        Raises:
            BudgetError: the memory cannot be pinned.
        """
        with self._lock:
            beside, self._busy = self._busy, True
        if beside:
            arena = self._made(device, nbytes)[1]
            try:
                yield arena
            finally:
                self._driver.unpin(device, arena.address)
            return
        try:
            if self._maker is not None:
                self._maker.join()
                self._maker = None
            if self._kept is None or self._kept[1].size < nbytes:
                self.release()
                self._kept = self._made(device, nbytes)
            self._kept[1].clear()
            yield self._kept[1]
        finally:
            self._busy = False

    def release(self) -> None:
        """Unlock what is kept, and forget it; no run may be using it."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._driver.unpin(kept[0], kept[1].address)

    def _made(self, device: torch.device, nbytes: int) -> tuple[torch.device, Arena]:
        arena = Arena(nbytes)
        arena.populate()
        self._driver.pin(device, arena.address, arena.size)
        return device, arena
