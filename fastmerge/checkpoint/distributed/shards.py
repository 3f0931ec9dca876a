"""Shards of DCP's HuggingFaceStorageWriter: safetensors files whose headers say which part of a tensor each holds."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from ...dtypes import DType
from ...errors import CheckpointError
from ..joined import Chunk, Joined
from ..safetensors_header import read_header
from ..types import Checkpoint, InputFile, TensorEntry, in_order
from . import SHARDING_INFO, with_key
from .reading import entry_of

_AGAIN = "save the checkpoint again"


def open_shards(folder: str, key: str | None, config: dict[str, Any] | None, names: list[str]) -> Checkpoint:
    """Read the headers of all shards. A tensor reaches as far as its parts do: no header says how large it is.

    Raises:
        CheckpointError: a shard is damaged or does not say where its parts belong, or parts do not fill a tensor.
    """
    files: list[InputFile] = []
    chunks: dict[str, list[Chunk]] = {}
    dtypes: dict[str, DType] = {}
    for filename in names:
        path = os.path.join(folder, filename)
        file, tensors = read_header(path)
        files.append(file)
        offsets = _offsets(path, file)
        for name, entry in tensors.items():
            at = offsets(name, len(entry.shape))
            if dtypes.setdefault(name, entry.dtype) != entry.dtype:
                raise CheckpointError(f"{path}: {name} is {entry.dtype}, but {dtypes[name]} in another ({_AGAIN})")
            chunks.setdefault(name, []).append(Chunk(at, entry.shape, path, entry.offset))
    layout: list[Joined] = []
    # Addresses are the same ones whichever key is opened.
    every = {name: _entry(files[0], name, dtypes[name], own, layout) for name, own in chunks.items()}
    found = {name: entry for name, entry in every.items() if key is None or name.startswith(f"{key}.")}
    if not found:
        raise CheckpointError(f"{folder}: holds no tensors{f' under the key {key}' if key else ''}")
    files[0] = replace(files[0], joined=tuple(layout))
    renamed = {name.removeprefix(f"{key}."): entry for name, entry in found.items()} if key else found
    source = with_key(folder, key) if key else ""
    return Checkpoint(folder, tuple(files), in_order(renamed), config, source=source)


def _entry(first: InputFile, name: str, dtype: DType, chunks: list[Chunk], layout: list[Joined]) -> TensorEntry:
    if len({len(chunk.sizes) for chunk in chunks}) > 1:
        raise CheckpointError(f"{first.path}: {name} has other dimensions in another shard ({_AGAIN})")
    ends = [[o + s for o, s in zip(chunk.offsets, chunk.sizes, strict=True)] for chunk in chunks]
    shape = tuple(map(max, zip(*ends, strict=True)))
    own = [chunk for chunk in dict.fromkeys(chunks) if all(chunk.sizes)]
    return entry_of(first.path, name, shape, dtype, own, first.nbytes, layout)


def _offsets(path: str, file: InputFile):
    try:
        said = json.loads(file.metadata[SHARDING_INFO])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: does not say in {SHARDING_INFO} where its parts belong ({_AGAIN})") from error

    def of(name: str, dimensions: int) -> tuple[int, ...]:
        offsets = (said.get(name) or {}).get("saved_offsets") if isinstance(said, dict) else None
        if (
            type(offsets) is not list
            or len(offsets) != dimensions
            or not all(type(o) is int and o >= 0 for o in offsets)
        ):
            raise CheckpointError(f"{path}: {name} has the offsets {offsets!r:.100}, not {dimensions} ({_AGAIN})")
        return tuple(offsets)

    return of
