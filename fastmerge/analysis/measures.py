"""What one read of a tensor tells of the models' deltas: inner products, and exact counts of changes and of signs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kernels
from ..engine.reading import CHUNK, DeltaReader
from ..errors import Refused
from ..plan.types import InputTensor

__all__ = ["Measure", "add_up", "cosines", "measure", "measure_bytes", "opposed_shares", "weighted_opposed_shares"]

# What the kernels read as it is.
_READABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Measure:
    """Sums over the elements of one tensor, or of several.

    Attributes:
        numel:     elements.
        base:      squared norm of the base, in float64.
        gram:      [N, N] float64, inner products of the deltas (``kernels.gram``).
        changed:   [N, N] int64: elements that both models changed; the diagonal counts what one model changed.
        opposed:   [N, N] int64: elements that both changed in opposite directions.
        weights:   [N, N] float64: sums of |d_i d_j| over the elements, products in float32.
        shared:    elements that at least two models changed.
        conflicts: of these, elements whose changes have both signs.
    """

    numel: int
    base: float
    gram: Tensor
    changed: Tensor
    opposed: Tensor
    weights: Tensor
    shared: int
    conflicts: int

    @property
    def norms(self) -> list[float]:
        """Norms of the deltas."""
        return self.gram.diagonal().sqrt().tolist()

    @property
    def relative_norms(self) -> list[float]:
        """Norms of the deltas over that of the base; 0 where the base is zero."""
        return [norm / self.base**0.5 if self.base else 0.0 for norm in self.norms]

    @property
    def densities(self) -> list[float]:
        """Share of the elements that each model changed."""
        return (self.changed.diagonal().double() / self.numel).tolist()

    @property
    def conflict(self) -> float:
        """Share of the elements changed by two models or more whose changes have both signs; NaN without any."""
        return self.conflicts / self.shared if self.shared else math.nan

    @property
    def opposition(self) -> float:
        """Share of the pairs of changes of one element that go apart, over all pairs of models; NaN without pairs."""
        pairs = torch.ones_like(self.changed).triu(1)
        both = int((self.changed * pairs).sum())
        return int((self.opposed * pairs).sum()) / both if both else math.nan

    @property
    def weighted_opposition(self) -> float:
        """``opposition`` with each pair of changes weighted by |d_i d_j|; NaN without pairs."""
        pairs = torch.ones_like(self.gram).triu(1)
        weight = float((self.weights * pairs).sum())
        return min(1.0, max(0.0, (1 - float((self.gram * pairs).sum()) / weight) / 2)) if weight else math.nan


def measure(
    reader: DeltaReader, base: InputTensor | None, models: Sequence[InputTensor], labels: Sequence[str]
) -> Measure:
    """Read a tensor of all models once. Without a base the deltas are the values themselves.

    Raises:
        Refused: a delta holds NaN or infinity; the message names the tensor and the models.
    """
    count = len(models)
    products, squares = [], []
    signed, changed = (torch.zeros(count, count, dtype=torch.int64) for _ in range(2))
    weights = torch.zeros(count, count, dtype=torch.float64)
    numel = shared = conflicts = 0
    buffer = torch.empty(count, CHUNK)
    for chunk in reader.chunks([*([] if base is None else [base]), *models]):
        chunk = [values if values.dtype in _READABLE else values.float() for values in chunk]
        origin, tuned = (None, chunk) if base is None else (chunk[0], chunk[1:])
        products.append(_gram(tuned, origin))
        signs = buffer[:, : len(tuned[0])]
        if origin is None:
            for row, values in zip(signs, tuned, strict=True):
                row.copy_(values)
        else:
            squares.append(_gram([origin], None))
            wide = origin.float()
            for row, values in zip(signs, tuned, strict=True):
                torch.sub(values, wide, out=row)
        sizes = signs.abs()
        weights += (sizes @ sizes.T).double()
        signs.sign_()
        # Integers below 2^24: exact in float32, in any order.
        signed += (signs @ signs.T).long()
        apart = signs.amin(0) * signs.amax(0) < 0
        signs.abs_()
        changed += (signs @ signs.T).long()
        shared += int(torch.count_nonzero(signs.sum(0) >= 2))
        conflicts += int(torch.count_nonzero(apart))
        numel += len(tuned[0])
    gram = torch.from_numpy(kernels.gram_matrix(torch.cat(products), count))
    broken = [label for label, square in zip(labels, gram.diagonal(), strict=True) if not square.isfinite()]
    if broken:
        raise Refused(
            f"{(base or models[0]).name}: the difference from the base holds NaN or infinity in {', '.join(broken)}. "
            "Repair the model, or leave it out"
        )
    square = kernels.total(torch.cat(squares))[0] if squares else 0.0
    return Measure(numel, square, gram, changed, (changed - signed) // 2, weights, shared, conflicts)


def measure_bytes(count: int, numel: int) -> int:
    """Return a bound of what ``measure`` takes beside the reading, for ``count`` models."""
    # Signs and what is formed of them; partial sums, once more when they are joined.
    tables = 16 * (numel // kernels.GRID + 1) * (len(kernels.pairs(count)) + 1)
    return CHUNK * (8 * count + 24) + tables


def add_up(measures: Iterable[Measure]) -> Measure:
    """Return the measure of several tensors together; at least one."""
    first, *rest = measures
    for other in rest:
        first = Measure(
            first.numel + other.numel, first.base + other.base, first.gram + other.gram,
            first.changed + other.changed, first.opposed + other.opposed, first.weights + other.weights,
            first.shared + other.shared, first.conflicts + other.conflicts,
        )  # fmt: skip
    return first


def cosines(measured: Measure) -> Tensor:
    """Return the [N, N] cosines of the deltas, 1 on the diagonal; NaN where a delta is zero."""
    norms = measured.gram.diagonal().sqrt()
    return (measured.gram / (norms.unsqueeze(0) * norms.unsqueeze(1))).clamp(-1, 1)


def opposed_shares(measured: Measure) -> Tensor:
    """Return, per pair, which share of the elements that both changed goes apart; NaN where they share none."""
    return measured.opposed.double() / measured.changed.double()


def weighted_opposed_shares(measured: Measure) -> Tensor:
    """Return ``opposed_shares`` with every element weighted by |d_i d_j|: (1 - gram / weights) / 2."""
    return ((1 - measured.gram / measured.weights) / 2).clamp(0, 1)


def _gram(tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
    partials = torch.empty(-(-len(tensors[0]) // kernels.GRID), len(kernels.pairs(len(tensors))), dtype=torch.float64)
    kernels.gram_partials(partials, tensors, base)
    return partials
