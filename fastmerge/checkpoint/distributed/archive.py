"""What ``torch.save`` writes around the values of a tensor: one item of a ``.distcp`` file, before there are any."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import torch

from ...dtypes import DType
from ...errors import FastmergeError
from .items import read_item

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Archive", "archive"]


class Archive(NamedTuple):
    """An item without its values.

    Attributes:
        head, tail: the bytes before the values and behind them.
        identity: as ``items.Item`` has it.
    """

    head: bytes
    tail: bytes
    identity: str


class _Around(io.RawIOBase):
    """A file that keeps what is written to it, and leaves out what is passed over: the values."""

    def __init__(self) -> None:
        self.parts, self.skipped = [bytearray()], 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        self.parts[-1] += memoryview(data)
        return memoryview(data).nbytes

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_CUR:
            raise io.UnsupportedOperation("torch.save goes forward only")
        self.skipped += offset
        self.parts.append(bytearray())
        return self.tell()

    def tell(self) -> int:
        return sum(map(len, self.parts)) + self.skipped


@functools.lru_cache(maxsize=4096)
def archive(dtype: DType, shape: Sequence[int]) -> Archive:
    """Return what torch itself writes of a contiguous tensor, a few hundred bytes on either side of its values.

    The sums of the values in it (CRC-32, by zip) are 0: torch does not look at them, and may leave them out itself
    (``torch.serialization.set_crc32_options``).

    Raises:
        FastmergeError: the torch that is installed cannot, or writes in another way.
    """
    try:
        from torch.serialization import skip_data
    except ImportError:
        raise FastmergeError(
            f"torch {torch.__version__} cannot lay out checkpoints before their values are there, which 2.6 and later "
            "can; merge into the hub's layout, then run fastmerge convert OUT STEP --to dcp"
        ) from None
    around = _Around()
    values = torch.empty(tuple(shape), dtype=dtype.torch)  # never touched, so it takes no memory
    with skip_data():
        torch.save(values, cast("IO[bytes]", around))
    head, tail = around.parts if values.nbytes else (around.parts[0], b"")
    with open(os.memfd_create("archive"), "w+b") as file:  # sparse
        file.write(head)
        file.seek(values.nbytes, io.SEEK_CUR)
        file.write(tail)
        file.flush()
        item = read_item(file, 0, around.tell())
    if (item.dtype, item.shape) != (dtype, tuple(shape)) or (values.nbytes and item.offset != len(head)):
        raise FastmergeError(f"torch {torch.__version__} saves a tensor in another way than its reader expects")
    return Archive(bytes(head), bytes(tail), item.identity)
