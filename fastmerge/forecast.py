"""What a plan will cost, before it is run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .plan.types import Plan

SAMPLE_BYTES = 256 * 2**20
BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    memory:    bytes beyond the interpreter with torch that the merge stays below.
    read_rate: bytes per second at which a sample of the inputs was read, from the disk or the page cache.
    seconds:   time to read the inputs once and write the output once at that rate: no merge is faster.
    """

    memory: int
    read_rate: float
    seconds: float


def forecast(plan: Plan, ram: int) -> Forecast:
    """Return the forecast of ``plan`` under a budget of ``ram`` bytes. Reads up to 256 MiB of the inputs."""
    rate = _read_rate(plan)
    return Forecast(ram, rate, (plan.bytes_read + plan.bytes_written) / rate)


def _read_rate(plan: Plan) -> float:
    """Read evenly spread blocks of the input files into one buffer, and return bytes per second."""
    buffer = bytearray(BLOCK)
    buffer[:] = bytes(BLOCK)  # touch the pages first: their first use is not the disk's cost
    files = {file.path: file.nbytes for model in plan.models for file in model.files}
    total = sum(files.values())
    stride = max(BLOCK, total // (SAMPLE_BYTES // BLOCK))
    begin, done = time.perf_counter(), 0
    for path, nbytes in files.items():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for offset in range(0, nbytes, stride):
                done += os.preadv(descriptor, [buffer], offset)
        finally:
            os.close(descriptor)
    return max(done, 1) / (time.perf_counter() - begin)
