"""What the system says of a file: which pages are in the page cache, and whether it lies on this machine."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np

libc = ctypes.CDLL(None, use_errno=True)

# Of statfs(2): file systems of other machines, whose clients read ahead better than we do.
_REMOTE = {
    0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x65735546, 0x0BD00BD0, 0x00C36400, 0x01021997, 0x47504653, 0x19830326,
    0x5346414F, 0x7461636F,
}  # fmt: skip


def is_local(fd: int) -> bool:
    """Return True where an open file is known to lie on this machine."""
    status = ctypes.create_string_buffer(256)
    return libc.fstatfs(fd, status) == 0 and int.from_bytes(status.raw[:4], sys.byteorder) not in _REMOTE


def resident(fd: int, path: str, nbytes: int, places: Sequence[int]) -> int:
    """Return how many of the bytes at some places of an open file are in the page cache.

    Raises:
        OSError, ValueError: the system cannot tell, or the file is shorter than that.
    """
    if os.access(path, os.W_OK) or os.fstat(fd).st_uid == os.geteuid():
        with mmap.mmap(fd, nbytes, prot=mmap.PROT_READ) as view:
            first, state = np.frombuffer(view, np.uint8).ctypes.data, ctypes.c_ubyte()
            count = 0
            for place in places:
                page = ctypes.c_void_p(first + place // mmap.PAGESIZE * mmap.PAGESIZE)
                if libc.mincore(page, ctypes.c_size_t(1), ctypes.byref(state)):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
                count += state.value & 1
        return count
    # Of files of others mincore(2) tells nothing. What this finds missing, the system may begin to read.
    count = 0
    for place in places:
        with contextlib.suppress(BlockingIOError):
            count += os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT)
    return count
