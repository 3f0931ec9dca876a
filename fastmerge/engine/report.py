"""What a run cost, what bounded it, and how far it stayed from that bound."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..results import Result
from ..sizes import show_size

STAGES = ("read", "compute", "write")
DOING = {"read": "reading the inputs", "compute": "computing", "write": "writing the output"}
"""What bounds a run (``Report.bounded_by``), in words."""


def peak_rss() -> int:
    """Return the highest resident memory of this process so far, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        seconds: time spent in it, summed over the threads.
        active:  time during which at least one thread was in it.
    """

    seconds: float
    active: float


@dataclass(frozen=True, repr=False)
class Report(Result):
    """What a run did.

    Attributes:
        tensors:       tensors of the output.
        resumed:       of these, the ones that an earlier run had finished.
        bytes_read:    input bytes that were read (a second read of the same byte counts again).
        bytes_written: output bytes that were written.
        seconds:       wall time, from opening the inputs to the published folder.
        cpu_seconds:   CPU time of the whole process in that time, all threads.
        peak_rss:      highest resident memory of the process, in bytes.
        threads:       worker threads.
        devices:       where the arithmetic ran.
        device_reason: why there.
        peak_vram:     the most bytes that one GPU held, 0 without one.
        stages:        read, compute, write.
        io_active:     time during which at least one read or write was under way: what the disk and the
                       page cache took for these bytes in this run, while its other threads, and other programs,
                       used them and the processor too. A quiet machine may do better.
        cold:          input files that were not in the page cache when the run began.
        notes:         what the methods found and the user should know, one sentence each.
        page:          path of the page on what the merge did, where one was asked for.
    """

    tensors: int
    resumed: int
    bytes_read: int
    bytes_written: int
    seconds: float
    cpu_seconds: float
    peak_rss: int
    threads: int
    devices: tuple[str, ...] = ("cpu",)
    device_reason: str = ""
    peak_vram: int = 0
    stages: dict[str, Stage] = field(default_factory=dict)
    io_active: float = 0.0
    cold: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    page: str | None = None

    def __str__(self) -> str:
        return (
            f"merged {self.tensors} tensors: {show_size(self.bytes_written)} written in {self.seconds:.2f} s, "
            f"{show_size(self.rate)}/s"
        )

    def facts(self) -> list[tuple[str, str]]:
        found = [
            ("read", show_size(self.bytes_read)),
            ("written", show_size(self.bytes_written)),
            ("time", f"{self.seconds:.2f} s ({show_size(self.rate)}/s), {self.cpu_seconds:.2f} CPU-s"),
            ("device", f"{', '.join(self.devices)} ({self.device_reason})"),
            ("peak memory", f"{show_size(self.peak_rss)}, with the interpreter and its packages"),
        ]
        if self.peak_vram:
            found.append(("peak on a GPU", show_size(self.peak_vram)))
        if self.resumed:
            found.append(("resumed", f"{self.resumed} tensors were taken over from an interrupted run"))
        if self.page is not None:
            found.append(("report", self.page))
        return found

    @property
    def rate(self) -> float:
        """Bytes per second, read and written."""
        return (self.bytes_read + self.bytes_written) / self.seconds if self.seconds else 0.0

    @property
    def bound_seconds(self) -> float:
        """The least time at the rates of this run: moving the bytes, all cores busy, or the GPUs at work."""
        return max(self.io_active, self.compute_bound)

    @property
    def compute_bound(self) -> float:
        """The time that computing took of all cores, or of GPUs with the copies to and from them."""
        gpus = self.stages["compute"].active if self.peak_vram else 0.0
        return max(gpus, self.cpu_seconds / (len(os.sched_getaffinity(0)) or 1))

    @property
    def distance(self) -> float:
        """``seconds / bound_seconds``: 1 is the bound."""
        return self.seconds / self.bound_seconds if self.bound_seconds else 1.0

    @property
    def bounded_by(self) -> str:
        """What bounded the run: "read", "compute" or "write"."""
        if self.compute_bound > self.io_active or not self.stages:
            return "compute"
        return max(("read", "write"), key=lambda name: self.stages[name].active)


class Meter:
    """Counts the time and the bytes of the stages over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        self._cpu = time.process_time()
        self._running = dict.fromkeys((*STAGES, "io"), 0)
        self._since = dict.fromkeys((*STAGES, "io"), 0.0)
        self._active = dict.fromkeys((*STAGES, "io"), 0.0)
        self._seconds = dict.fromkeys((*STAGES, "io"), 0.0)
        self._bytes = dict.fromkeys(STAGES, 0)
        self._remarks: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def stage(self, name: str, nbytes: int = 0) -> Iterator[None]:
        """Count the time of the block, and ``nbytes`` moved, to a stage."""
        names = (name,) if name == "compute" else (name, "io")
        begin = time.perf_counter()
        with self._lock:
            for key in names:
                if self._running[key] == 0:
                    self._since[key] = begin
                self._running[key] += 1
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self._bytes[name] += nbytes
                for key in names:
                    self._running[key] -= 1
                    self._seconds[key] += end - begin
                    if self._running[key] == 0:
                        self._active[key] += end - self._since[key]

    def remark(self, name: str, remarks: Iterable[str]) -> None:
        """Take note of what the apply step of the tensor ``name`` remarks."""
        with self._lock:
            for text in remarks:
                self._remarks.setdefault(text, []).append(name)

    @property
    def bytes_read(self) -> int:
        return self._bytes["read"]

    @property
    def bytes_written(self) -> int:
        return self._bytes["write"]

    def add(self, read: int, written: int) -> None:
        """Count bytes that another process moved."""
        with self._lock:
            self._bytes["read"] += read
            self._bytes["write"] += written

    @property
    def remarks(self) -> Mapping[str, Sequence[str]]:
        """What was remarked, and of which tensors."""
        return self._remarks

    def report(
        self,
        tensors: int,
        resumed: int,
        threads: int,
        devices: tuple[str, ...] = ("cpu",),
        device_reason: str = "",
        peak_vram: int = 0,
    ) -> Report:
        """Return the report of the time since the meter was made."""
        return Report(
            tensors=tensors,
            resumed=resumed,
            bytes_read=self._bytes["read"],
            bytes_written=self._bytes["write"],
            seconds=time.perf_counter() - self._started,
            cpu_seconds=time.process_time() - self._cpu,
            peak_rss=peak_rss(),
            threads=threads,
            devices=devices,
            device_reason=device_reason,
            peak_vram=peak_vram,
            stages={name: Stage(self._seconds[name], self._active[name]) for name in STAGES},
            io_active=self._active["io"],
            notes=tuple(f"{text}: {len(names)} tensors, such as {min(names)}" for text, names in self._remarks.items()),
        )
