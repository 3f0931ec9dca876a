"""Files of torch.distributed.checkpoint: ``.distcp`` with one archive of torch.save an item, and ``.metadata``.

DCP's own writer holds all tensors of a file at once; here it is one item.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..checkpoint.distributed import METADATA
from ..checkpoint.distributed.chunks import Part
from ..checkpoint.distributed.describing import Description, Keys

__all__ = ["Writer"]


class Writer:
    """Writes items into a folder, one after the other, and says in the end where they lie.

    Args:
        shard_size: bytes after which the next file begins.
    """

    def __init__(self, folder: Path, shard_size: int):
        self._folder, self._shard_size = folder, shard_size
        self._file: BinaryIO | None = None
        self._files = 0
        self._description = Description()

    def describe(self, name: str, path: Keys, dtype: torch.dtype, shape: tuple[int, ...], parts: list[Part]) -> None:
        """Say what a tensor is; its parts are written by ``tensor`` or ``stored_tensor``."""
        self._description.tensor(name, path, dtype, shape, parts)

    def tensor(self, name: str, part: Part, values: Tensor) -> None:
        """Write a part of a tensor that was described."""
        if values.untyped_storage().nbytes() != values.nbytes:
            values = values.clone()  # torch.save takes whole storages
        self._place(name, part.offsets, lambda file: torch.save(values, file))

    def stored_tensor(self, name: str, offsets: tuple[int, ...], write: Callable[[BinaryIO], object]) -> None:
        """Write a part as another checkpoint holds it."""
        self._place(name, offsets, write)

    def stored_object(self, name: str, path: Keys, write: Callable[[BinaryIO], object]) -> None:
        """Write what is no tensor, as another checkpoint holds it."""
        self._description.object(name, path)
        self._place(name, None, write)

    def finish(self) -> None:
        """Write ``.metadata``, the last file of a checkpoint."""
        self._close()
        with open(self._folder / METADATA, "wb") as file:
            file.write(self._description.pickled())
            file.flush()
            os.fsync(file.fileno())

    def _place(self, name: str, offsets: tuple[int, ...] | None, write: Callable[[BinaryIO], object]) -> None:
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
        own = os.path.basename(self._file.name)
        self._description.place(name, offsets, own, start, self._file.tell() - start)

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
