"""Files of torch.distributed.checkpoint: ``.distcp`` with one archive of torch.save an item, and ``.metadata``.

DCP's own writer holds all tensors of a file at once; here it is one item.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

__all__ = ["Chunk", "Writer"]

Path_ = tuple[str, ...]
"""The keys that lead to an item in the state dict."""


class Chunk(NamedTuple):
    """A part of a tensor: where it begins, and what it measures in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Writer:
    """Writes items into a folder, one after the other, and says in the end where they lie.

    Args:
        shard_size: bytes after which the next file begins.
    """

    def __init__(self, folder: Path, shard_size: int):
        self._folder, self._shard_size = folder, shard_size
        self._file: BinaryIO | None = None
        self._files = 0
        self._described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._paths: dict[str, Path_] = {}

    def describe(self, name: str, path: Path_, dtype: torch.dtype, shape: tuple[int, ...], chunks: list[Chunk]) -> None:
        """Say what a tensor is; its chunks are written by ``tensor`` or ``stored_tensor``."""
        parts = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in chunks]
        self._described[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), parts)
        self._paths[name] = path

    def tensor(self, name: str, chunk: Chunk, values: Tensor) -> None:
        """Write a chunk of a tensor that was described."""
        if values.untyped_storage().nbytes() != values.nbytes:
            values = values.clone()  # torch.save takes whole storages
        self._place(MetadataIndex(name, torch.Size(chunk.offsets)), lambda file: torch.save(values, file))

    def stored_tensor(self, name: str, offsets: tuple[int, ...], write: Callable[[BinaryIO], object]) -> None:
        """Write a chunk as another checkpoint holds it."""
        self._place(MetadataIndex(name, torch.Size(offsets)), write)

    def stored_object(self, name: str, path: Path_, write: Callable[[BinaryIO], object]) -> None:
        """Write what is no tensor, as another checkpoint holds it."""
        self._described[name], self._paths[name] = BytesStorageMetadata(), path
        self._place(MetadataIndex(name), write)

    def finish(self) -> None:
        """Write ``.metadata``, the last file of a checkpoint."""
        self._close()
        metadata = Metadata(self._described, planner_data=self._paths, storage_data=self._places)
        with open(self._folder / ".metadata", "wb") as file:
            pickle.dump(metadata, file)
            file.flush()
            os.fsync(file.fileno())

    def _place(self, index: MetadataIndex, write: Callable[[BinaryIO], object]) -> None:
        if self._file is not None and self._file.tell() >= self._shard_size:
            self._close()
        if self._file is None:
            self._file = open(self._folder / f"__0_{self._files}.distcp", "xb")  # noqa: SIM115
            self._files += 1
        start = self._file.tell()
        try:
            write(self._file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's archive ends with a complaint of its own
                raise error.__context__ from None
            raise
        self._places[index] = _StorageInfo(os.path.basename(self._file.name), start, self._file.tell() - start)

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
