"""The least that a merge from disk to disk can cost: read every input once, write the output once, make it durable.

``python -m benchmarks.merge.bare_cost WAY OUT MODEL...`` does it in one of several plain ways, without torch or
arithmetic, and prints the seconds between the first read and the return of the last fsync. The output is a copy of
the first model's files. ``WAYS`` lists the ways; the fastest one on the machine counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
PAGE = 4096
SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Way:
    """How the bytes move.

    Attributes:
        read:    "preadv" into a reused buffer, "mmap" (every word is summed).
        write:   "pwrite", "behind" (pwrite, then write-back is started at once), "direct" (O_DIRECT).
        threads: each takes the next block.
        block:   bytes per call.
    """

    read: str
    write: str
    threads: int
    block: int

    @property
    def name(self) -> str:
        return f"{self.read}+{self.write} t{self.threads} {self.block // MIB}MiB"


WAYS = {
    way.name: way
    for way in (
        *(Way("preadv", write, t, b * MIB) for write in ("pwrite", "behind", "direct") for t in (1, 2) for b in (1, 4)),
        *(Way("mmap", write, t, 4 * MIB) for write in ("pwrite", "behind") for t in (1, 2)),
    )
}


@dataclass
class Shard:
    """One output file and the input files that it is made of."""

    inputs: list[Path]
    output: Path

    @property
    def nbytes(self) -> int:
        return self.inputs[0].stat().st_size


class Worker:
    """Moves blocks of one shard; owns its file descriptors and its buffers, which are reused from block to block."""

    def __init__(self, way: Way, shard: Shard):
        self.way, self.nbytes = way, shard.nbytes
        self.inputs = [os.open(path, os.O_RDONLY) for path in shard.inputs]
        self.output = os.open(shard.output, os.O_WRONLY)
        self.direct = os.open(shard.output, os.O_WRONLY | os.O_DIRECT) if way.write == "direct" else -1
        # Anonymous maps are page-aligned, as O_DIRECT wants it.
        self.buffers = [mmap.mmap(-1, way.block) for _ in shard.inputs]
        self.maps = [mmap.mmap(fd, 0, prot=mmap.PROT_READ) for fd in self.inputs] if way.read == "mmap" else []

    def move(self, start: int) -> None:
        length = min(self.way.block, self.nbytes - start)
        if self.maps:
            for mapped in self.maps:
                _sum(mapped, start, length)
            self._write(memoryview(self.maps[0])[start : start + length], start)
            return
        for fd, buffer in zip(self.inputs, self.buffers, strict=True):
            os.preadv(fd, [memoryview(buffer)[:length]], start)
        self._write(memoryview(self.buffers[0])[:length], start)

    def close(self) -> None:
        for fd in (*self.inputs, self.output, *([self.direct] if self.direct >= 0 else [])):
            os.close(fd)

    def _write(self, block: memoryview, start: int) -> None:
        if self.way.write == "direct":
            aligned = len(block) // PAGE * PAGE
            _write_all(self.direct, block[:aligned], start)
            _write_all(self.output, block[aligned:], start + aligned)
            return
        _write_all(self.output, block, start)
        if self.way.write == "behind":
            _libc.sync_file_range(
                self.output, ctypes.c_int64(start), ctypes.c_int64(len(block)), ctypes.c_uint(SYNC_FILE_RANGE_WRITE)
            )


def _write_all(fd: int, block: memoryview, start: int) -> None:
    done = 0
    while done < len(block):
        done += os.pwrite(fd, block[done:], start + done)


def _sum(mapped: mmap.mmap, start: int, length: int) -> None:
    import numpy as np

    np.frombuffer(mapped, np.uint64, length // 8, start).sum()


def move_everything(way: Way, shards: list[Shard]) -> None:
    """Read all inputs and write and fsync all outputs of ``shards``."""
    for shard in shards:
        fd = os.open(shard.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.truncate(fd, shard.nbytes)
        os.close(fd)
    # Of a list, so that threads can share it.
    blocks = iter([(i, start) for i, shard in enumerate(shards) for start in range(0, shard.nbytes, way.block)])

    def work() -> None:
        workers: dict[int, Worker] = {}
        for index, start in blocks:
            if index not in workers:
                workers[index] = Worker(way, shards[index])
            workers[index].move(start)
        for worker in workers.values():
            worker.close()

    with ThreadPoolExecutor(way.threads) as pool:
        for done in [pool.submit(work) for _ in range(way.threads)]:
            done.result()
    for path in (*(shard.output for shard in shards), shards[0].output.parent):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge.bare_cost", description=__doc__)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    names = sorted(path.name for path in options.models[0].glob("*.safetensors"))
    shards = [Shard([model / name for model in options.models], options.out / name) for name in names]
    way = WAYS[options.way]
    if way.read == "mmap":
        import numpy  # noqa: F401  (before the clock starts)
    wall = time.perf_counter()
    move_everything(way, shards)
    print(json.dumps(time.perf_counter() - wall))


if __name__ == "__main__":
    main()
