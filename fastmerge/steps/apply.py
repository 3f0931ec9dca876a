"""Applies: one fused element-wise pass from the inputs of a tensor to its output. No intermediate tensor exists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import kernels
from ..kernels import FoundBoundary, FoundFactors, Keep, keep_all
from ..kernels.sparse_merge import Divide, Vote
from .arrays import as_strip, quiet
from .blocks import Selection, delta_blocks
from .source import Chunk

if TYPE_CHECKING:
    from torch import Tensor

# Makes the merged delta of a block from the deltas of the models and what the step of the merge makes of them; all
# are float32 vectors of the same elements, of which no other can be seen: torch's, or numpy's (``arrays``). It may
# overwrite its arguments.
Change = Callable[[Sequence["Tensor"], "Tensor"], "Tensor"]


class Apply(ABC):
    """A pass over the inputs. Called once per chunk, in any order; the chunking never changes a bit."""

    @property
    def remarks(self) -> Sequence[str]:
        """What the user should know once it was applied, one sentence each."""
        return ()

    @property
    def carries(self) -> bool:
        """True when NaN or infinity in any input always shows in the output."""
        return False

    @property
    def left(self) -> list[FoundBoundary | FoundFactors]:
        """The answers that it takes from the device: where one was not found, it writes nothing."""
        return []

    @abstractmethod
    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        """Write the merge of ``chunk`` into ``out``, shaped like its tensors and contiguous."""

    def job(self, out: Tensor, chunk: Chunk) -> kernels.SumJob | kernels.MergeJob | None:
        """Return the operation that is all of a call, where it is one whose arguments the host knows; else None."""
        return None

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        """Run steps of this class, each over one tensor of the same device."""
        for step, out, chunk in zip(steps, outs, chunks, strict=True):
            step(out, chunk)


class DeltaMerge(Apply):
    """``base + scale * merged delta``, a frozen dataclass: what the blocks of a recipe (``boost:``) can change."""

    scale: float

    @property
    def at_once(self) -> bool:
        """True where a chunk must hold the whole tensor."""
        return False

    @property
    @abstractmethod
    def gains(self) -> Sequence[float]:
        """By how much, about, a small change of each model's delta changes the merged one; for estimates of noise."""


@dataclass(frozen=True)
class MatrixPart:
    """Some rows or columns of a matrix, of which other ranks have the others.

    Attributes:
        dim:   along which it is cut: -2 (rows) or -1 (columns); the longer side.
        total: returns the sum of a tensor over the ranks, the same bits on all; it may overwrite its argument.
    """

    dim: int
    total: Callable[[Tensor], Tensor]


class PartedMerge(DeltaMerge):
    """A merge of a matrix that ranks can make together, each of its part, where ``Method.together`` says so.

    Attributes:
        inner: makes the merged delta, element by element.
    """

    inner: DeltaMerge

    @abstractmethod
    def merge_part(self, out: Tensor, chunk: Chunk, merged: Tensor, part: MatrixPart) -> bool:
        """Write this rank's part of the merge into ``out``. Return False, on all ranks, where that is not certified.

        Args:
            out:    this rank's part, contiguous.
            chunk:  the parts of the inputs.
            merged: the part of what ``inner`` adds to the base, float32; may be overwritten.
            part:   of the matrix.
        Raises:
            ValueError: on all ranks.
        """


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

    weights: Sequence[float] | FoundFactors
    carries = True

    @property
    def left(self) -> list[FoundBoundary | FoundFactors]:
        return [self.weights] if isinstance(self.weights, FoundFactors) else []

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        kernels.weighted_sum(out, chunk.every, self.weights)

    def job(self, out: Tensor, chunk: Chunk) -> kernels.SumJob | None:
        return None if self.left else kernels.SumJob(out, chunk.every, self.weights)

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        passes = zip(steps, outs, chunks, strict=True)
        kernels.weighted_sum_many([kernels.SumJob(out, chunk.every, step.weights) for step, out, chunk in passes])


