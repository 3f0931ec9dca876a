"""Applies: one fused element-wise pass from the inputs of a tensor to its output. No intermediate tensor exists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import kernels
from ..kernels import Keep, keep_all
from ..kernels.sparse_merge import Divide, Vote
from .source import Chunk


class Apply(ABC):
    """A pass over the inputs. Called once per chunk, in any order; the chunking never changes a bit."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know once it was applied, one sentence each."""
        return ()

    @abstractmethod
    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        """Write the merge of ``chunk`` into ``out``, shaped like its tensors and contiguous."""

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        """Run steps of this class, each over one tensor of the same device."""
        for step, out, chunk in zip(steps, outs, chunks, strict=True):
            step(out, chunk)


class DeltaMerge(Apply):
    """``base + scale * merged delta``, a frozen dataclass: what the blocks of a recipe (``boost:``) can change."""

    scale: float

    @property
    @abstractmethod
    def gains(self) -> Sequence[float]:
        """By how much, about, a small change of each model's delta changes the merged one; for estimates of noise."""


@dataclass(frozen=True)
class Copy(Apply):
    """One input as it is, rounded once to the dtype of the output.

    ``index`` counts all inputs, base first; -1 is the last.
    """

    index: int

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        kernels.weighted_sum(out, [chunk.every[self.index]], [1.0])


@dataclass(frozen=True)
class WeightedSum(Apply):
    """``sum_k weights[k] * input_k`` over all inputs, base first where there is one."""

    weights: Sequence[float]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        kernels.weighted_sum(out, chunk.every, self.weights)

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        passes = zip(steps, outs, chunks, strict=True)
        kernels.weighted_sum_many([kernels.SumJob(out, chunk.every, step.weights) for step, out, chunk in passes])


@dataclass(frozen=True)
class SpanSum(Apply):
    """``base + sum_k weights[k] * (input_k - base)``, or where there is no base ``sum_k weights[k] * input_k``."""

    weights: Sequence[float]

    def _step(self, chunk: Chunk) -> SparseMerge | WeightedSum:
        if chunk.base is None:
            return WeightedSum(self.weights)
        return SparseMerge(self.weights, [keep_all()] * len(self.weights))

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        self._step(chunk)(out, chunk)

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        same = [step._step(chunk) for step, chunk in zip(steps, chunks, strict=True)]
        # All of one merge have a base, or none of them.
        type(same[0]).apply_all(same, outs, chunks)


@dataclass(frozen=True)
class SparseMerge(DeltaMerge):
    """``base + scale * merged deltas``; the fields are the arguments of ``kernels.sparse_merge``."""

    factors: Sequence[float]
    keeps: Sequence[Keep]
    weights: Sequence[float] | None = None
    vote: Vote = "none"
    divide: Divide = "none"
    scale: float = 1.0

    @property
    def gains(self) -> Sequence[float]:
        divisors = {"none": 1.0, "weights": abs(sum(self.weights or self.factors)), "count": float(len(self.factors))}
        return [factor * self.scale / (divisors[self.divide] or 1.0) for factor in self.factors]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        kernels.sparse_merge(out, _base(chunk), chunk.tensors, offset=chunk.offset, **vars(self))

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        passes = zip(steps, outs, chunks, strict=True)
        kernels.sparse_merge_many(
            [
                kernels.MergeJob(out, _base(chunk), chunk.tensors, offset=chunk.offset, **vars(step))
                for step, out, chunk in passes
            ]
        )


def _base(chunk: Chunk) -> Tensor:
    assert chunk.base is not None, "a method that applies a sparse merge requires a base"
    return chunk.base
