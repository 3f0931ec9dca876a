"""Comparison of two checkpoints, tensor by tensor, streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..checkpoint import Checkpoint, TensorEntry
from ..dtypes import bfloat16, float16, float32
from ..engine.files import InputFiles
from ..engine.reading import Values

CHUNK = 256 * kernels.GRID
FLOATS = (float32, bfloat16, float16)


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
        for name, entry in a.tensors.items():
            other = b.tensors.get(name)
            if other is None:
                yield TensorDifference(name, "only in a")
            elif entry.shape != other.shape:
                yield TensorDifference(name, "shapes differ")
            else:
                yield _compare(name, entry, other, inputs)
    for name in b.tensors:
        if name not in a.tensors:
            yield TensorDifference(name, "only in b")


def _compare(name: str, a: TensorEntry, b: TensorEntry, inputs: InputFiles) -> TensorDifference:
    numel = math.prod(a.shape)
    measurable = a.dtype in FLOATS and b.dtype in FLOATS
    changed, products, squares = 0, [], []
    values = [Values(entry, inputs) for entry in (a, b)]
    for start in range(0, numel, CHUNK):
        left, right = (own.elements(start, min(start + CHUNK, numel)) for own in values)
        changed += int(torch.count_nonzero(left != right))
        if measurable:
            products.append(_gram([left, right], None))
            squares.append(_gram([right], left))
    share = changed / numel if numel else 0.0
    if not measurable:
        return TensorDifference(name, "compared", share)
    if not numel:
        return TensorDifference(name, "compared", share, 0.0, math.nan)
    gram = kernels.gram_matrix(torch.cat(products), 2).tolist()
    norms = math.sqrt(gram[0][0]) * math.sqrt(gram[1][1])
    l2 = math.sqrt(kernels.total(torch.cat(squares))[0])
    return TensorDifference(name, "compared", share, l2, gram[0][1] / norms if norms else math.nan)


def _gram(tensors: list[Tensor], base: Tensor | None) -> Tensor:
    pairs = len(kernels.pairs(len(tensors)))
    partials = torch.empty(-(-tensors[0].numel() // kernels.GRID), pairs, dtype=torch.float64)
    kernels.gram_partials(partials, tensors, base)
    return partials
