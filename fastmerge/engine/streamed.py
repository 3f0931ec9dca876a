"""The source of a survey that comes chunk by chunk, of a tensor or of the part of it that this rank has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..steps.source import Chunk


class Streamed:
    """Elements of a tensor that are read where they are asked for.

    Args:
        read:  returns the elements from one to before another, valid until the next call.
        numel: of the whole tensor.
        span:  the elements that are here.
        step:  elements of a chunk.
        add:   adds up what all have that hold a part; None where ``span`` is everything.
    """

    whole = False

    def __init__(
        self,
        read: Callable[[int, int], Chunk],
        numel: int,
        span: range,
        step: int,
        add: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._read, self.numel, self._span, self._step, self._add = read, numel, span, step, add

    def chunks(self) -> Iterator[Chunk]:
        for start in self._span[:: self._step]:
            yield self._read(start, min(start + self._step, self._span.stop))

    def read(self, start: int, stop: int) -> Chunk | None:
        return self._read(start, stop) if start in self._span else None

    def reduce(self, state: np.ndarray) -> np.ndarray:
        return state if self._add is None else self._add(state)
