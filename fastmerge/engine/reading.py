"""Reading the tensors of opened models side by side: chunk by chunk, or a delta whole. One thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .. import kernels
from ..checkpoint import InputFile
from ..plan.types import InputTensor
from .files import InputFiles

__all__ = ["CHUNK", "DeltaReader", "reading_bytes"]

# Elements that are read at once: few system calls, and a group of models still fits the cache.
CHUNK = 8 * kernels.GRID

# Matrices of an adapter as float32: up, down, scale.
Factors = list[tuple[Tensor, Tensor, float]]


def reading_bytes(groups: Iterable[Sequence[InputTensor]]) -> int:
    """Return a bound of the memory that reading takes, whichever of the groups is read: chunks, and adapters whole."""
    return max((sum(_bytes_of(tensor) for tensor in group) for group in groups), default=0)


def _bytes_of(tensor: InputTensor) -> int:
    numel = math.prod(tensor.shape)
    if not tensor.adapters:
        return min(CHUNK, numel) * tensor.dtype.itemsize
    rows = min(CHUNK // tensor.shape[1] + 2, tensor.shape[0])
    factors = sum(math.prod(part.shape) for adapter in tensor.adapters for part in (adapter.up, adapter.down))
    return rows * tensor.shape[1] * (4 + tensor.dtype.itemsize) + 8 * factors


class DeltaReader:
    """Reads groups of tensors of one shape: a base and models. Adapters are folded in on the way.

    Args:
        files:    of all models; one that changes meanwhile is an error.
        progress: called with the bytes that were read so far.
    """

    def __init__(self, files: Iterable[InputFile], progress: Callable[[int], None] | None = None):
        self._inputs = InputFiles(files)
        self._progress = progress
        self._done = 0

    def __enter__(self) -> DeltaReader:
        self._inputs.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._inputs.__exit__(*error)

    def chunks(self, group: Sequence[InputTensor]) -> Iterator[list[Tensor]]:
        """Yield the tensors of ``group`` chunk by chunk, flat; with an adapter they are float32."""
        factors = [self._factors(tensor) for tensor in group]
        numel = math.prod(group[0].shape)
        for start in range(0, numel, CHUNK):
            stop = min(start + CHUNK, numel)
            yield [self._elements(tensor, start, stop, own) for tensor, own in zip(group, factors, strict=True)]
            self._done += sum((stop - start) * tensor.dtype.itemsize for tensor in group)
            if self._progress is not None:
                self._progress(self._done)

    def delta(self, base: InputTensor, model: InputTensor) -> Tensor:
        """Return ``model - base``, whole: float32, shaped like the tensor, one rounded subtraction per element."""
        delta = torch.empty(base.shape, dtype=torch.float32)
        rest = delta.view(-1)
        for origin, tuned in self.chunks([base, model]):
            kernels.weighted_sum(rest[: len(origin)], [tuned, origin], [1.0, -1.0])
            rest = rest[len(origin) :]
        return delta

    def _factors(self, tensor: InputTensor) -> Factors:
        return [
            (self._whole(adapter.up).float(), self._whole(adapter.down).float(), adapter.scale)
            for adapter in tensor.adapters
        ]

    def _elements(self, tensor: InputTensor, start: int, stop: int, factors: Factors) -> Tensor:
        if not factors:
            return self._read(tensor, start, stop)
        columns = tensor.shape[1]
        first, last = start // columns, -(-stop // columns)
        weight = self._read(tensor, first * columns, last * columns).view(-1, columns)
        folded = torch.empty(weight.shape, dtype=torch.float32)
        for up, down, scale in factors:
            kernels.low_rank_update(folded, weight, up[first:last], down, scale)
            weight = folded
        return folded.view(-1)[start - first * columns : stop - first * columns]

    def _whole(self, tensor: InputTensor) -> Tensor:
        return self._read(tensor, 0, math.prod(tensor.shape)).view(tensor.shape)

    def _read(self, tensor: InputTensor, start: int, stop: int) -> Tensor:
        values = torch.empty(stop - start, dtype=tensor.dtype)
        into = values.view(torch.uint8).numpy().data
        self._inputs.read(tensor.path, tensor.offset + start * values.itemsize, into)
        return values
