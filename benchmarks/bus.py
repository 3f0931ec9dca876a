"""Shows what Python and the scheduler add to a merge on a GPU: ``python -m benchmarks.bus``. No GPU is needed.

The engine runs as it does on a GPU, on a device that is made up: a copy takes its bytes over the bandwidth of the bus
in wall time and no processor, kernels take no time at all, and reading and writing move no byte. What is left is the
engine itself: scheduling, calls, and the checksums of all that passes. Memory is never written, so they are summed at
the speed of the cache, as bytes are that were read a moment ago. Times of a real GPU are not what this predicts; a
share of the bus that is missed here is missed there, too.

``--no-sums`` leaves out checksums and the look for numbers that are not finite: the interpreter alone.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastmerge.engine import checksums, devices, finite
from fastmerge.engine.arena import Arena, Memory
from fastmerge.engine.batches import units
from fastmerge.engine.context import RunContext
from fastmerge.engine.devices import DeviceMemory
from fastmerge.engine.report import Meter
from fastmerge.engine.ring import Ring
from fastmerge.engine.scheduler import Unit
from fastmerge.engine.sizing import Sizes, divide
from fastmerge.engine.targets import Accelerators
from fastmerge.engine.working import work
from fastmerge.kernels import _native
from fastmerge.plan.types import OutputTensor

from . import _measure, _record
from .gpu.cases import TINY, Llama
from .gpu.streamed import PART, outputs
from .kernels.cases import CASES

METHODS = ("linear", "ties")
# Of an H200's PCIe, measured: one way while the other is used.
GBPS = 52.0
# Workers on the machine of that GPU: its 16 cores and two.
THREADS = 18
RAM = 4 << 30
# Most of its memory; here it is mapped and never touched.
VRAM = 100 << 30
# Of mmap(2); Python has its name from 3.13 on.
MAP_NORESERVE = 0x4000
COLUMNS = (
    *_record.RUN_COLUMNS, "load", "method", "shape", "workers", "pinned_mb", "sums", "bus_gbps", "bus_ms",
    *_record.TIME_COLUMNS, "cpu_ms", "times_bus",
)  # fmt: skip


class Link:
    """One direction of the bus: copies take turns."""

    def __init__(self, rate: float):
        self._rate, self._free = rate, 0.0
        self._lock = threading.Lock()

    def end_of(self, nbytes: int) -> float:
        """Return when a copy that is given now will be done."""
        with self._lock:
            self._free = max(self._free, time.perf_counter()) + nbytes / self._rate
            return self._free


class BusQueue:
    """See ``fastmerge.devices.gpus.Queue``."""

    def __init__(self, driver: BusDriver):
        self._driver, self._end = driver, 0.0

    def working(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def copy(self, to: Tensor, source: Tensor) -> None:
        link = self._driver.up if self._driver.is_pinned(source) else self._driver.down
        self._end = max(self._end, link.end_of(to.numel()))

    def mark(self) -> None:
        pass

    def passed(self) -> bool:
        return time.perf_counter() >= self._end

    def wait(self) -> None:
        time.sleep(max(0.0, self._end - time.perf_counter()))


class BusDriver:
    """See ``fastmerge.devices.gpus.Cuda``."""

    def __init__(self, rate: float):
        self.up, self.down = Link(rate), Link(rate)
        self._pinned: dict[int, int] = {}

    def is_pinned(self, tensor: Tensor) -> bool:
        place = tensor.data_ptr()
        return any(start <= place < end for start, end in list(self._pinned.items()))

    def free_bytes(self, device: torch.device) -> int:
        return VRAM

    def pin(self, device: torch.device, address: int, nbytes: int) -> None:
        self._pinned[address] = address + nbytes

    def unpin(self, device: torch.device, address: int) -> None:
        del self._pinned[address]

    def synchronize(self, device: torch.device) -> None:
        pass

    def return_free_memory(self, device: torch.device) -> None:
        pass

    def begin_peak(self, device: torch.device) -> None:
        pass

    def peak_bytes(self, device: torch.device) -> int:
        return 1

    def queue(self, device: torch.device) -> BusQueue:
        return BusQueue(self)


class NoMemory(DeviceMemory):
    """Addresses alone, as many as the device has."""

    def __init__(self, device: torch.device, size: int):
        Memory.__init__(self, size)
        self.device = device
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.bytes = torch.frombuffer(mmap.mmap(-1, self.size, flags), dtype=torch.uint8)


class Nothing:
    """In place of files: every byte is there already, and none has to go anywhere."""

    def read(self, path: str, offset: int, into: memoryview) -> None:
        pass

    def memory(self, path: str, offset: int, nbytes: int) -> memoryview | None:
        return None

    def write(self, output: OutputTensor, offset: int, data: memoryview, address: int) -> None:
        pass

    def finish(self, output: OutputTensor, checksum: str, inputs: Sequence[str] = ()) -> None:
        pass


class NoKernels:
    """The compiled extension, whose operations on tensors return at once: as a GPU's, but for what they find."""

    def __init__(self, extension: Any):
        self._extension = extension

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extension, name)

    def weighted_sum(self, ints: Sequence[int], floats: Sequence[float]) -> None:
        pass

    def sparse_merge(self, ints: Sequence[int], floats: Sequence[float]) -> None:
        pass

    def select(self, ints: Sequence[int]) -> list[tuple[int, int]]:
        found = at = 0
        while at < len(ints):
            tensors = ints[at + 1]
            at += 2 + 2 * (tensors + 1)
            for _ in range(tensors):
                found += ints[at]
                at += 1 + ints[at]
        return [(1, -1)] * found


