"""Rows: a survey and an apply that take every row of a tensor, or every column, for a vector of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..kernels import GRID, download_all, on_host, pairs
from .apply import DeltaMerge
from .blocks import BLOCK
from .source import Chunk, Resident, Source
from .survey import Survey

if TYPE_CHECKING:
    from torch import Tensor

# Partial sums of a row are added in so many lanes, then in a binary tree.
LANES = 256


@dataclass(frozen=True)
class Rows:
    """How a tensor, seen as (outer, length, inner), falls into ``outer * inner`` vectors along its middle dimension."""

    outer: int
    length: int
    inner: int

    @classmethod
    def along(cls, shape: tuple[int, ...], dim: int) -> Rows:
        """Return the vectors of a tensor along ``dim``; a scalar is one of length 1."""
        if not shape:
            return cls(1, 1, 1)
        dim %= len(shape)
        return cls(math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]))

    @property
    def count(self) -> int:
        return self.outer * self.inner

    @property
    def unit(self) -> int | None:
        """Elements that are added up together: they lie in one row, and in one chunk however the tensor is cut.

        None where that would leave more partial sums than it is worth: such a tensor has to come whole.
        """
        unit = math.gcd(self.length, GRID)
        return unit if self.inner == 1 and unit >= LANES else None

    def scratch_bytes(self, models: int) -> int | None:
        """Return what survey and apply take of a tensor that must come whole, as ``Method.scratch_bytes``."""
        return None if self.unit else 8 * ((models + 4) * BLOCK + 4 * models**2 * self.count)

    def blocks(self, offset: int, numel: int, most: int = BLOCK) -> Iterator[tuple[slice, int, int]]:
        """Cut elements ``offset .. offset + numel - 1`` into blocks: elements of the part, first row, rows.

        A block is some whole rows, or a part of one, of ``most`` elements. Of columns (inner > 1) the tensor is whole.
        """
        assert self.inner == 1
        at = 0
        while at < numel:
            row, begun = divmod(offset + at, self.length)
            fit = min(most, numel - at) // self.length
            if begun == 0 and fit:
                size, rows = fit * self.length, fit
            else:
                size, rows = min(most, self.length - begun, numel - at), 1
            yield slice(at, at + size), row, rows
            at += size


@dataclass(frozen=True)
class RowGram(Survey):
    """The Gram matrices [vectors, N, N] (float64) of the deltas, or of the inputs where there is no base.

    One read, of a whole tensor where ``rows.unit`` is None. Products are exact; a sum of n of them has at most
    ``n / 256 + 8`` roundings in a unit and then one per unit, in a fixed order.
    """

    rows: Rows

    def run(self, source: Source) -> np.ndarray:
        unit = self.rows.unit
        if unit is None:
            (chunk,) = source.chunks()
            return self._answer(on_host(self._table(chunk)))
        table = None
        for chunk in source.chunks():
            part = on_host(self._table(chunk))
            if table is None:
                table = np.zeros((source.numel // unit, part.shape[1]), part.dtype)
            table[chunk.offset // unit : chunk.offset // unit + len(part)] = part
        assert table is not None, "a source yields at least one chunk"
        return self._answer(source.reduce(table))

    @classmethod
    def start_all(cls, surveys: Sequence[Any], sources: Sequence[Resident]) -> Callable[[], list[Any]]:
        tables = [survey._table(*source.chunks()) for survey, source in zip(surveys, sources, strict=True)]
        wait = download_all(tables)
        return lambda: [survey._answer(table) for survey, table in zip(surveys, wait(), strict=True)]

    def _table(self, chunk: Chunk) -> Tensor:
        """Return the products [vectors, pairs] of a chunk, or where there are units, those of its units."""
        unit = self.rows.unit
        return _gram(chunk, Rows(chunk.tensors[0].numel() // unit, unit, 1) if unit else self.rows)

    def _answer(self, table: np.ndarray) -> np.ndarray:
        """Return the matrices of a whole table."""
        if self.rows.unit is None:
            return _symmetric(table)
        units = table.reshape(self.rows.count, -1, table.shape[1])
        sums = np.zeros((self.rows.count, table.shape[1]), table.dtype)
        for i in range(units.shape[1]):
            sums += units[:, i]
        return _symmetric(sums)


@dataclass(frozen=True)
class RowMerge(DeltaMerge):
    """``base + scale * sum_k coefficients[row, k] * (input_k - base)``; without a base, of the inputs themselves.

    In float32, each operation rounded separately, in the order of the inputs; rounded once. ``coefficients`` is
    [vectors, N] float32.
    """

    rows: Rows
    coefficients: np.ndarray
    scale: float = 1.0

    @property
    def at_once(self) -> bool:
        return self.rows.inner > 1

    @property
    def gains(self) -> list[float]:
        if not len(self.coefficients):
            return [0.0] * self.coefficients.shape[1]
        return (np.abs(self.coefficients).max(0) * abs(self.scale)).tolist()

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        import torch

        if not out.numel():
            return
        coefficients = torch.from_numpy(self.coefficients).to(out.device)
        every = [t.view(-1) for t in (out, *chunk.every)]
        if self.rows.inner == 1:
            for block, row, rows in self.rows.blocks(chunk.offset, out.numel()):
                parts = [t[block].view(rows, -1) for t in every]
                self._merge(parts, coefficients[row : row + rows, None].unbind(-1), chunk.base is not None)
            return
        columns = coefficients.view(self.rows.outer, self.rows.inner, coefficients.shape[1])
        step = max(1, BLOCK // self.rows.inner)
        for outer in range(self.rows.outer):
            for first in range(0, self.rows.length, step):
                parts = [t.view(-1, self.rows.length, self.rows.inner)[outer, first : first + step] for t in every]
                self._merge(parts, columns[outer].unbind(-1), chunk.base is not None)

    def _merge(self, parts: list[Tensor], coefficients: tuple[Tensor, ...], has_base: bool) -> None:
        out, *every = parts
        base = every.pop(0).float() if has_base else None
        merged = None
        for tensor, coefficient in zip(every, coefficients, strict=True):
            term = (tensor.float() if base is None else tensor.float() - base) * coefficient
            merged = term if merged is None else merged + term
        assert merged is not None, "a method has at least one input"
        merged *= self.scale
        out.copy_(merged if base is None else base + merged)


def _gram(chunk: Chunk, rows: Rows) -> Tensor:
    """Return the products [vectors, pairs] of the vectors of a chunk."""
    import torch

    shape = rows.outer, rows.length, rows.inner
    tensors = [t.view(shape) for t in chunk.tensors]
    base = None if chunk.base is None else chunk.base.view(shape)
    entries = pairs(len(tensors))
    table = torch.zeros(rows.outer, rows.inner, len(entries), dtype=torch.float64, device=tensors[0].device)
    # Blocks of whole vectors: their sums do not depend on how many there are.
    many, wide = max(1, BLOCK // max(1, rows.length * rows.inner)), max(1, BLOCK // max(1, rows.length))
    for outer in range(0, rows.outer, many):
        for inner in range(0, rows.inner, wide):
            block = slice(outer, outer + many), slice(None), slice(inner, inner + wide)
            origin = None if base is None else base[block].float()
            vectors = [t[block].float() if origin is None else t[block].float() - origin for t in tensors]
            doubles = [vector.double() for vector in vectors]
            for column, (i, j) in enumerate(entries):
                table[block[0], block[2], column] = _lane_sums(doubles[i] * doubles[j])
    return table.view(rows.count, len(entries))


def _lane_sums(values: Tensor) -> Tensor:
    """Sum ``values`` [outer, length, inner] over the length: lanes take elements in turn, and are added in a tree."""
    outer, length, inner = values.shape
    lanes = min(LANES, 1 << max(0, length - 1).bit_length())
    if length % lanes or not length:
        padded = values.new_zeros(outer, max(1, -(-length // lanes)) * lanes, inner)
        padded[:, :length] = values
        values = padded
    turns = values.view(outer, -1, lanes, inner)
    sums = turns[:, 0]
    for turn in range(1, turns.shape[1]):
        sums = sums + turns[:, turn]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def _symmetric(products: np.ndarray) -> np.ndarray:
    """Return the matrices [vectors, N, N] of products [vectors, pairs]."""
    count = (math.isqrt(8 * products.shape[1] + 1) - 1) // 2
    matrices = np.zeros((len(products), count, count))
    for column, (i, j) in enumerate(pairs(count)):
        matrices[:, i, j] = matrices[:, j, i] = products[:, column]
    return matrices
