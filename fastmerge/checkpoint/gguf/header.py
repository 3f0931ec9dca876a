"""Reader of GGUF headers that trusts nothing: metadata and the places of tensors, no tensor data.

Layout (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts; key-value pairs; for each tensor its name,
dimensions (fastest first), type and offset; then the data, aligned.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from ...errors import CheckpointError
from ..opening import open_weights
from ..placeholders import placeholder
from ..types import InputFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MOST_BYTES = 128 << 20
"""Longest header that is read: the vocabularies in them have up to 20 MB."""
MOST_ITEMS = 1 << 21
"""Most tensors, keys and values of lists together; vocabularies have 300,000 tokens and as many merges."""

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
    """One file: its identity, its metadata, and its tensors by GGUF's names.

    In ``metadata``, a list is a list of numbers or of texts.
    """

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
            return _parse(path, file)
    except CheckpointError:
        raise
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(path, f"its header is not what GGUF has: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'cannot be read: {error.strerror}'}") from error


def _damaged(path: str, what: str) -> CheckpointError:
    instead = placeholder(path)
    if instead is not None:
        return CheckpointError(f"{path}: {instead}")
    return CheckpointError(f"{path}: {what} (the GGUF file is corrupt or incomplete: download it again)")


class _Cursor:
    """Reads a header from its start, a piece of the file at a time."""

    def __init__(self, path: str, file: BinaryIO):
        self.path, self.file, self.at, self.items = path, file, 0, 0
        self.size = os.fstat(file.fileno()).st_size
        self.most = min(MOST_BYTES, self.size)
        self.data = bytearray()

    def take(self, nbytes: int) -> int:
        """Move behind the next bytes, which are then in ``data``; return where they begin."""
        at, stop = self.at, self.at + nbytes
        if stop > self.most:
            limit = f"the {self.size} of the file" if self.most == self.size else f"the {MOST_BYTES} that are read"
            raise _damaged(self.path, f"its header needs {stop} bytes, more than {limit}")
        while stop > len(self.data):
            wanted = max(stop, 2 * len(self.data), 1 << 16)
            piece = self.file.read(min(wanted, self.most) - len(self.data))
            if not piece:
                raise _damaged(self.path, f"ends at byte {len(self.data)}, within its header")
            self.data += piece
        self.at = stop
        return at

    def scalar(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        length = self.scalar("Q")
        start = self.take(length)
        return self.data[start : start + length].decode("utf-8")

    def count(self, what: str) -> int:
        count: int = self.scalar("Q")
        self.items += count
        if self.items > MOST_ITEMS:
            raise _damaged(self.path, f"{count} {what} are more than the {MOST_ITEMS} items that are read")
        return count

    def value(self) -> Any:
        kind = self.scalar("I")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        item = self.scalar("I") if kind == _ARRAY else None
        if item in _SCALARS:
            code = f"<{self.count('values of a list')}{_SCALARS[item]}"
            return list(struct.unpack_from(code, self.data, self.take(struct.calcsize(code))))
        if item == _STRING:
            return [self.text() for _ in range(self.count("values of a list"))]
        raise _damaged(self.path, f"unknown kind of value: {kind if item is None else f'a list of {item}'}")


def _parse(path: str, file: BinaryIO) -> GgufFile:
    cursor = _Cursor(path, file)
    start = cursor.take(4)
    magic = bytes(cursor.data[start : start + 4])
    if magic != MAGIC:
        raise CheckpointError(f"{path}: {placeholder(path) or f'is no GGUF file (it starts with {magic!r})'}")
    version = cursor.scalar("I")
    if version not in VERSIONS:
        what = "is big-endian" if version & 0xFFFF == 0 else f"is GGUF of version {version}"
        raise CheckpointError(f"{path}: {what}; version 2 and 3, little-endian, are read (convert it with llama.cpp)")
    count, pairs = cursor.count("tensors"), cursor.count("keys")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        if key in metadata:
            raise _damaged(path, f"the key {key!r:.100} stands there twice")
        metadata[key] = cursor.value()
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name, dimensions = cursor.text(), cursor.scalar("I")
        if dimensions > 4 or name in found:
            what = "stands there twice" if name in found else f"has {dimensions} dimensions"
            raise _damaged(path, f"the tensor {name!r:.100} {what}")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
        found[name] = shape, cursor.scalar("I"), cursor.scalar("Q")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(path, f"general.alignment is {alignment!r:.50}, no power of two")
    data = -(-cursor.at // alignment) * alignment
    tensors = {
        name: _tensor(path, name, shape, kind, data + offset, cursor.size)
        for name, (shape, kind, offset) in found.items()
    }
    _check_apart(path, tensors)
    status = os.fstat(file.fileno())
    digest = hashlib.sha256(memoryview(cursor.data)[: cursor.at]).hexdigest()
    return GgufFile(InputFile(path, status.st_size, status.st_mtime_ns, digest), metadata, tensors)


def _tensor(path: str, name: str, shape: tuple[int, ...], kind: int, offset: int, size: int) -> GgufTensor:
    if kind not in TYPES:
        raise CheckpointError(f"{path}: {name!r:.100} is of GGML's type {kind}, which is not read (take another file)")
    title, elements, nbytes = TYPES[kind]
    if (shape[-1] if shape else 1) % elements:
        raise _damaged(path, f"{name!r:.100}: shape {list(shape)} is not made of whole blocks of {title}")
    total = math.prod(shape) // elements * nbytes
    if offset + total > size:
        raise _damaged(path, f"{name!r:.100} ends at byte {offset + total}, the file has {size}")
    return GgufTensor(path, offset, total, kind, shape)


def _check_apart(path: str, tensors: dict[str, GgufTensor]) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.nbytes and tensor.offset < end:
            raise _damaged(path, f"{name!r:.100} begins at byte {tensor.offset}, within {before!r:.100}")
        if tensor.nbytes:
            end, before = tensor.offset + tensor.nbytes, name
