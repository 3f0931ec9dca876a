"""How the outputs of a run are dealt among its ranks, and the pages of files that two of them write."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from ..errors import explained
from ..plan.types import OutputTensor
from .arena import PAGE
from .files import pwrite

Page = tuple[int, int]
"""A page of an output file: shard and number."""


def deal(outputs: Sequence[OutputTensor], ranks: int) -> list[list[OutputTensor]]:
    """Cut ``outputs`` into consecutive runs, one for each rank; the largest has as few bytes as that allows.

    Consecutive, so that every rank reads its files forward, and two ranks write into few pages in common.
    """
    if ranks == 1:
        return [list(outputs)]
    costs = [output.nbytes + sum(p.nbytes for t in output.inputs.every for p in t.stored) for output in outputs]
    low, high = max(costs, default=0), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(costs, middle)) <= ranks else (middle + 1, high)
    ends = _cut(costs, low)
    ends += [len(outputs)] * (ranks - len(ends))
    return [list(outputs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def _cut(costs: Sequence[int], most: int) -> list[int]:
    """Return where runs end that hold as much as they can, but no more than ``most`` bytes."""
    ends, filled = [], 0
    for index, cost in enumerate(costs):
        if filled + cost > most:
            ends.append(index)
            filled = 0
        filled += cost
    return [*ends, len(costs)]


def common_pages(runs: Sequence[Sequence[OutputTensor]]) -> set[Page]:
    """Return the pages into which several of the runs write."""
    writer: dict[Page, int] = {}
    common: set[Page] = set()
    if len(runs) == 1:
        return common
    for number, run in enumerate(runs):
        for output in run:
            if output.nbytes:
                for byte in (output.offset, output.offset + output.nbytes - 1):
                    page = output.shard, byte // PAGE
                    if writer.setdefault(page, number) != number:
                        common.add(page)
    return common


class Seams:
    """Writes what lies in pages that other ranks write, too.

    A client of NFS may write back the whole of a page of which it has a copy, with an old state of what another machine
    wrote there; not through a descriptor that is opened with O_DSYNC.
    """

    def __init__(self, paths: Sequence[str], pages: set[Page]):
        self._paths, self._pages = paths, pages
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def write(self, shard: int, offset: int, data: memoryview) -> tuple[int, int]:
        """Write what of ``data`` lies in these pages; return the range of it that is left to be written."""
        start, end = offset, offset + len(data)
        if self._pages and start < end:
            if (shard, start // PAGE) in self._pages:
                start = min(end, (start // PAGE + 1) * PAGE)
                self._through(shard, offset, data[: start - offset])
            if start < end and (shard, (end - 1) // PAGE) in self._pages:
                last = max(start, (end - 1) // PAGE * PAGE)
                self._through(shard, last, data[last - offset :])
                end = last
        return start - offset, end - offset

    def _through(self, shard: int, offset: int, data: memoryview) -> None:
        with explained(self._paths[shard], f"writing {len(data)} bytes at byte {offset}"):
            with self._lock:
                if shard not in self._open:
                    self._open[shard] = os.open(self._paths[shard], os.O_WRONLY | os.O_DSYNC | os.O_CLOEXEC)
            pwrite(self._open[shard], data, offset)

    def __enter__(self) -> Seams:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
