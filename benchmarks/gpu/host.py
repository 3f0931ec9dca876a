"""Times what the host does for a GPU: copies into pinned memory, and what is done once, before the first byte moves.

Copies by 1 to 16 threads, from ordinary memory and from files in memory, say how far a merge of files can come to the
bus; pinned memory, the largest allocation on the GPU and its first kernel, what each run pays however small it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from fastmerge import kernels
from fastmerge.devices import gpus
from fastmerge.engine.arena import Arena

from .._bench import Bench, Bound, Contender

THREADS = (1, 4, 8, 16)
BLOCK_BYTES = 16 << 20
PINNED_BYTES = (512 << 20, 1536 << 20)
DEVICE_BYTES = 44 << 30


def run(bench: Bench) -> None:
    with bench.attempt("host copies"):
        _copies(bench)
    with bench.attempt("what is done once"):
        _once(bench)


def _copies(bench: Bench) -> None:
    """Copy blocks into pinned memory by several threads, each its own; the bound is the bus."""
    block = 1 << 16 if bench.check else BLOCK_BYTES
    most = max(THREADS)
    pinned = torch.empty(most * block, dtype=torch.uint8, pin_memory=not bench.check).fill_(1)
    plain = torch.empty(most * block, dtype=torch.uint8).fill_(2)
    there = torch.empty(most * block, dtype=torch.uint8, device=bench.device)
    bus = Bound("upload", pinned.numel(), [bench.on_wall(lambda: there.copy_(pinned, non_blocking=True))])
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(plain.numpy().data)
        file.flush()

        def copy(i: int) -> None:
            pinned[i * block : (i + 1) * block].copy_(plain[i * block : (i + 1) * block])

        def read(i: int) -> None:
            os.preadv(file.fileno(), [pinned.numpy()[i * block : (i + 1) * block]], i * block)

        for name, move in (("memory", copy), ("file in memory", read)):
            for threads in THREADS:
                with ThreadPoolExecutor(threads) as pool:
                    bench.measure(
                        f"host copy from {name}, {threads} threads",
                        [Contender("fastmerge", lambda pool=pool, move=move: list(pool.map(move, range(most))))],
                        shape=most * block, dtype=torch.uint8, models=1, once=most * block, bound=bus,
                        clock=bench.on_wall,
                    )  # fmt: skip


def _once(bench: Bench) -> None:
    sizes: Sequence[int] = (1 << 20,) if bench.check else PINNED_BYTES
    for nbytes in sizes:
        for populated in (False, True):
            seconds = _seconds(lambda nbytes=nbytes, populated=populated: _pin(bench, nbytes, populated))
            how = "touched by 4 threads before" if populated else "touched by the driver"
            print(f"pin {nbytes >> 20} MiB, {how}: {1e3 * seconds:.0f} ms", flush=True)
    nbytes = 1 << 20 if bench.check else min(DEVICE_BYTES, torch.cuda.mem_get_info()[0] * 9 // 10)
    seconds = _seconds(lambda: torch.empty(nbytes, dtype=torch.uint8, device=bench.device))
    print(f"allocate {nbytes >> 20} MiB on the device: {1e3 * seconds:.0f} ms", flush=True)
    # In a process of its own: here it has run.
    code = (
        "import time, torch; from fastmerge import kernels; "
        f"x = torch.ones(1 << 10, device='{bench.device}'); y = torch.empty_like(x); begin = time.perf_counter(); "
        "kernels.weighted_sum_many([kernels.SumJob(y, [x, x], [1.0, 2.0])] * 2); y.sum().item(); "
        "print(f'first kernel: {1e3 * (time.perf_counter() - begin):.0f} ms')"
    )
    assert kernels.OPERATIONS["weighted_sum"].choose(bench.device)
    print(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout, flush=True)


def _pin(bench: Bench, nbytes: int, populated: bool) -> None:
    arena = Arena(nbytes)
    if populated:
        arena.populate()
    if not bench.check:
        driver = gpus.Cuda()
        driver.pin(bench.device, arena.address, arena.size)
        driver.unpin(bench.device, arena.address)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
