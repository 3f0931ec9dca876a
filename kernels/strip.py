"""Strips: elements in the host's memory, for work that needs no torch.

A strip has the few methods of ``torch.Tensor`` that operations, surveys and applies use, and every operation with a
compiled backend for the processor takes strips in the place of tensors; annotations say ``Tensor`` for both. What
computes with elements itself sees them through ``numpy()``, as it does those of a tensor of the processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastmerge.dtypes import ALL, DType

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Memory", "Strip", "as_strip", "empty", "on_host", "zeros"]


class Memory(Protocol):
    """Bytes of the host, which stay in place as long as the object lives; ``address`` is that of the first."""

    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> memoryview: ...


class _Device(SimpleNamespace):
    def __str__(self) -> str:
        return self.type


class Strip:
    """Elements that lie side by side in a memory, in row-major order; it keeps the memory alive.

    Attributes:
        dtype: of the elements.
        shape: sizes, as of a tensor.
        start: first byte in the memory.
    """

    __slots__ = ("_memory", "_numel", "dtype", "shape", "start")

    device = _Device(type="cpu")

    def __init__(self, memory: Memory, start: int, dtype: DType, shape: tuple[int, ...]):
        self._memory, self.start, self.dtype, self.shape = memory, start, dtype, shape
        self._numel = math.prod(shape)

    def data_ptr(self) -> int:
        return self._memory.address + self.start

    def numel(self) -> int:
        return self._numel

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self._numel * self.dtype.itemsize

    def dim(self) -> int:
        return len(self.shape)

    def is_contiguous(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def view(self, *shape: int) -> Strip:
        """Return the same elements in another shape; one size may be -1."""
        if -1 in shape:
            known = math.prod(size for size in shape if size != -1)
            shape = tuple(self._numel // known if size == -1 else size for size in shape)
        if math.prod(shape) != self._numel:
            raise ValueError(f"{self._numel} elements have no shape {shape}")
        return Strip(self._memory, self.start, self.dtype, shape)

    def flatten(self) -> Strip:
        return Strip(self._memory, self.start, self.dtype, (self._numel,))

    def view_as(self, other: Strip) -> Strip:
        return self.view(*other.shape)

    def __getitem__(self, rows: slice) -> Strip:
        """Return consecutive rows: elements, where there is one dimension."""
        first, last, _ = rows.indices(self.shape[0])
        shape = (max(last - first, 0), *self.shape[1:])
        return Strip(self._memory, self.start + first * math.prod(shape[1:]) * self.itemsize, self.dtype, shape)

    def split(self, size: int) -> list[Strip]:
        """Return runs of ``size`` rows, the last one shorter; one at least."""
        return [self[first : first + size] for first in range(0, max(len(self), 1), size)]

    def memory(self) -> memoryview:
        """Return the bytes."""
        return self._memory.bytes[self.start : self.start + self.nbytes]

    def numpy(self) -> np.ndarray:
        """Return the elements as an array on the same memory; TypeError for types that numpy does not have."""
        kind = np.dtype(self.dtype.name)
        return np.frombuffer(self._memory.bytes, kind, self._numel, self.start).reshape(self.shape)


class _Own:
    """The memory of an array."""

    def __init__(self, array: np.ndarray):
        self.address, self.bytes = array.ctypes.data, array.reshape(-1).view(np.uint8).data


def as_strip(values: Tensor | np.ndarray) -> Tensor:
    """Return an array of numpy as a strip on the same memory, anything else as it is."""
    made: Any = values
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)
        made = Strip(_Own(values), 0, ALL[values.dtype.name], values.shape)
    return made


def empty(like: Tensor, dtype: DType, *shape: int) -> Tensor:
    """Return new memory where ``like`` lies, a tensor or a strip as it is, without values."""
    if type(like) is Strip:
        return as_strip(np.empty(shape, dtype.name))
    return like.new_empty(shape, dtype=dtype.torch)


def zeros(like: Tensor, dtype: DType, *shape: int) -> Tensor:
    """Return zeros as ``empty`` does."""
    return as_strip(np.zeros(shape, dtype.name)) if type(like) is Strip else like.new_zeros(shape, dtype=dtype.torch)


def on_host(table: Tensor | np.ndarray | Sequence) -> np.ndarray:
    """Return a table of the host or of a device as an array."""
    if hasattr(table, "detach"):
        table = table.detach().cpu()
    return table.numpy() if hasattr(table, "numpy") else np.asarray(table)
