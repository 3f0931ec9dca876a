"""The files that a merge writes, and the tensors in them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...checkpoint.distributed.tables import NameTable
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
        offset: its address in the shard: the first byte in the file, where the shard does not say otherwise.
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
    """One output file.

    Attributes:
        filename: its final name.
        header:   its first bytes, safetensors' own (length prefix included); empty for a file of DCP.
        nbytes:   its size.
        around:   what is known of it besides: where bytes lie, and which.
        starts, shifts: addresses from ``starts[i]`` on lie ``shifts[i]`` bytes further on in the file, since ``around``
                  lies between tensors and their parts; none where every byte lies at its address.
        digest:   of what the file says of its tensors, as ``InputFile.header_digest``.
    """

    filename: str
    header: bytes
    nbytes: int
    around: tuple[tuple[int, bytes], ...] = ()
    starts: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()
    digest: str = ""

    @property
    def known(self) -> Iterator[tuple[int, bytes]]:
        """Where bytes lie that are known before the merge, and which."""
        if self.header:
            yield 0, self.header
        yield from self.around

    def places(self, address: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield where the bytes from ``address`` on lie: the first and the last of a run, and its place in the file."""
        if not self.starts:
            yield 0, nbytes, address
            return
        i, done = bisect_right(self.starts, address) - 1, 0
        while done < nbytes:
            end = self.starts[i + 1] - address if i + 1 < len(self.starts) else nbytes
            stop = min(nbytes, end)
            yield done, stop, address + done + self.shifts[i]
            i, done = i + 1, stop


@dataclass(frozen=True)
class AsState:
    """What is asked of an output of torch.distributed.checkpoint.

    Attributes:
        key:  what leads to the model in its state, with dots, "" for nothing; None is that of ``like``, else "model".
        like: a checkpoint of the same model whose names are taken, and what it holds beside the model.
    """

    key: str | None = None
    like: str | None = None


@dataclass(frozen=True)
class TrainingState:
    """How an output of torch.distributed.checkpoint names its tensors.

    Attributes:
        key:     what leads to the model in the state, with dots; "" where nothing does.
        names:   the table by which they have other names than in the plan.
        aliases: further names, in the plan's way, of tensors that are stored once, such as a tied head.
        like:    the checkpoint whose names and other items are taken over.
    """

    key: str
    names: NameTable | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    like: str | None = None
