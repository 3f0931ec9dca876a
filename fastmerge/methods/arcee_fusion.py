"""Arcee Fusion: take over the elements that matter most, by change and by divergence of their row."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import kernels
from ..kernels import keep_all
from ..steps.apply import DeltaMerge, SparseMerge
from ..steps.blocks import BLOCK, block_size
from ..steps.method import Group, Method, Solve, method
from ..steps.rows import Rows
from ..steps.source import Chunk, Source
from ..steps.survey import Survey

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Added to probabilities.
_FLOOR = 1e-8


@method
class ArceeFusion(Method):
    """theta = base + d * [s >= median(s) + 1.5 (q3(s) - q1(s))],   s = |d| * KL(row)   (mergekit).

    d = theta_0 - base. KL(row) is the divergence of the softmax of the model's row from that of the base's, rows lying
    along the last dimension, with 1e-8 added to every probability. The median and the quartiles q1 and q3 are those of
    all elements of the tensor, linear between neighbours; mergekit samples a million of them from larger tensors.

    Rows of fine-tunes diverge by less than float32 can tell: then rounding decides which rows are taken over, here as
    in mergekit, so that another device may give another result. ``semantics: exact`` computes the divergences in
    float64.

    Raises ValueError when an input holds NaN or infinity.
    """

    name = "arcee_fusion"
    base = "required"
    inputs = (1, 1)
    semantics = ("mergekit", "exact")
    summary = "the base with the most changed elements"
    paper = "mergekit (Goddard et al. 2024, arXiv 2403.13257)"
    homogeneous = False
    neutral = False

    def merge(self, group: Group) -> Solve:
        import torch

        rows = Rows.along(group.shape, -1)
        if not group.numel:
            return SparseMerge([1.0], [keep_all()])
        dtype = torch.float64 if group.semantics == "exact" else torch.float32
        divergences, threshold = yield Importance(rows, dtype, group.name)
        return Fusion(rows, divergences, threshold)

    def scratch_bytes(self, group: Group) -> int | None:
        """Scores and their positive or negative part, and the temporaries of a block of rows."""
        rows = Rows.along(group.shape, -1)
        return 8 * group.numel + 4 * rows.count + 64 * max(BLOCK, rows.length)


@dataclass(frozen=True)
class Importance(Survey):
    """The divergence of each row (float32), and the score from which on elements are taken over. Of a whole tensor."""

    rows: Rows
    dtype: torch.dtype
    name: str

    def run(self, source: Source) -> tuple[Tensor, float]:
        import torch

        (chunk,) = source.chunks()
        device = chunk.tensors[0].device
        scores = torch.empty(self.rows.count, self.rows.length, dtype=torch.float32, device=device)
        divergences = torch.empty(self.rows.count, dtype=torch.float32, device=device)
        step = max(1, block_size(chunk.tensors[0], BLOCK) // self.rows.length)
        parts = chunk.map(lambda tensor: tensor.view(-1, self.rows.length).split(step))
        assert parts.base is not None, "the method requires a base"
        row = 0
        for base, tensor in zip(parts.base, parts.tensors[0], strict=True):
            block = slice(row, row + len(base))
            divergences[block] = _divergence(tensor.to(self.dtype), base.to(self.dtype))
            torch.mul((tensor.float() - base.float()).abs_(), divergences[block, None], out=scores[block])
            # Both are NaN where a score is. To ask each whether it is finite takes ten times as long.
            if not all(map(math.isfinite, scores[block].aminmax())):
                raise ValueError(f"{self.name}: an input holds NaN or infinity; rows of it have no softmax")
            row = block.stop
        return divergences, _threshold(scores.view(-1))


@dataclass(frozen=True)
class Fusion(DeltaMerge):
    """``base + scale * d`` where ``|d| * divergences[row] >= threshold``, elsewhere the base."""

    rows: Rows
    divergences: Tensor
    threshold: float
    scale: float = 1.0

    @property
    def gains(self) -> Sequence[float]:
        return [self.scale]

    def __call__(self, out: Tensor, chunk: Chunk) -> None:
        divergences = self.divergences.to(out.device)
        assert chunk.base is not None, "the method requires a base"
        flat, whole, tensor = out.view(-1), chunk.base.view(-1), chunk.tensors[0].view(-1)
        for block, row, rows in self.rows.blocks(chunk.offset, out.numel(), block_size(out, BLOCK)):
            base = whole[block]
            delta = tensor[block].float() - base.float()
            scores = delta.view(rows, -1).abs() * divergences[row : row + rows, None]
            delta *= (scores >= self.threshold).view(-1)
            kernels.weighted_sum(flat[block], [base, delta], [1.0, self.scale])


def _divergence(tensor: Tensor, base: Tensor) -> Tensor:
    """Return the divergence of every row of ``tensor`` from that of ``base``."""
    import torch

    p, q = tensor.softmax(-1).add_(_FLOOR), base.softmax(-1).add_(_FLOOR)
    return (p * torch.div(p, q, out=q).log_()).sum(-1)


def _threshold(scores: Tensor) -> float:
    """Return the median plus 1.5 times the distance of the quartiles. Rounding makes scores negative."""
    import torch

    places = [share * (scores.numel() - 1) for share in (0.25, 0.5, 0.75)]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    values = {rank: torch.tensor(value) for rank, value in zip(ranks, _ranked(scores, ranks), strict=True)}
    q1, q2, q3 = (torch.lerp(values[math.floor(place)], values[math.ceil(place)], place % 1) for place in places)
    return (q2 + 1.5 * (q3 - q1)).item()


def _ranked(scores: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the elements that have these ranks in rising order, from 0; ``scores`` are overwritten."""
    negative = int((scores < 0).count_nonzero())
    below = [rank for rank in ranks if rank < negative]
    above = [rank for rank in ranks if rank >= negative]
    found = [-value for value in _largest(scores.neg().clamp_(min=0), [rank + 1 for rank in below])] if below else []
    return found + (_largest(scores.clamp_(min=0), [scores.numel() - rank for rank in above]) if above else [])


def _largest(values: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the largest values of these ranks, from 1; ``values`` are not below 0."""
    (boundaries,) = kernels.select_boundaries([values], None, [list(ranks)])
    return [
        # All elements have no boundary among them.
        values.min().item() if rank == len(values) else struct.unpack("f", struct.pack("I", boundary.threshold))[0]
        for rank, boundary in zip(ranks, boundaries, strict=True)
    ]
