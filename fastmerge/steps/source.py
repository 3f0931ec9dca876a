"""What a merge reads: the inputs of one output tensor, whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """The same range of elements of every input of one output tensor.

    Attributes:
        base:    [...] the base, or None for methods that have none.
        tensors: the other inputs, in the order of the recipe, shaped like ``base``; dtypes may differ.
        offset:  global index of the first element, in the flattened tensor; a multiple of ``kernels.GRID``.
    """

    base: Tensor | None
    tensors: tuple[Tensor, ...]
    offset: int = 0

    @property
    def every(self) -> list[Tensor]:
        """The base, if there is one, and the tensors."""
        return [*([] if self.base is None else [self.base]), *self.tensors]


class Source(Protocol):
    """One output tensor's inputs, or the part of them that this process holds. Surveys may read it several times."""

    @property
    def numel(self) -> int:
        """Elements of the whole tensor, over all chunks and shards."""

    @property
    def whole(self) -> bool:
        """True when ``chunks`` yields one chunk that holds the whole tensor."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks, at least one, in the order of their offsets. Each is valid until the next one is taken."""

    def read(self, start: int, stop: int) -> Chunk | None:
        """Return the elements start .. stop - 1 (one chunk of the grid), or None where another shard holds them.

        The chunk is valid until the next read.
        """

    def reduce(self, state: Tensor) -> Tensor:
        """Add up ``state`` (CPU) over everything that holds a part of the tensor; the identity in one process."""


@dataclass(frozen=True)
class Resident:
    """A source whose tensors are in memory, whole."""

    base: Tensor | None
    tensors: Sequence[Tensor]

    @property
    def numel(self) -> int:
        return self.tensors[0].numel()

    @property
    def whole(self) -> bool:
        return True

    def chunks(self) -> Iterator[Chunk]:
        yield Chunk(self.base, tuple(self.tensors))

    def read(self, start: int, stop: int) -> Chunk:
        base = None if self.base is None else self.base.flatten()[start:stop]
        return Chunk(base, tuple(t.flatten()[start:stop] for t in self.tensors), start)

    def reduce(self, state: Tensor) -> Tensor:
        return state