@contextlib.contextmanager
def _simulated(sums: bool) -> Iterator[None]:
    extension = _native.cpu_extension()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(devices, "DeviceMemory", NoMemory))
        stack.enter_context(mock.patch.object(Arena, "populate", lambda self: None))
        stack.enter_context(mock.patch.object(_native, "cpu_extension", lambda: NoKernels(extension)))
        if not sums:
            nothing = {"digests_of": lambda data, step: bytes(8 * -(-len(data) // step))}
            stack.enter_context(mock.patch.multiple(checksums, **nothing))
            for user in ("batches", "large", "watching"):
                stack.enter_context(mock.patch(f"{finite.__package__}.{user}.all_finite", lambda data, dtype: True))
        yield


def merge(tensors: Sequence[OutputTensor], ring: Ring, driver: BusDriver, sums: bool) -> Sizes:
    """Run the merge of ``tensors`` on a simulated device."""
    target = Accelerators([torch.device("cpu")], driver, ring, VRAM, "a simulation")
    sizes = divide(tensors, target.budget(RAM), THREADS)

    def make_units(context: RunContext) -> Iterator[Unit]:
        return units(context, tensors)

    with _simulated(sums):
        work(make_units, target, sizes, Nothing(), Nothing(), Meter(), lambda: None, finite=sums)
    return sizes


def measure(method: str, model: Llama, runs: int, sums: bool) -> dict[str, object]:
    """Time a merge and return its row."""
    case = next(case for case in CASES if case.method == method)
    tensors = outputs(case, model)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    driver = BusDriver(1e9 * GBPS)
    ring = Ring(driver)
    seconds, cpu = [], []
    # The first run makes the ring.
    for _ in range(runs + 1):
        begin, used = time.perf_counter(), time.process_time()
        sizes = merge(tensors, ring, driver, sums)
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
    del seconds[0], cpu[0]
    bus = case.inputs * nbytes / (1e9 * GBPS)
    times = _measure.time_columns(seconds)
    return _record.run_facts(torch.get_num_threads()) | times | {
        "load": os.getloadavg()[0], "method": method, "shape": nbytes // 2, "workers": THREADS,
        "pinned_mb": sizes.arena >> 20, "sums": int(sums), "bus_gbps": GBPS, "bus_ms": 1e3 * bus,
        "cpu_ms": 1e3 * statistics.median(cpu), "times_bus": 1e-3 * times["ms"] / bus,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus", description=__doc__)
    parser.add_argument("methods", nargs="*", default=METHODS, metavar="METHOD", help=" and ".join(METHODS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-sums", action="store_true", help="the interpreter alone")
    parser.add_argument("--check", action="store_true", help="dry run on tiny tensors")
    parser.add_argument("--csv", type=Path, help="append the rows, e.g. to benchmarks/data/bus.csv")
    options = parser.parse_args()
    for method in options.methods:
        model = TINY if options.check else PART
        row = measure(method, model, options.runs, not options.no_sums)
        print(
            f"{method:10} {row['shape']:>13} elements  {row['ms']:8.0f} ms, {row['cpu_ms']:8.0f} CPU-ms; "
            f"the bus alone {row['bus_ms']:.0f} ms; {row['times_bus']:.2f} times that; "
            f"{row['pinned_mb']} MiB pinned, load {row['load']:.1f}",
            flush=True,
        )
        if options.csv:
            _record.append(options.csv, COLUMNS, [row])


if __name__ == "__main__":
    main()
