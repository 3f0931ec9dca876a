"""For which GPUs a file of CUDA kernels holds code: read from the file itself, since no driver need be here.

nvcc puts the code of all architectures behind each other, each with a header of its own ("fatbin"): magic number,
version, length of the header (16 bits each), bytes that follow. Every part begins with its kind (1: intermediate code,
PTX; 2: machine code), and has the length of its header, its bytes, and, 28 bytes on, the architecture (90 for 9.0).
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator

__all__ = ["architectures"]

_MAGIC = struct.pack("<I", 0xBA55ED50)
_HEAD, _PART = struct.Struct("<IHHQ"), struct.Struct("<HHIQIIHHI")
_PTX, _MACHINE = 1, 2


def architectures(path: str) -> tuple[list[int], list[int]]:
    """Return for which architectures a file holds machine code, and for which intermediate code; rising.

    What fewer than half of the files that were compiled have is of a library that was linked, such as CUDA's runtime.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        counts = Counter(_parts(data))
    most = max(counts.values(), default=0)
    own = [part for part, count in counts.items() if 2 * count >= most]
    machine, intermediate = (sorted(arch for kind, arch in own if kind == wanted) for wanted in (_MACHINE, _PTX))
    return machine, intermediate


def _parts(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield kind and architecture of every part."""
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _HEAD.size:
        _, _, head, nbytes = _HEAD.unpack_from(data, at)
        at += max(head, _HEAD.size)  # these may be other bytes than a header
        end = min(at + nbytes, len(data))
        while at + _PART.size <= end:
            kind, _, head, size, *_, arch = _PART.unpack_from(data, at)
            if kind not in (_PTX, _MACHINE) or not head:
                break
            yield kind, arch
            at += head + size
        at = data.find(_MAGIC, max(at, end) if end < len(data) else len(data))
