"""What a merge reads: the inputs of one output tensor, whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from .inputs import Inputs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunk(Inputs["Tensor"]):
    """The same range of elements of every input of one output tensor; one shape, dtypes may differ.

    ``offset`` is the global index of the first element, in the flattened tensor; a multiple of ``kernels.GRID``.
    """

    offset: int = 0

    @classmethod
    def of(cls, inputs: Inputs[Tensor], offset: int = 0) -> Chunk:
        """Return the chunk that consists of ``inputs``."""
        return cls(inputs.base, inputs.tensors, offset)


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

    def reduce(self, state: np.ndarray) -> np.ndarray:
        """Add up ``state`` over everything that holds a part of the tensor; the identity in one process."""


@runtime_checkable
class Sliced(Source, Protocol):
    """A source of which this process holds slices, and may be asked for chunks that others hold parts of."""

    def masks(self, count: int, draw: Callable[[Chunk], Sequence[Tensor]]) -> tuple[list[Tensor], int]:
        """Return masks of all that this process surveys or holds, and the element that they begin with.

        ``draw`` makes ``count`` masks of a chunk of whole slices, from the multiple of 32 before its first element on.
        A collective call.
        """


@dataclass(frozen=True)
class Resident(Inputs["Tensor"]):
    """A source whose tensors are in memory, whole."""

    @classmethod
    def of(cls, inputs: Inputs[Tensor]) -> Resident:
        """Return the source that consists of ``inputs``."""
        return cls(inputs.base, inputs.tensors)

    @property
    def numel(self) -> int:
        return self.tensors[0].numel()

    @property
    def whole(self) -> bool:
        return True

    def chunks(self) -> Iterator[Chunk]:
        yield Chunk.of(self)

    def read(self, start: int, stop: int) -> Chunk:
        return Chunk.of(self.map(lambda tensor: tensor.flatten()[start:stop]), start)

    def reduce(self, state: np.ndarray) -> np.ndarray:
        return state
