"""How the outputs of a run are dealt among its ranks, and the pages of files that two of them write.

Whole tensors, where that leaves no rank with much more than its share. Otherwise those that are large are cut, where
their method allows it: ranks that have parts of one ask what its method asks of the tensor together (``Totals``), or
merge slices that are tensors of their own. What a part needs beside its own elements must be nothing.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import explained
from ..methods import get_method
from ..plan.types import OutputTensor, Shard
from .arena import PAGE
from .checksums import BLOCK, Sums
from .context import surveyed
from .files import pwrite
from .needs import scratch_bytes
from .parts import Part, gaps, joined, part_of, recorded, span_of, whole_of

SLACK = 8
"""A rank may have that part of a share more than its share, before tensors are cut into pieces as large as it."""
LEAST = 1 << 20
"""Elements of a piece, at least."""

Page = tuple[int, int]
"""A page of an output file: shard and number."""


def deal(outputs: Sequence[OutputTensor], ranks: int) -> list[list[OutputTensor]]:
    """Cut ``outputs`` into consecutive runs, one for each rank; the largest has as few bytes as that allows.

    Consecutive, so that every rank reads its files forward, and two ranks write into few pages in common.
    """
    if ranks == 1:
        return [list(outputs)]
    costs = list(map(_cost, outputs))
    low, high = max(costs, default=0), sum(costs)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(costs, middle)) <= ranks else (middle + 1, high)
    ends = _cut(costs, low)
    ends += [len(outputs)] * (ranks - len(ends))
    return [list(outputs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def deal_parts(outputs: Sequence[OutputTensor], ranks: int) -> list[list[OutputTensor]]:
    """Do as ``deal``, with large tensors in parts where that leaves one rank with much more than its share.

    Parts of tensors that ranks survey together are the first ones of each run.
    """
    runs = deal(outputs, ranks)
    share = sum(map(_cost, outputs)) / ranks
    if max(sum(map(_cost, run)) for run in runs) <= share + share / SLACK:
        return runs
    pieces = [piece for output in outputs for piece in _pieces(output, share / SLACK)]
    runs = [_in_one(run) for run in deal(pieces, ranks)]
    holders: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        for output in run:
            holders.setdefault(whole_of(output).name, []).append(number)
    runs = [[_held_by(output, holders[whole_of(output).name]) for output in run] for run in runs]
    return [sorted(run, key=lambda output: not surveyed_together(output)) for run in runs]


def from_the_middle(run: Sequence[OutputTensor]) -> list[OutputTensor]:
    """Return a run in the order of its work: embeddings lie at the ends, and while one is surveyed others are written.

    Parts that are surveyed together stay first: ranks wait there for each other.
    """
    shared = sum(map(surveyed_together, run))
    middle = shared + (len(run) - shared) // 2
    return [*run[:shared], *run[middle:], *run[shared:middle]]


def _cost(output: OutputTensor) -> int:
    """Return the bytes that are read and written for an output."""
    whole = whole_of(output)
    stored = sum(part.nbytes for tensor in whole.inputs.every for part in tensor.stored)
    return output.nbytes + (stored if output is whole else stored * output.nbytes // whole.nbytes)


def _pieces(output: OutputTensor, most: float) -> Iterator[OutputTensor]:
    """Yield an output in pieces of ``most`` bytes to read and write, or more where it cannot be cut so."""
    start, stop = span_of(output)
    count = math.ceil(_cost(output) / most)
    grain = _grain(output) if count > 1 else None
    if grain is None:
        yield output
        return
    step = math.ceil(max((stop - start) / count, LEAST) / grain) * grain
    for at in range(start, stop, step):
        yield _part(whole_of(output), at, min(at + step, stop))


def _in_one(run: Sequence[OutputTensor]) -> list[OutputTensor]:
    """Return a run with the neighbours of one tensor put together."""
    found: list[OutputTensor] = []
    for output in run:
        whole, (start, stop) = whole_of(output), span_of(output)
        if found and whole_of(found[-1]) is whole and span_of(found[-1])[1] == start:
            output = _part(whole, span_of(found.pop())[0], stop)
        found.append(output)
    return found


def _held_by(output: OutputTensor, holders: Sequence[int]) -> OutputTensor:
    return replace(output, holders=tuple(holders)) if isinstance(output, Part) else output


def _part(output: OutputTensor, start: int, stop: int) -> OutputTensor:
    return part_of(output, start, stop, _apart(output))


def _grain(output: OutputTensor) -> int | None:
    """Return of how many elements the parts of an output are multiples; None where it stays whole."""
    output = whole_of(output)
    if not all(tensor.plain for tensor in output.inputs.every):
        return None
    if _apart(output):
        return math.lcm(BLOCK, math.prod(output.shape[1:]))
    return BLOCK if scratch_bytes(output) is None else None


def _apart(output: OutputTensor) -> bool:
    """True where a method that takes no parts of an output, or surveys it, takes slices as tensors of their own."""
    group = output.group
    if group is None or not (surveyed(output) or scratch_bytes(output) is not None):
        return False
    method = get_method(output.method)
    return 0 in method.apart(group) and not method.random and not method.censuses(group)


def surveyed_together(output: OutputTensor) -> bool:
    """True for a part of a tensor of which its method asks something, so that all must be surveyed again with it."""
    return isinstance(output, Part) and not _apart(whole_of(output)) and surveyed(output)


def unfinished(outputs: Sequence[OutputTensor], sums: Mapping[str, Sums]) -> list[OutputTensor]:
    """Return what of ``outputs`` has no checksums, which are ``joined``: whole ones, or parts."""
    parts = {whole.name: list(run) for whole, run in itertools.groupby(recorded(outputs, sums), whole_of)}
    left = []
    for output in outputs:
        if output.name not in parts:
            left.append(output)
        else:
            left += [_part(output, *gap) for gap in gaps(output, parts[output.name])]
    return left


def taken_over(outputs: Sequence[OutputTensor], sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Return the checksums, ``joined``, that an earlier run leaves: of parts where the others can do without them."""
    sums = joined(outputs, sums)
    return {output.name: sums[output.name] for output in recorded(outputs, sums) if not surveyed_together(output)}


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

    def __init__(self, folder: str, shards: Sequence[Shard], pages: set[Page]):
        self._paths = [os.path.join(folder, shard.filename) for shard in shards]
        self._shards, self._pages = shards, pages
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
            for start, stop, place in self._shards[shard].places(offset, len(data)):
                pwrite(self._open[shard], data[start:stop], place)

    def __enter__(self) -> Seams:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
