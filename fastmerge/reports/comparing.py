"""Comparison of two checkpoints, tensor by tensor, streamed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .. import kernels
from ..checkpoint.quantized import decoded
from ..checkpoint.trained import as_hub_models
from ..dtypes import bfloat16, float16, float32, float64
from ..engine.arena import Arena
from ..engine.files import InputFiles
from ..engine.reading import Folded
from ..errors import InvalidInput, Problem
from ..plan.types import InputTensor
from ..recipe.writing import Table, read_names
from ..results import Result, table
from .opening import Adapted, open_model, reference_of, with_adapter

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256 * kernels.GRID
FLOATS = (float32, bfloat16, float16)
# Bytes of an element, at most: of complex numbers.
WIDEST = 8
COLUMNS = ("tensor", "changed", "L2 of b - a", "cosine")
ORDERS = ("order", "name", "changed", "l2", "cosine")
# Tensors that a notebook shows.
SHOWN = 20


@dataclass(frozen=True)
class TensorDifference:
    """How a tensor of one checkpoint differs from its namesake in another.

    Attributes:
        name:    of the tensor.
        status:  "compared", "only in a", "only in b", or "shapes differ".
        changed: share of the elements whose values differ.
        l2:      L2 norm of b - a; None for dtypes that no kernel reads.
        cosine:  of the two tensors as vectors; NaN where one of them is zero; None as above.
        elements: of the tensor; None where there are not two of one shape.
        squares: sum of a * a, of b * b, and of a * b; None as ``l2``.
    """

    name: str
    status: str
    changed: float | None = None
    l2: float | None = None
    cosine: float | None = None
    elements: int | None = None
    squares: tuple[float, float, float] | None = None


@dataclass(frozen=True, repr=False)
class Difference(Result):
    """How two checkpoints differ, tensor by tensor and in all.

    Attributes:
        tensors: every tensor, in the order of the first checkpoint, then those that only the second has.
        notes:   what lies beside the weights.
    """

    tensors: tuple[TensorDifference, ...]
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> int:
        """Number of tensors that are in both and equal."""
        return sum(item.changed == 0 for item in self.tensors)

    @property
    def changed(self) -> float:
        """Share of the elements whose values differ, of tensors that can be compared."""
        paired = [item for item in self.tensors if item.elements and item.changed is not None]
        total = sum(item.elements or 0 for item in paired)
        return sum((item.changed or 0) * (item.elements or 0) for item in paired) / total if total else 0.0

    @property
    def l2(self) -> float:
        """L2 norm of b - a over all tensors that are measured."""
        return math.sqrt(math.fsum(item.l2**2 for item in self.tensors if item.l2 is not None))

    @property
    def cosine(self) -> float:
        """Cosine of the two checkpoints as vectors, over the tensors that are measured; NaN where one is zero."""
        squares = [item.squares for item in self.tensors if item.squares is not None]
        a, b, product = (math.fsum(values) for values in zip(*squares, strict=True)) if squares else (0.0, 0.0, 0.0)
        norms = math.sqrt(a) * math.sqrt(b)
        return product / norms if norms else math.nan

    def sorted(self, by: str = "order") -> list[TensorDifference]:
        """Return the tensors in "order", by "name", or by "changed", "l2" or "cosine", those that differ most first.

        What has no number stands last.
        """
        if by not in ORDERS:
            raise InvalidInput([Problem("by", f"is {by!r}, expected one of {', '.join(ORDERS)}")])
        if by == "order":
            return list(self.tensors)
        if by == "name":
            return sorted(self.tensors, key=lambda item: item.name)
        sign = 1 if by == "cosine" else -1

        def key(item: TensorDifference) -> tuple[bool, float]:
            value = getattr(item, by)
            missing = value is None or math.isnan(value)
            return missing, 0.0 if missing else sign * value

        return sorted(self.tensors, key=key)

    def rows(self, tensors: Iterable[TensorDifference]) -> list[tuple[str, str, str, str]]:
        """Return name, change, L2 and cosine of tensors as texts."""
        return [
            (
                item.name,
                item.status if item.changed is None else f"{100 * item.changed:.2f} %",
                "" if item.l2 is None else f"{item.l2:.6g}",
                "" if item.cosine is None else f"{item.cosine:.6f}",
            )
            for item in tensors
        ]

    def __str__(self) -> str:
        return (
            f"{len(self.tensors)} tensors, {self.equal} of them equal; {100 * self.changed:.2f} % of the elements "
            f"changed, L2 of b - a {self.l2:.6g}, cosine {self.cosine:.6f}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>{table(COLUMNS, self.rows(self.sorted('l2')[:SHOWN]))}"


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str], *, names: Table | None = None) -> Difference:
    """Compare two models, each a folder, a file of weights, a hub id, or ``model+adapter``; streamed.

    An adapter is folded in as a merge of this one model does it: in float32, rounded to the dtype of the model.

    Args:
        names: of those that are checkpoints of training: a file with the trainer's names and the hub's, or a mapping.
    Raises:
        CheckpointError: one of them cannot be read, or the table does not fit.
        InvalidInput:    an adapter does not fit; the table is none, or is given and neither checkpoint is of training.
    """
    references = [reference_of(model) for model in (a, b)]
    named = as_hub_models([open_model(reference) for reference in references], read_names(names))
    left, right = (with_adapter(decoded(own), reference) for own, reference in zip(named, references, strict=True))
    return Difference(tuple(compare(left, right)), (*left.notes, *right.notes))


def compare(a: Adapted, b: Adapted) -> Iterator[TensorDifference]:
    """Yield the difference of every tensor, in the order of ``a``, then those that only ``b`` has."""
    with InputFiles((*a.files, *b.files)) as inputs:
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

    def __init__(self, entry: InputTensor, inputs: InputFiles, memory: Arena, at: int):
        self._entry, self._inputs, self._memory, self._at = entry, inputs, memory, at

    def elements(self, start: int, stop: int) -> Tensor:
        entry, size = self._entry, self._entry.dtype.itemsize
        into = self._memory.bytes[self._at : self._at + (stop - start) * size]
        self._inputs.read(entry.path, entry.offset + start * size, into)
        return self._memory.tensor(self._at, entry.dtype, (stop - start,))


class _Rounded:
    """The elements of a tensor with its adapters, as a merge of its model alone writes them."""

    def __init__(self, entry: InputTensor, inputs: InputFiles):
        self._values, self._dtype = Folded(entry, inputs), entry.dtype

    def elements(self, start: int, stop: int) -> Tensor:
        return self._values.elements(start, stop).to(self._dtype.torch)


def _elements(a: InputTensor, b: InputTensor, inputs: InputFiles, memory: Arena) -> tuple[_Elements, _Elements]:
    """Return what reads two tensors, in one form: strips, or torch's tensors for what numpy does not hold."""
    compiled = kernels.OPERATIONS["gram"].choose("cpu")[0] == "cpu"
    if compiled and not any(not entry.plain or entry.dtype.name.startswith(("float8", "float4")) for entry in (a, b)):
        return _Stored(a, inputs, memory, 0), _Stored(b, inputs, memory, memory.size // 2)
    return _Rounded(a, inputs), _Rounded(b, inputs)


def _compare(name: str, a: InputTensor, b: InputTensor, values: tuple[_Elements, _Elements]) -> TensorDifference:
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
        return TensorDifference(name, "compared", share, elements=numel)
    if not numel:
        return TensorDifference(name, "compared", share, 0.0, math.nan, 0, (0.0, 0.0, 0.0))
    gram = kernels.gram_matrix(np.concatenate(products), 2).tolist()
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    l2 = math.sqrt(kernels.total(np.concatenate(squares))[0])
    cosine = gram[0][1] / norms if norms else math.nan
    return TensorDifference(name, "compared", share, l2, cosine, numel, (gram[0][0], gram[1][1], gram[0][1]))


def _count(different: Any) -> int:
    """Return the true elements of a tensor or an array."""
    return int(np.count_nonzero(different))


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
