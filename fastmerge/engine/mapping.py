"""Inputs in the page cache, seen in place: a survey that wants a tensor whole needs no copy of it.

Fresh memory for a copy costs more than the arithmetic of a merge. A file that becomes shorter meanwhile, or a disk that
fails, is an error like any other (csrc/cpu/mapped.cpp takes the signal), raised before the tensor counts as finished.
"""

from __future__ import annotations

import threading
from typing import Any

from ..errors import CheckpointError
from ..kernels import cpu_extension, why_no_cpu_extension
from ..plan.types import InputTensor
from .files import InputFiles


class Mapped:
    """A file in the address space: a memory of strips, which nothing is written to."""

    def __init__(self, file: Any):
        self._file = file
        self.bytes, self.address = memoryview(file), file.address

    @property
    def broken(self) -> bool:
        """True when something of it could not be read."""
        return self._file.broken

    def forget(self, offset: int, nbytes: int) -> None:
        """Let a range no longer count as memory of this process; what is read again comes from the page cache."""
        self._file.forget(offset, nbytes)


class InPlace:
    """Those of a run's files that are in the page cache of this machine. They are mapped when they are asked for."""

    def __init__(self, inputs: InputFiles, wanted: bool):
        self._inputs = inputs
        self._wanted = wanted and why_no_cpu_extension() is None
        self._lock = threading.Lock()
        self._mapped: dict[str, Mapped | None] = {}

    def of(self, tensor: InputTensor) -> Mapped | None:
        """Return the file in which the values of a tensor can be seen as they are, or None."""
        if not self._wanted or not tensor.as_stored or tensor.offset % tensor.dtype.itemsize or not tensor.nbytes:
            return None
        path = tensor.path
        if tensor.offset + tensor.nbytes > self._inputs.nbytes(path):  # in pieces
            return None
        with self._lock:
            if path not in self._mapped:
                self._mapped[path] = self._map(path)
            return self._mapped[path]

    def _map(self, path: str) -> Mapped | None:
        if not self._inputs.cached(path) or not self._inputs.local(path):
            return None
        try:
            file = cpu_extension().MappedFile(self._inputs.descriptor(path), self._inputs.nbytes(path))
        except (OSError, RuntimeError):  # of C++, where the system has no more of them
            return None
        return Mapped(file)

    def check(self, tensor: InputTensor, mapped: Mapped) -> None:
        """Raise CheckpointError if something of the file of a tensor could not be read."""
        if mapped.broken:
            self._inputs.check()  # says how the file changed, if it did
            raise CheckpointError(
                f"{tensor.path}: cannot be read: the disk, or its file system, failed at {tensor.name}"
            )