@dataclass(frozen=True)
class SpanSum(Apply):
    """``base + sum_k weights[k] * (input_k - base)``, or where there is no base ``sum_k weights[k] * input_k``."""

    weights: Sequence[float]
    carries = True

    def _step(self, chunk: Chunk) -> SparseMerge | WeightedSum:
        if chunk.base is None:
            return WeightedSum(self.weights)
        return SparseMerge(self.weights, [keep_all()] * len(self.weights))

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        self._step(chunk)(out, chunk)

    def job(self, out: Tensor, chunk: Chunk) -> kernels.SumJob | kernels.MergeJob | None:
        return self._step(chunk).job(out, chunk)

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        same = [step._step(chunk) for step, chunk in zip(steps, chunks, strict=True)]
        # All of one merge have a base, or none of them.
        type(same[0]).apply_all(same, outs, chunks)


@dataclass(frozen=True)
class SparseMerge(DeltaMerge):
    """``base + scale * merged deltas``; the fields are the arguments of ``kernels.sparse_merge``."""

    factors: Sequence[float] | FoundFactors
    keeps: Sequence[Keep]
    weights: Sequence[float] | None = None
    vote: Vote = "none"
    divide: Divide = "none"
    scale: float = 1.0

    @property
    def carries(self) -> bool:
        return self.vote != "count"  # which may outvote an infinity

    @property
    def gains(self) -> Sequence[float]:
        assert not isinstance(self.factors, FoundFactors), "methods that leave answers on the device have no blocks"
        divisors = {"none": 1.0, "weights": abs(sum(self.weights or self.factors)), "count": float(len(self.factors))}
        return [factor * self.scale / (divisors[self.divide] or 1.0) for factor in self.factors]

    @property
    def left(self) -> list[FoundBoundary | FoundFactors]:
        factors = [self.factors] if isinstance(self.factors, FoundFactors) else []
        return [*factors, *(boundary for keep in self.keeps for boundary in keep.found)]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        kernels.sparse_merge(out, _base(chunk), chunk.tensors, offset=chunk.offset, **vars(self))

    def job(self, out: Tensor, chunk: Chunk) -> kernels.MergeJob | None:
        if self.left:
            return None
        return kernels.MergeJob(out, _base(chunk), chunk.tensors, offset=chunk.offset, **vars(self))

    @classmethod
    def apply_all(cls, steps: Sequence[Any], outs: Sequence[Tensor], chunks: Sequence[Chunk]) -> None:
        passes = zip(steps, outs, chunks, strict=True)
        kernels.sparse_merge_many(
            [
                kernels.MergeJob(out, _base(chunk), chunk.tensors, offset=chunk.offset, **vars(step))
                for step, out, chunk in passes
            ]
        )


@dataclass(frozen=True)
class ElementwiseMerge(DeltaMerge):
    """``base + scale * change(deltas, merged)``: for methods with a formula of their own per element.

    ``change`` is called on blocks that fit a core's cache. It passes over a block once per operation, so this takes
    several times the CPU time of a ``SparseMerge``, and no more memory traffic.

    Attributes:
        weights: delta k is ``weights[k] * (theta_k - base)``, or ``weights[k] * theta_k`` where there is no base.
        change:  see ``Change``. NaN and infinity must stay, so what drops an element multiplies it by 0.
        step:    makes ``merged`` from the deltas without their weights; None: ``merged`` is zeros.
        scale:   multiplies the result of ``change``.
        selection: the elements that take part: the deltas of the others are 0 before anything is made of them.
    """

    weights: Sequence[float]
    change: Change
    step: SparseMerge | None = None
    scale: float = 1.0
    selection: Selection | None = None

    @property
    def gains(self) -> Sequence[float]:
        return [gain * self.scale for gain in (self.weights if self.step is None else self.step.gains)]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        flat = out.view(-1)
        with quiet():
            for block in delta_blocks(chunk, self.weights, self.step, self.selection):
                result = as_strip(self.change(block.deltas, block.merged))
                base, plus = ([], []) if block.base is None else ([block.base], [1.0])
                span = slice(block.span.start, block.span.start + len(result))
                kernels.weighted_sum(flat[span], [*base, result], [*plus, self.scale])


def _base(chunk: Chunk) -> Tensor:
    assert chunk.base is not None, "a method that applies a sparse merge requires a base"
    return chunk.base
