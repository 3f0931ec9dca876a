"""Tensors that lie in pieces, as the ranks of a training run saved them: of which bytes of which file rows consist."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MOST_PIECES = 1 << 16
"""Most pieces of one tensor."""


class Chunk(NamedTuple):
    """A part of a tensor: where it begins and what it measures in elements, and where its bytes lie, row-major."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str
    offset: int


class Piece(NamedTuple):
    """Rows of a joined tensor, cut to some columns: ``rows`` times ``width`` bytes of ``path`` from ``offset`` on."""

    path: str
    offset: int
    row: int
    rows: int
    column: int
    width: int


class Joined(NamedTuple):
    """A tensor in pieces, seen as a matrix of bytes. It has an address as if it lay in a file, behind its last byte.

    Attributes:
        start:  address of its first byte.
        rows:   of the matrix.
        width:  of a row, in bytes.
        pieces: fill the matrix, without holes.
    """

    start: int
    rows: int
    width: int
    pieces: tuple[Piece, ...]

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.width


def join(shape: Sequence[int], itemsize: int, chunks: Sequence[Chunk], start: int) -> Joined:
    """Return a tensor of its chunks, which have no part of size 0.

    Raises:
        ValueError: the chunks leave holes, overlap, or are too many.
    """
    if not _fill(shape, chunks, 0):
        raise ValueError(f"its {len(chunks)} chunks do not fill the shape {list(shape)} exactly")
    split = max((axis for axis, size in enumerate(shape) if any(c.sizes[axis] != size for c in chunks)), default=0)
    inner = math.prod(shape[split + 1 :]) * itemsize
    width = shape[split] * inner if shape else itemsize
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += itertools.islice(_pieces(shape, chunk, split, inner), MOST_PIECES + 1 - len(pieces))
    if len(pieces) > MOST_PIECES:
        raise ValueError(f"it lies in more than {MOST_PIECES} pieces")
    return Joined(start, math.prod(shape[:split]), width, tuple(sorted(pieces, key=lambda p: (p.row, p.column))))


def _pieces(shape: Sequence[int], chunk: Chunk, split: int, inner: int) -> Iterator[Piece]:
    """Yield runs of consecutive rows of a chunk; rows are the dimensions before ``split``."""
    whole = len(shape) == 0
    column, width = (0, inner) if whole else (chunk.offsets[split] * inner, chunk.sizes[split] * inner)
    cut = max((axis for axis in range(split) if chunk.sizes[axis] != shape[axis]), default=0)
    rows = math.prod(chunk.sizes[cut:split])
    strides = [math.prod(shape[axis + 1 : split]) for axis in range(split)]
    first = chunk.offsets[cut] * strides[cut] if split else 0
    offset = chunk.offset
    for index in itertools.product(*(range(o, o + s) for o, s in zip(chunk.offsets[:cut], chunk.sizes, strict=False))):
        row = first + sum(i * stride for i, stride in zip(index, strides, strict=False))
        yield Piece(chunk.path, offset, row, rows, column, width)
        offset += rows * width


def _fill(shape: Sequence[int], chunks: Sequence[Chunk], axis: int) -> bool:
    """True where chunks fill a shape as meshes of devices cut it: along one dimension after the other."""
    if axis == len(shape):
        return len(chunks) == 1
    bands: dict[tuple[int, int], list[Chunk]] = {}
    for chunk in chunks:
        bands.setdefault((chunk.offsets[axis], chunk.sizes[axis]), []).append(chunk)
    at = 0
    for begin, size in sorted(bands):
        if begin != at:
            return False
        at += size
    return at == shape[axis] and all(_fill(shape, own, axis + 1) for own in bands.values())
