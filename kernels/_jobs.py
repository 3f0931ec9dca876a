"""The arguments of one call of an operation, as callers give them and, once checked, as every backend takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ._checks import float32
from ._found import FoundFactors
from .keep import Keep

if TYPE_CHECKING:
    from torch import Tensor

# The positions are the numbers of csrc/fastmerge_math.h.
VOTES = ("none", "weighted", "sum", "count")
DIVIDES = ("none", "weights", "count")
Vote = Literal["none", "weighted", "sum", "count"]
Divide = Literal["none", "weights", "count"]


class SumJob(NamedTuple):
    """The arguments of one ``weighted_sum``."""

    out: Tensor
    tensors: Sequence[Tensor]
    weights: Sequence[float] | FoundFactors


class MergeJob(NamedTuple):
    """The arguments of one ``sparse_merge``. Backends get scalars rounded to float32, and weights that are given."""

    out: Tensor
    base: Tensor
    tensors: Sequence[Tensor]
    factors: Sequence[float] | FoundFactors
    keeps: Sequence[Keep]
    weights: Sequence[float] | None = None
    vote: Vote = "none"
    divide: Divide = "none"
    scale: float = 1.0
    offset: int = 0

    @property
    def answered(self) -> bool:
        """False where some of the factors and boundaries are known to the device alone."""
        if isinstance(self.factors, FoundFactors):
            return False
        return all(keep.inside is None and keep.outside is None for keep in self.keeps)

    @property
    def divisor(self) -> float:
        """What an unelected sum is divided by, added up in float32 in the order of the models; 1 for any other."""
        if self.vote != "none" or self.divide == "none":
            return 1.0
        if self.divide == "count":
            return float(len(self.tensors))
        weights = self.weights if self.weights is not None else numbers(self.factors)
        total = float32(weights[0])
        for weight in weights[1:]:
            # Rounded twice, from float64, a sum of two float32 is the same.
            total = float32(total + float32(weight))
        return total if abs(total) >= float32(1e-8) else 1.0


def numbers(factors: Sequence[float] | FoundFactors) -> Sequence[float]:
    """Return one number per model, which what a device finds has, too."""
    return factors.weights if isinstance(factors, FoundFactors) else factors


class SelectJob(NamedTuple):
    """The arguments of one ``select_boundaries``."""

    tensors: Sequence[Tensor]
    base: Tensor | None
    ranks: Sequence[Sequence[int]]
