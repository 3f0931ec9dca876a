"""Reader of GGUF headers that trusts nothing: metadata and the places of tensors, no tensor data.

Layout (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts; key-value pairs; for each tensor its name,
dimensions (fastest first), type and offset; then the data, aligned.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ..opening import open_weights
from ..types import InputFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MOST_ITEMS = 1 << 24

# Type: name, elements and bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}  # fmt: skip


class GgufTensor(NamedTuple):
    """Where a tensor lies; ``shape`` is row-major, as torch has it."""

    path: str
    offset: int
    nbytes: int
    kind: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GgufFile:
    """One file: its identity, its metadata, and its tensors by GGUF's names."""

    file: InputFile
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: str) -> GgufFile:
    """Return what the header of a GGUF file says.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, big-endian or of an unknown version.
    """
    try:
        with open_weights(path) as file:
            status = os.fstat(file.fileno())
            if status.st_size < 24:
                raise _damaged(path, f"has {status.st_size} bytes")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data, status)
    except CheckpointError:
        raise
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise _damaged(path, f"ends within its header, or holds no text where it should: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _damaged(path: str, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what} (the GGUF file is corrupt or incomplete: download it again)")


class _Cursor:
    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.scalar("Q")
        if length > len(self.data) - self.at:
            raise _damaged(self.path, f"a text of {length} bytes exceeds the file")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise _damaged(self.path, f"unknown kind of value: {kind}")
        item, count = self.scalar("I"), self.scalar("Q")
        if count > min(MOST_ITEMS, len(self.data) - self.at):
            raise _damaged(self.path, f"a list of {count} values exceeds the file")
        if item in _SCALARS:
            code = f"<{count}{_SCALARS[item]}"
            values = list(struct.unpack_from(code, self.data, self.at))
            self.at += struct.calcsize(code)
            return values
        return [self.value(item, depth + 1) for _ in range(count)]


def _parse(path: str, data: mmap.mmap, status: os.stat_result) -> GgufFile:
    cursor = _Cursor(path, data)
    if data[:4] != MAGIC:
        raise CheckpointError(f"{path}: is no GGUF file (it starts with {bytes(data[:4])!r})")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in VERSIONS:
        what = "is big-endian" if version & 0xFFFF == 0 else f"is GGUF of version {version}"
        raise CheckpointError(f"{path}: {what}; version 2 and 3, little-endian, are read (convert it with llama.cpp)")
    count, pairs = cursor.scalar("Q"), cursor.scalar("Q")
    if max(count, pairs) > len(data):
        raise _damaged(path, f"{count} tensors and {pairs} values exceed the file")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        if key in metadata:
            raise _damaged(path, f"the key {key!r} stands there twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    found = []
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.scalar("I")
        if dimensions > 4:
            raise _damaged(path, f"{name} has {dimensions} dimensions")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
        found.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    digest = hashlib.sha256(data[: cursor.at]).hexdigest()
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(path, f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in found:
        if name in tensors:
            raise _damaged(path, f"the tensor {name!r} stands there twice")
        tensors[name] = _tensor(path, name, shape, kind, start + offset, status.st_size)
    identity = InputFile(path, status.st_size, status.st_mtime_ns, digest)
    return GgufFile(identity, metadata, tensors)


def _tensor(path: str, name: str, shape: tuple[int, ...], kind: int, offset: int, size: int) -> GgufTensor:
    if kind not in TYPES:
        raise CheckpointError(f"{path}: {name} is of GGML's type {kind}, which is not read (take another file)")
    title, elements, nbytes = TYPES[kind]
    if shape and shape[-1] % elements:
        raise _damaged(path, f"{name}: rows of {shape[-1]} are no whole blocks of {title}")
    total = math.prod(shape) // elements * nbytes
    if offset + total > size:
        raise _damaged(path, f"{name} ends at byte {offset + total}, the file has {size}")
    return GgufTensor(path, offset, total, kind, shape)
