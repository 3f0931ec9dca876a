"""One item of a ``.distcp`` file: a tensor as torch.save writes it, an archive in the file. Its data is not read."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from ... import dtypes
from ...dtypes import ALL, DType
from ..torch_zip import data_start
from .restricted import Named, read_pickle

_STORAGES = {
    "DoubleStorage": dtypes.float64, "FloatStorage": dtypes.float32, "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16, "LongStorage": dtypes.int64, "IntStorage": dtypes.int32,
    "ShortStorage": dtypes.int16, "CharStorage": dtypes.int8, "ByteStorage": dtypes.uint8,
    "BoolStorage": dtypes.bool_, "ComplexFloatStorage": dtypes.complex64, "UntypedStorage": dtypes.uint8,
}  # fmt: skip
_MOST_PICKLED = 1 << 16


class Item(NamedTuple):
    """Where the elements of a stored tensor lie in the file, what they are, and what tells this item from another.

    Where the item begins is not part of its identity.
    """

    offset: int
    dtype: DType
    shape: tuple[int, ...]
    identity: str


class NotPlain(ValueError):
    """A tensor that is as it was saved, and is not read."""


class _Stored(NamedTuple):
    """A tensor as its pickle describes it: the storage's key, and offset, shape and strides in elements."""

    key: str
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _View(io.RawIOBase):
    """A range of an open file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self._fd, self._start, self._length, self._at = file.fileno(), start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self._at, self._length)[whence]
        if at < 0:
            raise OSError("a place before the start")
        self._at = at
        return at

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._length - self._at, 0)
        data = os.pread(self._fd, left if size is None or size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data


def read_item(file: BinaryIO, offset: int, length: int) -> Item:
    """Return the tensor in ``length`` bytes of ``file`` from ``offset`` on.

    Raises:
        ValueError: damaged, compressed, of another byte order, or no plain contiguous tensor (``NotPlain``).
    """
    if offset + length > os.fstat(file.fileno()).st_size:
        raise ValueError(f"its bytes {offset} to {offset + length} lie behind the end of the file")
    view = _View(file, offset, length)
    try:
        with zipfile.ZipFile(view) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ValueError("it is compressed")
            if "data.pkl" not in members or members["data.pkl"].file_size > _MOST_PICKLED:
                raise ValueError("it is no item of torch.save")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise ValueError("it is not little-endian")
            pickled = archive.read(members["data.pkl"])
        stored = read_pickle(pickled, _NAMES, _storage)
        if not isinstance(stored, _Stored) or f"data/{stored.key}" not in members:
            raise ValueError("it is no tensor")
        member = members[f"data/{stored.key}"]
        start = data_start(view, member)
    except ValueError:
        raise
    except Exception as error:  # zipfile raises whatever it stumbles over
        raise ValueError(f"it is no archive of torch.save: {error}") from error
    first = stored.offset * stored.dtype.itemsize
    nbytes = math.prod(stored.shape) * stored.dtype.itemsize
    if not _contiguous(stored.shape, stored.stride):
        raise NotPlain("holds a tensor that is not contiguous, as .t() leaves it (call .contiguous() before saving)")
    if first + nbytes > member.file_size or start + first + nbytes > length:
        raise ValueError("its elements lie behind its end")
    identity = f"{length} {start + first} {member.file_size} {member.CRC} {stored.dtype} {stored.shape}"
    return Item(offset + start + first, stored.dtype, stored.shape, identity)


def _storage(reference: Any) -> tuple[str, DType]:
    if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
        raise ValueError("it refers to what is no storage")
    kind, key = reference[1], reference[2]
    if not isinstance(kind, DType) or type(key) is not str:
        raise ValueError("its storage is of an unknown kind")
    return key, kind


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> _Stored:
    """Stand for ``_rebuild_tensor_v2``, and for ``_rebuild_tensor_v3``, whose last argument is the dtype."""
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], DType) else None
    numbers = (offset, *shape, *stride)
    if type(storage) is not tuple or len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("its tensor is described in another way")
    return _Stored(storage[0], dtype or storage[1], offset, tuple(shape), tuple(stride))


def _contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= max(size, 1)
    return True


_NAMES: dict[tuple[str, str], Any] = {
    **{(module, name): dtype for module in ("torch", "torch.storage") for name, dtype in _STORAGES.items()},
    **{("torch", name): dtype for name, dtype in ALL.items()},
    ("torch._utils", "_rebuild_tensor_v2"): Named(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Named(_tensor),
    ("torch._utils", "_rebuild_parameter"): Named(lambda tensor, *_: tensor),
    ("collections", "OrderedDict"): Named(dict),
}
