"""From a DCP folder to a checkpoint: every tensor of the model, whole or in pieces, at its place in the files."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from typing import Any

from ...dtypes import DType
from ...errors import CheckpointError
from ..joined import Chunk, Joined, join
from ..opening import open_weights
from ..placeholders import placeholder
from ..types import Checkpoint, InputFile, TensorEntry, in_order
from . import METADATA, with_key
from .items import Item, NotPlain, read_item
from .metadata import StoredChunk, StoredTensor, read_metadata
from .naming import choose

PAGE = 4096
_AGAIN = "the checkpoint is damaged or incomplete: copy or save it again"


def open_dcp(folder: str, key: str | None, config: dict[str, Any] | None) -> Checkpoint:
    """Read the metadata of a DCP folder, and the descriptions of the model's tensors in its files.

    Raises:
        CheckpointError: damaged, incomplete, without a model, or with several and no ``key``.
    """
    path = os.path.join(folder, METADATA)
    stored = read_metadata(path)
    chosen = choose(folder, stored.tensors, key)
    status = os.stat(path)
    items, files = _items(folder, (chunk for tensor in chosen.values() for chunk in tensor.chunks))
    starts = _starts(stored.tensors.values(), status.st_size)
    layout: list[Joined] = []
    tensors: dict[str, TensorEntry] = {}
    for name, tensor in chosen.items():
        dtype = tensor.dtype
        if not isinstance(dtype, DType):
            raise CheckpointError(f"{path}: {name} is {dtype}, which no model has (leave it out of the checkpoint)")
        chunks = [_chunk(folder, name, tensor, dtype, chunk, items[_place(chunk)]) for chunk in tensor.chunks]
        tensors[name] = entry_of(path, name, tensor.shape, dtype, chunks, starts[id(tensor)], layout)
    own = InputFile(
        path, status.st_size, status.st_mtime_ns, hashlib.sha256(stored.data).hexdigest(), joined=tuple(layout)
    )
    source = with_key(folder, key) if key else ""
    return Checkpoint(folder, (own, *files), in_order(tensors), config, source=source)


def _starts(tensors: Iterable[StoredTensor], size: int) -> dict[int, int]:
    """Return an address behind ``size`` for each tensor, by its ``id``: the same one whichever key is opened."""
    starts = {}
    for tensor in tensors:
        starts[id(tensor)] = size = -(-size // PAGE) * PAGE
        size += math.prod(tensor.shape) * (tensor.dtype.itemsize if isinstance(tensor.dtype, DType) else 0)
    return starts


def entry_of(
    path: str, name: str, shape: tuple[int, ...], dtype: DType, chunks: list[Chunk], size: int, layout: list[Joined]
) -> TensorEntry:
    """Return where a tensor lies; one in pieces gets an address in ``path`` behind its ``size`` bytes, and a layout."""
    nbytes = math.prod(shape) * dtype.itemsize
    start = -(-max(size, layout[-1].stop if layout else 0) // PAGE) * PAGE
    if nbytes == 0 and not chunks:
        return TensorEntry(path, 0, 0, dtype, shape)
    try:
        made = join(shape, dtype.itemsize, chunks, start)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error} ({_AGAIN})") from error
    if len(chunks) == 1:
        return TensorEntry(chunks[0].path, chunks[0].offset, nbytes, dtype, shape)
    layout.append(made)
    return TensorEntry(path, start, nbytes, dtype, shape)


def digest_of(path: str) -> str | None:
    """Return the digest of a file by the tensors that lie in it; CheckpointError where it is damaged."""
    folder, name = os.path.split(path)
    tensors = read_metadata(os.path.join(folder, METADATA)).tensors.values()
    _, files = _items(folder, (chunk for tensor in tensors for chunk in tensor.chunks if chunk.filename == name))
    return files[0].header_digest if files else None


def items_digest(items: Iterable[tuple[int, str]]) -> str:
    """Return the digest of a file by the places and identities of its items, in their order."""
    return hashlib.sha256("\n".join(f"{offset} {identity}" for offset, identity in items).encode()).hexdigest()


def _place(chunk: StoredChunk) -> tuple[str, int, int]:
    return chunk.filename, chunk.offset, chunk.length


def _items(folder: str, chunks: Iterable[StoredChunk]) -> tuple[dict[tuple[str, int, int], Item], list[InputFile]]:
    """Return the items that parts of tensors lie in, and the files that hold them."""
    places: dict[str, list[tuple[str, int, int]]] = {}
    for place in sorted(set(map(_place, chunks))):
        places.setdefault(place[0], []).append(place)
    items: dict[tuple[str, int, int], Item] = {}
    files = []
    for filename, own in places.items():
        path = os.path.join(folder, filename)
        try:
            with open_weights(path) as file:
                status = os.fstat(file.fileno())
                items |= {place: read_item(file, *place[1:]) for place in own}
        except FileNotFoundError as error:
            what = placeholder(path) or f"is missing; it should hold {len(own)} parts of tensors ({_AGAIN})"
            raise CheckpointError(f"{path}: {what}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: {placeholder(path) or f'cannot be read: {error.strerror}'}") from error
        except NotPlain as error:
            raise CheckpointError(f"{path}: {error}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: {placeholder(path) or f'{error} ({_AGAIN})'}") from error
        digest = items_digest((place[1], items[place].identity) for place in own)
        files.append(InputFile(path, status.st_size, status.st_mtime_ns, digest))
    return items, files


def _chunk(folder: str, name: str, tensor: StoredTensor, dtype: DType, chunk: StoredChunk, item: Item) -> Chunk:
    if (item.dtype, item.shape) != (dtype, chunk.sizes):
        what = f"holds {name} as {item.dtype} {list(item.shape)}, its metadata says {dtype} {list(chunk.sizes)}"
        raise CheckpointError(f"{os.path.join(folder, chunk.filename)}: {what} ({_AGAIN})")
    if any(offset + size > whole for offset, size, whole in zip(chunk.offsets, chunk.sizes, tensor.shape, strict=True)):
        raise CheckpointError(f"{os.path.join(folder, METADATA)}: a chunk of {name} lies outside of it ({_AGAIN})")
    return Chunk(chunk.offsets, chunk.sizes, os.path.join(folder, chunk.filename), item.offset)
