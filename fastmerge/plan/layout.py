"""Output files: which tensor lies in which shard at which byte, and the headers and index that say so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..checkpoint import DTYPES
from ..checkpoint.safetensors_header import header_digest
from ..dtypes import DType
from .types import Shard

ALIGNMENT = 4096
"""Tensor data of a shard starts at a multiple of this, so that direct I/O needs no copy of the whole file."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Sized(NamedTuple):
    """A tensor that needs a place. One that is ``joined`` lies right behind the one before, in the same file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int
    joined: bool = False


class Position(NamedTuple):
    """Where it lies: the number of the shard and the byte in that file."""

    shard: int
    offset: int


def lay_out(
    tensors: Sequence[Sized], shard_size: int, aliases: Mapping[str, str] | None = None
) -> tuple[list[Shard], list[Position], str | None]:
    """Fill shards with ``tensors`` in their order. A tensor larger than ``shard_size`` gets a shard of its own.

    Args:
        aliases: further names of tensors, which the metadata of their shard keeps.
    Returns:
        The shards, the place of each tensor, and the text of the index (None for a single file).
    """
    groups = grouped(tensors, shard_size)
    shards: list[Shard] = []
    positions: list[Position] = [Position(0, 0)] * len(tensors)
    weight_map = {}
    for number, group in enumerate(groups):
        filename = (
            f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else "model.safetensors"
        )
        names = {tensors[i].name for i in group}
        own = {alias: name for alias, name in (aliases or {}).items() if name in names}
        entries: dict[str, object] = {"__metadata__": own | {"format": "pt"}}
        end = 0
        for i in group:
            tensor = tensors[i]
            begin, end = end, end + tensor.nbytes
            positions[i] = Position(number, begin)
            entries[tensor.name] = {
                "dtype": _DTYPE_NAMES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": (begin, end),
            }
            weight_map[tensor.name] = filename
        header = _header(entries)
        for i in group:
            positions[i] = Position(number, len(header) + positions[i].offset)
        shards.append(Shard(filename, header, len(header) + end, digest=header_digest(header[8:])))
    if len(groups) == 1:
        return shards, positions, None
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": weight_map}
    return shards, positions, json.dumps(index, indent=2, sort_keys=True) + "\n"


def grouped(tensors: Sequence[Sized], shard_size: int) -> list[list[int]]:
    """Return the numbers of the tensors of each file, wider dtypes first, so that each is aligned to its elements."""
    groups: list[list[int]] = [[]]
    filled = 0
    for block in _blocks(tensors):
        nbytes = sum(tensors[i].nbytes for i in block)
        if groups[-1] and filled + nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1] += block
        filled += nbytes
    for group in groups:
        group.sort(key=lambda i: -tensors[i].dtype.itemsize)
    return groups


def _blocks(tensors: Sequence[Sized]) -> Iterator[list[int]]:
    """Yield the numbers of tensors that lie in one file."""
    block: list[int] = []
    for i, tensor in enumerate(tensors):
        if block and not tensor.joined:
            yield block
            block = []
        block.append(i)
    if block:
        yield block


def _header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    length = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    return length.to_bytes(8, "little") + text.ljust(length)
