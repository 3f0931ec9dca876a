"""Output files of torch.distributed.checkpoint: what lies between the values, and the metadata that says where.

Every part of a tensor lies in an archive of torch.save. Tensors have addresses as if they lay one behind the other, as
in a file of safetensors; what torch writes around the values moves them by whole pages, so that direct I/O still works.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from ..checkpoint.distributed import METADATA
from ..checkpoint.distributed.archive import Archive, archive
from ..checkpoint.distributed.chunks import parts_of
from ..checkpoint.distributed.describing import Description
from ..checkpoint.distributed.reading import items_digest
from .layout import ALIGNMENT, Position, Sized, grouped
from .pattern import Pattern
from .types import DataFile, Shard, SmallFile

__all__ = ["lay_out_dcp"]


def lay_out_dcp(
    tensors: Sequence[Sized],
    shard_size: int,
    named: Mapping[str, tuple[str, ...]],
    aliases: Mapping[str, str],
    pattern: Pattern | None = None,
) -> tuple[list[Shard], list[Position], dict[str, SmallFile]]:
    """Fill files with ``tensors`` in their order, as ``lay_out`` does.

    Args:
        named:   the keys that lead to each name in the state.
        aliases: further names of tensors: they lead to the same bytes.
        pattern: a checkpoint whose other items and files are taken over.
    Returns:
        The files of tensors, the address of each, and the other files: what is taken over, and ``.metadata``.
    """
    description = Description()
    names = {tensor.name: [tensor.name] for tensor in tensors}
    for alias, name in aliases.items():
        names[name].append(alias)
    positions = [Position(0, 0)] * len(tensors)
    shards = []
    for number, group in enumerate(grouped(tensors, shard_size)):
        file = _File(f"__0_{number}.distcp", description)
        for i, address in zip(group, accumulate((tensors[i].nbytes for i in group), initial=0), strict=False):
            positions[i] = Position(number, address)
            file.add(tensors[i], [named[name] for name in names[tensors[i].name]], address)
        shards.append(file.shard())
    others: dict[str, SmallFile] = {}
    if pattern is not None:
        others |= pattern.files
        others |= pattern.taken_over(shard_size, description)
    return shards, positions, others | {METADATA: DataFile(description.pickled())}


class _File:
    """A file that is filled."""

    def __init__(self, filename: str, description: Description):
        self._filename, self._description = filename, description
        self._end = 0
        self._around: list[tuple[int, bytes]] = []
        self._moved: list[tuple[int, int]] = []
        self._items: list[tuple[int, str]] = []

    def add(self, tensor: Sized, paths: Sequence[tuple[str, ...]], address: int) -> None:
        """Place a tensor, which has an address, under the names that ``paths`` lead to."""
        parts = parts_of(tensor.shape, tensor.dtype.itemsize)
        for path in paths:
            self._description.tensor(".".join(path), path, tensor.dtype.torch, tensor.shape, parts)
        for part in parts:
            nbytes = math.prod(part.sizes) * tensor.dtype.itemsize
            start, end = self._place(archive(tensor.dtype, part.sizes), address, nbytes)
            address += nbytes
            for path in paths:
                self._description.place(".".join(path), part.offsets, self._filename, start, end - start)

    def _place(self, made: Archive, address: int, nbytes: int) -> tuple[int, int]:
        """Place an archive, and return where it begins and ends."""
        if not nbytes:
            start = self._end
        else:
            values = self._end + len(made.head)
            values += (address - values) % ALIGNMENT
            start = values - len(made.head)
            self._moved.append((address, values - address))
            self._around.append((values + nbytes, made.tail))
            self._items.append((start, made.identity))
        self._around.append((start, made.head))
        self._end = start + len(made.head) + nbytes + len(made.tail)
        return start, self._end

    def shard(self) -> Shard:
        starts, shifts = zip(*self._moved, strict=True) if self._moved else ((0,), (0,))
        digest = items_digest(self._items)
        return Shard(self._filename, b"", self._end, tuple(sorted(self._around)), starts, shifts, digest)
