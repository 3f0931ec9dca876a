"""Reading tensors that lie in pieces of files: only the bytes that are asked for, each once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .joined import Joined, Piece

# Narrower pieces are read many rows at a time, into a buffer of so many bytes, and put in their places from there.
_DIRECT = 1 << 16
_BUFFER = 1 << 18

Read = Callable[[str, int, memoryview], None]


def read_joined(layout: Sequence[Joined], address: int, into: memoryview, read: Read) -> None:
    """Fill ``into`` with the bytes from ``address`` on, of tensors of ``layout`` (by address) one behind the other."""
    i, done = bisect_right(layout, address, key=lambda item: item.start) - 1, 0
    while done < len(into):
        stop = min(len(into), layout[i].stop - address)
        _read_one(layout[i], address + done, into[done:stop], read)
        i, done = i + 1, stop


def _read_one(tensor: Joined, address: int, into: memoryview, read: Read) -> None:
    begin, width = address - tensor.start, tensor.width
    at, stop = begin, begin + len(into)
    while at < stop:
        row, column = divmod(at, width)
        whole = 0 if column else (stop - at) // width
        end = at + whole * width if whole else min(stop, (row + 1) * width)
        part = into[at - begin : end - begin]
        if whole:
            _rows(tensor, row, whole, part, read)
        else:
            _row(tensor, row, column, part, read)
        at = end


def _row(tensor: Joined, row: int, column: int, into: memoryview, read: Read) -> None:
    """Read a part of one row."""
    stop = column + len(into)
    for piece in _reaching(tensor, row, 1):
        start, end = max(column, piece.column), min(stop, piece.column + piece.width)
        if start < end:
            offset = piece.offset + (row - piece.row) * piece.width + start - piece.column
            read(piece.path, offset, into[start - column : end - column])


def _rows(tensor: Joined, row: int, count: int, into: memoryview, read: Read) -> None:
    """Read whole rows."""
    width = tensor.width
    out = np.frombuffer(into, dtype=np.uint8).reshape(count, width)
    for piece in _reaching(tensor, row, count):
        start, stop = max(row, piece.row), min(row + count, piece.row + piece.rows)
        offset = piece.offset + (start - piece.row) * piece.width
        if piece.width == width:
            read(piece.path, offset, into[(start - row) * width : (stop - row) * width])
            continue
        if piece.width >= _DIRECT:
            for each in range(start, stop):
                begin = (each - row) * width + piece.column
                read(piece.path, offset + (each - start) * piece.width, into[begin : begin + piece.width])
            continue
        step = _BUFFER // piece.width
        buffer = np.empty(min(step, stop - start) * piece.width, dtype=np.uint8)
        for each in range(start, stop, step):
            rows = min(step, stop - each)
            held = buffer[: rows * piece.width]
            read(piece.path, offset + (each - start) * piece.width, held.data)
            columns = slice(piece.column, piece.column + piece.width)
            out[each - row : each - row + rows, columns] = held.reshape(rows, piece.width)


def _reaching(tensor: Joined, row: int, count: int) -> Iterator[Piece]:
    """Yield the pieces that hold something of the rows."""
    for piece in tensor.pieces:
        if piece.row >= row + count:
            return
        if row < piece.row + piece.rows:
            yield piece
