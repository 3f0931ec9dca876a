"""Blocks: a chunk in parts that fit a core's cache, for what computes with the elements of deltas itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import kernels
from ..dtypes import float32
from ..kernels import GRID, Keep, Strip, empty
from .arrays import as_strip, values_of
from .source import Chunk

if TYPE_CHECKING:
    from torch import Tensor

# Elements of an ``ElementwiseMerge`` at once. For a thread of the processor, what is computed from four models takes
# 1.5 MiB of these, about a core's cache; torch shares each operation among its threads. Threads of Python, each with
# blocks of its own, took two to three times as long: they wait for the interpreter's lock. Where they are, in merges
# with numpy, blocks are larger, so that the lock passes on less often: of half the size, four threads take twice the
# processor's time. On a GPU a launch takes as long as 2**20 elements.
BLOCK, STRIP_BLOCK, DEVICE_BLOCK = 4 * GRID, 8 * GRID, 1 << 20

# Merges the deltas of a chunk into a base of zeros, which is written: a ``SparseMerge``.
Step = Callable[["Tensor", Chunk], None]


@dataclass(frozen=True)
class Selection:
    """Elements that take part in a merge: those that ``keep`` keeps by a score of theirs.

    Attributes:
        score: makes the scores of a block from its deltas, float32, not below 0; must leave the deltas as they are. An
               element with the score 0 is never kept.
        keep:  keep rule over the scores of the whole tensor.
    """

    score: Callable[[Sequence[Tensor]], Tensor]
    keep: Keep

    def mask(self, deltas: Sequence[Tensor], zeros: Tensor, offset: int) -> Tensor:
        """Return where the elements from ``offset`` on are kept (bool); NaN is."""
        found = as_strip(self.score(deltas))
        kernels.sparse_merge(found, as_strip(zeros), [found], factors=[1.0], keeps=[self.keep], offset=offset)
        return values_of(found) != 0


@dataclass(frozen=True)
class Block:
    """Some elements of a chunk, flat.

    Attributes:
        span:   their place in the chunk.
        base:   those of the base as they are, or None.
        deltas: per model, float32, times its weight.
        merged: what the step makes of the deltas without their weights, float32; zeros where there is none.
    """

    span: slice
    base: Tensor | None
    deltas: Sequence[Tensor]
    merged: Tensor


def delta_blocks(
    chunk: Chunk, weights: Sequence[float], step: Step | None = None, selection: Selection | None = None
) -> Iterator[Block]:
    """Cut a chunk into blocks on the grid of the reductions. Each is valid until the next one is taken."""
    size = block_size(chunk.tensors[0])
    inputs = chunk.map(lambda tensor: tensor.view(-1))
    like = inputs.tensors[0]
    numel = like.numel()
    scratch = [empty(like, float32, min(numel, size)) for _ in range(len(chunk.tensors) + 1)]
    for start in range(0, max(1, numel), size):
        span = slice(start, start + size)
        base, minus = ([], []) if inputs.base is None else ([inputs.base[span]], [-1.0])
        *places, place = [part[: min(size, numel - start)] for part in scratch]
        for delta, tensor in zip(places, inputs.tensors, strict=True):
            kernels.weighted_sum(delta, [*base, tensor[span]], [*minus, 1.0])
        *deltas, merged = map(values_of, (*places, place))
        merged[:] = 0
        if selection is not None:
            mask = selection.mask(deltas, merged, chunk.offset + start)
            for delta in deltas:
                delta *= mask
        if step is not None:
            step(place, Chunk(place, tuple(places), chunk.offset + start))
        for delta, weight in zip(deltas, weights, strict=True):
            if weight != 1:
                delta *= weight
        yield Block(span, base[0] if base else None, deltas, merged)


def block_size(like: Tensor, on_device: int = DEVICE_BLOCK) -> int:
    """Return the elements of a tensor that are worked on at once; on a GPU, so many."""
    if like.device.type != "cpu":
        return on_device
    if type(like) is Strip:
        return STRIP_BLOCK
    import torch

    return BLOCK * torch.get_num_threads()
