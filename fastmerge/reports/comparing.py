"""Comparison of two checkpoints, tensor by tensor, streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import kernels
from ..checkpoint import Checkpoint, TensorEntry
from ..dtypes import bfloat16, float16, float32, float64
from ..engine.arena import Arena
from ..engine.files import InputFiles
from ..engine.reading import Values

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256 * kernels.GRID
FLOATS = (float32, bfloat16, float16)
# Bytes of an element, at most: of complex numbers.
WIDEST = 8


@dataclass(frozen=True)
class TensorDifference:
    """How a tensor of one checkpoint differs from its namesake in another.

    Attributes:
        name:    of the tensor.
        status:  "compared", "only in a", "only in b", or "shapes differ".
        changed: share of the elements whose values differ.
        l2:      L2 norm of b - a; None for dtypes that no kernel reads.
        cosine:  of the two tensors as vectors; NaN where one of them is zero; None as above.
    """

    name: str
    status: str
    changed: float | None = None
    l2: float | None = None
    cosine: float | None = None


def compare(a: Checkpoint, b: Checkpoint) -> Iterator[TensorDifference]:
    """Yield the difference of every tensor, in the order of ``a``, then those that only ``b`` has."""
    files = {file.path: file for checkpoint in (a, b) for file in checkpoint.files}
    with InputFiles(files.values()) as inputs:
        inputs.open()
        memory = Arena(2 * CHUNK * WIDEST, strips=True)
        for name, entry in a.tensors.items():
            other = b.tensors.get(name)
            if other is None:
                yield TensorDifference(name, "only in a")
            elif entry.shape != other.shape:
                yield TensorDifference(name, "shapes differ")
            else:
                yield _compare(name, entry, other, _elements(entry, other, inputs, memory))
    for name in b.tensors:
        if name not in a.tensors:
            yield TensorDifference(name, "only in b")


class _Elements(Protocol):
    def elements(self, start: int, stop: int) -> Tensor: ...


class _Stored:
    """The elements of a tensor as they are stored, as strips: what ``Values`` gives without decoding needs no torch."""

    def __init__(self, entry: TensorEntry, inputs: InputFiles, memory: Arena, at: int):
        self._entry, self._inputs, self._memory, self._at = entry, inputs, memory, at

    def elements(self, start: int, stop: int) -> Tensor:
        entry, size = self._entry, self._entry.dtype.itemsize
        into = self._memory.bytes[self._at : self._at + (stop - start) * size]
        self._inputs.read(entry.path, entry.offset + start * size, into)
        return self._memory.tensor(self._at, entry.dtype, (stop - start,))


def _elements(a: TensorEntry, b: TensorEntry, inputs: InputFiles, memory: Arena) -> tuple[_Elements, _Elements]:
    """Return what reads two tensors, in one form: strips, or torch's tensors for what numpy does not hold."""
    compiled = kernels.OPERATIONS["gram"].choose("cpu")[0] == "cpu"
    if compiled and not any(entry.coded or entry.dtype.name.startswith(("float8", "float4")) for entry in (a, b)):
        return _Stored(a, inputs, memory, 0), _Stored(b, inputs, memory, memory.size // 2)
    return Values(a, inputs), Values(b, inputs)


def _compare(name: str, a: TensorEntry, b: TensorEntry, values: tuple[_Elements, _Elements]) -> TensorDifference:
    numel = math.prod(a.shape)
    measurable = a.dtype in FLOATS and b.dtype in FLOATS
    changed, products, squares = 0, [], []
    for start in range(0, numel, CHUNK):
        left, right = (own.elements(start, min(start + CHUNK, numel)) for own in values)
        changed += _count(_numbers(left) != _numbers(right))
        if measurable:
            products.append(_gram([left, right], None))
            squares.append(_gram([right], left))
    share = changed / numel if numel else 0.0
    if not measurable:
        return TensorDifference(name, "compared", share)
    if not numel:
        return TensorDifference(name, "compared", share, 0.0, math.nan)
    gram = kernels.gram_matrix(np.concatenate(products), 2).tolist()
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    l2 = math.sqrt(kernels.total(np.concatenate(squares))[0])
    return TensorDifference(name, "compared", share, l2, gram[0][1] / norms if norms else math.nan)


def _count(different: Any) -> int:
    """Return the true elements of a tensor or an array."""
    return int(different.sum())


def _numbers(values: Tensor) -> Tensor | np.ndarray:
    """Return what compares elements by value."""
    if not isinstance(values, kernels.Strip):
        return values
    if values.dtype != bfloat16:
        return values.numpy()
    wide = kernels.empty(values, float32, values.numel())
    kernels.weighted_sum(wide, [values], [1.0])
    return wide.numpy()


def _gram(tensors: list[Tensor], base: Tensor | None) -> np.ndarray:
    partials = kernels.empty(
        tensors[0], float64, -(-tensors[0].numel() // kernels.GRID), len(kernels.pairs(len(tensors)))
    )
    kernels.gram_partials(partials, tensors, base)
    return kernels.on_host(partials)
