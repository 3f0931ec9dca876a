"""A safetensors file whose tensors are written one after the other, before it is known how large they are.

The header comes first in the file, so room for it is kept: it is never longer than with the largest shapes that are
possible, and what is left of the room is filled with spaces, which the format allows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import DTYPES
from ..dtypes import DType

__all__ = ["FactorsFile"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Largest shape, and dtype.
Kind = tuple[tuple[int, ...], DType]


class FactorsFile:
    """Writes ``path``. ``largest`` holds every tensor that may come, with its largest shape."""

    def __init__(self, path: Path, largest: Mapping[str, Kind]):
        self._path = path
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = sum(_nbytes(shape, dtype) for shape, dtype in largest.values())
        for name, (shape, dtype) in largest.items():
            header[name] = _entry(shape, dtype, end, end)
        length = len(_encoded(header))
        self._room = length + -length % 8
        self._header: dict[str, object] = {"__metadata__": header["__metadata__"]}
        self._end = 0

    def __enter__(self) -> FactorsFile:
        self._file = open(self._path, "wb")
        self._file.write(bytes(8 + self._room))
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def begin(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        """Enter the next tensor; ``write`` adds its elements."""
        end = self._end + _nbytes(shape, dtype)
        self._header[name] = _entry(shape, dtype, self._end, end)
        self._end = end

    def write(self, data: Tensor) -> None:
        """Append the elements of a contiguous tensor."""
        self._file.write(data.reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Write the header. What was not entered is not in the file."""
        self._file.seek(0, os.SEEK_SET)
        self._file.write(self._room.to_bytes(8, "little") + _encoded(self._header).ljust(self._room))


def _nbytes(shape: tuple[int, ...], dtype: DType) -> int:
    return dtype.itemsize * math.prod(shape)


def _entry(shape: tuple[int, ...], dtype: DType, begin: int, end: int) -> dict[str, object]:
    return {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}


def _encoded(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()
