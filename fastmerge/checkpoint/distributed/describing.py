"""What ``.metadata`` of a DCP folder is made of, by torch's own classes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from .chunks import Part

__all__ = ["Description"]

Keys = tuple[str, ...]
"""The keys that lead to an item in the state dict."""


class Description:
    """Items and their places, as they become known."""

    def __init__(self) -> None:
        self._described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._paths: dict[str, Keys] = {}

    def tensor(self, name: str, path: Keys, dtype: torch.dtype, shape: Sequence[int], parts: Sequence[Part]) -> None:
        """Say what a tensor is."""
        chunks = [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in parts]
        properties = TensorProperties(dtype=dtype)
        self._described[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
        self._paths[name] = path

    def object(self, name: str, path: Keys) -> None:
        """Say that an item is no tensor."""
        self._described[name], self._paths[name] = BytesStorageMetadata(), path

    def place(self, name: str, offsets: Sequence[int] | None, filename: str, start: int, nbytes: int) -> None:
        """Say where a part of a tensor lies, by where it begins in the tensor, or an object (None)."""
        index = MetadataIndex(name) if offsets is None else MetadataIndex(name, torch.Size(offsets))
        self._places[index] = _StorageInfo(filename, start, nbytes)

    def pickled(self) -> bytes:
        """Return the bytes of ``.metadata``."""
        return pickle.dumps(Metadata(self._described, planner_data=self._paths, storage_data=self._places))
