"""The small files of an output, as they are known before a merge."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, ClassVar, NamedTuple, cast

from ...errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TextFile:
    """A small output file given by its text."""

    sources: ClassVar[tuple[str, ...]] = ()

    text: str

    def open(self) -> BinaryIO:
        return io.BytesIO(self.text.encode())


@dataclass(frozen=True)
class DataFile:
    """A small output file given by its bytes."""

    sources: ClassVar[tuple[str, ...]] = ()

    data: bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class CopiedFile:
    """A small output file copied from ``path``."""

    path: str

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.path,)

    def open(self) -> BinaryIO:
        return open(self.path, "rb")


class Range(NamedTuple):
    """Bytes of another file."""

    path: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class PiecedFile:
    """An output file of pieces, one behind the other: bytes, or what lies in other files. It need not be small."""

    pieces: tuple[bytes | Range, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(piece.path for piece in self.pieces if isinstance(piece, Range)))

    def open(self) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Reader(_blocks(self.pieces)), _AT_ONCE))


SmallFile = TextFile | DataFile | CopiedFile | PiecedFile
"""Each has ``open``, and ``sources``: the paths of what is copied into it."""


def _blocks(pieces: Sequence[bytes | Range]) -> Iterator[bytes]:
    for piece in pieces:
        if not isinstance(piece, Range):
            yield piece
            continue
        with open(piece.path, "rb") as source:
            source.seek(piece.offset)
            left = piece.nbytes
            while left:
                block = source.read(min(left, _AT_ONCE))
                if not block:
                    raise CheckpointError(f"{piece.path}: ends {left} bytes before its last item (copy it again)")
                left -= len(block)
                yield block


class _Reader(io.RawIOBase):
    """Blocks as a file."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        into = memoryview(buffer).cast("B")
        while not self._left and (block := next(self._blocks, None)) is not None:
            self._left = memoryview(block)
        count = min(len(into), len(self._left))
        into[:count], self._left = self._left[:count], self._left[count:]
        return count
