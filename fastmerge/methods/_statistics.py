"""Files with what was measured of a model on data, by the names of its tensors: read in parts, beside the tensors."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint import TensorEntry, open_checkpoint, read_header
from ..dtypes import dtype_of
from ..errors import CheckpointError
from ..steps.method import Group

if TYPE_CHECKING:
    from torch import Tensor

# Elements whose norm is formed at once.
_STEP = 1 << 20
# Bytes of a tensor that say whether it is the same.
_SAMPLE = 1 << 11


@dataclass(frozen=True)
class Statistics:
    """One file, or the weights of a folder."""

    path: str
    entries: dict[str, TensorEntry]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements ``start .. stop - 1`` of a tensor, flat, float32, on the CPU."""
        import torch

        entry = self.entries[name]
        dtype = dtype_of(entry.dtype).torch
        size = dtype.itemsize
        data = bytearray((stop - start) * size)
        with open(entry.path, "rb") as file:
            file.seek(entry.offset + start * size)
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{entry.path}: is shorter than its header says")
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).float()

    def whole(self, name: str) -> Tensor:
        """Return a tensor in its shape, float32, on the CPU."""
        shape = self.entries[name].shape
        return self.read(name, 0, math.prod(shape)).view(shape)

    @functools.cached_property
    def identity(self) -> str:
        """A hash of names, places and samples of the data: what is measured anew differs everywhere."""
        hasher = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            start = max(0, entry.nbytes // 2 - _SAMPLE)
            with open(entry.path, "rb") as file:
                file.seek(entry.offset + start)
                sample = file.read(min(2 * _SAMPLE, entry.nbytes - start))
            hasher.update(f"{name} {entry.dtype} {entry.shape} {entry.offset} ".encode() + sample)
        return hasher.hexdigest()

    @functools.cached_property
    def norm(self) -> float:
        """The Euclidean norm of all tensors together."""
        squares = []
        for name, entry in self.entries.items():
            numel = math.prod(entry.shape)
            for start in range(0, numel, _STEP):
                squares.append(self.read(name, start, min(start + _STEP, numel)).double().square().sum().item())
        return math.sqrt(math.fsum(squares))


@functools.lru_cache(maxsize=64)
def _opened(path: str, stamp: tuple[int, int]) -> Statistics:
    if os.path.isdir(path):
        return Statistics(path, dict(open_checkpoint(path).tensors))
    return Statistics(path, dict(read_header(path)[1]))


def _open(path: str) -> Statistics:
    state = os.stat(path)
    return _opened(os.path.abspath(path), (state.st_mtime_ns, state.st_size))


def named(groups: Sequence[Group], parameter: str) -> Iterator[Statistics]:
    """Yield every file that can be read; those that cannot, every single tensor refuses."""
    for path in dict.fromkeys(path for group in groups for path in group[parameter] if path):
        with contextlib.suppress(OSError, CheckpointError):
            yield _open(path)


def strangers(groups: Sequence[Group], parameter: str) -> Iterator[str]:
    """Yield a sentence on each file in which nothing has the name of a tensor that is merged: it would change none."""
    names = {group.name for group in groups}
    for item in named(groups, parameter):
        found = item.entries
        if not names & found.keys():
            held = f"none of its {len(found)} tensors ({next(iter(found), '')}, ..)"
            yield f"{parameter} {item.path}: {held} has the name of one that is merged, such as {groups[0].name}"


def open_statistics(group: Group, parameter: str) -> list[Statistics]:
    """Return the statistics that a per-model parameter names, one for each model; none where no file has the tensor.

    Raises:
        ValueError: one cannot be read, or has no such tensor where that of another model has it, naming the tensor.
    """
    opened: list[Statistics | None] = []
    for path in group[parameter]:
        try:
            opened.append(_open(path) if path else None)
        except (OSError, CheckpointError) as error:
            raise ValueError(f"{group.name}: {parameter} {path} cannot be read: {error}") from error
    having = [item for item in opened if item is not None and group.name in item.entries]
    for item in opened:
        if having and item is not None and group.name not in item.entries:
            raise ValueError(f"{group.name}: {item.path} has no such tensor, but {having[0].path} has one")
    if having and None in opened:
        raise ValueError(
            f"{group.name}: model {opened.index(None)} has no {parameter}; give one to every model, or to none"
        )
    return having
