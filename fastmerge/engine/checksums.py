"""Checksums of output tensors.

The checksum of a tensor is the xxh3-64 of its bytes. A tensor of more than ``BLOCK`` elements is summed
by blocks, so that its parts can be finished in any order and by several threads: the checksum is then
the xxh3-64 of the (big-endian) digests of its blocks of ``BLOCK`` elements. Written as 16 hex digits.

xxh3 runs at memory speed (about 25 GB/s on one core; zlib.crc32 3 GB/s, SHA-256 2 GB/s). It finds
damage, not forgery.
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

NAME = "xxh3-64 by cells of 65536 elements"
BLOCK = 1 << 16


@dataclass(frozen=True)
class Sums:
    """The checksum of an output tensor, and those of the stored tensors that it was made of, in their order."""

    output: str
    inputs: tuple[str, ...] = ()


class Checksum:
    """The checksum of one tensor of ``numel`` elements of ``itemsize`` bytes; parts may be added in any order.

    ``cell`` are the elements that are summed together: ``BLOCK``, or the rows of a tensor that is read row by row.
    """

    def __init__(self, numel: int, itemsize: int, cell: int = BLOCK):
        self._step = cell * itemsize
        self._digests = bytearray(8 * max(1, -(-numel // cell)))

    def add(self, offset: int, data: memoryview) -> None:
        """Add the bytes from ``offset`` on: whole cells, except at the end of the tensor."""
        block = offset // self._step
        for start in range(0, max(len(data), 1), self._step):
            digest = xxhash.xxh3_64_digest(data[start : start + self._step])
            self._digests[8 * block : 8 * block + 8] = digest
            block += 1

    def hex(self) -> str:
        """Return the checksum; every part must have been added."""
        if len(self._digests) == 8:
            return self._digests.hex()
        return xxhash.xxh3_64_hexdigest(bytes(self._digests))


def checksum_of(data: memoryview, itemsize: int) -> str:
    """Return the checksum of a tensor whose bytes are ``data``."""
    if len(data) <= BLOCK * itemsize:
        return xxhash.xxh3_64_hexdigest(data)
    checksum = Checksum(len(data) // itemsize, itemsize)
    checksum.add(0, data)
    return checksum.hex()
