"""What ``.metadata`` of a DCP folder says: tensors, their chunks, and the place of each chunk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...dtypes import ALL, DType
from ...errors import CheckpointError
from ..opening import open_weights
from ..placeholders import placeholder
from .restricted import Named, Record, Refused, read_pickle

MOST_BYTES = 256 << 20
"""Longest metadata that is read: a chunk takes about 150 bytes."""

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_AGAIN = "save the checkpoint again"


class _Metadata(Record): ...


class _Tensor(Record): ...


class _Bytes(Record): ...


class _Chunk(Record): ...


class _Index(Record): ...


class _Properties(Record): ...


class _Storage(Record): ...


class _Other(Record): ...


def _size(values: Any = ()) -> tuple[Any, ...]:
    if type(values) not in (tuple, list):
        raise Refused("it holds a size that is no list of numbers")
    return tuple(values)


def _names() -> dict[tuple[str, str], Any]:
    own = {
        "Metadata": _Metadata, "TensorStorageMetadata": _Tensor, "BytesStorageMetadata": _Bytes, "StorageMeta": _Other,
        "ChunkStorageMetadata": _Chunk, "MetadataIndex": _Index, "TensorProperties": _Properties,
        "_MEM_FORMAT_ENCODING": Named(lambda value: value),
    }  # fmt: skip
    # Of torch up to 2.3.
    older = {"TensorProperties": _Properties, "MEM_FORMAT_ENCODING": Named(lambda value: value)}
    found: dict[tuple[str, str], Any] = {(_METADATA, name): value for name, value in own.items()}
    found |= {("torch.distributed._shard.sharded_tensor.metadata", name): value for name, value in older.items()}
    found |= {("torch", name): dtype for name, dtype in ALL.items()}
    found |= {("torch", name): name for name in ("complex128", "complex32", "quint8", "qint8", "qint32", "strided")}
    found |= {(m, "PosixPath"): Named(lambda *parts: None) for m in ("pathlib", "pathlib._local")}
    # Megatron-LM's own, in checkpoints of its versions up to 0.15.
    found[_MEGATRON, "MCoreMetadata"], found[_MEGATRON, "MCoreSavePlan"] = _Metadata, _Other
    found |= {(_PLANNER, name): _Other for name in ("SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData")}
    found[_PLANNER, "WriteItemType"] = Named(lambda value: value)
    found["torch", "Size"] = Named(_size)
    found["torch.serialization", "_get_layout"] = Named(lambda name: name)
    found["torch.distributed.checkpoint.filesystem", "_StorageInfo"] = _Storage
    found["collections", "OrderedDict"] = Named(dict)
    return found


class StoredChunk(NamedTuple):
    """A chunk of a tensor, and the bytes of a file that hold it with its description."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    filename: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        path:   the keys that lead to it in the state dict that was saved, where they are known; else its name alone.
        dtype:  of the elements, or the name of one that no model has.
        shape:  of the whole tensor.
        chunks: with elements.
    """

    path: tuple[str, ...]
    dtype: DType | str
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]


class StoredObject(NamedTuple):
    """What is no tensor: the keys that lead to it, as in ``StoredTensor``, and the bytes of a file that hold it."""

    path: tuple[str, ...]
    filename: str
    offset: int
    length: int


@dataclass(frozen=True)
class Stored:
    """What ``.metadata`` says.

    Attributes:
        data:    its bytes.
        tensors: by name.
        objects: what else was saved, by name.
        lost:    the keys that lead to what else is listed, but has no place in a file, by name.
    """

    data: bytes
    tensors: dict[str, StoredTensor]
    objects: dict[str, StoredObject]
    lost: dict[str, tuple[str, ...]]


def read_metadata(path: str) -> Stored:
    """Read ``.metadata``.

    Raises:
        CheckpointError: it is missing, damaged, or holds more than DCP's description of tensors.
    """
    try:
        with open_weights(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise CheckpointError(f"{path}: has {size} bytes, more than the {MOST_BYTES} that are read")
            data = file.read(MOST_BYTES)
        return _stored(data, read_pickle(data, _names()))
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'cannot be read: {error.strerror}'}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {placeholder(path) or f'{error} ({_AGAIN})'}") from error


def _stored(data: bytes, found: Any) -> Stored:
    described = found.get("state_dict_metadata") if isinstance(found, _Metadata) else None
    stored = found.get("storage_data") if isinstance(found, _Metadata) else None
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise ValueError("it is no metadata of torch.distributed.checkpoint")
    places: dict[tuple[Any, Any], _Storage] = {}
    for index, place in stored.items():
        if not isinstance(index, _Index) or not isinstance(place, _Storage) or not isinstance(index.get("fqn"), str):
            raise ValueError("its places of tensors are none of DCP's")
        offset = index.get("offset")
        places[index.get("fqn"), None if offset is None else _numbers(offset)] = place
    planned = found.get("planner_data")
    paths = planned if isinstance(planned, dict) else {}
    tensors, objects, lost = {}, {}, {}
    for name, item in described.items():
        path = _path(_text(name), paths)
        if isinstance(item, _Tensor):
            tensors[name] = _tensor(name, item, places, path)
        elif (place := places.get((name, None))) is not None:
            objects[name] = StoredObject(path, *_range(name, place))
        else:
            lost[name] = path
    return Stored(data, tensors, objects, lost)


def _path(name: str, paths: Mapping[str, Any]) -> tuple[str, ...]:
    path = paths.get(name)
    if type(path) is not tuple or not path or not all(type(part) in (str, int) for part in path):
        return (name,)
    return tuple(map(str, path))


def _tensor(
    name: str, item: _Tensor, places: Mapping[tuple[Any, Any], _Storage], path: tuple[str, ...]
) -> StoredTensor:
    properties, chunks, shape = item.get("properties"), item.get("chunks"), _numbers(item.get("size"))
    state = properties.state if isinstance(properties, _Properties) else None
    dtype = state.get("dtype") if isinstance(state, dict) else state[0] if type(state) is tuple and state else None
    if not isinstance(dtype, DType | str) or type(chunks) is not list:
        raise ValueError(f"it does not say what {name} is")
    found = dict.fromkeys(_chunks(name, shape, chunks, places))
    return StoredTensor(path, dtype, shape, tuple(found))


def _chunks(
    name: str, shape: tuple[int, ...], chunks: Sequence[Any], places: Mapping[tuple[Any, Any], _Storage]
) -> Iterator[StoredChunk]:
    for chunk in chunks:
        if not isinstance(chunk, _Chunk):
            raise ValueError(f"a chunk of {name} is none of DCP's")
        offsets, sizes = _numbers(chunk.get("offsets")), _numbers(chunk.get("sizes"))
        if not len(offsets) == len(sizes) == len(shape):
            raise ValueError(f"a chunk of {name} has other dimensions than the tensor")
        if not math.prod(sizes):
            continue
        place = places.get((name, offsets)) or (places.get((name, None)) if len(chunks) == 1 else None)
        if place is None:
            raise ValueError(f"the chunk of {name} at {list(offsets)} has no place")
        yield StoredChunk(offsets, sizes, *_range(name, place))


def _range(name: str, place: _Storage) -> tuple[str, int, int]:
    """Return the file that holds an item, its offset and its length."""
    if place.get("transform_descriptors"):
        kinds = ", ".join(map(str, place.get("transform_descriptors")))
        raise ValueError(f"{name} is stored through {kinds:.100}: only plain tensors are read")
    filename = place.get("relative_path")
    offset, length = _numbers((place.get("offset"), place.get("length")))
    if not isinstance(filename, str) or os.path.basename(filename) != filename or filename in ("", ".", ".."):
        raise ValueError(f"{name} lies in {filename!r:.100}, which is no file of the folder")
    return _text(filename), offset, length


def _numbers(values: Any) -> tuple[int, ...]:
    if type(values) is not tuple or not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise ValueError(f"{values!r:.100} are no sizes")
    return values


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.100} is no name")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{value!r:.100} holds half of a character") from error
    if "\0" in value:
        raise ValueError(f"{value!r:.100} holds a NUL")
    return value
