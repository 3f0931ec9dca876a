"""What a plan will cost, before it is run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from ..devices.names import DEFAULT
from ..methods import get_method
from ..plan.types import OutputTensor, Plan
from .censuses import censuses_of
from .needs import whole_bytes
from .sizing import divide
from .targets import choose
from .working import default_threads

SAMPLE_BYTES = 256 * 2**20
BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Forecast:
    """Attributes:
    memory:    bytes of the host's memory that the merge takes at most, beyond the interpreter and its packages.
    budget:    bytes that it may take.
    read_rate: bytes per second at which a sample of the inputs was read, from the disk or the page cache.
    seconds:   time to read the inputs and write the output at that rate: no merge is faster.
    largest:   name of the output tensor whose inputs are largest, "" where nothing is merged.
    largest_bytes: its inputs together.
    read_twice: names of the tensors that do not fit the budget whole: they are read once to survey and once to merge.
    """

    memory: int
    budget: int
    read_rate: float
    seconds: float
    largest: str
    largest_bytes: int
    read_twice: tuple[str, ...]


def forecast(plan: Plan, ram: int, device: str = DEFAULT, vram: int | None = None) -> Forecast:
    """Return the forecast of ``plan`` under budgets in bytes (see ``RunOptions``). Reads up to 256 MiB of the inputs.

    BudgetError: a budget is too small for the merge.
    """
    rate = _read_rate(plan)
    division = divide(plan.outputs, choose(device, vram).budget(ram), default_threads())
    merged = {output.name: output for output in plan.outputs if output.method != "copy"}
    sizes = {name: _input_bytes(output) for name, output in merged.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    surveyed = {method for method in {output.method for output in merged.values()} if get_method(method).surveys}
    read_twice = tuple(
        name for name, output in merged.items() if output.method in surveyed and whole_bytes(output) > division.regions
    )
    moved = plan.bytes_read + plan.bytes_written + sum(sizes[name] for name in read_twice)
    moved += sum(sizes[name] * censuses_of(output) for name, output in merged.items())
    return Forecast(division.most, ram, rate, moved / rate, largest, sizes.get(largest, 0), read_twice)


def _input_bytes(output: OutputTensor) -> int:
    return sum(part.nbytes for tensor in output.inputs.every for part in tensor.stored)


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
