"""The files that a merge writes, and the tensors in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...dtypes import DType
from ...methods import Group
from ...steps.inputs import Inputs
from .inputs import InputTensor


@dataclass(frozen=True)
class Entry:
    """A tensor as the header of an output file has it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output.

    Attributes:
        name:   in the output checkpoint.
        dtype:  as written.
        shape:  of the tensor.
        shard:  index into ``Plan.shards``.
        offset: first byte in the shard file (header included).
        nbytes: length in bytes.
        method: name of the merge method, or "copy": the bytes of the single input are taken as they are.
        inputs: with a base for methods that take one.
        group:  what the method is told; None for copies.
        through: dtype to which the result is rounded before it becomes ``dtype``; None rounds once.
        entries: of the file, where they are not the tensor itself: one that it is a part of, or several that it
                 consists of, one behind the other.
        skip:   bytes of the first entry that lie before it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: int
    offset: int
    nbytes: int
    method: str
    inputs: Inputs[InputTensor]
    group: Group | None = None
    through: DType | None = None
    entries: tuple[Entry, ...] = ()
    skip: int = 0

    @property
    def stored(self) -> tuple[Entry, ...]:
        """What the file calls it: mostly one entry of its name."""
        return self.entries or (Entry(self.name, self.dtype, self.shape),)


@dataclass(frozen=True)
class Shard:
    """One output file: its final name, its safetensors header (length prefix included) and its size in bytes."""

    filename: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class TextFile:
    """A small output file given by its text."""

    text: str


@dataclass(frozen=True)
class CopiedFile:
    """A small output file copied from ``path``."""

    path: str
