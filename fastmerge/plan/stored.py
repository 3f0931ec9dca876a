"""The bytes of an input tensor, read while a merge is planned."""

from __future__ import annotations

import os

from ..checkpoint.joining import read_joined
from ..errors import CheckpointError
from .models import OpenModel
from .types import InputTensor


class Stored:
    """The bytes of a plain tensor of a model, which may lie in pieces. Those of one ``place`` are the same."""

    def __init__(self, tensor: InputTensor, model: OpenModel):
        self.nbytes = tensor.nbytes
        file = next((f for f in model.files if f.path == tensor.path and tensor.offset >= f.nbytes), None)
        self.place = tensor.path, tensor.offset, file.joined if file else ()

    def read(self, at: int, count: int) -> bytearray:
        """Return ``count`` bytes from ``at`` on, or as many as there are. CheckpointError where the file is shorter."""
        (path, start, layout), data = self.place, bytearray(min(count, self.nbytes - at))
        if layout:
            read_joined(layout, start + at, memoryview(data), _read)
        else:
            _read(path, start + at, memoryview(data))
        return data


def _read(path: str, offset: int, into: memoryview) -> None:
    with open(path, "rb", buffering=0) as file:
        done = 0
        while done < len(into):  # one call reads 2 GiB at most
            count = os.preadv(file.fileno(), [into[done:]], offset + done)
            if not count:
                raise CheckpointError(f"{path}: ends before byte {offset + len(into)} (copy it again)")
            done += count
