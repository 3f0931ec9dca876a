"""Reading the tensors of opened models side by side: chunk by chunk, or a delta whole."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from .. import kernels
from ..checkpoint import InputFile, TensorEntry
from ..checkpoint.types import DECODED_AT_ONCE, DECODING_BYTES, matrix_shape
from ..dtypes import DType
from ..errors import CheckpointError
from ..plan.types import InputTensor
from .files import InputFiles
from .folding import made_shapes, working_bytes
from .folding.terms import add_terms, term_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHUNK", "DeltaReader", "Folded", "Values", "reading_bytes"]

# Elements that are read at once: few system calls, and a group of models still fits the cache.
CHUNK = 8 * kernels.GRID


def reading_bytes(groups: Iterable[Sequence[InputTensor]]) -> int:
    """Return a bound of the memory that reading takes, whichever of the groups is read: chunks, and adapters whole."""
    return max((sum(_bytes_of(tensor) for tensor in group) for group in groups), default=0)


def _bytes_of(tensor: InputTensor) -> int:
    if tensor.plain:
        return min(CHUNK, tensor.numel) * tensor.dtype.itemsize
    rows, columns = matrix_shape(tensor.shape)
    read = min(CHUNK // max(columns, 1) + 2, rows) * columns * (4 + tensor.dtype.itemsize)
    factors = sum(2 * part.numel for adapter in tensor.adapters for part in adapter.parts)
    folding = sum(
        working_bytes(adapter, columns) + 4 * sum(map(math.prod, made_shapes(adapter))) for adapter in tensor.adapters
    )
    # Parts are read whole or by row; what decoding takes is little (``Coded.decode``).
    codes = sum(part.nbytes for part, _ in tensor.coded.parts) + DECODING_BYTES * DECODED_AT_ONCE if tensor.coded else 0
    return read + 8 * factors + folding + codes


class DeltaReader:
    """Reads groups of tensors of one shape: a base and models. Adapters are folded in on the way.

    Several threads may read at once; the progress is told by one at a time.

    Args:
        files:    of all models, or what reads them; one that changes meanwhile is an error.
        progress: called with the bytes that were read so far.
    """

    def __init__(self, files: Iterable[InputFile] | InputFiles, progress: Callable[[int], None] | None = None):
        self._inputs = files if isinstance(files, InputFiles) else InputFiles(files)
        self._progress = progress
        self._done = 0
        self._telling = threading.Lock()

    def __enter__(self) -> DeltaReader:
        self._inputs.open()
        return self

    def __exit__(self, *error: object) -> None:
        self._inputs.__exit__(*error)

    def chunks(self, group: Sequence[InputTensor]) -> Iterator[list[Tensor]]:
        """Yield the tensors of ``group`` chunk by chunk, flat; with an adapter they are float32."""
        inputs = [Folded(tensor, self._inputs) for tensor in group]
        numel = math.prod(group[0].shape)
        for start in range(0, numel, CHUNK):
            stop = min(start + CHUNK, numel)
            yield [own.elements(start, stop) for own in inputs]
            self.tell(sum(tensor.nbytes * stop // numel - tensor.nbytes * start // numel for tensor in group))

    def tell(self, nbytes: int) -> None:
        """Count bytes as read."""
        with self._telling:
            self._done += nbytes
            if self._progress is not None:
                self._progress(self._done)

    def delta(self, base: InputTensor, model: InputTensor) -> Tensor:
        """Return ``model - base``, whole: float32, shaped like the tensor, one rounded subtraction per element."""
        import torch

        delta = torch.empty(base.shape, dtype=torch.float32)
        rest = delta.view(-1)
        for origin, tuned in self.chunks([base, model]):
            kernels.weighted_sum(rest[: len(origin)], [tuned, origin], [1.0, -1.0])
            rest = rest[len(origin) :]
        return delta


class Folded:
    """The values of one input with its adapters folded in: float32 then, else of the tensor's dtype."""

    def __init__(self, tensor: InputTensor, inputs: InputFiles):
        self._values = Values(tensor, inputs)
        self._columns = matrix_shape(tensor.shape)[1]
        self._terms = [term_of(adapter, lambda factor: _whole(factor, inputs)) for adapter in tensor.adapters]

    def elements(self, start: int, stop: int) -> Tensor:
        """Return the elements ``start .. stop - 1``, flat."""
        import torch

        if not self._terms:
            return self._values.elements(start, stop)
        columns = self._columns
        first, last = start // columns, -(-stop // columns)
        weight = self._values.elements(first * columns, last * columns).view(-1, columns)
        folded = torch.empty(weight.shape, dtype=torch.float32)
        add_terms(folded, weight, self._terms, first)
        return folded.view(-1)[start - first * columns : stop - first * columns]


def _whole(tensor: InputTensor, inputs: InputFiles) -> Tensor:
    return Values(tensor, inputs).elements(0, tensor.numel).view(tensor.shape)


class Values:
    """The values of one stored tensor: read, and decoded where it is quantized. Adapters are the caller's."""

    def __init__(self, tensor: InputTensor | TensorEntry, inputs: InputFiles):
        self._tensor, self._inputs = tensor, inputs
        self._rows, self._columns = matrix_shape(tensor.shape)
        self._held: list[Tensor | None] = []
        for entry, by_row in tensor.coded.parts if tensor.coded else ():
            whole = None if by_row else self._read(entry, entry.dtype, 0, math.prod(entry.shape)).view(entry.shape)
            self._held.append(whole)

    def elements(self, start: int, stop: int) -> Tensor:
        """Return the elements ``start .. stop - 1``, flat."""
        import torch

        tensor, coded = self._tensor, self._tensor.coded
        if coded is None:
            return self._read(tensor, tensor.dtype, start, stop)
        first, last = start // self._columns, -(-stop // self._columns)
        parts = []
        for (entry, _), held in zip(coded.parts, self._held, strict=True):
            if held is None:
                width = math.prod(entry.shape) // self._rows
                held = self._read(entry, entry.dtype, first * width, last * width).view(last - first, width)
            parts.append(held)
        rows = torch.empty(last - first, self._columns, dtype=tensor.dtype.torch)
        try:
            coded.decode(rows, parts, first)
        except ValueError as error:
            raise CheckpointError(f"{tensor.path}: {error} (the file is damaged)") from error
        return rows.view(-1)[start - first * self._columns : stop - first * self._columns]

    def _read(self, entry: InputTensor | TensorEntry, dtype: DType, start: int, stop: int) -> Tensor:
        import torch

        values = torch.empty(stop - start, dtype=dtype.torch)
        into = values.view(torch.uint8).numpy().data
        self._inputs.read(entry.path, entry.offset + start * values.itemsize, into)
        return values
