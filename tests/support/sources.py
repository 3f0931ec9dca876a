"""Sources for tests: a tensor in chunks whose buffers are recycled, and a tensor cut over two shards in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmerge.kernels import GRID
from fastmerge.steps.source import Chunk


@dataclass
class Chunked:
    """A source that yields ``cells`` cells of the grid at a time and spoils a chunk when the next one is taken.

    ``span`` limits it to a range of cells, as one shard of several; ``all_reduce`` adds up over them.
    """

    base: Tensor | None
    tensors: Sequence[Tensor]
    cells: int = 1
    span: tuple[int, int] | None = None
    all_reduce: Callable[[Tensor], Tensor] = field(default=lambda state: state)

    whole = False

    @property
    def numel(self) -> int:
        return self.tensors[0].numel()

    def chunks(self) -> Iterator[Chunk]:
        first, last = self.span or (0, max(1, -(-self.numel // GRID)))
        for cell in range(first, last, self.cells):
            chunk = self._copy(cell * GRID, min((cell + self.cells) * GRID, last * GRID, self.numel))
            yield chunk
            for tensor in chunk.every:
                tensor.fill_(float("nan"))

    def read(self, start: int, stop: int) -> Chunk | None:
        if self.span is not None and not self.span[0] * GRID <= start < self.span[1] * GRID:
            return None
        return self._copy(start, stop)

    def reduce(self, state: Tensor) -> Tensor:
        return self.all_reduce(state)

    def _copy(self, start: int, stop: int) -> Chunk:
        base = None if self.base is None else self.base.flatten()[start:stop].clone()
        return Chunk(base, tuple(t.flatten()[start:stop].clone() for t in self.tensors), start)


def run_sharded(base: Tensor | None, tensors: Sequence[Tensor], cut: int, run: Callable[[Chunked], object]) -> list:
    """Call ``run`` on two shards, cut after ``cut`` cells of the grid, in two threads that reduce together."""
    total = -(-tensors[0].numel() // GRID)
    assert 0 < cut < total
    barrier = threading.Barrier(2, timeout=600)
    states: list[Tensor] = [torch.empty(0)] * 2
    results: list = [None, None]

    def shard(rank: int) -> None:
        def all_reduce(state: Tensor) -> Tensor:
            states[rank] = state
            barrier.wait()
            reduced = states[0] + states[1]
            barrier.wait()
            return reduced

        span = (0, cut) if rank == 0 else (cut, total)
        try:
            results[rank] = run(Chunked(base, tensors, 2, span, all_reduce))
        except BaseException as error:
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=shard, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    return results
