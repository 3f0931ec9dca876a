"""What this machine can do: the least time that it takes for the bytes of a merge, whatever program moves them.

Rates are measured after a run that took long, in tenths of a second, and kept until the next boot in
``$XDG_CACHE_HOME/fastmerge/machine.json`` (else ``~/.cache``): what a disk or the memory gives does not depend on the
merge. The disk is read and written by direct I/O, many requests at a time; memory is copied by all cores.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..sizes import show_size
from .report import Report

# One request, how many are under way, and what is moved at most; less where it takes so many seconds.
REQUEST, REQUESTS, SAMPLE, SECONDS = 4 << 20, 8, 256 << 20, 0.5
# Memory that each core copies, larger than its caches, and how often; the fastest copy counts.
COPIED, COPIES = 32 << 20, 4

BOOT = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Limit:
    """What one part of the machine takes for a share of a merge.

    Attributes:
        what:   it does, in words.
        nbytes: that it moves.
        rate:   bytes per second that it gives.
    """

    what: str
    nbytes: int
    rate: float

    @property
    def seconds(self) -> float:
        """The least time for the bytes."""
        return self.nbytes / self.rate

    def __str__(self) -> str:
        return f"{self.what} takes {self.seconds:.1f} s at the {show_size(self.rate)}/s of this machine"


def limit_of(limits: Sequence[Limit]) -> Limit | None:
    """Return the part that takes longest for its share; None where nothing could be measured."""
    return max(limits, key=lambda limit: limit.seconds, default=None)


class Machine:
    """Rates of this machine in bytes per second, each measured when it is asked for first.

    ``folder`` keeps them for other processes; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None):
        self._file = None if folder is None else folder / "machine.json"
        self._rates: dict[str, float] = self._kept()

    @classmethod
    def of_user(cls) -> Machine:
        """Return the one whose rates are kept in the user's cache."""
        return cls(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastmerge")

    def limits_of(self, report: Report, out: str) -> list[Limit]:
        """Return what bounded a run that wrote below the folder ``out``."""
        sizes = {path: os.path.getsize(path) for path in report.cold if os.path.exists(path)}
        bus = None
        if report.peak_vram:
            bus = len(report.devices) * self._rate(f"bus {report.devices[0]}", lambda: _bus_rate(report.devices[0]))
        cold, path = min(sum(sizes.values()), report.bytes_read), max(sizes, key=lambda path: sizes[path], default="")
        return self.limits(report.bytes_read, cold, report.bytes_written, path, out, bus)

    def limits(self, read: int, cold: int, written: int, path: str, out: str, bus: float | None = None) -> list[Limit]:
        """Return what bounds a merge.

        Args:
            read:    bytes of inputs that are read, ``cold`` of them from the disk.
            written: bytes of outputs.
            path:    of an input, the largest of those that come from the disk.
            out:     folder of the output.
            bus:     bytes per second that go to a GPU, while as many come back; None merges on the processor.
        """
        found = []
        if rate := self.copying:
            found.append(Limit("copying input and output once through memory", read + written, rate))
        if bus:
            found.append(Limit("bringing the inputs to the GPU", read, bus))
        if cold and (rate := self.reading(path)):
            found.append(Limit("reading the inputs from the disk", cold, rate))
        if rate := self.writing(out):
            found.append(Limit("writing the output to the disk", written, rate))
        return found

    @property
    def copying(self) -> float:
        """Of memory, by all cores: each byte is read and written; 0 where there is no memory or thread for it."""
        return self._rate("memory", _copy_rate)

    def reading(self, path: str) -> float:
        """Of the disk of a file that is read; 0 where its file system has no direct I/O."""
        return self._rate(f"read {os.stat(path).st_dev}", lambda: _read_rate(path))

    def writing(self, folder: str) -> float:
        """Of the disk of a folder; 0 where its file system has no direct I/O, or no room."""
        return self._rate(f"write {os.stat(folder).st_dev}", lambda: _write_rate(folder))

    def _rate(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self._rates:
            try:
                self._rates[name] = measure()
            except (MemoryError, OSError, RuntimeError):  # no memory, no threads, or a GPU that is full
                self._rates[name] = 0.0
            self._keep()
        return self._rates[name]

    def _kept(self) -> dict[str, float]:
        if self._file is None:
            return {}
        try:
            kept = json.loads(self._file.read_text())
            return {str(name): float(rate) for name, rate in kept["rates"].items()} if kept["boot"] == _boot() else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # there is nothing yet, or nothing that can be read

    def _keep(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # it is measured again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            beside.write_text(json.dumps({"boot": _boot(), "rates": self._rates}))
            beside.replace(self._file)


def _boot() -> str:
    """Return what names this machine until it starts again: devices may have other numbers then."""
    try:
        return Path(BOOT).read_text().strip()
    except OSError:
        return socket.gethostname()


def _copy_rate() -> float:
    cores = len(os.sched_getaffinity(0))
    pairs = [(np.zeros(COPIED, np.uint8), np.ones(COPIED, np.uint8)) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(COPIES):
            begin = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            best = max(best, cores * COPIED / (time.perf_counter() - begin))
    return best


def _bus_rate(device: str) -> float:
    import torch

    from ..devices import gpus

    return gpus.upload_rate(torch.device(device))


def _read_rate(path: str) -> float:
    places = range(0, os.path.getsize(path) - REQUEST + 1, REQUEST)
    step = max(1, len(places) * REQUEST // SAMPLE)
    with _opened(path, os.O_RDONLY) as descriptor:
        return _moved(descriptor, os.preadv, places[::step])


def _write_rate(folder: str) -> float:
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < 4 * SAMPLE:
        return 0.0
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".fastmerge-rate-") as file:
        os.posix_fallocate(file.fileno(), 0, SAMPLE)
        with _opened(file.name, os.O_WRONLY) as descriptor:
            return _moved(descriptor, os.pwritev, range(0, SAMPLE, REQUEST))


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _moved(descriptor: int, move: Callable[[int, list[mmap.mmap], int], int], places: Sequence[int]) -> float:
    """Move a request at each place, many at a time, until it takes too long; return bytes per second, 0 for none."""
    buffers = [mmap.mmap(-1, REQUEST) for _ in range(REQUESTS)]
    for buffer in buffers:
        buffer.write(bytes(REQUEST))  # touched before the clock starts
    begin = time.perf_counter()

    def one(i: int) -> int:
        done = 0
        for place in places[i::REQUESTS]:
            done += move(descriptor, [buffers[i]], place)
            if time.perf_counter() - begin > SECONDS:
                break
        return done

    with ThreadPoolExecutor(REQUESTS) as pool:
        done = sum(pool.map(one, range(REQUESTS)))
    return done / (time.perf_counter() - begin)
